//! The model in one piece: to say how good a checkpoint is, and to train without a network for comparison.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use iota_compute::{Input, Stage, StageOptions};
use iota_data::{DataManifest, Evaluation, Sampler, Shard};
use iota_model::StagePlan;
use iota_peer::optimizer_settings;
use iota_protocol::work::Checkpoint;
use iota_protocol::{Digest, SampleId, StageIndex};
use iota_protocol::{RunSettings, learning_rate_at};
use iota_run::Description;
use iota_store::{ObjectKey, Store};
use iota_trained::stage_weights;
use tokio::task::spawn_blocking;

use crate::Error;
use crate::report::Baseline;

/// Every stage of the model, one after the other.
#[derive(Debug)]
pub(crate) struct Whole {
    stages: Vec<Stage>,
}

/// Decoded shards of a data set, all of them: testnets' texts are small.
pub(crate) type Shards = BTreeMap<Digest, Shard>;

/// Held-out samples that an evaluation reads at most: enough that its error is well below a hundredth of a nat.
const EVALUATION_SAMPLES: usize = 32;

impl Whole {
    /// The model cut into so many stages, with its initial weights.
    pub(crate) fn new(
        description: &Description,
        stages: usize,
        threads: usize,
    ) -> Result<Self, Error> {
        let plan = regrouped(description, stages)?;
        let optimizer = optimizer_settings(&description.optimizer);
        let stages = (0..stages)
            .map(|index| {
                let options = StageOptions {
                    threads,
                    precision: description.precision,
                    optimizer,
                    ..StageOptions::default()
                };
                let mut stage = Stage::new(&plan, index, options)?;
                stage.initialise(description.seed)?;
                Ok(stage)
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { stages })
    }

    /// The run's stages with the weights of its last checkpoint, read from the store.
    pub(crate) async fn load(
        description: &Description,
        store: &Store,
        checkpoints: &[Checkpoint],
        threads: usize,
    ) -> Result<Self, Error> {
        let mut whole = Self::new(description, checkpoints.len(), threads)?;
        for (stage, checkpoint) in whole.stages.iter_mut().zip(checkpoints) {
            let weights = stage_weights(description, store, checkpoint).await?;
            stage.state_mut().parameters.copy_from_slice(&weights);
        }
        Ok(whole)
    }

    /// Mean loss on held-out text, in nats per token.
    pub(crate) fn evaluate(&mut self, held_out: &HeldOut) -> Result<f64, Error> {
        let mut losses = Vec::new();
        for slice in held_out.evaluation.batches().take(EVALUATION_SAMPLES) {
            let shard = &held_out.shards[&held_out.manifest.shards[slice.shard].digest];
            let batch = slice.read(shard)?;
            let (last, before) = self.stages.split_last_mut().ok_or(Error::NoStages)?;
            let plan = last.plan().clone();
            let mut activation: Option<Vec<f32>> = None;
            for stage in before {
                let input = Input::of(&plan, &batch.inputs, activation.as_deref());
                activation = Some(stage.forward_only(input)?);
            }
            let input = Input::of(&plan, &batch.inputs, activation.as_deref());
            losses.push(f64::from(last.evaluate(input, &batch.targets)?));
        }
        Ok(losses.iter().sum::<f64>() / losses.len().max(1) as f64)
    }
}

/// The same model with the same boundaries, cut into another number of stages.
fn regrouped(description: &Description, stages: usize) -> Result<StagePlan, Error> {
    let plan = description.plan()?;
    Ok(if plan.stages().len() == stages {
        plan
    } else {
        plan.regroup(stages).map_err(iota_run::Error::from)?
    })
}

/// The held-out text, ready to be read.
#[derive(Debug)]
pub(crate) struct HeldOut {
    manifest: DataManifest,
    evaluation: Evaluation,
    shards: Shards,
}

impl HeldOut {
    pub(crate) async fn load(
        description: &Description,
        manifest: DataManifest,
        store: &Store,
    ) -> Result<Self, Error> {
        let evaluation = Evaluation::new(&manifest, description.shape())?;
        let shards = load_shards(description, &manifest, store).await?;
        Ok(Self {
            manifest,
            evaluation,
            shards,
        })
    }
}

pub(crate) async fn load_shards(
    description: &Description,
    manifest: &DataManifest,
    store: &Store,
) -> Result<Shards, Error> {
    let mut shards = Shards::new();
    for entry in &manifest.shards {
        let seal = iota_protocol::work::Seal {
            digest: entry.digest,
            length: entry.length_bytes,
        };
        let bytes = store
            .get(&ObjectKey::shard(description.run, entry.digest), &seal)
            .await?;
        shards.insert(entry.digest, entry.open(&bytes)?);
    }
    Ok(shards)
}

/// Trains the model uncut in this process on as many samples as the run did, with all threads at each step.
///
/// One optimizer sees every sample here, where a miner sees its share; its step therefore takes in as many backward
/// passes as the miners of a stage together do.
pub(crate) async fn train_baseline(
    description: Description,
    settings: RunSettings,
    miners_per_stage: u32,
    samples: u64,
    threads: usize,
    store: &Store,
    held_out: HeldOut,
) -> Result<Baseline, Error> {
    let shards = load_shards(&description, &description.data, store).await?;
    spawn_blocking(move || {
        let mut whole = Whole::new(&description, 1, threads)?;
        let sampler: Sampler = description.sampler()?;
        let passes_per_step = settings.backwards_per_step * miners_per_stage.max(1);
        let stage = &mut whole.stages[0];
        let mut elapsed = Duration::ZERO;
        let mut pending = 0;
        for sample in 0..samples {
            let slice = sampler.slice(SampleId::new(sample));
            let started = Instant::now();
            let batch = slice.read(&shards[&description.data.shards[slice.shard].digest])?;
            stage.forward_backward_loss(Input::Tokens(&batch.inputs), &batch.targets)?;
            pending += 1;
            if pending == passes_per_step || sample + 1 == samples {
                let rate =
                    learning_rate_at(&settings.learning_rate, sample, settings.samples_total());
                stage.step(rate, pending)?;
                pending = 0;
            }
            elapsed += started.elapsed();
        }
        let tokens = samples * settings.sample_tokens;
        let held_out_end = whole.evaluate(&held_out)?;
        Ok(Baseline {
            tokens_per_second: tokens as f64 / elapsed.as_secs_f64(),
            held_out_end,
        })
    })
    .await
    .map_err(|error| Error::Panicked(error.to_string()))?
}

/// Where the run's checkpoints of its last epoch are.
pub(crate) fn last_checkpoints(state: &iota_protocol::State) -> Vec<Checkpoint> {
    (0..state.settings().stages())
        .map(|stage| state.checkpoint(StageIndex::new(stage)).clone())
        .collect()
}
