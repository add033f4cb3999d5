//! What happened: the only way a run's state changes, and what the journal keeps.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::Role;
use crate::id::{
    AuditId, CellIndex, Digest, Epoch, LeaseId, PeerId, SampleId, Session, StageIndex, Ticket,
};
use crate::registration::{PlaceEnd, WaitReason};
use crate::rejection::Rejection;
use crate::time::Timestamp;
use crate::work::{
    Checkpoint, Difference, Failure, Lease, ObjectName, ObjectRef, Outcome, Verdict,
};

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

impl Phase {
    /// Its name in a sentence.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gathering => "gathering",
            Self::Training => "training",
            Self::Uploading => "uploading",
            Self::Merging => "merging",
            Self::Installing => "installing",
            Self::Settling => "settling",
            Self::Over => "over",
        }
    }
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
    /// It was leased the epoch's checkpoint again and again and did not install it.
    CannotInstall,
    /// Others wait for its place, and for as long as a place is kept it has not installed the checkpoint and takes no lease
    /// for it.
    Idle,
    /// The run is over.
    RunOver,
    /// What it did since is lost, and so is what its weights contain: it has to join again.
    Restored,
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
    /// The phase or epoch it belonged to ended. A sample's work that its holder had done by then will be logged but not
    /// credited, until the holder uploads.
    EpochClosed,
    /// Somebody else's late result came first. The holder's result will be logged but not credited.
    Superseded,
    /// What it was to read turned out bad or its holder's replica did, or the holder has not installed what the others train
    /// on, so that the result would be worth nothing.
    Withdrawn,
}

/// How a cell was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellResult {
    /// All owners that delivered came to the same bits.
    Agreed,
    /// Owners differed and another decided; `liar` names who was wrong.
    Arbitrated {
        /// Whose result was not the majority's.
        liar: Session,
    },
    /// Only one owner delivered before the deadline (or there was only one).
    Single,
    /// Nobody delivered, or nobody could decide between those who did: the epoch's starting values stay.
    CarriedForward,
    /// What was decided, as above, is that the uploads have no finite mean: the epoch's starting values stay.
    Unmergeable {
        /// What keeps them from having one.
        why: Unmergeable,
    },
}

/// Why a cell's uploads give nothing that anybody could go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmergeable {
    /// Every copy holds values that are not finite and is left out.
    EveryCopyQuarantined,
    /// There are finite copies, but what the run's rule makes of them is not finite.
    ResultNotFinite,
}

/// Which way a piece of a sample's work goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Towards the tail.
    Forward,
    /// Towards the head; at the tail it begins with that stage's forward and the loss.
    Backward,
}

/// One piece of a sample's way: a stage in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Piece {
    /// Where.
    pub stage: StageIndex,
    /// Which way.
    pub direction: Direction,
}

/// Why a sample went back to its tokens, or was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartReason {
    /// One piece of it failed too often; what it was made from may be at fault.
    TooManyAttempts,
    /// The epoch ended without it; it counts towards the next.
    Carried,
}

/// Why the phase changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseReason {
    /// Every stage has enough miners that installed the checkpoint.
    Gathered,
    /// The epoch's samples are all trained on.
    QuotaTrained,
    /// The epoch's last samples took too long; they are carried to the next epoch.
    DrainTimedOut,
    /// Everybody who was waited for is done.
    AllDone,
    /// Enough are done for the time that has passed.
    Quorum,
    /// The phase's time is up.
    TimedOut,
    /// Every merge of the run is done.
    LastEpochMerged,
    /// No audit is left.
    AuditsSettled,
    /// The operator said so.
    Stopped,
    /// What the epoch had learned is lost.
    Restored,
}

/// Why a peer is banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum BanReason {
    /// A replay of its work came to another result.
    Audit {
        /// Which audit.
        audit: AuditId,
        /// The epoch of the work.
        epoch: Epoch,
        /// The first operation that differs; none for the upload.
        ordinal: Option<u32>,
        /// How.
        difference: Difference,
    },
    /// Its merged cell was not what two others made of the same uploads.
    Merge {
        /// The epoch that was merged.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
    },
    /// A validator found that an object which it committed to is missing or bad.
    Inspection {
        /// Which audit.
        audit: AuditId,
        /// The object.
        object: ObjectName,
        /// How.
        difference: Difference,
    },
}

/// Why an upload is left out of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExclusionReason {
    /// Its author was banned.
    Banned,
    /// Owners could not read it, and there is no validator to ask.
    Accused,
}

/// What a checkpoint has in place of an object that nobody can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// The same bits, as another owner of the cell stored them.
    AnotherCopy,
    /// The values of the checkpoint before; those of the seed where they are gone too.
    OlderValues,
}

/// Why an audit ends without a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbandonReason {
    /// Its subject is banned already.
    SubjectBanned,
    /// No validator took it for many epochs; what it would read is no longer kept.
    TooOld,
    /// Validators gave it back too often; something that it would read is gone.
    TooManyAttempts,
    /// Its subject did not hand over what it had begun the epoch with: it left, or did not upload and store that in time.
    NotHandedOver,
    /// Nothing in its subject's log can be redone: what came first was never reported, or the subject began anew.
    NothingToRedo,
    /// The run is over.
    RunOver,
    /// What it would look at may have been deleted in the part of the run's history that is lost.
    Restored,
}

/// One change of a run's state, with its reason.
///
/// Applying the events of a run in order, each at its time, to a fresh state gives the run's state
/// ([`State::apply`](crate::State::apply)).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[expect(
    clippy::large_enum_variant,
    reason = "most events are leases and what comes of them; few are held at a time"
)]
pub enum Event {
    /// The orchestrator is back: every deadline has moved by the time that it was away.
    Resumed {
        /// Since the last event.
        away: Duration,
    },
    /// What happened after this state is lost: the numbers of leases and stays leap over those that may have been given out
    /// meanwhile, and while the epoch trains, uploads or merges its samples count as not begun.
    Restored {
        /// Since the last event that is known; as much may be lost.
        away: Duration,
        /// The numbers leap by what can have been given out in so many seconds more: below 2^20, and another one each time
        /// that the same state is restored.
        #[serde(default)]
        further: u32,
    },
    /// A peer is there.
    SessionJoined {
        /// Its stay.
        session: Session,
        /// As what.
        role: Role,
        /// Which stage it holds; none for a validator.
        stage: Option<StageIndex>,
        /// Leases that it can hold at a time.
        capacity: u32,
    },
    /// A stay is over. Its leases have ended before.
    SessionEnded {
        /// Whose.
        session: Session,
        /// Why.
        why: SessionEnd,
    },
    /// Somebody who would be a miner has a place on the waiting list.
    WaitBegan {
        /// Who.
        peer: PeerId,
        /// The place; all with earlier tickets are before it.
        ticket: Ticket,
        /// Why there is none in the run.
        why: WaitReason,
    },
    /// Somebody on the waiting list still wants a place in the run.
    WaiterHeard {
        /// Who.
        peer: PeerId,
    },
    /// Somebody leaves the waiting list; all behind move up by one. Who is admitted has a place in the run from now on.
    WaitEnded {
        /// Who.
        peer: PeerId,
        /// The place that it had.
        ticket: Ticket,
        /// Why.
        why: PlaceEnd,
    },
    /// A place in the run, kept for a miner that fell silent or was admitted and did not come, is given up.
    PlaceLapsed {
        /// Whose it was.
        peer: PeerId,
        /// Why.
        why: PlaceEnd,
    },
    /// A window of registration begins or ends.
    RegistrationChanged {
        /// Whether newcomers are taken from now on.
        is_open: bool,
        /// Until when. Known to nobody but the orchestrator.
        until: Timestamp,
    },
    /// A session takes further leases.
    RoomOffered {
        /// Which.
        session: Session,
        /// How many more.
        room: u32,
    },
    /// A sample begins its way.
    SampleOpened {
        /// Which.
        sample: SampleId,
    },
    /// A piece of work was given to a session.
    Leased(Lease),
    /// A lease ended without a result that counts.
    LeaseEnded {
        /// Which.
        lease: LeaseId,
        /// Whose it was.
        session: Session,
        /// Why.
        why: LeaseEnd,
    },
    /// A session did what it was leased.
    Completed {
        /// Under which lease.
        lease: LeaseId,
        /// Which session.
        session: Session,
        /// What it says.
        outcome: Outcome,
        /// False if somebody else had done it meanwhile or training had closed: then it only goes into the session's log,
        /// because the session's weights contain it, and the session is to be answered [`Rejection::Superseded`].
        credited: bool,
    },
    /// A session has finished a pass of a sample whose lease had ended, which comes too late even for its log: the session
    /// is over, or has uploaded, or the epoch is closed. Nothing changes but the count of work that was done in vain, once
    /// for each lease.
    FinishedInVain {
        /// Under which lease.
        lease: LeaseId,
        /// Which session.
        session: Session,
        /// Passes that it did: two if it had to begin with the forward pass.
        passes: u32,
        /// What it is answered.
        why: Rejection,
    },
    /// A piece no longer waits for the session that would suit it best; any other may take it.
    PreferenceLapsed {
        /// Whose piece.
        sample: SampleId,
    },
    /// What a piece produced cannot be used; it is done again by somebody else.
    PieceUndone {
        /// Of which sample.
        sample: SampleId,
        /// Which piece.
        piece: Piece,
        /// Whose result it was.
        producer: Session,
        /// Who could not use it.
        accuser: Session,
        /// What is wrong with it, as the accuser says.
        difference: Difference,
    },
    /// A sample's gradient has reached the head: every stage has learned from it once.
    SampleCompleted {
        /// Which.
        sample: SampleId,
        /// Mean loss over its tokens, in nats.
        loss: f32,
        /// Who did the backward pass, by stage from the head.
        path: Vec<Session>,
    },
    /// A sample goes back to its tokens.
    SampleRestarted {
        /// Which.
        sample: SampleId,
        /// Why.
        why: RestartReason,
    },
    /// A sample is given up because the run ends.
    SampleDropped {
        /// Which.
        sample: SampleId,
    },
    /// The run stands elsewhere now.
    PhaseChanged {
        /// Where.
        phase: Phase,
        /// In which epoch.
        epoch: Epoch,
        /// When it ends at the latest; none if it may wait for miners.
        deadline: Option<Timestamp>,
        /// Why.
        why: PhaseReason,
    },
    /// Who uploads, and so into which cells the stage is cut and who owns them.
    RosterFixed {
        /// Of which stage.
        stage: StageIndex,
        /// The sessions, in order.
        roster: Vec<Session>,
    },
    /// Half the time for merging is over: owners that have not begun are no longer waited for.
    OwnersRelaxed,
    /// An owner could not read an upload.
    UploadAccused {
        /// Of which stage.
        stage: StageIndex,
        /// Whose upload.
        producer: Session,
        /// Who says so.
        accuser: Session,
        /// What is wrong with it.
        difference: Difference,
    },
    /// An upload is left out; the stage's cells are merged again without it.
    UploadExcluded {
        /// Of which stage.
        stage: StageIndex,
        /// Whose.
        session: Session,
        /// Why.
        why: ExclusionReason,
    },
    /// Owners agree that a copy holds values that are not finite. Its author earns nothing in this epoch.
    UploadQuarantined {
        /// Of which stage.
        stage: StageIndex,
        /// In which cell.
        cell: CellIndex,
        /// Whose.
        session: Session,
    },
    /// A cell's values for the next epoch are known.
    CellSettled {
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
        /// How.
        result: CellResult,
        /// The merged cell; none if the old values stay.
        merged: Option<ObjectRef>,
    },
    /// What a stage starts the next epoch from.
    CheckpointCommitted(Checkpoint),
    /// A miner could not read an object that its stage's checkpoint names.
    CheckpointAccused {
        /// Of which stage.
        stage: StageIndex,
        /// The object.
        object: ObjectName,
        /// Who says so.
        accuser: Session,
        /// What is wrong with it.
        difference: Difference,
    },
    /// Nobody can install what a stage starts from, because of one object: this takes its place.
    CheckpointRepaired {
        /// What the stage starts from now.
        checkpoint: Checkpoint,
        /// The object that it does without.
        object: ObjectName,
        /// By what means.
        how: Repair,
    },
    /// A session holds the epoch's weights, and the same ones as the others of its stage.
    Installed {
        /// Which.
        session: Session,
        /// Of which stage.
        stage: StageIndex,
        /// Of which epoch.
        epoch: Epoch,
        /// Digest of parameters and optimizer state.
        state: Digest,
    },
    /// Sessions of a stage that installed the same checkpoint ended up with different bits.
    ReplicasDiffer {
        /// Of which stage.
        stage: StageIndex,
        /// Of which epoch.
        epoch: Epoch,
        /// Those that are not as most are; they install again. Empty if no side outnumbers the other.
        odd: Vec<Session>,
    },
    /// Work of a miner was drawn for replay.
    AuditDrawn {
        /// The audit.
        audit: AuditId,
        /// Whose work.
        subject: Session,
        /// Which stage it held.
        stage: StageIndex,
        /// Operations to redo, from the first on.
        operations: u32,
        /// Operations in the miner's log. If all are to be redone, so are those that are logged before it uploads, and
        /// its upload is compared too.
        of: u32,
    },
    /// A validator is to look at an object that one peer says another got wrong.
    DisputeOpened {
        /// The audit.
        audit: AuditId,
        /// The object.
        object: ObjectRef,
        /// Of which stage.
        stage: StageIndex,
        /// Who wrote it.
        producer: Session,
        /// Who complained.
        accuser: Session,
    },
    /// An audit has a verdict.
    AuditSettled {
        /// Which.
        audit: AuditId,
        /// Whose work.
        subject: Session,
        /// What was found.
        verdict: Verdict,
        /// By whom.
        auditor: Session,
    },
    /// An audit ends without a verdict.
    AuditAbandoned {
        /// Which.
        audit: AuditId,
        /// Whose work.
        subject: Session,
        /// Why.
        why: AbandonReason,
    },
    /// A peer was found cheating. Its session has ended or ends now.
    PeerBanned {
        /// Who.
        peer: PeerId,
        /// On what grounds.
        why: BanReason,
    },
}

impl Event {
    /// What to answer the sender of the command that led to this event, if it is not simply "done".
    ///
    /// A superseded result changes the state (it is logged), and so does taking a place on the waiting list; so they come
    /// as events and not as errors of [`State::handle`](crate::State::handle), and so does the count of what was finished in
    /// vain. Sent again, each is an error like any other.
    pub const fn refusal(&self) -> Option<Rejection> {
        match self {
            Self::Completed {
                credited: false, ..
            } => Some(Rejection::Superseded),
            Self::FinishedInVain { why, .. } => Some(*why),
            Self::WaitBegan { .. } | Self::WaiterHeard { .. } => Some(Rejection::Waiting),
            _ => None,
        }
    }
}
