//! What does not add up.

use iota_protocol::{CellIndex, Epoch, LeaseId, PeerId, SampleId, Session, StageIndex};
use serde::{Deserialize, Serialize};

/// Something in a run's events that does not add up. A run that lived by the rules has none, whatever happened to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "discrepancy")]
#[non_exhaustive]
pub enum Discrepancy {
    /// Samples set out in the order of their numbers, each once.
    #[error("{sample} set out when {expected} was next")]
    SampleOutOfOrder {
        /// Which set out.
        sample: SampleId,
        /// Which should have.
        expected: SampleId,
    },
    /// Leases are given in the order of their numbers, each once.
    #[error("{lease} was given when {expected} was next")]
    LeaseOutOfOrder {
        /// Which was given.
        lease: LeaseId,
        /// Which should have been.
        expected: LeaseId,
    },
    /// Something happened to a sample that had not set out, or had ended.
    #[error("{sample} is not on its way, and still: {what}")]
    NotOnItsWay {
        /// Which.
        sample: SampleId,
        /// What happened.
        what: String,
    },
    /// A result under a lease that this session does not have, or that was answered before.
    #[error("{session} reported a result of {lease}, which it does not hold")]
    ResultWithoutLease {
        /// The lease.
        lease: LeaseId,
        /// Who reported.
        session: Session,
    },
    /// A credited pass by a session that has installed nothing.
    #[error("{session} was credited with {lease} without weights to do it with")]
    WithoutWeights {
        /// The lease.
        lease: LeaseId,
        /// Who.
        session: Session,
    },
    /// A stage was credited twice for one sample.
    #[error("{sample} counts twice at {stage}: by {lease} once more")]
    CountedTwice {
        /// Which sample.
        sample: SampleId,
        /// Where.
        stage: StageIndex,
        /// The second lease.
        lease: LeaseId,
    },
    /// A pass was credited before those that it rests on.
    #[error("{sample} was at {stage} by {lease} before it had been at the stages on the way")]
    OutOfTurn {
        /// Which sample.
        sample: SampleId,
        /// Where.
        stage: StageIndex,
        /// The lease.
        lease: LeaseId,
    },
    /// A credited pass read something else than what the pass before it made.
    #[error("{lease} of {sample} at {stage} read what no pass that counts has made")]
    ReadSomethingElse {
        /// Which sample.
        sample: SampleId,
        /// Where.
        stage: StageIndex,
        /// The lease.
        lease: LeaseId,
    },
    /// A sample is called complete, and a stage has not learned from it.
    #[error("{sample} is complete, and {stage} has not learned from it")]
    NeverLearned {
        /// Which sample.
        sample: SampleId,
        /// The stage.
        stage: StageIndex,
    },
    /// A sample is said to have come another way than its results show.
    #[error("{sample} is said to have come through others than those who did its passes")]
    AnotherPath {
        /// Which sample.
        sample: SampleId,
    },
    /// An epoch has trained on more samples than it is to.
    #[error("{epoch} trained on more than {quota} samples, the last one {sample}")]
    TooManySamples {
        /// Which epoch.
        epoch: Epoch,
        /// How many it is to train on.
        quota: u64,
        /// One too many.
        sample: SampleId,
    },
    /// The run is over, and a sample has neither been completed nor given up.
    #[error("{sample} was neither completed nor given up")]
    NeverCounted {
        /// Which sample.
        sample: SampleId,
    },
    /// A pass that counts went into no merge, and nothing that happened says why.
    #[error("what {session} learned from {sample} at {stage} is in no merge, and nothing says why")]
    NotMerged {
        /// Which sample.
        sample: SampleId,
        /// Where.
        stage: StageIndex,
        /// Who did the pass.
        session: Session,
    },
    /// An upload by somebody who was not to upload.
    #[error("{session} uploaded {stage} and was not on its roster")]
    UploadOutsideRoster {
        /// Of which stage.
        stage: StageIndex,
        /// Who.
        session: Session,
    },
    /// A merge read something else than an upload that is in it.
    #[error("{lease} merged {cell} of {stage} from something else than the upload of {session}")]
    InputNotUploaded {
        /// The lease.
        lease: LeaseId,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
        /// Whose copy it is said to be.
        session: Session,
    },
    /// A merge left out an upload that was not excluded.
    #[error("{lease} merged {cell} of {stage} without the upload of {session}")]
    InputLeftOut {
        /// The lease.
        lease: LeaseId,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
        /// Whose upload.
        session: Session,
    },
    /// A copy's weight in a merge is not the number of backward passes behind it.
    #[error("{session} weighs {said} in {lease} of {stage}, and did {did} backward passes")]
    AnotherWeight {
        /// The lease.
        lease: LeaseId,
        /// Of which stage.
        stage: StageIndex,
        /// Whose copy.
        session: Session,
        /// Its weight.
        said: u64,
        /// What it should be.
        did: u64,
    },
    /// A cell was settled with, or a checkpoint names, an object that no owner made of that cell.
    #[error("{cell} of {stage} in {epoch} holds an object that nobody merged it into")]
    NobodyMerged {
        /// The epoch that was merged.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
    },
    /// A checkpoint was made before all cells were settled, or without one that was.
    #[error("the checkpoint of {stage} for {epoch} does not have {cell} as it was settled")]
    CellNotInCheckpoint {
        /// The epoch that starts from it.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
    },
    /// A checkpoint names something that was neither merged in its epoch nor there before.
    #[error("the checkpoint of {stage} for {epoch} names an object that comes from nowhere")]
    FromNowhere {
        /// The epoch that starts from it.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
    },
    /// The segments of a checkpoint do not cover its stage exactly.
    #[error("the checkpoint of {stage} for {epoch} does not cover its stage")]
    CheckpointHasGaps {
        /// The epoch that starts from it.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
    },
    /// A count of the rules' own state is not what the events add up to.
    #[error("{what}: the events add up to {ledger}, the run's state says {state}")]
    Counter {
        /// Of what.
        what: String,
        /// By the events.
        ledger: u64,
        /// By the state.
        state: u64,
    },
    /// What the rules' state says of a checkpoint, a merge or a ban is not what the events say.
    #[error("{what}: the run's state says something else than the events")]
    State {
        /// Of what.
        what: String,
    },
    /// Whether a peer is banned.
    #[error("{peer}: the run's state and the events differ about a ban")]
    Ban {
        /// Which peer.
        peer: PeerId,
    },
}
