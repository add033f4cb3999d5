//! How much of anything a message may hold. Whoever reads checks; whoever writes stays below.
//!
//! The bounds keep what a stranger can make us allocate in proportion to what we agreed to read.

use std::time::Duration;

/// Length of a request in bytes, beyond which the server does not read on. The largest is the outcome of an upload:
/// [`CELLS_MAX`] seals of some 44 bytes each.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// Length of an answer in bytes, beyond which the client does not read on. The largest holds a replay: an operation with
/// the grants for its inputs takes some 3 KiB, most of it presigned URLs.
pub const REPLY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long the server holds a long poll at most. Proxies commonly cut idle requests at 30 or 60 s.
pub const HOLD_MAX: Duration = Duration::from_secs(20);

/// Leases that a session can hold, and so list, be sent or lose at a time.
pub const LEASES_MAX: usize = 256;

/// Cells of a stage. C(50, 2) = 1225 when 50 miners upload.
pub const CELLS_MAX: usize = 4096;

/// Peers whose uploads go into one cell. More than miners of a stage (IOTA: 50), by a margin.
pub const UPLOADERS_MAX: usize = 4096;

/// Ranges of a checkpoint: cells of several past merges, cut by one another.
pub const SEGMENTS_MAX: usize = 65_536;

/// Operations in one replay.
pub const LOG_ENTRIES_MAX: usize = 65_536;

/// Grants of one lease: up to four objects per operation of a replay.
pub const GRANTS_MAX: usize = 262_144;

/// Length of a URL in bytes. Presigned URLs with session tokens take up to 2 KiB.
pub const URL_BYTES_MAX: usize = 8192;

/// Headers of one grant.
pub const HEADERS_MAX: usize = 32;

/// Length of a header's name in bytes.
pub const HEADER_NAME_BYTES_MAX: usize = 256;

/// Length of a header's value in bytes.
pub const HEADER_VALUE_BYTES_MAX: usize = 4096;

/// Length of the run's configuration in bytes.
pub const CONFIG_BYTES_MAX: usize = 64 * 1024;

/// Stages of a run, as many as a stage index can tell apart.
pub const STAGES_MAX: usize = 65_536;
