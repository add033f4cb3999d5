//! A step with its copies beside the passes, and with passes that wait for them.

use std::sync::Arc;
use std::time::Instant;

use iota_compute::{Input, Outgoing, Recompute, Stage, StageOptions};
use iota_cuda::{Card, Cuda};
use iota_model::{Boundary, Precision};
use serde_json::{Value, json};

use crate::cases::{Case, plan};
use crate::stages::fill;
use crate::{Findings, Result, median, noise};

/// Of one sequence, as miners get them. Large activations are where copies take longest.
const CASE: Case = Case {
    model: "8B",
    tokens: 4096,
    recompute: Recompute::Nothing,
};

/// Samples of a step.
const SAMPLES: u32 = 4;

/// Steps of each kind that are timed, by turns, after one to warm up; of tiny shapes one, which is enough to try them.
const STEPS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Copies {
    BetweenPasses,
    BesidePasses,
}

pub(crate) fn measure(card: &Arc<Card>, small: bool, findings: &mut Findings) -> Result<Value> {
    let narrow = plan(CASE, small, None)?;
    let wide = plan(CASE, small, Some(Boundary::None))?;
    let mut found = Vec::new();
    for (name, plan) in [("with a bottleneck", narrow), ("without one", wide)] {
        let options = StageOptions {
            precision: Precision::Bf16,
            ..StageOptions::default()
        };
        let device = Cuda::on(card.clone(), options.precision);
        let mut stage = Stage::on(device, &plan, 1, options.optimizer)?;
        fill(&mut stage)?;
        let input = noise(plan.config().context * plan.boundary_width(), 3);
        let gradient: Vec<f32> = noise(input.len(), 4).iter().map(|x| 1e-3 * x).collect();
        let mut step = |copies| one_step(card, &mut stage, &input, &gradient, copies);
        step(Copies::BetweenPasses)?;
        step(Copies::BesidePasses)?;
        let mut seconds = [const { Vec::new() }; 2];
        for _ in 0..if small { 1 } else { STEPS } {
            seconds[0].push(step(Copies::BetweenPasses)?);
            seconds[1].push(step(Copies::BesidePasses)?);
        }
        let [between_s, beside_s] = seconds.map(median);
        let bytes = size_of_val(&*input);
        findings.line(format!(
            "copies       {} T={} {name}, {:.0} KiB each way: {:.2} ms for {SAMPLES} samples and a step beside passes, {:.2} ms between them ({:+.2} %)",
            CASE.model,
            plan.config().context,
            bytes as f64 / 1024.0,
            1e3 * beside_s,
            1e3 * between_s,
            100.0 * (between_s / beside_s - 1.0),
        ));
        found.push(json!({
            "model": CASE.model,
            "tokens": plan.config().context,
            "boundary_width": plan.boundary_width(),
            "samples": SAMPLES,
            "bytes_each_way": bytes,
            "between_passes_s": between_s,
            "beside_passes_s": beside_s,
        }));
    }
    Ok(found.into())
}

/// Seconds of a step. Beside passes, what one of them gives is taken when the next has been begun, as a miner does it whose
/// queue is not empty.
fn one_step(
    card: &Card,
    stage: &mut Stage<Cuda>,
    input: &[f32],
    gradient: &[f32],
    copies: Copies,
) -> Result<f64> {
    card.synchronize()?;
    let start = Instant::now();
    let mut before: Option<Outgoing<Cuda>> = None;
    let mut begun = |stage: &mut Stage<Cuda>, outgoing| -> Result<()> {
        if let Some(before) = before.replace(outgoing) {
            stage.arrive(before)?;
        }
        if copies == Copies::BetweenPasses
            && let Some(last) = before.take()
        {
            stage.arrive(last)?;
        }
        Ok(())
    };
    for _ in 0..SAMPLES {
        let (output, saved) = stage.begin_forward(Input::Activation(input))?;
        begun(stage, output)?;
        if let Some(gradient) = stage.begin_backward(saved, gradient)? {
            begun(stage, gradient)?;
        }
    }
    stage.step(1e-5, SAMPLES)?;
    if let Some(last) = before {
        stage.arrive(last)?;
    }
    card.synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}
