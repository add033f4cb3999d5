//! Every decision of an iota run, as a pure event-sourced state machine.

mod apply;
mod audit;
pub mod cells;
pub mod checkpoint;
pub mod command;
mod consequences;
mod decide;
mod draw;
pub mod event;
pub mod id;
pub mod invariants;
mod learning_rate;
mod lease;
mod merge;
mod pairs;
pub mod peer;
mod phase;
pub mod rejection;
mod routing;
pub mod score;
pub mod settings;
pub mod state;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod time;
pub mod work;

pub use command::{Command, Role};
pub use event::{Event, Phase};
pub use id::{
    AuditId, CellIndex, Digest, Epoch, LeaseId, ObjectId, PeerId, RunId, SampleId, Session,
    StageIndex,
};
pub use learning_rate::learning_rate_at;
pub use rejection::Rejection;
pub use settings::RunSettings;
pub use state::{SessionState, State};
pub use time::Timestamp;
