//! The shape of a model: presets, stages, parameter layout, sizes; no tensors.
//!
//! A model is a row of transformer blocks between an embedding and an output projection. A *stage* is the stretch of it
//! that one miner holds. Where a *boundary* is, only `b` of the `d` channels go on to the next block, so that a stage cut
//! there has little to send:
//!
//! ```text
//!             boundary                boundary
//!  tokens         |                       |
//!    |            |  b channels           |  b channels
//!  embedding      |                       |                 norm
//!    |            |                       |                   |
//!  block 0 .. encoder -> decoder .. encoder -> decoder .. block n-1
//!                 |                       |                   |
//!  [--- head ----]|[------- body --------]|[----- tail --- projection ]-> loss
//! ```
//!
//! Boundaries belong to the model, cuts to the way it is spread over machines: [`StagePlan`] keeps both, so the same
//! model can be trained whole ([`StagePlan::regroup`]`(1)`) or in pieces, with the same parameters, bit by bit.
//!
//! ```
//! use iota_model::{StagePlan, preset};
//!
//! let model = preset("testnet")?;
//! let plan = StagePlan::new(&model, 3)?;
//! assert_eq!(plan.stages().len(), 3);
//! assert_eq!(plan.boundary_width(), 64);
//!
//! let whole = plan.regroup(1)?;
//! let pieces: usize = (0..3).map(|stage| plan.layout(stage).elements()).sum();
//! assert_eq!(whole.layout(0).elements(), pieces);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | concern |
//! |---|---|
//! | [`config`] | [`ModelConfig`]: the dimensions, checked |
//! | [`boundary`] | [`Boundary`]: what crosses from a stage to the next, and how |
//! | [`presets`] | named configurations, and where IOTA cuts its own |
//! | [`plan`] | [`StagePlan`]: boundaries, and which blocks a stage holds |
//! | [`balance`] | [`Costs`], and the cuts that share them out |
//! | [`precision`] | [`Precision`]: what matrix products are computed in |
//! | [`layout`] | [`StageLayout`]: where each tensor lies in a stage's flat parameters |
//!
//! What it does *not* know: tensors, devices, files, peers. It computes sizes; `iota-compute` computes with them.

pub mod balance;
pub mod boundary;
pub mod config;
pub mod layout;
pub mod plan;
pub mod precision;
pub mod presets;

pub use balance::Costs;
pub use boundary::{Boundary, BoundaryKind};
pub use config::{InvalidModel, ModelConfig, Rope, RopeScaling};
pub use layout::{BlockTensor, Initialisation, StageLayout, TensorId, TensorLayout};
pub use plan::{PlanError, StagePlan, StageRole, StageSpan};
pub use precision::Precision;
pub use presets::{UnknownPreset, preset, published_cuts};
