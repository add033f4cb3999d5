//! Every decision of an iota run, as a pure event-sourced state machine.

pub mod command;
pub mod event;
pub mod id;
pub mod peer;
pub mod rejection;
pub mod settings;
pub mod time;
pub mod work;

pub use command::{Command, Role};
pub use id::{CellIndex, Digest, Epoch, LeaseId, ObjectId, PeerId, RunId, SampleId, Session, StageIndex};
pub use rejection::Rejection;
pub use settings::RunSettings;
pub use time::Timestamp;
