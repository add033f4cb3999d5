//! The stages that are timed, or counted.

use iota_compute::{MemoryPlan, Recompute, StageOptions};
use iota_cuda::memory_plan;
use iota_model::{Boundary, ModelConfig, StagePlan, preset, published_cuts};

use crate::Result;

/// One of the bodies that are timed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) model: &'static str,
    pub(crate) tokens: usize,
    pub(crate) recompute: Recompute,
}

pub(crate) const CASES: [Case; 5] = [
    Case {
        model: "8B",
        tokens: 800,
        recompute: Recompute::Nothing,
    },
    Case {
        model: "8B",
        tokens: 4096,
        recompute: Recompute::Nothing,
    },
    Case {
        model: "15B",
        tokens: 800,
        recompute: Recompute::Nothing,
    },
    Case {
        model: "15B",
        tokens: 4096,
        recompute: Recompute::Nothing,
    },
    Case {
        model: "15B",
        tokens: 4096,
        recompute: Recompute::Blocks,
    },
];

/// Tokens of a step, at most: more change nothing, and take time.
pub(crate) const TOKENS_MAX: usize = 32 * 1024;

/// The cut, and the stage that is timed: a fourth of the 8B model, the published second stage of the 15B. `boundary`: another
/// than the model's.
pub(crate) fn plan(case: Case, small: bool, boundary: Option<Boundary>) -> Result<StagePlan> {
    let preset = preset(if small { "testnet" } else { case.model })?;
    let config = ModelConfig {
        context: if small { preset.context } else { case.tokens },
        boundary: boundary.unwrap_or(preset.boundary),
        ..preset
    };
    if small {
        return Ok(StagePlan::new(&config, 3)?);
    }
    Ok(match published_cuts(case.model) {
        Some(cuts) => StagePlan::with_cuts(&config, cuts.to_vec(), cuts)?,
        None => StagePlan::new(&config, 4)?,
    })
}

/// As many sequences as so much memory has room for, and what they take.
pub(crate) fn batch(
    free_bytes: u64,
    plan: &StagePlan,
    options: &StageOptions,
    tokens_max: usize,
) -> Result<(usize, MemoryPlan)> {
    let tokens = plan.config().context;
    let mut fitting = None;
    for sequences in 1..=(tokens_max / tokens).max(1) {
        let memory = memory_plan(plan, 1, options, sequences * tokens, 1)?;
        if memory.total_bytes() > free_bytes {
            break;
        }
        fitting = Some((sequences, memory));
    }
    fitting.ok_or_else(|| {
        let free_gib = free_bytes as f64 / f64::from(1 << 30);
        format!("not one sequence fits {free_gib:.1} GiB").into()
    })
}

/// Multiplications and additions of a step, as MFU counts them: 6 for each weight of a matrix and token, and causal
/// attention's, of which half of all pairs count. What is recomputed does not.
pub(crate) fn arithmetic(plan: &StagePlan, tokens: usize) -> f64 {
    let layout = plan.layout(1);
    let matrices: usize = layout
        .tensors()
        .iter()
        .filter(|tensor| tensor.shape.len() == 2)
        .map(|tensor| tensor.elements())
        .sum();
    let config = plan.config();
    let blocks = plan.stages()[1].blocks.len();
    let of_attention = 6 * blocks * config.width * config.context;
    (6 * matrices + of_attention) as f64 * tokens as f64
}
