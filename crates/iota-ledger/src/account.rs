//! What the ledger keeps of each sample and of each stretch of a session's work.

use iota_protocol::event::{ExclusionReason, RestartReason, SessionEnd};
use iota_protocol::work::ObjectRef;
use iota_protocol::{Epoch, LeaseId, Session, StageIndex};
use serde::{Deserialize, Serialize};

/// A sample from its opening to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleAccount {
    /// The epoch in which it set out.
    pub opened_in: Epoch,
    /// Credited forward passes that its gradient goes back through, from the head. The tail's is part of its backward.
    pub forwards: Vec<Contribution>,
    /// Credited backward passes that count, from the tail.
    pub backwards: Vec<Contribution>,
    /// How often it went back to its tokens, in which epoch and why.
    pub restarts: Vec<(Epoch, RestartReason)>,
    /// Credited passes that were undone, or given up with a restart, and so were done again or never.
    pub undone: u64,
    /// Results that came when somebody else's counted already.
    pub superseded: u64,
    /// How it ended; none while it is on its way.
    pub end: Option<SampleEnd>,
    /// What the passes of both directions produced, in the order of `forwards` and `backwards`; empty after the end.
    pub(crate) made: (Vec<Option<ObjectRef>>, Vec<Option<ObjectRef>>),
}

/// How a sample ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "end")]
pub enum SampleEnd {
    /// Every stage has learned from it once.
    Completed {
        /// In which epoch.
        epoch: Epoch,
        /// Mean loss over its tokens, in nats.
        loss: f32,
    },
    /// It was given up as the run ended.
    Dropped {
        /// In which epoch.
        epoch: Epoch,
    },
}

/// One pass of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contribution {
    /// The lease that it was done under.
    pub lease: LeaseId,
    /// Who did it.
    pub session: Session,
    pub(crate) stint: usize,
}

/// A session's work for one epoch, from the installation on, or from the upload before, if it trained on while that was
/// merged, to what becomes of it: an upload, or nothing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stint {
    pub(crate) session: Session,
    pub(crate) stage: StageIndex,
    pub(crate) epoch: Epoch,
    /// Whether it has what its stage starts the epoch from.
    pub(crate) is_installed: bool,
    /// Credited backward passes.
    pub(crate) backwards: u64,
    pub(crate) fate: Fate,
}

impl Stint {
    /// Whether its weights are those of this stage and epoch.
    pub(crate) fn is_of(&self, stage: StageIndex, epoch: Epoch) -> bool {
        (self.stage, self.epoch) == (stage, epoch)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody knows yet.
    Open,
    Uploaded,
    Lost(Loss),
}

/// What became of a pass that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "inclusion")]
pub enum Inclusion {
    /// The merge of its epoch is not done.
    Pending,
    /// It is in what the stage started the next epoch from.
    Merged {
        /// Elements of the stage that it went into.
        elements: u64,
        /// Elements of the stage.
        of: u64,
    },
    /// It is not.
    Lost {
        /// Why.
        loss: Loss,
    },
}

/// Why the work of a session went into no merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// It left before it had uploaded.
    Left,
    /// It fell silent before it had uploaded.
    Silent,
    /// Its peer joined anew before it had uploaded.
    Replaced,
    /// It was banned before it had uploaded.
    Banned,
    /// It was let go because it did not install a checkpoint.
    CannotInstall,
    /// It kept a place that others waited for and did not install a checkpoint.
    Idle,
    /// The run ended before its merge.
    RunOver,
    /// The run was restored from an older state: what the epoch had learned is lost.
    Restored,
    /// It installed the epoch's checkpoint a second time: its weights began anew.
    BeganAnew,
    /// It held other bits than the other replicas of its stage.
    Odd,
    /// What it had started from was repaired under it.
    CheckpointRepaired,
    /// It trained on while its stage merged, and did not install what came of that before the epoch was over.
    NotInstalled,
    /// It did not upload in time.
    NotUploaded,
    /// Its upload was left out because its author was banned.
    ExcludedBanned,
    /// Its upload was left out because owners could not read it.
    ExcludedUnreadable,
    /// All cells that its upload went into kept their old values, were repaired with older ones, or left it out as not
    /// finite.
    NothingMerged,
}

impl From<SessionEnd> for Loss {
    fn from(end: SessionEnd) -> Self {
        match end {
            SessionEnd::Left => Self::Left,
            SessionEnd::Silent => Self::Silent,
            SessionEnd::Replaced => Self::Replaced,
            SessionEnd::Banned => Self::Banned,
            SessionEnd::CannotInstall => Self::CannotInstall,
            SessionEnd::Idle => Self::Idle,
            SessionEnd::RunOver => Self::RunOver,
            SessionEnd::Restored => Self::Restored,
        }
    }
}

impl From<ExclusionReason> for Loss {
    fn from(reason: ExclusionReason) -> Self {
        match reason {
            ExclusionReason::Banned => Self::ExcludedBanned,
            ExclusionReason::Accused => Self::ExcludedUnreadable,
        }
    }
}

impl SampleAccount {
    pub(crate) const fn opened(epoch: Epoch) -> Self {
        Self {
            opened_in: epoch,
            forwards: Vec::new(),
            backwards: Vec::new(),
            restarts: Vec::new(),
            undone: 0,
            superseded: 0,
            end: None,
            made: (Vec::new(), Vec::new()),
        }
    }

    /// Forgets all but the first so many passes of each direction: they will be done again.
    pub(crate) fn undo_to(&mut self, forwards: usize, backwards: usize) {
        let before = self.forwards.len() + self.backwards.len();
        self.forwards.truncate(forwards);
        self.backwards.truncate(backwards);
        self.made.0.truncate(forwards);
        self.made.1.truncate(backwards);
        self.undone += (before - self.forwards.len() - self.backwards.len()) as u64;
    }

    /// Whether every stage has learned from it once.
    pub const fn is_completed(&self) -> bool {
        matches!(self.end, Some(SampleEnd::Completed { .. }))
    }
}
