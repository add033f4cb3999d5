//! Stages in sequence, trained and evaluated in one thread, a batch at a time.

use anyhow::{Context as _, Result};
use iota_compute::{Input, OptimizerSettings, Stage, StageOptions};
use iota_data::Batch;
use iota_model::StagePlan;

use crate::wire::Wire;

/// A model, cut, with what happens to the numbers between its stages.
#[derive(Debug)]
pub(crate) struct Pipeline {
    stages: Vec<Stage>,
    wires: Wires,
    channels: usize,
    seed: u64,
}

/// The encodings of the two directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wires {
    /// Of activations.
    pub(crate) forward: Wire,
    /// Of gradients.
    pub(crate) backward: Wire,
}

impl Pipeline {
    /// With the initial weights of this seed.
    pub(crate) fn new(
        plan: &StagePlan,
        wires: Wires,
        optimizer: OptimizerSettings,
        seed: u64,
    ) -> Result<Self> {
        let options = StageOptions {
            optimizer,
            ..StageOptions::default()
        };
        let stages = (0..plan.stages().len())
            .map(|index| {
                let mut stage = Stage::new(plan, index, options)?;
                stage.initialise(seed)?;
                Ok(stage)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            stages,
            wires,
            channels: plan.boundary_width(),
            seed,
        })
    }

    /// Forward, backward and a step of every stage. Returns the loss, in nats per token.
    pub(crate) fn train(&mut self, batch: &Batch, step: u64, learning_rate: f32) -> Result<f32> {
        let (wires, channels) = (self.wires, self.channels);
        let crossing = |hop: usize, direction: u64| crossing_seed(self.seed, step, hop, direction);
        let (tail, before) = self
            .stages
            .split_last_mut()
            .context("a plan has at least one stage")?;
        let plan = tail.plan().clone();
        let mut waiting = Vec::with_capacity(before.len());
        let mut activation: Option<Vec<f32>> = None;
        for (hop, stage) in before.iter_mut().enumerate() {
            let input = Input::of(&plan, &batch.inputs, activation.as_deref());
            let (mut output, saved) = stage.forward(input)?;
            wires
                .forward
                .cross(&mut output, channels, crossing(hop, FORWARD))?;
            waiting.push(saved);
            activation = Some(output);
        }
        let input = Input::of(&plan, &batch.inputs, activation.as_deref());
        let (loss, mut gradient) = tail.forward_backward_loss(input, &batch.targets)?;
        for (hop, (stage, saved)) in before.iter_mut().zip(waiting).enumerate().rev() {
            let mut received =
                gradient.context("every stage but the first has an input gradient")?;
            wires
                .backward
                .cross(&mut received, channels, crossing(hop, BACKWARD))?;
            gradient = stage.backward(saved, &received)?;
        }
        for stage in &mut self.stages {
            stage.step(learning_rate, 1)?;
        }
        Ok(loss)
    }

    /// Mean loss over batches, in nats per token, with what crosses encoded as in training. Changes nothing.
    pub(crate) fn evaluate<'a>(&mut self, batches: impl Iterator<Item = &'a Batch>) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0_u32);
        for (index, batch) in batches.enumerate() {
            let (tail, before) = self
                .stages
                .split_last_mut()
                .context("a plan has at least one stage")?;
            let plan = tail.plan().clone();
            let mut activation: Option<Vec<f32>> = None;
            for (hop, stage) in before.iter_mut().enumerate() {
                let input = Input::of(&plan, &batch.inputs, activation.as_deref());
                let mut output = stage.forward_only(input)?;
                let seed = crossing_seed(self.seed, index as u64, hop, EVALUATION);
                self.wires.forward.cross(&mut output, self.channels, seed)?;
                activation = Some(output);
            }
            let input = Input::of(&plan, &batch.inputs, activation.as_deref());
            sum += f64::from(tail.evaluate(input, &batch.targets)?);
            count += 1;
        }
        Ok(sum / f64::from(count.max(1)))
    }
}

const FORWARD: u64 = 0;
const BACKWARD: u64 = 1;
const EVALUATION: u64 = 2;

/// A seed for every tensor that ever crosses, none alike: each number is mixed in by an odd factor and a shift, so that
/// neighbours share nothing.
fn crossing_seed(seed: u64, step: u64, hop: usize, direction: u64) -> u64 {
    [seed, step, hop as u64, direction]
        .into_iter()
        .fold(0, |state, number| {
            let mixed = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        })
}

#[cfg(test)]
mod tests {
    use iota_data::BatchShape;
    use iota_model::{Boundary, ModelConfig, preset};

    use super::*;
    use crate::text::Text;

    const EXACT: Wires = Wires {
        forward: Wire::F32,
        backward: Wire::F32,
    };

    fn trained(stages: usize, wires: Wires) -> Vec<f32> {
        let model = ModelConfig {
            boundary: Boundary::None,
            ..preset("tiny").unwrap()
        };
        let shape = BatchShape {
            sequences: 2,
            context: 32,
        };
        let text = Text::bundled(shape).unwrap();
        let plan = StagePlan::new(&model, stages).unwrap();
        let optimizer = OptimizerSettings {
            clip_norm: f32::INFINITY,
            ..OptimizerSettings::default()
        };
        let mut pipeline = Pipeline::new(&plan, wires, optimizer, 3).unwrap();
        let batches = text.batches(3).unwrap();
        (0..6)
            .zip(batches)
            .map(|(step, batch)| pipeline.train(&batch.unwrap(), step, 0.01).unwrap())
            .collect()
    }

    #[test]
    fn without_clipping_the_cut_and_the_uncut_model_have_the_same_losses() {
        let uncut = trained(1, EXACT);
        assert_eq!(trained(3, EXACT), uncut);
        assert!(uncut[5] < uncut[0]);
    }

    #[test]
    fn both_directions_are_encoded() {
        let exact = trained(3, EXACT);
        let forward = trained(
            3,
            Wires {
                forward: Wire::BF16,
                ..EXACT
            },
        );
        let backward = trained(
            3,
            Wires {
                backward: Wire::BF16,
                ..EXACT
            },
        );
        assert_ne!(forward[0], exact[0], "the first forward pass already");
        assert_eq!(backward[0], exact[0], "gradients come after the first loss");
        assert_ne!(backward[1..], exact[1..]);
    }

    #[test]
    fn no_two_tensors_are_encoded_by_the_same_seed() {
        let mut seeds = std::collections::BTreeSet::new();
        for seed in 0..3 {
            for step in 0..50 {
                for hop in 0..4 {
                    for direction in [FORWARD, BACKWARD, EVALUATION] {
                        assert!(seeds.insert(crossing_seed(seed, step, hop, direction)));
                    }
                }
            }
        }
    }
}
