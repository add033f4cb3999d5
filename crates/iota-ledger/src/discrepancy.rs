//! What does not add up.

use iota_protocol::{CellIndex, Epoch, LeaseId, PeerId, SampleId, Session, StageIndex};
use serde::{Deserialize, Serialize};

pub use crate::settling::Objection;

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
    /// A credited pass by a session that holds the weights of another epoch or stage.
    #[error(
        "{session} was credited with {lease} and holds other weights: those of {stage} in {epoch}"
    )]
    WithOtherWeights {
        /// The lease.
        lease: LeaseId,
        /// Who.
        session: Session,
        /// The stage whose weights it holds.
        stage: StageIndex,
        /// The epoch whose weights it holds.
        epoch: Epoch,
    },
    /// A session installed something else than what its stage starts the epoch from.
    #[error("{session} installed under {lease} what {stage} does not start from")]
    InstalledSomethingElse {
        /// The lease.
        lease: LeaseId,
        /// Who.
        session: Session,
        /// Of which stage.
        stage: StageIndex,
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
    /// Somebody is to upload who has learned nothing in the epoch, or is named twice.
    #[error("{session} is on the roster of {stage} and has learned nothing since {epoch} began")]
    NothingToUpload {
        /// The epoch.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
        /// Who.
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
    /// A cell was uploaded or merged in another range than the roster gives it.
    #[error("{cell} of {stage} is another range in {lease} than its roster gives it")]
    AnotherRange {
        /// The lease.
        lease: LeaseId,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
    },
    /// A cell was merged by somebody who has no part in the merge and is no validator.
    #[error("{session} merged {cell} of {stage} and has no part in it")]
    MergedByOutsider {
        /// Who.
        session: Session,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
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
    /// A cell was not settled as the results of its owners say.
    #[error("{cell} of {stage} in {epoch} was settled otherwise than its results say: {what}")]
    SettledOtherwise {
        /// The epoch that was merged.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
        /// What they do not say.
        what: Objection,
    },
    /// A copy is said to hold values that are not finite, and no owner of the cell says so.
    #[error(
        "no owner of {cell} of {stage} found anything in the copy of {session} that is not finite"
    )]
    QuarantinedByNobody {
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
        /// Whose copy.
        session: Session,
    },
    /// An upload was left out of a merge, its author not being banned, or nobody having failed to read it.
    #[error("the upload of {session} was left out of the merge of {stage}, and nothing says why")]
    ExcludedForNothing {
        /// Of which stage.
        stage: StageIndex,
        /// Whose upload.
        session: Session,
    },
    /// A peer was banned for a merge in which its result was not another than what the cell was settled with.
    #[error("{peer} was banned for {cell} of {stage}, of which it made nothing else than others")]
    BannedForNothing {
        /// Who.
        peer: PeerId,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
    },
    /// Somebody was outvoted in a merge and is not banned.
    #[error("{liar} was outvoted on {cell} of {stage} in {epoch} and is not banned")]
    LiarSpared {
        /// The epoch that was merged.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
        /// Who.
        liar: Session,
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
    /// A cell that nobody merged does not hold in the checkpoint what it held in the one before.
    #[error(
        "the checkpoint of {stage} for {epoch} does not hold in {cell} what the one before held"
    )]
    NotCarried {
        /// The epoch that starts from it.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
        /// Which cell.
        cell: CellIndex,
    },
    /// A checkpoint of a stage that was not merged, or a repair that puts something else in the place of an object than a
    /// copy or older values, or that changes more than this object.
    #[error("the checkpoint of {stage} for {epoch} holds what comes from nowhere")]
    FromNowhere {
        /// The epoch that starts from it.
        epoch: Epoch,
        /// Of which stage.
        stage: StageIndex,
    },
    /// A checkpoint was repaired for an object that nobody failed to read.
    #[error("the checkpoint of {stage} for {epoch} was repaired, and nobody had complained")]
    RepairedUnasked {
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
