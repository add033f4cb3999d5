//! The public API, held to what it promises. One module per topic.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in helpers too"
)]

/// A stage's bits do not depend on threads, vector instructions, or where the model is cut.
mod bits;
/// Every parameter's gradient equals candle's.
mod gradients;
/// A model learns.
mod learning;
/// Costs are measured, and a model is cut by them.
mod measure;
/// Every operation of the CPU backend equals a composition of candle's tensors.
mod operations;
/// Update rules step as PyTorch's optimizers do, and keep all that they remember in a stage's state.
mod optimizers;
/// A model trained elsewhere, in PyTorch, has the same loss and gradients.
mod pytorch;
/// What comes from outside and makes no sense is refused, and changes nothing.
mod refusals;
/// Steps, state, digests, memory.
mod state;
/// A device that notes what each operation took changes nothing and misses nothing.
mod timed;

use iota_compute::{AdamW, Input, Muon, NAdam, OptimizerSettings, Stage, StageOptions, UpdateRule};
use iota_model::{Boundary, ModelConfig, StagePlan, preset};
use safetensors::SafeTensors;

/// Numbers in (-1, 1), the same for the same seed.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn tokens(count: usize, vocabulary: usize, seed: u32) -> Vec<u32> {
    noise(count, seed)
        .into_iter()
        .map(|x| ((x + 1.0) / 2.0 * vocabulary as f32) as u32 % vocabulary as u32)
        .collect()
}

/// A model with odd sizes: more than one block of queries, heads that share keys, widths that no vector divides.
fn odd_model() -> ModelConfig {
    ModelConfig {
        vocabulary: 61,
        width: 36,
        blocks: 3,
        heads: 6,
        key_value_heads: 2,
        feed_forward: 50,
        context: 70,
        boundary: Boundary::Iota { channels: 10 },
        ..preset("tiny").expect("a preset of this crate")
    }
}

/// The same with ResBM's boundaries: more hidden channels than their least number, and not a multiple of anything.
fn odd_resbm_model() -> ModelConfig {
    ModelConfig {
        boundary: Boundary::ResBm { channels: 17 },
        ..odd_model()
    }
}

/// The same with embeddings behind its boundaries.
fn odd_anchored_model() -> ModelConfig {
    ModelConfig {
        boundary: Boundary::Anchored { channels: 5 },
        ..odd_model()
    }
}

/// Initialised stages; norm scales are moved off 1, so that a missing factor is seen.
fn stages(plan: &StagePlan, options: StageOptions) -> Vec<Stage> {
    (0..plan.stages().len())
        .map(|index| {
            let mut stage = Stage::new(plan, index, options).unwrap();
            stage.initialise(5).unwrap();
            let layout = stage.layout().clone();
            for tensor in layout.tensors() {
                let parameters = &mut stage.state_mut().parameters[tensor.range()];
                let seed = tensor.name().bytes().map(u32::from).sum();
                if tensor.shape.len() == 1 {
                    parameters
                        .iter_mut()
                        .zip(noise(tensor.elements(), seed))
                        .for_each(|(p, x)| *p += 0.3 * x);
                } else {
                    // Larger than at the start of training, so that attention and gates are not almost linear.
                    parameters.iter_mut().for_each(|p| *p *= 8.0);
                }
            }
            stage
        })
        .collect()
}

/// Every update rule with its defaults.
fn optimizers() -> [OptimizerSettings; 3] {
    [
        UpdateRule::AdamW(AdamW::default()),
        UpdateRule::NAdam(NAdam::default()),
        UpdateRule::Muon(Muon::default()),
    ]
    .map(|rule| OptimizerSettings {
        rule,
        ..OptimizerSettings::default()
    })
}

/// One forward and backward pass through all stages.
fn train_pass(stages: &mut [Stage], tokens: &[u32], targets: &[u32]) -> f32 {
    let (tail, before) = stages.split_last_mut().expect("there is a stage");
    let mut waiting = Vec::new();
    let mut activation = None;
    let plan = tail.plan().clone();
    for stage in before.iter_mut() {
        let input = Input::of(&plan, tokens, activation.as_deref());
        let (output, saved) = stage.forward(input).unwrap();
        waiting.push(saved);
        activation = Some(output);
    }
    let input = Input::of(&plan, tokens, activation.as_deref());
    let (loss, mut gradient) = tail.forward_backward_loss(input, targets).unwrap();
    for (stage, saved) in before.iter_mut().zip(waiting).rev() {
        gradient = stage
            .backward(saved, &gradient.expect("there is a stage before"))
            .unwrap();
    }
    assert_eq!(
        gradient, None,
        "the first stage has nobody to send a gradient to"
    );
    loss
}

/// An f32 tensor of a file that PyTorch made.
fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
    tensor
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

/// Relative distance of two vectors: `|actual - expected| / |expected|`.
fn distance(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(
        &mut actual
            .iter()
            .zip(expected)
            .map(|(a, e)| f64::from(*a) - f64::from(*e)),
    );
    difference / norm(&mut expected.iter().map(|e| f64::from(*e))).max(f64::MIN_POSITIVE)
}

/// f32 arithmetic against f64. A wrong formula is off by orders of magnitude more.
const TOLERANCE: f64 = 1e-5;

#[track_caller]
fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    let distance = distance(actual, expected);
    assert!(
        distance < TOLERANCE,
        "{what} is {distance:e} away from the reference"
    );
}
