//! The kinds of trouble that a world makes, and how often it made them.

use std::fmt;
use std::ops::AddAssign;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A kind of trouble.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// For people.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

faults! {
    /// A miner or validator dies at once and comes back later with nothing.
    PeerCrashed = "peer crashed",
    /// A miner or validator is told to end, leaves in order, and comes back later.
    PeerLeft = "peer left in order",
    /// A peer joins when the run is well under way.
    PeerCameLate = "peer came late",
    /// A peer's clock is wrong from the start.
    PeerClockWrong = "peer's clock wrong",
    /// The orchestrator dies between two commands.
    OrchestratorCrashed = "orchestrator crashed",
    /// The orchestrator dies with a decision that is not in the journal: it has never happened.
    DecisionLost = "orchestrator crashed before its commit",
    /// The orchestrator dies with a decision in the journal, before it answers.
    AnswerDied = "orchestrator crashed before its answer",
    /// The orchestrator came back from a snapshot and the tail of the journal.
    SnapshotRead = "orchestrator restored from a snapshot",
    /// Of the orchestrator nothing was left but a backup: what happened after it is lost.
    HistoryLost = "orchestrator restored from a backup",
    /// The orchestrator's clock leaps, forward or back.
    ClockLeapt = "orchestrator's clock leapt",
    /// The orchestrator's machine sleeps for hours, or its clock leaps forward by as much.
    MachineSlept = "orchestrator slept for hours",
    /// A peer and the orchestrator do not reach each other for a while.
    Partition = "partition",
    /// A request never arrives.
    RequestLost = "request lost",
    /// An answer never arrives.
    AnswerLost = "answer lost",
    /// A request arrives twice.
    RequestRepeated = "request repeated",
    /// A request or an answer takes long, and others overtake it.
    MessageDelayed = "message delayed and overtaken",
    /// A transfer from or to the store fails.
    StoreUnavailable = "store unavailable",
    /// A transfer takes long.
    TransferSlow = "transfer slow",
    /// An object that was stored is gone.
    ObjectVanished = "object vanished",
    /// An object that was stored holds other bytes.
    ObjectCorrupted = "object corrupted",
    /// A dishonest peer says something that is not so.
    Lie = "lie of a cheater",
}

/// How often each kind happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; Fault::ALL.len()]);

impl Counts {
    pub(crate) const fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// How often this kind happened.
    pub const fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// How often any kind happened.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in Fault::ALL {
            writeln!(f, "{:>12}  {}", self.of(*fault), fault.text())?;
        }
        Ok(())
    }
}
