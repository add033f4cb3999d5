//! Trains one model on several copies of each of its stages, without a network: what the numbers of a run are.
//!
//! ```text
//!                     stage 0            stage 1
//!   samples 0, 4 ──►  replica  ───────►  replica  ──► loss      path 0
//!   samples 1, 5 ──►  replica  ───────►  replica  ──► loss      path 1
//!   samples 2, 3 ──►  replica  ───────►  replica  ──► loss      path 2, twice as fast as the others
//!                        │                  │
//!                 merge, cell by cell  merge, cell by cell      each cell by two of the replicas, which compare digests
//! ```
//!
//! Between merges the replicas of a stage drift apart, for they step on other samples; a merge makes them one again. In a
//! run the orchestrator deals samples and cells and the store carries what is drawn as arrows here; what is computed is
//! the same.
//!
//! ```sh
//! cargo run --release -p iota-examples --example merge_in_memory
//! ```

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Context as _, ensure};
use iota_compute::{Input, Stage, StageOptions};
use iota_data::{
    Batch, BatchShape, Corpus, DataManifest, Evaluation, HELD_OUT_FRACTION, Preparation,
    SampleSlice, Sampler, Shard, Split, Tokenizer,
};
use iota_merge::{Accumulator, WeightedCopy, cut, digest, install, weighted_mean};
use iota_model::{ModelConfig, StagePlan, preset};
use iota_protocol::cells::{self, Cells};
use iota_protocol::{Epoch, PeerId, SampleId, Session, StageIndex};

const STAGES: usize = 2;
/// Replicas of each stage. Three are the fewest for which a stage has more than one cell.
const PATHS: usize = 3;
const EPOCHS: u64 = 5;
const SAMPLES_PER_EPOCH: u64 = 240;
const SEQUENCES_PER_SAMPLE: u32 = 4;
const LEARNING_RATE: f32 = 5e-3;
const SEED: u64 = 1;
/// Who merges which cell is drawn with it. In a run only the orchestrator knows it.
const SECRET: [u8; 32] = [7; 32];
/// Held-out samples that an evaluation reads.
const EVALUATION_SAMPLES: usize = 32;

fn main() -> anyhow::Result<()> {
    let model = preset("tiny")?;
    let text = Text::bundled(&model)?;
    let mut network = Network::new(&model, PATHS)?;
    println!(
        "{} parameters in {STAGES} stages, {PATHS} replicas of each; {} training tokens",
        model.parameters(),
        text.training.manifest.tokens,
    );

    let untrained = network.evaluate(&text)?;
    println!("held-out loss before training: {untrained:.3} nats per token\n");
    println!(
        "epoch  training loss  replicas before merge  cells merged  replicas after  held-out loss"
    );
    let mut held_out = untrained;
    for epoch in 0..EPOCHS {
        let training = network.train(epoch, &text)?;
        let before = network.states();
        let cells = network.merge(epoch)?;
        let after = network.states();
        held_out = network.evaluate(&text)?;
        println!(
            "{epoch:>5}  {training:>13.3}  {before:>15} states  {cells:>12}  {after:>7} states  {held_out:>13.3}",
        );
        ensure!(
            after == STAGES,
            "after a merge there is one state per stage"
        );
    }
    ensure!(
        held_out < untrained - 2.0,
        "the loss fell from {untrained} to {held_out} only"
    );
    println!("\nevery cell was computed by two replicas, in two ways, to the same digest");
    Ok(())
}

/// All replicas of all stages, as paths through the model.
struct Network {
    paths: Vec<Vec<Replica>>,
}

/// A copy of one stage: what a miner holds.
struct Replica {
    session: Session,
    stage: Stage,
    /// Backward passes since the last merge: how much the copy counts in the next one.
    backwards: u64,
}

impl Network {
    /// Every replica starts from the same initial weights.
    fn new(model: &ModelConfig, paths: usize) -> anyhow::Result<Self> {
        let plan = StagePlan::new(model, STAGES)?;
        let replica = |path: usize, index: usize| {
            let mut stage = Stage::new(&plan, index, StageOptions::default())?;
            stage.initialise(SEED)?;
            let name = u8::try_from(path * STAGES + index)?;
            let session = Session {
                peer: PeerId::from_bytes([name; 32]),
                generation: 1,
            };
            Ok(Replica {
                session,
                stage,
                backwards: 0,
            })
        };
        let path = |path| (0..STAGES).map(|index| replica(path, index)).collect();
        let paths = (0..paths).map(path).collect::<anyhow::Result<_>>()?;
        Ok(Self { paths })
    }

    /// Deals an epoch's samples to the paths, the last of which gets two where the others get one. Returns the mean loss,
    /// in nats per token.
    fn train(&mut self, epoch: u64, text: &Text) -> anyhow::Result<f32> {
        let last = self.paths.len() - 1;
        let mut losses = 0.0;
        for sample in epoch * SAMPLES_PER_EPOCH..(epoch + 1) * SAMPLES_PER_EPOCH {
            let batch = text.sample(SampleId::new(sample))?;
            let turn = usize::try_from(sample % (self.paths.len() as u64 + 1))?;
            losses += carry(&mut self.paths[turn.min(last)], &batch)?;
        }
        Ok(losses / SAMPLES_PER_EPOCH as f32)
    }

    /// Merges every stage. Returns how many cells there were.
    fn merge(&mut self, epoch: u64) -> anyhow::Result<usize> {
        let mut cells = 0;
        for index in 0..STAGES {
            let merged = self.merged_cells(index, Epoch::new(epoch))?;
            let steps = self.middle_steps(index);
            for path in &mut self.paths {
                path[index].install(&merged, steps)?;
            }
            cells += merged.len();
        }
        Ok(cells)
    }

    /// Averages a stage cell by cell, each as both of its owners would.
    fn merged_cells(&self, index: usize, epoch: Epoch) -> anyhow::Result<Vec<MergedCell>> {
        // In the order of sessions: floating-point sums depend on their order, so all owners must agree on one.
        let mut replicas: Vec<&Replica> = self.paths.iter().map(|path| &path[index]).collect();
        replicas.sort_by_key(|replica| replica.session);
        let roster: Vec<Session> = replicas.iter().map(|replica| replica.session).collect();
        let elements = replicas[0].stage.layout().elements() as u64;
        let stage = StageIndex::new(u16::try_from(index)?);
        let seed = cells::seed(&SECRET, stage, epoch);
        cells::plan(Cells::Butterfly, &seed, &roster, elements)
            .into_iter()
            .map(|cell| {
                let first = MergedCell::average(&replicas, &cell.range, at_once)?;
                let second = MergedCell::average(&replicas, &cell.range, as_they_arrive)?;
                ensure!(
                    first.digests() == second.digests(),
                    "owners {:?} disagree about elements {:?}",
                    cell.owners,
                    cell.range
                );
                Ok(first)
            })
            .collect()
    }

    /// Steps that the optimizer of a stage's middle replica has taken: how far AdamW's moments have warmed up.
    fn middle_steps(&self, index: usize) -> u64 {
        let mut steps: Vec<u64> = self
            .paths
            .iter()
            .map(|path| path[index].stage.state().optimizer_steps)
            .collect();
        steps.sort_unstable();
        steps[steps.len() / 2]
    }

    /// Mean loss on held-out text, in nats per token, along the first path.
    fn evaluate(&mut self, text: &Text) -> anyhow::Result<f32> {
        let (tail, before) = self.paths[0]
            .split_last_mut()
            .context("a model has a stage")?;
        let (mut losses, mut samples) = (0.0, 0);
        for slice in text.evaluation.batches().take(EVALUATION_SAMPLES) {
            let batch = text.held_out.read(&slice)?;
            let mut activation: Option<Vec<f32>> = None;
            for replica in before.iter_mut() {
                let output = replica
                    .stage
                    .forward_only(input(activation.as_deref(), &batch))?;
                activation = Some(output);
            }
            losses += tail
                .stage
                .evaluate(input(activation.as_deref(), &batch), &batch.targets)?;
            samples += 1;
        }
        Ok(losses / samples as f32)
    }

    /// States that replicas are in; one per stage if the replicas of each stage are equal.
    fn states(&self) -> usize {
        let replicas = self.paths.iter().flatten();
        let digests: BTreeSet<_> = replicas.map(|replica| replica.stage.digest()).collect();
        digests.len()
    }
}

/// Carries a sample forward and back along a path, and steps every stage of it. Returns the loss.
fn carry(path: &mut [Replica], batch: &Batch) -> anyhow::Result<f32> {
    let (tail, before) = path.split_last_mut().context("a model has a stage")?;
    let mut activation: Option<Vec<f32>> = None;
    let mut kept = Vec::new();
    for replica in before.iter_mut() {
        let (output, saved) = replica.stage.forward(input(activation.as_deref(), batch))?;
        activation = Some(output);
        kept.push(saved);
    }
    let (loss, mut gradient) = tail
        .stage
        .forward_backward_loss(input(activation.as_deref(), batch), &batch.targets)?;
    for (replica, saved) in before.iter_mut().zip(kept).rev() {
        let from_behind = gradient.context("only the head has nobody to send a gradient to")?;
        gradient = replica.stage.backward(saved, &from_behind)?;
    }
    for replica in path {
        replica.stage.step(LEARNING_RATE, 1)?;
        replica.backwards += 1;
    }
    Ok(loss)
}

/// What a stage reads: what came from the stage before, or at the head the sample's tokens.
fn input<'a>(activation: Option<&'a [f32]>, batch: &'a Batch) -> Input<'a> {
    activation.map_or(Input::Tokens(&batch.inputs), Input::Activation)
}

/// The average of some elements of a stage: of the parameters and of both moments of the optimizer.
struct MergedCell {
    range: Range<u64>,
    planes: [Vec<f32>; 3],
}

impl MergedCell {
    fn average(
        replicas: &[&Replica],
        range: &Range<u64>,
        rule: impl Fn(&[WeightedCopy<'_>]) -> Result<Vec<f32>, iota_merge::Error>,
    ) -> anyhow::Result<Self> {
        let mut planes = [(); 3].map(|()| Vec::new());
        for (plane, merged) in planes.iter_mut().enumerate() {
            let copies = replicas
                .iter()
                .map(|&replica| {
                    Ok(WeightedCopy {
                        elements: cut(replica.planes()[plane], range.clone())?,
                        weight: replica.backwards,
                    })
                })
                .collect::<Result<Vec<_>, iota_merge::Error>>()?;
            *merged = rule(&copies)?;
        }
        Ok(Self {
            range: range.clone(),
            planes,
        })
    }

    fn digests(&self) -> [[u8; 32]; 3] {
        self.planes.each_ref().map(|plane| digest(plane))
    }
}

/// How an owner averages that has all copies in memory.
fn at_once(copies: &[WeightedCopy<'_>]) -> Result<Vec<f32>, iota_merge::Error> {
    Ok(weighted_mean(copies)?.elements)
}

/// How an owner averages that downloads one copy after the other and keeps none of them.
fn as_they_arrive(copies: &[WeightedCopy<'_>]) -> Result<Vec<f32>, iota_merge::Error> {
    let elements = copies.first().map_or(0, |copy| copy.elements.len());
    let mut sums = Accumulator::new(elements);
    for copy in copies {
        sums.add(copy.elements, copy.weight)?;
    }
    Ok(sums.finish()?.elements)
}

impl Replica {
    fn planes(&self) -> [&[f32]; 3] {
        let state = self.stage.state();
        [state.parameters, state.first_moment, state.second_moment]
    }

    fn install(&mut self, cells: &[MergedCell], optimizer_steps: u64) -> anyhow::Result<()> {
        let state = self.stage.state_mut();
        for cell in cells {
            let [parameters, first_moment, second_moment] = &cell.planes;
            install(state.parameters, cell.range.clone(), parameters)?;
            install(state.first_moment, cell.range.clone(), first_moment)?;
            install(state.second_moment, cell.range.clone(), second_moment)?;
        }
        *state.optimizer_steps = optimizer_steps;
        self.backwards = 0;
        Ok(())
    }
}

/// What is trained on, and what is only ever measured on.
struct Text {
    training: Tokens,
    sampler: Sampler,
    held_out: Tokens,
    evaluation: Evaluation,
}

/// A tokenized part of the corpus.
struct Tokens {
    manifest: DataManifest,
    shards: Vec<Shard>,
}

impl Text {
    fn bundled(model: &ModelConfig) -> anyhow::Result<Self> {
        let shape = BatchShape {
            sequences: SEQUENCES_PER_SAMPLE,
            context: u32::try_from(model.context)?,
        };
        let parts = Corpus::bundled().split(HELD_OUT_FRACTION)?;
        let training = Tokens::of(&parts.training, Split::Training, shape)?;
        let held_out = Tokens::of(&parts.held_out, Split::HeldOut, shape)?;
        Ok(Self {
            sampler: Sampler::new(&training.manifest, shape, SEED)?,
            evaluation: Evaluation::new(&held_out.manifest, shape)?,
            training,
            held_out,
        })
    }

    fn sample(&self, sample: SampleId) -> anyhow::Result<Batch> {
        self.training.read(&self.sampler.slice(sample))
    }
}

impl Tokens {
    fn of(corpus: &Corpus, split: Split, shape: BatchShape) -> anyhow::Result<Self> {
        // Whole samples to a shard, so that none of its tokens are left over.
        let shard_tokens = usize::try_from(1_000 * shape.tokens())?;
        let mut preparation = Preparation::new(corpus, Tokenizer::default(), split, shard_tokens)?;
        let shards = preparation
            .by_ref()
            .map(|shard| shard.entry.open(&shard.bytes))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            manifest: preparation.finish(),
            shards,
        })
    }

    fn read(&self, slice: &SampleSlice) -> anyhow::Result<Batch> {
        Ok(slice.read(&self.shards[slice.shard])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> (Network, Text) {
        let model = preset("tiny").unwrap();
        let text = Text::bundled(&model).unwrap();
        let mut network = Network::new(&model, PATHS).unwrap();
        for sample in 0..8 {
            let batch = text.sample(SampleId::new(sample)).unwrap();
            carry(&mut network.paths[sample as usize % PATHS], &batch).unwrap();
        }
        (network, text)
    }

    #[test]
    fn replicas_drift_apart_and_a_merge_makes_them_one_again() {
        let (mut network, text) = trained();
        assert_eq!(network.states(), PATHS * STAGES);
        assert_eq!(network.merge(0).unwrap(), 3 * STAGES);
        assert_eq!(network.states(), STAGES);
        assert!(network.evaluate(&text).unwrap().is_finite());
    }

    #[test]
    fn two_owners_who_average_in_different_ways_agree_until_one_of_them_lies() {
        let (network, _) = trained();
        let replicas: Vec<&Replica> = network.paths.iter().map(|path| &path[0]).collect();
        let honest = MergedCell::average(&replicas, &(100..200), at_once).unwrap();
        let mut other = MergedCell::average(&replicas, &(100..200), as_they_arrive).unwrap();
        assert_eq!(honest.digests(), other.digests());
        other.planes[0][42] = other.planes[0][42].next_up();
        assert_ne!(honest.digests(), other.digests());
    }

    #[test]
    fn the_program_says_that_it_learned() {
        main().unwrap();
    }
}
