//! What miners and validators share: staying in a run, moving objects by grant, and the stage as the protocol sees it.
//!
//! ```text
//!   iota_protocol::peer ──► session: calls, retries ──► Worker (miner or validator)
//!                                                          │              │
//!                                             transfer: grants, seals   engine: operations in order
//!                                                          │              │
//!                                                     iota-store      iota-compute
//! ```
//!
//! | module | concern |
//! |---|---|
//! | [`session`] | joins, polls, reports, leaves: makes the calls that the protocol's machine asks for |
//! | [`transfer`] | tokens, activations and cells by the grants of a lease |
//! | [`cells`] | fetching a checkpoint's cells, merging the copies of one |
//! | [`device`] | what a peer computes on: the CPU, or a card |
//! | [`mod@drift`] | how far a device is from the CPU in a run's work, and what that lets audits tolerate |
//! | `learned` | what was learned since a checkpoint as an object, and what it makes of the checkpoint |
//! | [`engine`] | forward, backward and steps with ordinals; the same bits for a miner and for whoever replays it |
//! | [`memory`] | what a peer of a stage needs, and whether it is there |
//! | `optimizer` | the run's update rule as the compute engine wants it |
//! | [`gate`] | how many stages compute at a time on one machine |
//!
//! `iota-miner` and `iota-validator` each implement [`Worker`] and hand it to [`participate`]; everything else about
//! being in a run is here, once.
//!
//! It does *not* know what a miner does with a lease, or a validator, nor what any result is worth.

pub mod cells;
mod convert;
pub mod device;
pub mod drift;
pub mod engine;
pub mod gate;
mod learned;
pub mod memory;
mod network;
mod optimizer;
pub mod session;
pub mod transfer;

pub use cells::{
    CellMerge, MergedCell, Merging, Unmergeable, fetch_cells, fetch_cells_with, merge,
};
pub use device::{Device, DeviceName};
pub use drift::{is_within, measure_drift, tolerances};
pub use engine::{
    BackwardResult, BegunBackward, BegunForward, Engine, Installed, KEPT_MAX, LearnedDistance,
    OperationInput, Start,
};
pub use gate::Gate;
pub use iota_compute::Distance;
pub use iota_tls::Trust;
pub use learned::{Base, CellPlanes};
pub use memory::PeerMemory;
pub use network::Network;
pub use optimizer::optimizer_settings;
pub use session::{Participation, Undone, Worker, participate};
pub use transfer::Transfer;

/// Trouble of a peer's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run's description cannot be used.
    #[error(transparent)]
    Run(#[from] iota_run::Error),
    /// The stage cannot be built or an operation does not fit it.
    #[error(transparent)]
    Compute(#[from] iota_compute::Error),
    /// The store's client cannot be made, or a tensor cannot be written.
    #[error(transparent)]
    Store(#[from] iota_store::Error),
    /// The orchestrator cannot be talked to.
    #[error("calling the orchestrator")]
    Call(#[from] iota_wire::CallError),
    /// A checkpoint does not fit the stage.
    #[error("the checkpoint cannot be installed: {0}")]
    Checkpoint(&'static str),
    /// Copies cannot be merged, or what was learned cannot be written or read.
    #[error(transparent)]
    Merge(#[from] iota_merge::Error),
    /// What a miner says it kept is nothing of the kind.
    #[error("the object is not of what a miner keeps for itself")]
    Kept,
    /// An operation was not given what it needs.
    #[error("the operation cannot be done: {0}")]
    Input(&'static str),
    /// A task died; the message says of what.
    #[error("a task of the peer panicked: {0}")]
    Panicked(String),
    /// The operation came too late: its weights have been replaced, or their epoch's training is over.
    #[error("the weights that the operation was meant for are gone")]
    Outdated,
    /// The machine has less memory than the stage needs, even if it keeps no forward pass for its backward pass.
    #[error(
        "stage {stage} needs {needed_bytes} bytes of memory, and there are {limit_bytes}: lend more, or join a run with \
         more stages"
    )]
    Memory {
        /// The stage.
        stage: iota_protocol::StageIndex,
        /// What it needs at least.
        needed_bytes: u64,
        /// What it may take.
        limit_bytes: u64,
    },
    /// The device that was asked for cannot be used.
    #[error("{name} cannot be used")]
    Device {
        /// As it was asked for.
        name: DeviceName,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A precision of the miner's own, in a run whose audits compare bits.
    #[error("audits of this run compare bits, so everybody computes in {run:?}")]
    Precision {
        /// What the run computes in.
        run: iota_model::Precision,
    },
    /// The stage's thread is gone.
    #[error("the stage's thread is gone")]
    StageGone,
}

impl Error {
    /// Whether weights, gradients or a result have blown up.
    pub const fn is_not_finite(&self) -> bool {
        matches!(
            self,
            Self::Compute(iota_compute::Error::NotFinite { .. })
                | Self::Merge(
                    iota_merge::Error::Value { .. } | iota_merge::Error::NoneFinite { .. }
                )
        )
    }

    /// Whether a backward pass that failed with this may have left a part of itself in the gradients.
    pub const fn spoils_gradients(&self) -> bool {
        use iota_compute::Error as Compute;
        matches!(
            self,
            Self::Compute(
                Compute::NotFinite { .. } | Compute::OutOfMemory { .. } | Compute::Device(_)
            )
        )
    }

    /// Whether the address of the orchestrator is none: nothing was tried, and nothing will help but another address.
    pub const fn is_bad_url(&self) -> bool {
        matches!(self, Self::Call(iota_wire::CallError::BadUrl { .. }))
    }
}
