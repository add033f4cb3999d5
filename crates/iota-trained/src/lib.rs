//! What a run has trained, out of its store.
//!
//! ```text
//!                                                  .--> export: safetensors and config.json, for other programs
//!   store: manifests, merged cells --> stage_weights
//!                                                  '--> Writer: text that goes on from a prompt
//! ```
//!
//! Weights are read by the manifests of a checkpoint, as a miner that joins reads them, and each object must have the digest
//! that was committed to. A run may go on meanwhile.
//!
//! ```
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
//! writer.write("Once", 8, Sampling::default(), |piece| text.push_str(piece))?;
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
use iota_protocol::work::{Checkpoint, SegmentSource};
use iota_protocol::{Epoch, StageIndex};
use iota_run::Description;
use iota_store::{ObjectKey, Store, tensor};

pub use error::Error;
pub use export::{Exported, Numbers, export};
pub use writer::{Sampling, Writer};

/// The flat parameters of a stage as an epoch of the run began: what [`StagePlan::layout`] maps.
///
/// # Errors
/// [`Error::Store`] if there is no such checkpoint, or something of it is gone or not what was committed to.
pub async fn stage_weights(
    description: &Description,
    store: &Store,
    stage: StageIndex,
    epoch: Epoch,
) -> Result<Vec<f32>, Error> {
    let plan = description.plan()?;
    let mut weights = vec![0.0; plan.layout(usize::from(stage.get())).elements()];
    let segments = if epoch == Epoch::new(0) {
        // Nobody has merged anything, so there is no manifest.
        begin(&plan, description.seed, stage, &mut weights)?;
        Vec::new()
    } else {
        let key = ObjectKey::checkpoint(description.run, epoch, stage);
        let checkpoint: Checkpoint = store.get_manifest(&key).await?;
        checkpoint.segments
    };
    if segments
        .iter()
        .any(|it| it.source == SegmentSource::Genesis)
    {
        begin(&plan, description.seed, stage, &mut weights)?;
    }
    for segment in &segments {
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
        weights[target].copy_from_slice(&planes[0][source]);
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
