//! One run of one variant: replicas that train apart in one thread, and are merged cell by cell.

use std::ops::Range;
use std::time::Instant;

use anyhow::Result;
use iota_compute::{Input, OptimizerSettings, Stage, StageOptions};
use iota_data::Batch;
use iota_merge::{Accumulator, Codec, Feedback, InProgress, Outer, norm, pseudo_gradient};
use iota_model::{ModelConfig, StagePlan};
use iota_protocol::learning_rate_at;
use iota_protocol::settings::LearningRate;

use super::variant::{FEEDBACK_DECAY, Merge, OptimizerState, Variant};
use super::{Outcome, Setting};
use crate::boundaries::training::is_not_finite;
use crate::curve::{CURVE_BATCHES, RESULT_BATCHES, is_a_point};
use crate::text::Text;

/// How much longer garbage is than what was learned.
const GARBAGE: f64 = 100.0;

/// Trains a variant with the seed's initial weights, on the seed's order of the text.
pub(super) fn train(
    model: &ModelConfig,
    setting: &Setting,
    variant: &Variant,
    optimizer: OptimizerSettings,
    seed: u64,
    text: &Text,
) -> Result<Outcome> {
    let plan = StagePlan::new(model, 1)?;
    let batch_tokens = u64::from(setting.sequences) * setting.context as u64;
    let replicas = setting.replicas as u64;
    // Of a replica: all but the single one see a share of the tokens each.
    let batches_per_step = match variant {
        Variant::Single => 1,
        _ => replicas,
    };
    let steps = setting.tokens.div_ceil(batch_tokens * batches_per_step);
    let mut network = match variant {
        Variant::Single | Variant::Synchronous => Network::new(&plan, 1, None, optimizer, seed)?,
        Variant::Merged(merge) => {
            Network::new(&plan, setting.replicas, Some(*merge), optimizer, seed)?
        }
    };
    let schedule = LearningRate::cosine(setting.learning_rate, steps.div_ceil(20), 0.1);
    let started = Instant::now();
    let mut curve = Vec::new();
    let mut all_of_it = || -> Result<f64> {
        let mut batches = text.batches(seed)?;
        for step in 0..steps {
            let share: Vec<Batch> = (&mut batches)
                .take(batches_per_step as usize)
                .collect::<Result<_>>()?;
            let learning_rate = learning_rate_at(&schedule, step, steps);
            network.train(&share, learning_rate)?;
            let done = step + 1;
            // Halfway to the next merge, or as the run ends.
            if done % setting.every == setting.every / 2 || done == steps {
                network.install();
            }
            if done % setting.every == 0 || done == steps {
                network.merge(done == steps)?;
            }
            if is_a_point(done, steps) {
                let loss = network.evaluate(text.held_out(CURVE_BATCHES))?;
                curve.push((done * batches_per_step * batch_tokens, loss));
            }
        }
        network.evaluate(text.held_out(RESULT_BATCHES))
    };
    let held_out = match all_of_it() {
        Ok(loss) => Some(loss).filter(|loss| loss.is_finite()),
        Err(error) if is_not_finite(&error) || error.is::<iota_merge::Error>() => None,
        Err(error) => return Err(error),
    };
    Ok(Outcome {
        variant: variant.to_string(),
        seed,
        setting: setting.clone(),
        held_out,
        curve,
        bytes_per_merge: network.bytes_per_merge(),
        elements: network.anchor.len() as u64,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Replicas of a whole model, and what they agree on.
struct Network {
    replicas: Vec<Replica>,
    merge: Option<Merge>,
    /// The parameters of the last merge.
    anchor: Vec<f32>,
    /// Of the outer step.
    momentum: Vec<f32>,
    /// Merges so far.
    round: u64,
    /// Bytes of uploads, of one replica on average, and of merged cells.
    uploaded: f64,
    downloaded: f64,
    seed: u64,
}

struct Replica {
    stage: Stage,
    /// What its encoder left out.
    residual: Vec<f32>,
    /// What it had when it uploaded, if it trains on from there.
    then: Option<Vec<f32>>,
}

impl Network {
    fn new(
        plan: &StagePlan,
        replicas: usize,
        merge: Option<Merge>,
        optimizer: OptimizerSettings,
        seed: u64,
    ) -> Result<Self> {
        let options = StageOptions {
            optimizer,
            ..StageOptions::default()
        };
        let replicas = (0..replicas)
            .map(|_| {
                let mut stage = Stage::new(plan, 0, options)?;
                stage.initialise(seed)?;
                let residual = vec![0.0; stage.state().parameters.len()];
                Ok(Replica {
                    stage,
                    residual,
                    then: None,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let anchor = replicas[0].stage.state().parameters.to_vec();
        let has_momentum = merge.is_some_and(|merge| merge.outer.has_momentum());
        Ok(Self {
            momentum: vec![0.0; if has_momentum { anchor.len() } else { 0 }],
            replicas,
            merge,
            anchor,
            round: 0,
            uploaded: 0.0,
            downloaded: 0.0,
            seed,
        })
    }

    /// A step of every replica: each on a batch of its own, or the only one on the mean gradient of all.
    fn train(&mut self, batches: &[Batch], learning_rate: f32) -> Result<()> {
        let per_replica = batches.len() / self.replicas.len();
        for (replica, batches) in self.replicas.iter_mut().zip(batches.chunks(per_replica)) {
            for batch in batches {
                let input = Input::Tokens(&batch.inputs);
                replica.stage.forward_backward_loss(input, &batch.targets)?;
            }
            replica
                .stage
                .step(learning_rate, u32::try_from(per_replica)?)?;
        }
        Ok(())
    }

    /// Mean loss over batches, in nats per token, of what was merged last: between merges there is no other model.
    fn evaluate<'a>(&mut self, batches: impl Iterator<Item = &'a Batch>) -> Result<f64> {
        let replica = &mut self.replicas[0];
        let own = replica.stage.state().parameters.to_vec();
        if self.merge.is_some() {
            let parameters = replica.stage.state_mut().parameters;
            parameters.copy_from_slice(&self.anchor);
        }
        let (mut sum, mut count) = (0.0, 0_u32);
        for batch in batches {
            let input = Input::Tokens(&batch.inputs);
            sum += f64::from(replica.stage.evaluate(input, &batch.targets)?);
            count += 1;
        }
        replica.stage.state_mut().parameters.copy_from_slice(&own);
        Ok(sum / f64::from(count.max(1)))
    }

    /// Merges the replicas, if this variant does, cell by cell as owners in a network would. `at_once`: they take over what
    /// comes of it now, in any case.
    fn merge(&mut self, at_once: bool) -> Result<()> {
        let Some(merge) = self.merge else {
            return Ok(());
        };
        let mut parameters = Vec::with_capacity(self.anchor.len());
        for cell in cells(self.anchor.len(), self.replicas.len()) {
            parameters.extend(self.merge_cell(&merge, cell)?);
        }
        self.merge_moments(merge.state)?;
        self.anchor = parameters;
        self.round += 1;
        for replica in &mut self.replicas {
            if merge.overlaps && !at_once {
                replica.then = Some(replica.stage.state().parameters.to_vec());
            } else {
                let parameters = replica.stage.state_mut().parameters;
                parameters.copy_from_slice(&self.anchor);
            }
        }
        Ok(())
    }

    /// Replicas that trained on while they were merged take over what came of it, with what they learned meanwhile on top.
    fn install(&mut self) {
        for replica in &mut self.replicas {
            let Some(then) = replica.then.take() else {
                continue;
            };
            let parameters = replica.stage.state_mut().parameters.iter_mut();
            for ((now, then), merged) in parameters.zip(then).zip(&self.anchor) {
                *now = merged + (*now - then);
            }
        }
    }

    fn merge_cell(&mut self, merge: &Merge, cell: Range<usize>) -> Result<Vec<f32>> {
        let anchor = &self.anchor[cell.clone()];
        let mut merging = InProgress::new(merge.rule, merge.clip, cell.len())?;
        let count = self.replicas.len() as f64;
        for (index, replica) in self.replicas.iter_mut().enumerate() {
            let trained = &replica.stage.state().parameters[cell.clone()];
            let mut delta = pseudo_gradient(anchor, trained)?;
            if merge.garbage && index == 0 {
                let seed = self.seed ^ (self.round << 32) ^ cell.start as u64;
                delta = noise(seed, cell.len(), GARBAGE * norm(&delta));
            }
            let residual = &mut replica.residual[cell.clone()];
            let feedback = match merge.upload {
                Codec::F32 | Codec::Bf16 => None,
                Codec::TopK { .. } => Some(FEEDBACK_DECAY),
                _ => Some(1.0),
            }
            .map(|decay| Feedback { residual, decay });
            let bytes = merge.upload.encode(&delta, feedback)?;
            self.uploaded += bytes.len() as f64 / count;
            merging.add(&merge.upload.decode(&bytes, cell.len())?, 1)?;
        }
        let merged = merging.finish()?.elements;
        let bytes = merge.merged.encode(&merged, None)?;
        self.downloaded += bytes.len() as f64;
        let merged = merge.merged.decode(&bytes, cell.len())?;
        let momentum = match merge.outer {
            Outer::Nesterov { .. } => &mut self.momentum[cell],
            _ => &mut [],
        };
        Ok(merge.outer.step(anchor, &merged, momentum, self.round)?)
    }

    fn merge_moments(&mut self, state: OptimizerState) -> Result<()> {
        match state {
            OptimizerState::Local => {}
            OptimizerState::Dropped => {
                for replica in &mut self.replicas {
                    let state = replica.stage.state_mut();
                    *state.optimizer_steps = 0;
                    state.first_moment.fill(0.0);
                    state.second_moment.fill(0.0);
                }
            }
            OptimizerState::Merged => {
                let elements = self.anchor.len();
                let mut means = [Accumulator::new(elements), Accumulator::new(elements)];
                for replica in &self.replicas {
                    let state = replica.stage.state();
                    for (mean, moment) in means
                        .iter_mut()
                        .zip([state.first_moment, state.second_moment])
                    {
                        let bytes = Codec::Bf16.encode(moment, None)?;
                        self.uploaded += bytes.len() as f64 / self.replicas.len() as f64;
                        mean.add(bytes.as_chunks::<2>().0, 1)?;
                    }
                }
                let [first, second] = means;
                let mut received = |mean: Accumulator| -> Result<Vec<f32>> {
                    let bytes = Codec::Bf16.encode(&mean.finish()?.elements, None)?;
                    self.downloaded += bytes.len() as f64;
                    Ok(Codec::Bf16.decode(&bytes, elements)?)
                };
                let (first, second) = (received(first)?, received(second)?);
                for replica in &mut self.replicas {
                    let state = replica.stage.state_mut();
                    state.first_moment.copy_from_slice(&first);
                    state.second_moment.copy_from_slice(&second);
                }
            }
        }
        Ok(())
    }

    /// What a merge moves for one replica: its upload; the uploads of all k replicas of the 2/k of the cells that it owns;
    /// what it makes of those that it stores, which is one of the two owners; and the whole merged model.
    fn bytes_per_merge(&self) -> Option<f64> {
        let replicas = self.replicas.len() as f64;
        let up_and_owned = 3.0 * self.uploaded;
        let merged = (1.0 + 1.0 / replicas) * self.downloaded;
        (self.round > 0).then(|| (up_and_owned + merged) / self.round as f64)
    }
}

/// A cell for every pair of replicas, in order, as equal as they can be.
fn cells(elements: usize, replicas: usize) -> impl Iterator<Item = Range<usize>> {
    let count = (replicas * (replicas - 1) / 2).max(1);
    (0..count).map(move |cell| elements * cell / count..elements * (cell + 1) / count)
}

/// Uniform noise of this length.
fn noise(seed: u64, elements: usize, length: f64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    let mut noise: Vec<f32> = (0..elements).map(|_| draw()).collect();
    let scale = (length / norm(&noise).max(f64::MIN_POSITIVE)) as f32;
    noise.iter_mut().for_each(|x| *x *= scale);
    noise
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_cover_everything_once() {
        for (elements, replicas) in [(100, 1), (101, 2), (1000, 8), (3, 8)] {
            let covered: Vec<usize> = cells(elements, replicas).flatten().collect();
            assert_eq!(covered, (0..elements).collect::<Vec<_>>());
        }
    }

    #[test]
    fn garbage_has_the_length_it_is_to_have() {
        let noise = noise(3, 1000, 7.0);
        assert!((norm(&noise) - 7.0).abs() < 1e-3);
    }
}
