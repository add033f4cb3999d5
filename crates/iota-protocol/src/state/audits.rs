//! Audits that are not settled yet. They keep what they need, so an epoch can close over them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{AuditId, Epoch, LeaseId, Session, StageIndex};
use crate::work::Work;

/// An audit without a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// Whose work is looked at; of a dispute, the producer.
    pub subject: Session,
    /// Which stage it held.
    pub stage: StageIndex,
    /// The epoch of the work.
    pub epoch: Epoch,
    /// What a validator is to do: [`Work::Replay`] or [`Work::Inspect`].
    pub work: Work,
    /// How much of the subject's log to redo, while that log may still grow or the subject has something to hand over. Nobody
    /// can begin before.
    pub awaits: Option<Coverage>,
    /// The lease that it is done under, if it is.
    pub lease: Option<LeaseId>,
    /// Leases of it that ended in vain.
    pub attempts: u32,
}

/// How much of a session's log a replay redoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "coverage")]
pub enum Coverage {
    /// The first so many operations.
    First {
        /// How many.
        operations: u32,
    },
    /// All of it, and then the upload is compared.
    Everything,
}

/// The audits of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Audits {
    pub(crate) pending: BTreeMap<AuditId, Audit>,
    pub(crate) next: AuditId,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Audits {
    pub(crate) fn open(&mut self, id: AuditId, audit: Audit) {
        self.pending.insert(id, audit);
        self.next = id.next();
    }
}
