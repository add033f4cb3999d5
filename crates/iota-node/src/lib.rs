//! What every iota process needs, whatever its role: a clock, an orderly end, patience, settings and a voice.
//!
//! ```text
//!   SIGTERM, Ctrl-C        iota.toml   IOTA_…   --flags               stderr or a file
//!        │                     └─────────┼─────────┘                         ▲
//!        ▼                               ▼                                   │
//!   ┌──────────┐   stops    ┌───────┐  ┌──────────┐                    ┌───────────┐
//!   │ Shutdown ├───────────▶│ Retry │  │  Layers  │                    │ Telemetry │
//!   └──────────┘            └───▲───┘  └────┬─────┘                    └─────▲─────┘
//!                               │ sleeps    │ Loaded<T>: values + origins    │ tracing
//!                          ┌────┴──┐        ▼                                │
//!                          │ Clock │      the runtime of an orchestrator, a miner or a validator
//!                          └───────┘                                         │
//!                                                                            ▼ Exit
//! ```
//!
//! A process reads its settings, starts its telemetry, and runs until it is done or told to stop:
//!
//! ```
//! use iota_node::{Clock, Exit, Layers, ManualClock};
//! use iota_protocol::Timestamp;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, Default, Serialize, Deserialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct MinerSettings {
//!     memory_bytes_max: u64,
//! }
//!
//! let variables = [("IOTA_MEMORY_BYTES_MAX".into(), "4096".into())];
//! let loaded = Layers::new(&MinerSettings::default())?.environment(variables)?.load::<MinerSettings>()?;
//! assert_eq!(loaded.settings.memory_bytes_max, 4096);
//! assert_eq!(loaded.show()?, "memory_bytes_max = 4096  # IOTA_MEMORY_BYTES_MAX\n");
//!
//! let clock = ManualClock::new(Timestamp::from_millis(1_000));
//! assert_eq!(clock.now(), Timestamp::from_millis(1_000));
//! assert_eq!(Exit::Done.code(), 0);
//! # Ok::<(), iota_node::SettingsError>(())
//! ```
//!
//! | module | concern |
//! |---|---|
//! | [`blocking`] | work that would hold up an async thread; in its place in simulations |
//! | [`clock`] | what time it is, and waking up later; by hand in tests |
//! | [`shutdown`] | who may ask the process to stop, and how everybody hears of it |
//! | [`retry`] | trying again, later and later, within bounds |
//! | [`settings`] | defaults, file, environment and flags into one checked struct, each value with its origin |
//! | [`files`] | files that are there whole or not at all |
//! | [`telemetry`] | where `tracing` events go and in which dress |
//! | [`exit`] | the exit codes and what they promise |
//! | [`memory`] | how much memory there still is |
//! | [`threads`] | how many threads run at one time |
//!
//! What this crate does *not* know: any setting by name, any message, any peer, tensors, storage, the network. It
//! takes no decision of a run; those live in `iota-protocol`.

pub mod blocking;
pub mod clock;
pub mod exit;
pub mod files;
pub mod memory;
pub mod retry;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod threads;

pub use clock::{Clock, ManualClock, SystemClock};
pub use exit::Exit;
pub use retry::{Backoff, Decision, Policy, Retry, RetryError};
pub use settings::{Layers, Loaded, Origin, SettingsError};
pub use shutdown::Shutdown;
pub use telemetry::{Telemetry, TelemetryError};
