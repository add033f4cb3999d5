//! How much memory a stage needs, before it is there.
//!
//! The figures are counted: a stage is written over a backend, so a forward and a backward pass are run here over one that
//! holds lengths instead of numbers. Whatever the passes come to keep is therefore in the plan; only what the CPU's
//! operations take for themselves is stated beside them. `tests/memory` compares plans with an allocator's count.

use std::fmt;

use iota_model::{StagePlan, StageRole};

use crate::backend::Backend;
use crate::cpu::Counting;
use crate::error::Result;
use crate::stage::{Input, Stage, StageOptions};

/// What a device that only counts has counted.
pub trait MemoryCount {
    /// Bytes of the buffers that there are.
    fn held_bytes(&self) -> u64;

    /// Bytes of the buffers that there were at one time, at most.
    fn held_bytes_max(&self) -> u64;

    /// The same with what operations took in passing.
    fn in_use_bytes_max(&self) -> u64;
}

/// Memory of a stage on a CPU, in bytes.
///
/// Within 10 % of what is measured; for stages of less than some 20 MiB within 2 MiB, because what the products' packing
/// keeps depends on the CPU's caches. Not in it: the inputs that a caller holds, and what its thread's stack takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The stage's place in the model.
    pub role: StageRole,
    /// Blocks of the stage.
    pub blocks: usize,
    /// Tokens of a sample.
    pub sample_tokens: usize,
    /// Forward passes that wait for their backward passes at one time, at most, with the one that is under way; 1 for a
    /// stage that computes a loss, whose forward pass is part of its backward pass.
    pub waiting: u64,
    /// f32 master weights.
    pub parameters_bytes: u64,
    /// The sum of the gradients since the last step.
    pub gradients_bytes: u64,
    /// The optimizer's moments.
    pub optimizer_bytes: u64,
    /// One forward pass that waits for its backward pass: exact.
    pub saved_bytes: u64,
    /// Further buffers of a forward or backward pass or a step under way, which stay for the next one; and the rotary tables.
    pub scratch_bytes: u64,
    /// What operations take in passing: a chunk of logits, blocks of attention scores, packed factors, the output.
    pub workspace_bytes: u64,
}

impl MemoryPlan {
    /// For one stage of a plan, on samples of `sample_tokens` tokens of which `waiting` are on their way back.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchStage`]; [`crate::Error::Sequences`] if samples have no such length.
    pub fn new(
        plan: &StagePlan,
        index: usize,
        options: &StageOptions,
        sample_tokens: usize,
        waiting: u64,
    ) -> Result<Self> {
        let device = Counting::new(options.threads, options.precision);
        Self::counted(
            (device.clone(), &device),
            plan,
            index,
            options,
            sample_tokens,
            waiting,
        )
    }

    /// For a stage on another kind of device: one that keeps lengths instead of numbers, and the tally of what it would
    /// hold. The table's lines then mean what that device makes of them.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn counted<B: Backend>(
        (device, count): (B, &impl MemoryCount),
        plan: &StagePlan,
        index: usize,
        options: &StageOptions,
        sample_tokens: usize,
        waiting: u64,
    ) -> Result<Self> {
        let mut stage =
            Stage::on(device, plan, index, options.optimizer)?.with_recompute(options.recompute);
        let at_rest = count.held_bytes();
        let role = stage.role();
        let saved_bytes = one_pass(&mut stage, sample_tokens)?;
        let held_max = count.held_bytes_max();
        let parameters_bytes = (stage.layout().elements() * size_of::<f32>()) as u64;
        let tables_bytes = stage.tables_bytes();
        Ok(Self {
            role,
            blocks: plan.stages()[index].blocks.len(),
            sample_tokens,
            waiting: if role.computes_loss() {
                1
            } else {
                waiting.max(1)
            },
            parameters_bytes,
            gradients_bytes: parameters_bytes,
            optimizer_bytes: at_rest - tables_bytes - 2 * parameters_bytes,
            saved_bytes,
            scratch_bytes: held_max - at_rest - saved_bytes + tables_bytes,
            workspace_bytes: count.in_use_bytes_max() - held_max,
        })
    }

    /// All of it.
    pub const fn total_bytes(&self) -> u64 {
        self.fixed_bytes() + self.saved_bytes * self.waiting
    }

    /// How many forward passes may wait within so many bytes, with the one that is under way; at most as many as were
    /// planned for. None if not even one fits.
    pub const fn waiting_within(&self, limit_bytes: u64) -> Option<u64> {
        match limit_bytes.checked_sub(self.fixed_bytes()) {
            Some(room) if room >= self.saved_bytes => {
                let fit = room / self.saved_bytes;
                Some(if fit < self.waiting {
                    fit
                } else {
                    self.waiting
                })
            }
            _ => None,
        }
    }

    const fn fixed_bytes(&self) -> u64 {
        self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.scratch_bytes
            + self.workspace_bytes
    }
}

/// A forward pass, a backward pass and a step. Returns what was saved in between, in bytes.
///
/// Where passes overlap, what one of them gives is still on its way while the next one is under way.
fn one_pass<B: Backend>(stage: &mut Stage<B>, sample_tokens: usize) -> Result<u64> {
    let tokens = vec![0; sample_tokens];
    let activation = vec![0.0; sample_tokens * stage.plan().boundary_width()];
    let activation = (!stage.role().takes_tokens()).then_some(activation.as_slice());
    let plan = stage.plan().clone();
    let input = Input::of(&plan, &tokens, activation);
    let saved_bytes = if stage.role().computes_loss() {
        let targets = vec![0; sample_tokens];
        let (_, before) = stage.begin_forward_backward_loss(input, &targets)?;
        if B::OVERLAPS {
            stage.forward_backward_loss(input, &targets)?;
        }
        before.map(|before| stage.arrive(before)).transpose()?;
        stage.saved_bytes(sample_tokens)
    } else {
        let (output, saved) = stage.begin_forward(input)?;
        let saved_bytes = saved.bytes(stage);
        let mut before = Some(output);
        if !B::OVERLAPS {
            before.take().map(|it| stage.arrive(it)).transpose()?;
        }
        let gradient = vec![0.0; sample_tokens * stage.plan().boundary_width()];
        stage.backward(saved, &gradient)?;
        before.map(|it| stage.arrive(it)).transpose()?;
        saved_bytes
    };
    stage.step(0.0, 1)?;
    Ok(saved_bytes)
}

/// A table with a line for each kind, and the total.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            StageRole::Whole => "whole model",
            StageRole::Head => "head",
            StageRole::Body => "body",
            StageRole::Tail => "tail",
        };
        writeln!(
            f,
            "{role}: {} blocks, samples of {} tokens",
            self.blocks, self.sample_tokens
        )?;
        let saved = format!("{} x {}", self.waiting, Bytes(self.saved_bytes));
        let lines = [
            ("parameters", "", self.parameters_bytes),
            ("gradients", "", self.gradients_bytes),
            ("optimizer", "", self.optimizer_bytes),
            (
                "kept forwards",
                saved.as_str(),
                self.saved_bytes * self.waiting,
            ),
            ("pass under way", "", self.scratch_bytes),
            ("operations", "", self.workspace_bytes),
            ("total", "", self.total_bytes()),
        ];
        for (index, (name, each, bytes)) in lines.into_iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(
                f,
                "  {name:<14} {each:>14} {:>10}",
                Bytes(bytes).to_string()
            )?;
        }
        Ok(())
    }
}

/// Prints with a unit that leaves at most four digits before the point.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0..1_048_576 => (10, "KiB"),
            1_048_576..1_073_741_824 => (20, "MiB"),
            _ => (30, "GiB"),
        };
        write!(f, "{:.1} {name}", self.0 as f64 / f64::from(1_u32 << unit))
    }
}

#[cfg(test)]
mod tests {
    use iota_model::preset;

    use super::*;
    use crate::{Error, Recompute};

    fn plan(stage: usize, recompute: Recompute, waiting: u64) -> MemoryPlan {
        let plan = StagePlan::new(&preset("15B").unwrap(), 5).unwrap();
        let options = StageOptions {
            recompute,
            ..StageOptions::default()
        };
        MemoryPlan::new(&plan, stage, &options, 4 * 800, waiting).unwrap()
    }

    /// 3,200 tokens, f32. Of a body's blocks the first keeps the 80 channels that it was given instead of 5,120, and the
    /// last the feed-forward network's result for the encoder.
    #[test]
    fn a_body_of_the_15b_model_keeps_what_its_shape_says() {
        let block = 3 * 5120 + 5120 + 2 * 1024 + 40 + 2 * 13_824;
        let kept = plan(1, Recompute::Nothing, 1);
        let blocks = kept.blocks as u64;
        let elements = blocks * block - 5120 + 80 + 5120;
        assert_eq!(kept.saved_bytes, 4 * 3200 * elements);
        let recomputed = plan(1, Recompute::Blocks, 1);
        assert_eq!(
            recomputed.saved_bytes,
            4 * 3200 * ((blocks - 1) * 5120 + 80)
        );
        assert_eq!(kept.optimizer_bytes, 2 * kept.parameters_bytes);
    }

    #[test]
    fn a_limit_allows_as_many_forwards_as_fit_and_never_more_than_planned() {
        let four = plan(0, Recompute::Blocks, 4);
        let total = four.total_bytes();
        assert_eq!(four.waiting_within(u64::MAX), Some(4));
        assert_eq!(four.waiting_within(total), Some(4));
        assert_eq!(four.waiting_within(total - 1), Some(3));
        assert_eq!(four.waiting_within(total - 3 * four.saved_bytes - 1), None);
        assert_eq!(four.waiting_within(0), None);
    }

    #[test]
    fn what_computes_a_loss_keeps_one_forward_however_many_samples_wait() {
        assert_eq!(plan(4, Recompute::Blocks, 9).waiting, 1);
    }

    #[test]
    fn a_length_that_no_sample_has_is_refused() {
        let plan = StagePlan::new(&preset("tiny").unwrap(), 2).unwrap();
        let refused = MemoryPlan::new(&plan, 0, &StageOptions::default(), 33, 1);
        assert!(matches!(refused, Err(Error::Sequences { .. })));
    }

    #[test]
    fn a_plan_prints_as_a_table_with_units() {
        let plan = MemoryPlan {
            role: StageRole::Body,
            blocks: 10,
            sample_tokens: 3200,
            waiting: 4,
            parameters_bytes: 11 << 30,
            gradients_bytes: 11 << 30,
            optimizer_bytes: 22 << 30,
            saved_bytes: 600 << 20,
            scratch_bytes: 3 << 19,
            workspace_bytes: 512,
        };
        let table = "\
body: 10 blocks, samples of 3200 tokens
  parameters                      11.0 GiB
  gradients                       11.0 GiB
  optimizer                       22.0 GiB
  kept forwards   4 x 600.0 MiB    2.3 GiB
  pass under way                   1.5 MiB
  operations                       0.5 KiB
  total                           46.3 GiB";
        assert_eq!(plan.to_string(), table);
    }
}
