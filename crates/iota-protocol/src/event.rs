//! What happened: the only way a run's state changes, and what the journal keeps.

use serde::{Deserialize, Serialize};

use crate::command::Role;
use crate::id::{CellIndex, Digest, Epoch, LeaseId, PeerId, SampleId, Session, StageIndex};
use crate::time::Timestamp;
use crate::work::{Checkpoint, Failure, Lease, Outcome, Verdict};

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits until every stage has enough miners.
    Gathering,
    /// Samples travel.
    Training,
    /// Miners upload what they learned.
    Uploading,
    /// Owners average cells.
    Merging,
    /// Miners take over what was merged; then the next epoch trains.
    Installing,
    /// All epochs are merged; the last audits are being settled.
    Settling,
    /// The run is complete, or was stopped.
    Over,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionEnd {
    /// It said so.
    Left,
    /// It was not heard of for too long.
    Silent,
    /// The same peer joined again.
    Replaced,
    /// It was found cheating.
    Banned,
    /// The run is over.
    RunOver,
}

/// Why a lease ended without a result that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "end")]
pub enum LeaseEnd {
    /// Its deadline passed. The holder may still complete it while the work is open.
    Expired,
    /// The holder gave it back.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// The holder's session ended.
    SessionOver,
    /// The phase or epoch it belonged to ended.
    EpochClosed,
    /// Somebody else's late result came first.
    Superseded,
}

/// How a cell was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellResult {
    /// Both owners came to the same bits.
    Agreed,
    /// Owners differed and another decided; `liar` names who was wrong.
    Arbitrated {
        /// Whose result was not the majority's.
        liar: Session,
    },
    /// Only one owner delivered before the deadline (or there was only one).
    Single,
    /// Nobody delivered: the epoch's starting values stay.
    CarriedForward,
}
