//! What a run has trained, out of its store.
//!
//! ```text
//!   journal: a checkpoint ---.                   .--> export: safetensors and config.json, for other programs
//!                            +--> stage_weights -+
//!   store: merged cells -----'                   '--> Writer: text that goes on from a prompt
//! ```
//!
//! Weights are read by a checkpoint out of the run's journal, as a miner that joins is leased it, and each object must have the
//! digest that was committed to. A run may go on meanwhile: manifests in the store, which say the same, come a little later.
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use iota_compute::{Stage, StageOptions};
//! use iota_data::Tokenizer;
//! use iota_model::{StagePlan, preset};
//! use iota_trained::{Sampling, Writer};
//!
//! let plan = StagePlan::new(&preset("tiny")?, 1)?;
//! let mut stage = Stage::new(&plan, 0, StageOptions::default())?;
//! stage.initialise(1)?;
//! let mut writer = Writer::new(stage, Tokenizer::default());
//! let mut text = String::new();
//! writer.write("Once", 8, Sampling::default(), |piece| {
//!     text.push_str(piece);
//!     ControlFlow::Continue(())
//! })?;
//! assert!(!text.is_empty()); // nothing has been learned yet, so it is noise
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | concern |
//! |---|---|
//! | this one | [`stage_weights`]: a stage's flat parameters out of the store |
//! | `export` | [`export`]: files as transformers and others read them |
//! | `writer` | [`Writer`]: text, token by token |
//!
//! It does *not* know how a run is made or kept (`iota-orchestrator`), and nothing of peers.

mod error;
mod export;
mod writer;

use iota_compute::initialise;
use iota_model::StagePlan;
use iota_protocol::StageIndex;
use iota_protocol::work::{Checkpoint, SegmentSource};
use iota_run::Description;
use iota_store::{ObjectKey, Store, tensor};

pub use error::Error;
pub use export::{Exported, Numbers, export};
pub use writer::{Sampling, Writer};

/// The flat parameters of a stage as a checkpoint of the run has them: what [`StagePlan::layout`] maps.
///
/// # Errors
/// [`Error::Store`] if an object of it is gone or not what was committed to; [`Error::Checkpoint`] if it is not one of such a
/// stage.
///
/// # Panics
/// If the run has no such stage.
pub async fn stage_weights(
    description: &Description,
    store: &Store,
    checkpoint: &Checkpoint,
) -> Result<Vec<f32>, Error> {
    let (plan, stage) = (description.plan()?, checkpoint.stage);
    let mut weights = vec![0.0; plan.layout(usize::from(stage.get())).elements()];
    let segments = &checkpoint.segments;
    if segments
        .iter()
        .any(|it| it.source == SegmentSource::Genesis)
    {
        begin(&plan, description.seed, stage, &mut weights)?;
    }
    let unfit = |problem| Error::Checkpoint {
        stage,
        epoch: checkpoint.epoch,
        problem,
    };
    let mut covered = 0;
    for segment in segments {
        if segment.range.start != covered || segment.range.end > weights.len() as u64 {
            break;
        }
        covered = segment.range.end;
        let SegmentSource::Merged {
            object,
            offset,
            cell_elements,
            ..
        } = &segment.source
        else {
            continue;
        };
        let key = ObjectKey::object(description.run, object.name);
        let bytes = store.get(&key, &object.seal).await?;
        let spec = description.merge.cell_spec(*cell_elements as usize);
        let planes = tensor::decode(&bytes, &spec).map_err(iota_store::Error::from)?;
        let target = segment.range.start as usize..segment.range.end as usize;
        let source = *offset as usize..*offset as usize + target.len();
        let values = planes[0].get(source);
        let values = values.ok_or_else(|| unfit("a segment exceeds its cell"))?;
        weights[target].copy_from_slice(values);
    }
    if covered != weights.len() as u64 {
        return Err(unfit("its segments do not cover the stage in order"));
    }
    Ok(weights)
}

/// The weights that the run started from.
fn begin(plan: &StagePlan, seed: u64, stage: StageIndex, weights: &mut [f32]) -> Result<(), Error> {
    for tensor in plan.layout(usize::from(stage.get())).tensors() {
        initialise(tensor, seed, |range, values| {
            weights[tensor.offset..][range].copy_from_slice(values);
            Ok(())
        })?;
    }
    Ok(())
}
