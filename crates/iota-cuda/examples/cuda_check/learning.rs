//! The same model, text and steps on the CPU and on the card.

use std::sync::Arc;

use iota_compute::{Backend, Cpu, Input, Stage, StageOptions};
use iota_cuda::{Card, Cuda};
use iota_model::{ModelConfig, Precision, StagePlan, preset};
use serde_json::{Value, json};

use crate::{Findings, Result};

/// Losses may part by so much on average over the last quarter of the steps: f32 sums in another order, or 8 significant
/// bits in each factor, grow with every step.
const ALLOWED: f64 = 0.05;

pub(crate) fn compare(card: &Arc<Card>, small: bool, findings: &mut Findings) -> Result<Value> {
    let steps = if small { 4 } else { 200 };
    let plan = StagePlan::new(&model(small)?, 2)?;
    let cpu = || Ok::<_, Box<dyn std::error::Error>>(Cpu::new(processors())?);
    let on_cpu = [
        losses([cpu()?, cpu()?], &plan, steps)?,
        losses(
            [
                cpu()?.with_precision(Precision::Bf16),
                cpu()?.with_precision(Precision::Bf16),
            ],
            &plan,
            steps,
        )?,
    ];
    let mut on_card = Vec::new();
    for precision in [Precision::F32, Precision::Bf16] {
        let device = || Cuda::on(card.clone(), precision);
        let first = losses([device(), device()], &plan, steps)?;
        let second = losses([device(), device()], &plan, steps)?;
        if first.digests != second.digests {
            findings.failure(format!(
                "{steps} steps in {precision:?} have other bits the second time"
            ));
        }
        on_card.push(first);
    }
    for (precision, cpu, card) in [
        ("f32", &on_cpu[0], &on_card[0]),
        ("bf16", &on_cpu[1], &on_card[1]),
    ] {
        let last = |losses: &[f32]| {
            let quarter = &losses[losses.len() * 3 / 4..];
            quarter.iter().map(|loss| f64::from(*loss)).sum::<f64>() / quarter.len() as f64
        };
        let apart = (last(&cpu.losses) - last(&card.losses)).abs();
        let largest = cpu
            .losses
            .iter()
            .zip(&card.losses)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        findings.line(format!(
            "{steps} steps {precision:<5} loss {:.4} to {:.4} on the card, {:.4} on the CPU; {largest:.1e} apart at most, the last quarter {apart:.1e}",
            card.losses[0],
            last(&card.losses),
            last(&cpu.losses),
        ));
        if apart.is_nan() || apart > ALLOWED {
            findings.failure(format!("the losses in {precision} part by {apart:.3}"));
        }
    }
    Ok(json!({
        "cpu_f32": on_cpu[0].losses,
        "cpu_bf16": on_cpu[1].losses,
        "card_f32": on_card[0].losses,
        "card_bf16": on_card[1].losses,
    }))
}

/// The testnet's model, with heads as wide as fused attention has them.
pub(crate) fn model(small: bool) -> Result<ModelConfig> {
    if small {
        return Ok(preset("tiny")?);
    }
    Ok(ModelConfig {
        context: 128,
        heads: 3,
        key_value_heads: 1,
        ..preset("testnet")?
    })
}

struct Learned {
    losses: Vec<f32>,
    /// Of both stages' states after the last step.
    digests: [[u8; 32]; 2],
}

/// Trains a model that is cut in two, each half on a device.
fn losses<B: Backend>(devices: [B; 2], plan: &StagePlan, steps: usize) -> Result<Learned> {
    let [first, second] = devices;
    let optimizer = StageOptions::default().optimizer;
    let mut head = Stage::on(first, plan, 0, optimizer)?;
    let mut tail = Stage::on(second, plan, 1, optimizer)?;
    head.initialise(1)?;
    tail.initialise(1)?;
    let text = text(plan.config().vocabulary);
    let tokens = plan.config().context * 4;
    let mut losses = Vec::new();
    for step in 0..steps {
        let start = step * 37 % (text.len() - tokens - 1);
        let sample = &text[start..start + tokens];
        let targets = &text[start + 1..start + tokens + 1];
        let (activation, saved) = head.forward(Input::Tokens(sample))?;
        let (loss, gradient) =
            tail.forward_backward_loss(Input::Activation(&activation), targets)?;
        let gradient = gradient.ok_or("a tail has a stage before it")?;
        head.backward(saved, &gradient)?;
        head.step(0.003, 1)?;
        tail.step(0.003, 1)?;
        losses.push(loss);
    }
    Ok(Learned {
        losses,
        digests: [head.download_digest()?, tail.download_digest()?],
    })
}

/// This program's own sources: bytes that can be learned.
pub(crate) fn text(vocabulary: usize) -> Vec<u32> {
    let sources = [
        include_str!("stages.rs"),
        include_str!("operations.rs"),
        include_str!("main.rs"),
    ];
    let bytes = sources.into_iter().flat_map(str::bytes);
    bytes
        .map(|byte| u32::from(byte) % vocabulary as u32)
        .collect()
}

pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
