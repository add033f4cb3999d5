//! What everybody who takes part in a run must know of it, and what follows from that.
//!
//! ```text
//!                        ┌─ model, cuts ────► shapes of activations, elements of each stage
//!   Description (JSON) ──┼─ data, seed ─────► the tokens of a sample
//!     from GetRun        ├─ wire ───────────► what crosses a boundary, in how many bytes
//!                        ├─ optimizer ──────► when a stage steps, and how
//!                        ├─ merge ──────────► how copies become one, and the objects that it takes
//!                        └─ comparison ─────► what an auditor calls the same
//! ```
//!
//! The orchestrator makes a [`Description`] once and hands it out as it is; miners and validators derive the same
//! shapes, sizes and batches from it. The orchestrator derives the sizes that the rules are given, so that it signs
//! grants for objects of exactly the right length without knowing what a tensor is.
//!
//! ```
//! use iota_run::Merge;
//! use iota_store::tensor;
//!
//! // A cell of 1000 elements is an object of so many bytes, whatever is in it; so its length says how many there are.
//! let merge = Merge::default();
//! let length_bytes = tensor::encoded_length(&merge.cell_spec(1_000));
//! assert_eq!(merge.cell_elements(length_bytes), Some(1_000));
//! assert_eq!(merge.cell_elements(length_bytes + 1), None);
//! ```
//!
//! | module | concern |
//! |---|---|
//! | this one | the [`Description`]: model, cuts, data, precision; what follows from it |
//! | `optimizer` | the update rules that a run can have |
//! | `boundary` | the tensors between stages: their codecs, lengths, and the chance of their rounding |
//! | `merging` | how copies become one, and the tensors in the objects of merges |
//! | `comparison` | how audits compare: bits, or within measured tolerances |
//!
//! It does *not* know how a stage computes (`iota-compute`), who does what (`iota-protocol`) or where objects are
//! (`iota-store` is here for the lengths of encoded tensors only).

mod boundary;
mod comparison;
mod merging;
mod optimizer;

use iota_data::{Batch, BatchShape, DataManifest, Sampler};
use iota_model::{ModelConfig, PlanError, Precision, StagePlan};
use iota_protocol::{RunId, StageIndex};
use serde::{Deserialize, Serialize};

pub use boundary::{BoundaryError, Wire};
pub use comparison::{Comparison, ComparisonError, RELATIVE_MAX, Tolerance, Tolerances};
pub use iota_codec::Codec;
pub use merging::{Merge, MergeError, OptimizerState};
pub use optimizer::{AdamW, Beta1, Muon, NAdam, Optimizer, UpdateRule, UpdateScale};

/// Version of the description's format; a peer refuses another.
pub const VERSION: u32 = 4;

/// A run as its participants see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// [`VERSION`].
    pub version: u32,
    /// Which run.
    pub run: RunId,
    /// Initial weights and the order of the data derive from it.
    pub seed: u64,
    /// The model.
    pub model: ModelConfig,
    /// Where it is cut into stages: the first block of each stage but the first, ascending. A bottleneck's boundaries are
    /// there.
    pub cuts: Vec<usize>,
    /// Token sequences in a sample.
    pub sequences: u32,
    /// Backward passes per optimizer step.
    pub backwards_per_step: u32,
    /// The optimizer, without its learning rate, which comes with each backward pass.
    pub optimizer: Optimizer,
    /// What stages compute in.
    pub precision: Precision,
    /// Whether blocks keep their input only and compute the rest again in the backward pass: less memory, more time. A
    /// matter of the run: a step between a forward and its backward pass makes it show in the bits.
    pub recompute: bool,
    /// How stages send tensors to each other.
    pub wire: Wire,
    /// How the copies of a stage become one.
    pub merge: Merge,
    /// How audits compare. A description that says nothing of it means bits, as it always did.
    #[serde(default, skip_serializing_if = "Comparison::is_bits")]
    pub comparison: Comparison,
    /// The training tokens.
    pub data: DataManifest,
}

/// A description that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not the JSON that it should be.
    #[error("the run's description cannot be read")]
    Json(#[from] serde_json::Error),
    /// Made by another version of this program.
    #[error("the run's description has version {found}, this program knows version {VERSION}")]
    Version {
        /// What it has.
        found: u32,
    },
    /// The model cannot be cut like this.
    #[error(transparent)]
    Model(#[from] PlanError),
    /// Stages cannot be merged like this.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// Work cannot be compared like this.
    #[error(transparent)]
    Comparison(#[from] ComparisonError),
    /// The data cannot give samples like this.
    #[error(transparent)]
    Data(#[from] iota_data::Error),
}

impl Description {
    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// If it is not a description of this version, or model, stages and data do not fit together.
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version: found } = serde_json::from_slice(json)?;
        if found != VERSION {
            return Err(Error::Version { found });
        }
        let description: Self = serde_json::from_slice(json)?;
        description.plan()?;
        description.merge.validate()?;
        description.validate_comparison()?;
        description.sampler()?;
        Ok(description)
    }

    /// As it travels.
    ///
    /// # Errors
    /// Never in practice: every field can be written.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Whether audits can compare like this what this run has to compare.
    ///
    /// # Errors
    /// [`ComparisonError`] says why not.
    pub fn validate_comparison(&self) -> Result<(), ComparisonError> {
        self.comparison.validate()?;
        if self.merge.overlaps && !self.comparison.is_bits() {
            return Err(ComparisonError::Overlap);
        }
        let codec = self.merge.upload;
        let is_elementwise = matches!(
            codec,
            iota_merge::Codec::F32 | iota_merge::Codec::Bf16 | iota_merge::Codec::Int8
        );
        if self.comparison.is_bits() || (is_elementwise && self.merge.residual_decay().is_none()) {
            Ok(())
        } else {
            Err(ComparisonError::Upload { codec })
        }
    }

    /// How the model is cut.
    ///
    /// # Errors
    /// If the model cannot be cut there.
    pub fn plan(&self) -> Result<StagePlan, Error> {
        Ok(StagePlan::cut_at(&self.model, &self.cuts)?)
    }

    /// Whether whoever works on a stage needs a sample's tokens: the first takes them in, the last compares with them, and
    /// behind an anchored boundary every stage embeds them.
    pub const fn needs_tokens(&self, stage: StageIndex) -> bool {
        let stage = stage.get() as usize;
        stage == 0 || stage + 1 == self.stages() || self.model.boundary.is_anchored()
    }

    /// Into how many stages the model is cut.
    pub const fn stages(&self) -> usize {
        self.cuts.len() + 1
    }

    /// Which tokens belong to which sample.
    ///
    /// # Errors
    /// If the data is too short for one sample.
    pub fn sampler(&self) -> Result<Sampler, Error> {
        Ok(Sampler::new(&self.data, self.shape(), self.seed)?)
    }

    /// Sequences in a sample and tokens in a sequence.
    pub fn shape(&self) -> BatchShape {
        BatchShape {
            sequences: self.sequences,
            context: u32::try_from(self.model.context).unwrap_or(u32::MAX),
        }
    }

    /// Tokens in one sample.
    pub const fn sample_tokens(&self) -> usize {
        self.sequences as usize * self.model.context
    }
}

/// Inputs and targets of a sample.
pub type Tokens = Batch;
