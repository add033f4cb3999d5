//! What can be asked of a run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{LeaseId, PeerId, Session};
use crate::work::{Failure, Outcome};

/// In what capacity a peer joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Holds a stage and trains it.
    Miner,
    /// Audits miners.
    Validator,
}

/// One request, by a peer whose identity has been verified, by the operator, or by the passing of time.
///
/// Every command may be repeated: a retry after a lost answer changes nothing that the first did not (P5).
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A peer begins a stay. A session that it still had ends first.
    Join {
        /// Who.
        peer: PeerId,
        /// As what.
        role: Role,
        /// Leases that it can hold at a time. At least 1.
        capacity: u32,
    },
    /// A session ends by its own wish; its leases go to others.
    Leave {
        /// Which.
        session: Session,
    },
    /// A session is there and takes up to so many further leases. Also its sign of life.
    OfferRoom {
        /// Which.
        session: Session,
        /// Further leases beyond those it holds; an absolute number, replacing what it offered before.
        room: u32,
    },
    /// A session has done its work.
    Complete {
        /// Which session.
        session: Session,
        /// Under which lease.
        lease: LeaseId,
        /// With what result.
        outcome: Outcome,
    },
    /// A session gives a lease back undone.
    Fail {
        /// Which session.
        session: Session,
        /// Which lease.
        lease: LeaseId,
        /// Why.
        failure: Failure,
    },
    /// Time has passed: end what is overdue. Early calls do nothing.
    Tick,
    /// The orchestrator is back, with the state as it was when it was last heard of. Until now nobody could be served, so
    /// nothing ran out: every deadline moves by the time since.
    Resume,
    /// The orchestrator did not look for a while, though it thinks it did: its machine slept, its process was stopped, or
    /// its clock leapt. Nobody could be served, so every deadline moves by that time, at most by that since the last event.
    Wake {
        /// How long it did not look.
        away: Duration,
    },
    /// The orchestrator is back with a state that is older than what it told, because nothing newer could be found: an
    /// unknown part of the run's history is lost. Every session ends and no number that was given out since is given out
    /// again. If the epoch's checkpoint has not come about yet, the epoch trains anew: what miners have learned since the
    /// one before is in no weights that the run knows of.
    Restore {
        /// Drawn by chance, so that the same state restored twice does not leap to the same numbers even if the clocks that
        /// are asked show the same time. What is above [`Event::Restored`](crate::Event::Restored)'s bound is cut off.
        chance: u32,
    },
    /// The operator ends the run: no new samples; what is on its way is dropped at once.
    Stop,
}
