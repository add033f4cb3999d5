//! Passes that somebody may still be at although nobody waits for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{LeaseId, PeerId, Session, StageIndex};
use crate::work::{Lease, Outcome, WorkKind};

/// Leases of passes that are remembered after nobody waits for their results: more than miners hold as an epoch closes, few
/// enough to be no weight in a snapshot. The oldest are forgotten first, and are finished, if ever, uncounted.
pub(crate) const IN_VAIN_MAX: usize = 4_096;

/// A pass that was leased, and is worth nothing if it is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vain {
    pub(crate) session: Session,
    stage: StageIndex,
    kind: WorkKind,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct InVain(BTreeMap<LeaseId, Vain>);

impl InVain {
    pub(crate) fn remember(&mut self, lease: &Lease) {
        let vain = Vain {
            session: lease.session,
            stage: lease.stage,
            kind: lease.work.kind(),
        };
        self.0.insert(lease.id, vain);
        if self.0.len() > IN_VAIN_MAX {
            self.0.pop_first();
        }
    }

    pub(crate) fn get(&self, lease: LeaseId) -> Option<&Vain> {
        self.0.get(&lease)
    }

    pub(crate) fn take(&mut self, lease: LeaseId) {
        self.0.remove(&lease);
    }

    /// What a liar says of its work is no work.
    pub(crate) fn forget(&mut self, peer: PeerId) {
        self.0.retain(|_, vain| vain.session.peer != peer);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn leases(&self) -> impl ExactSizeIterator<Item = LeaseId> {
        self.0.keys().copied()
    }
}

impl Vain {
    /// Passes that were done if this is what came of it; none if it is the outcome of something else.
    pub(crate) fn passes(&self, outcome: &Outcome, tail: StageIndex) -> Option<u32> {
        passes((self.kind, self.stage), outcome, tail)
    }
}

/// Passes that were done for a sample by this kind of work at a stage: two if a backward pass had to begin with the forward
/// pass, which at the tail is part of it. None if the outcome is of something else.
pub(crate) const fn passes(
    (kind, stage): (WorkKind, StageIndex),
    outcome: &Outcome,
    tail: StageIndex,
) -> Option<u32> {
    match (kind, outcome) {
        (WorkKind::Forward, Outcome::Forward { .. }) => Some(1),
        (WorkKind::Backward, Outcome::Backward { recomputed, .. }) => {
            let redone = *recomputed && stage.get() != tail.get();
            Some(if redone { 2 } else { 1 })
        }
        _ => None,
    }
}
