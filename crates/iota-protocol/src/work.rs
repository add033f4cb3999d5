//! What there is to do: pieces of work, the objects they read and write, and what a peer says when one is done.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::id::{CellIndex, Digest, Epoch, LeaseId, ObjectId, SampleId, Session, StageIndex};
use crate::time::Timestamp;

/// What an object is for; the first part of its key, so that retention can go by purpose and epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A tensor at a stage boundary going forward.
    Activation,
    /// The gradient of such a tensor going backward.
    Gradient,
    /// One cell of what a miner learned in an epoch.
    Upload,
    /// One merged cell.
    Merged,
    /// What a merge changed in one cell.
    Delta,
    /// What a miner keeps for itself from epoch to epoch, handed over for an audit.
    Kept,
}

/// Where an object will be, chosen by the orchestrator before it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// What it is for.
    pub purpose: Purpose,
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// What makes the key unguessable and unique.
    pub id: ObjectId,
}

/// What a producer commits to when it has written an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seal {
    /// BLAKE3 of all its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
}

/// An object that exists, as far as its producer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Where it is.
    pub name: ObjectName,
    /// What its bytes must be.
    pub seal: Seal,
}

/// Where the elements of one range of a stage's state come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentSource {
    /// Parameters from the run's seed, moments zero: nobody has merged this range yet.
    Genesis,
    /// A merged cell. `offset` elements of it come before this range.
    Merged {
        /// The cell's object.
        object: ObjectRef,
        /// Elements of the cell (not bytes) to skip.
        offset: u64,
        /// Elements of the whole cell.
        cell_elements: u64,
        /// What the merge changed in the whole cell. There only if this is the merge that the checkpoint comes from, and
        /// the range the whole cell: whoever holds the checkpoint before may take this and make the cell's values itself.
        #[serde(default)]
        delta: Option<ObjectRef>,
    },
}

/// One range of a stage's flat parameters (and the same range of its optimizer state) and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Elements of the flat parameters.
    pub range: Range<u64>,
    /// Where they come from.
    pub source: SegmentSource,
}

/// A stage's weights and optimizer state at the start of an epoch.
///
/// Always true: the segments are in order, do not overlap and cover the stage exactly (M1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The stage.
    pub stage: StageIndex,
    /// The epoch that starts from it.
    pub epoch: Epoch,
    /// Optimizer steps that lie behind it; continues the optimizer's bias correction.
    pub optimizer_steps: u64,
    /// Where its elements are.
    pub segments: Vec<Segment>,
}

/// One cell to upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellUpload {
    /// Which cell.
    pub cell: CellIndex,
    /// Its elements of the stage's flat parameters.
    pub range: Range<u64>,
    /// Where to put it.
    pub output: ObjectName,
}

/// One copy that goes into a merged cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeInput {
    /// Who uploaded it.
    pub session: Session,
    /// The upload.
    pub object: ObjectRef,
    /// Backward passes behind it: its weight in the mean. At least 1.
    pub weight: u64,
}

/// A piece of work, with everything that its result may depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "work")]
pub enum Work {
    /// Carry a sample through the stage. Never the tail's: its forward is part of [`Work::Backward`].
    Forward {
        /// Which sample; names the tokens too.
        sample: SampleId,
        /// The activation from the stage before; none at the head, which reads tokens.
        input: Option<ObjectRef>,
        /// Where the activation for the next stage goes.
        output: ObjectName,
    },
    /// Carry a sample's gradient back through the stage; at the tail, forward, loss and backward in one.
    ///
    /// Whoever lacks what its forward kept (another miner did it, or it restarted) redoes the forward from `input`.
    Backward {
        /// Which sample.
        sample: SampleId,
        /// What the stage's forward read; none at the head, which reads tokens.
        input: Option<ObjectRef>,
        /// The gradient from the stage after; none at the tail, which starts from the loss.
        output_gradient: Option<ObjectRef>,
        /// Where the gradient for the stage before goes; none at the head.
        gradient: Option<ObjectName>,
        /// Learning rate of the optimizer step, if this backward pass completes one.
        learning_rate: f32,
    },
    /// Take the pending optimizer step, then upload what this epoch made of the stage, cell by cell.
    Upload {
        /// Every cell of the stage.
        cells: Vec<CellUpload>,
        /// Learning rate of the pending step.
        learning_rate: f32,
        /// Whether to say of what the session keeps for itself what it is. It stays with the session, which may be asked for
        /// it when the next epoch is audited.
        #[serde(default)]
        seals_kept: bool,
    },
    /// Store what the session has sealed and kept, because an audit needs it.
    HandOver {
        /// What it began the epoch with; none if that is not asked for.
        #[serde(default)]
        began_with: Option<ObjectRef>,
        /// What it keeps since it uploaded; none if that is not asked for.
        #[serde(default)]
        keeps: Option<ObjectRef>,
    },
    /// Average one cell over the uploads.
    Merge {
        /// Which cell.
        cell: CellIndex,
        /// Its elements of the stage's flat parameters.
        range: Range<u64>,
        /// The copies, in session order: the order in which they are added up (M3).
        inputs: Vec<MergeInput>,
        /// Where the merged cell goes.
        output: ObjectName,
        /// Where that goes which the merge changes in the cell; none if nobody asks for it.
        #[serde(default)]
        delta: Option<ObjectName>,
        /// Whether both are to be stored. If not, only what they are is asked for: another owner stores the same bits.
        #[serde(default = "always")]
        stores: bool,
        /// What the present checkpoint says of this range, for a validator; an uploader has it installed.
        #[serde(default)]
        base: Vec<Segment>,
    },
    /// Fetch merged cells that are settled, while others are still being merged: they will be in the checkpoint that is
    /// installed next. Costs nothing if it is not done; the installation then fetches them.
    Fetch {
        /// The cells, whole.
        segments: Vec<Segment>,
    },
    /// Take over a checkpoint: after a merge, or on joining.
    Install {
        /// What to take over.
        checkpoint: Checkpoint,
        /// Whether the session goes on with what it kept for itself when it last uploaded, and puts what it has learned since on
        /// top, if the run overlaps training with merging; if not, it begins with nothing.
        #[serde(default)]
        goes_on: bool,
    },
    /// A validator's: redo the first operations of a miner's epoch and compare digests.
    Replay {
        /// Whose work.
        subject: Session,
        /// What it started from.
        checkpoint: Checkpoint,
        /// What it had kept for itself from the epoch before, as it sealed it then and handed it over since; none: it began
        /// with nothing.
        #[serde(default)]
        kept: Option<ObjectRef>,
        /// Its operations in the order in which it says it did them.
        entries: Vec<LogEntry>,
        /// How many of these it did ahead: on what it had kept, before it installed the checkpoint. 0 unless the run overlaps
        /// training with merging.
        #[serde(default)]
        ahead: u32,
        /// Its upload, if the entries are all that it did: then the optimizer's result is compared too.
        upload: Option<UploadRecord>,
    },
    /// A validator's: one peer says that another's object is missing or malformed; look at it.
    Inspect {
        /// The object in question.
        object: ObjectRef,
        /// Who wrote it.
        producer: Session,
        /// Who complained.
        accuser: Session,
    },
}

/// What older journals do not say: every owner stored what it merged.
const fn always() -> bool {
    true
}

/// The kinds of [`Work`], for statistics and deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each names a variant of Work")]
pub enum WorkKind {
    Forward,
    Backward,
    Upload,
    HandOver,
    Merge,
    Fetch,
    Install,
    Replay,
    Inspect,
}

impl Work {
    /// Which kind this is.
    pub const fn kind(&self) -> WorkKind {
        match self {
            Self::Forward { .. } => WorkKind::Forward,
            Self::Backward { .. } => WorkKind::Backward,
            Self::Upload { .. } => WorkKind::Upload,
            Self::HandOver { .. } => WorkKind::HandOver,
            Self::Merge { .. } => WorkKind::Merge,
            Self::Fetch { .. } => WorkKind::Fetch,
            Self::Install { .. } => WorkKind::Install,
            Self::Replay { .. } => WorkKind::Replay,
            Self::Inspect { .. } => WorkKind::Inspect,
        }
    }

    /// The sample it carries, if it carries one.
    pub const fn sample(&self) -> Option<SampleId> {
        match self {
            Self::Forward { sample, .. } | Self::Backward { sample, .. } => Some(*sample),
            _ => None,
        }
    }

    /// Whose work it looks at, if it is an audit.
    pub const fn subject(&self) -> Option<Session> {
        match self {
            Self::Replay { subject, .. } => Some(*subject),
            Self::Inspect { producer, .. } => Some(*producer),
            _ => None,
        }
    }
}

/// Permission for one session to do one piece of work by a deadline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// Who may do it.
    pub session: Session,
    /// The stage it is about.
    pub stage: StageIndex,
    /// The epoch it belongs to; a result for a closed epoch is refused.
    pub epoch: Epoch,
    /// What to do.
    pub work: Work,
    /// When it was given.
    pub issued_at: Timestamp,
    /// After this it may be given to somebody else.
    pub deadline: Timestamp,
}

/// What a peer reports of work that it finished.
///
/// `ordinal` counts the operations that a session's stage has done in its epoch, from 0, whether or not their results were
/// accepted: since it installed its checkpoint, or since it uploaded, if it trains on from there. It says in which order a
/// replay has to go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Of [`Work::Forward`].
    Forward {
        /// Place in the session's order of operations.
        ordinal: u32,
        /// The activation.
        output: Seal,
    },
    /// Of [`Work::Backward`].
    Backward {
        /// Place in the session's order of operations.
        ordinal: u32,
        /// Whether it redid the forward first. True at the tail.
        recomputed: bool,
        /// The gradient for the stage before; none at the head.
        gradient: Option<Seal>,
        /// Mean loss over the sample's tokens, in nats; at the tail only.
        loss: Option<f32>,
    },
    /// Of [`Work::Upload`].
    Upload {
        /// One per cell, in the order of the lease.
        cells: Vec<Seal>,
        /// Optimizer steps that lie behind it, those before the epoch included.
        optimizer_steps: u64,
        /// What the session keeps for itself, if that was asked.
        #[serde(default)]
        kept: Option<Seal>,
    },
    /// Of [`Work::HandOver`]. There is nothing to say: the lease names the seals, and another object is no answer.
    HandedOver,
    /// Of [`Work::Merge`].
    Merge {
        /// The merged cell.
        merged: Seal,
        /// Uploaders whose copy held values that are not finite and was left out.
        quarantined: Vec<Session>,
        /// What the merge changes in the cell, if that was asked for.
        #[serde(default)]
        delta: Option<Seal>,
    },
    /// Of [`Work::Merge`] too: the uploads have no merged cell, because there would be values in it that are not finite.
    /// Owners who agree on this settle the cell like any other result.
    Unmergeable {
        /// Uploaders whose copy held values that are not finite and was left out; often all of them.
        quarantined: Vec<Session>,
    },
    /// Of [`Work::Fetch`].
    Fetched,
    /// Of [`Work::Install`].
    Install {
        /// Digest of the installed parameters and optimizer state, before anything is put on top of them.
        state: Digest,
        /// Operations of the epoch that it had done before: only who goes on after its upload has done any.
        #[serde(default)]
        operations: u32,
    },
    /// Of [`Work::Replay`] and [`Work::Inspect`].
    Audit {
        /// What was found.
        verdict: Verdict,
    },
}

/// What an audit found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// Everything compared was equal (or: the object is as it should be).
    Agrees {
        /// Operations redone; 1 for an inspection.
        operations: u32,
    },
    /// Something was not what the subject said.
    Differs {
        /// The first operation whose result differs; none for an upload or an inspected object.
        ordinal: Option<u32>,
        /// How.
        difference: Difference,
    },
}

/// How work differs from what its author committed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The activation or gradient.
    Output,
    /// The loss.
    Loss,
    /// The uploaded parameters or optimizer state.
    Upload,
    /// The object is not in the store.
    Missing,
    /// The object's bytes do not match its digest or length.
    Digest,
    /// The object is not a tensor of the right shape.
    Malformed,
    /// The object holds values that are not finite.
    NotFinite,
}

/// Why a peer gives a lease back undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "failure")]
pub enum Failure {
    /// The peer is leaving.
    Leaving,
    /// An object that it was given to read is missing, damaged, malformed or not finite.
    BadInput {
        /// Which object.
        object: ObjectName,
        /// What is wrong with it.
        difference: Difference,
    },
    /// Its device has no memory left for this.
    OutOfMemory,
    /// It could not reach the store.
    StoreUnavailable,
    /// Its own result was not finite; the weights or the input have blown up.
    NotFinite,
    /// Anything else that is the peer's own trouble.
    Internal,
}

/// One operation that a session says its stage did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Place in the session's order of operations.
    pub ordinal: u32,
    /// The lease that it was done under; its work names inputs and learning rate.
    pub lease: LeaseId,
    /// What was done.
    pub work: Work,
    /// What the session said of it.
    pub outcome: Outcome,
    /// Whether it counts: false if the work was no longer open when the result came.
    pub credited: bool,
}

/// What a session uploaded at the end of an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// The cells, as leased.
    pub cells: Vec<CellUpload>,
    /// What the session committed to, in the same order.
    pub seals: Vec<Seal>,
    /// Learning rate of the step that was pending.
    pub learning_rate: f32,
    /// Optimizer steps that lie behind it.
    pub optimizer_steps: u64,
    /// What the session keeps for itself since then, if it was asked.
    #[serde(default)]
    pub keeps: Option<Seal>,
    /// Where that is, if it had to be handed over.
    #[serde(default)]
    pub keeps_at: Option<ObjectName>,
}

impl LogEntry {
    /// The object that the operation made; none where a backward pass has nobody to hand a gradient to.
    pub const fn output(&self) -> Option<ObjectRef> {
        let (name, seal) = match (&self.work, &self.outcome) {
            (Work::Forward { output, .. }, Outcome::Forward { output: seal, .. }) => {
                (*output, *seal)
            }
            (
                Work::Backward {
                    gradient: Some(name),
                    ..
                },
                Outcome::Backward {
                    gradient: Some(seal),
                    ..
                },
            ) => (*name, *seal),
            _ => return None,
        };
        Some(ObjectRef { name, seal })
    }
}

impl UploadRecord {
    /// What the session keeps for itself, if it was handed over.
    pub fn kept(&self) -> Option<ObjectRef> {
        let (name, seal) = self.keeps_at.zip(self.keeps)?;
        Some(ObjectRef { name, seal })
    }

    /// The objects of the upload: one for each cell, in their order, then what the session keeps for itself, if it was
    /// handed over.
    pub fn objects(&self) -> impl Iterator<Item = ObjectRef> + '_ {
        let cells = self.cells.iter().zip(&self.seals);
        cells
            .map(|(cell, seal)| ObjectRef {
                name: cell.output,
                seal: *seal,
            })
            .chain(self.kept())
    }
}
