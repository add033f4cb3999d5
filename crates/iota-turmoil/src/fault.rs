//! The kinds of trouble that a world makes, and how often it made them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The orchestrator's process ends at once, and another one resumes the run.
    OrchestratorCrashed,
    /// The orchestrator dies at a write of its journal: it is lost, or it is there and nobody was told.
    JournalDied,
    /// The orchestrator is told to end, suspends the run, and another one resumes it.
    OrchestratorSuspended,
    /// A miner's process ends at once; one with the same key begins anew.
    MinerCrashed,
    /// A validator's process ends at once; one with the same key begins anew.
    ValidatorCrashed,
    /// A miner or validator is told to end, leaves in order, and one with the same key begins anew.
    PeerLeft,
    /// Nothing that a peer and the orchestrator send each other arrives.
    Partition,
    /// Nothing arrives in one direction.
    HalfPartition,
    /// What a peer and the orchestrator send each other waits, and arrives later, all at once.
    MessagesHeld,
    /// A peer does not reach the store.
    StoreUnreachable,
    /// The store answers that it is not available.
    StoreRefusing,
    /// The store takes seconds for everything.
    StoreSlow,
    /// Of requests to the store some never arrive, and of others the answer does not: the object is there, and its writer
    /// does not know.
    StoreLossy,
    /// A peer's clock is wrong from the start.
    ClockWrong,
    /// A miner uploads made-up tensors.
    Cheater,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::OrchestratorCrashed,
        Self::JournalDied,
        Self::OrchestratorSuspended,
        Self::MinerCrashed,
        Self::ValidatorCrashed,
        Self::PeerLeft,
        Self::Partition,
        Self::HalfPartition,
        Self::MessagesHeld,
        Self::StoreUnreachable,
        Self::StoreRefusing,
        Self::StoreSlow,
        Self::StoreLossy,
        Self::ClockWrong,
        Self::Cheater,
    ];

    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::OrchestratorCrashed => "orchestrator crashed",
            Self::JournalDied => "orchestrator died at a write of its journal",
            Self::OrchestratorSuspended => "orchestrator suspended the run",
            Self::MinerCrashed => "miner crashed",
            Self::ValidatorCrashed => "validator crashed",
            Self::PeerLeft => "peer left in order",
            Self::Partition => "partition",
            Self::HalfPartition => "partition in one direction",
            Self::MessagesHeld => "messages held up",
            Self::StoreUnreachable => "store out of a peer's reach",
            Self::StoreRefusing => "store refusing",
            Self::StoreSlow => "store slow",
            Self::StoreLossy => "requests to the store or answers lost",
            Self::ClockWrong => "peer's clock wrong",
            Self::Cheater => "miner made up its tensors",
        }
    }
}

/// How often each kind happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts(BTreeMap<Fault, u64>);

impl Counts {
    pub(crate) fn count(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    /// How often this kind happened.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or_default()
    }

    /// How often any kind happened.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (fault, more) in &other.0 {
            *self.0.entry(*fault).or_default() += more;
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in Fault::ALL {
            writeln!(f, "{:>12}  {}", self.of(fault), fault.text())?;
        }
        Ok(())
    }
}
