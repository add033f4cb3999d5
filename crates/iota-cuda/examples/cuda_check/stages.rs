//! Steps of body stages as a miner takes them: forward, backward, optimizer.

use std::sync::Arc;
use std::time::Instant;

use iota_compute::timed::{Entry, Timed};
use iota_compute::{Backend, Input, Stage, StageOptions};
use iota_cuda::{Card, Cuda};
use iota_model::Precision;
use serde_json::{Value, json};

use crate::cases::{Case, TOKENS_MAX, arithmetic, batch, plan};
use crate::ceilings::Ceilings;
use crate::patient::Patient;
use crate::{Findings, Result, gib, median, noise};

/// Steps that are timed, after as many as are needed to warm up.
const STEPS: usize = 5;
const WARM_UP: usize = 2;

/// Left free, for what the driver takes while it works.
const RESERVE_BYTES: u64 = 1 << 30;

pub(crate) fn time_case(
    card: &Arc<Card>,
    ceilings: &Ceilings,
    case: Case,
    small: bool,
    findings: &mut Findings,
) -> Result<Value> {
    let plan = plan(case, small, None)?;
    let options = StageOptions {
        precision: Precision::Bf16,
        recompute: case.recompute,
        ..StageOptions::default()
    };
    let tokens_max = if small { 64 } else { TOKENS_MAX };
    let free = card.free_bytes()?.saturating_sub(RESERVE_BYTES);
    let (sequences, memory) = batch(free, &plan, &options, tokens_max)?;
    let free_before = card.free_bytes()?;
    println!("\n{case:?}, {sequences} sequences, planned:\n{memory}");
    let patient = Arc::new(Patient::new(card.clone()));
    let timed = Timed::new(Cuda::on(patient.clone(), options.precision));
    let mut stage =
        Stage::on(timed.clone(), &plan, 1, options.optimizer)?.with_recompute(options.recompute);
    fill(&mut stage)?;
    let tokens = sequences * plan.config().context;
    let input = noise(tokens * plan.boundary_width(), 3);
    let gradient: Vec<f32> = noise(input.len(), 4).iter().map(|x| 1e-3 * x).collect();
    let mut seconds = Vec::new();
    let mut phases = [0.0; 3];
    for step in 0..WARM_UP + STEPS {
        let times = one_step(card, &mut stage, &input, &gradient)?;
        if step >= WARM_UP {
            seconds.push(times.iter().sum());
            phases = times;
        }
    }
    let used_bytes = free_before.saturating_sub(card.free_bytes()?);
    let step_s = median(seconds);
    timed.take();
    patient.wait_from_now_on(true);
    one_step(card, &mut stage, &input, &gradient)?;
    patient.wait_from_now_on(false);
    let operations = timed.take();
    let floors = print_operations(&operations, ceilings, step_s);
    let work = arithmetic(&plan, tokens);
    let (tokens_per_s, mfu) = (tokens as f64 / step_s, work / step_s / ceilings.peak_per_s);
    findings.line(format!(
        "{:<4} T={:<5} {:?}, batch {sequences}: {tokens_per_s:.0} tokens/s, MFU {:.1} % ({:.1} % of the measured product), {:.0} ms a step (forward {:.0}, backward {:.0}, optimizer {:.0}), {:.1} GiB of {:.1} planned",
        case.model,
        plan.config().context,
        case.recompute,
        100.0 * mfu,
        100.0 * work / step_s / ceilings.product_per_s,
        1e3 * step_s,
        1e3 * phases[0],
        1e3 * phases[1],
        1e3 * phases[2],
        gib(used_bytes),
        gib(memory.total_bytes()),
    ));
    Ok(json!({
        "model": case.model,
        "tokens": plan.config().context,
        "sequences": sequences,
        "blocks": plan.stages()[1].blocks.len(),
        "width": plan.config().width,
        "heads": plan.config().heads,
        "key_value_heads": plan.config().key_value_heads,
        "feed_forward": plan.config().feed_forward,
        "boundary_width": plan.boundary_width(),
        "recompute": format!("{:?}", case.recompute),
        "step_s": step_s,
        "phases_s": phases,
        "tokens_per_s": tokens_per_s,
        "mfu": mfu,
        "arithmetic": work,
        "planned_bytes": memory.total_bytes(),
        "used_bytes": used_bytes,
        "operations": floors,
    }))
}

/// Random weights of a trained model's size, which `initialise` would take minutes to make, and norm scales of 1.
pub(crate) fn fill<B: Backend>(stage: &mut Stage<B>) -> Result<()> {
    let weights: Vec<f32> = noise(1 << 22, 5).iter().map(|x| 0.02 * x).collect();
    let (zeros, ones) = (vec![0.0; weights.len()], vec![1.0; weights.len()]);
    for tensor in stage.layout().clone().tensors() {
        let values = if tensor.shape.len() == 1 {
            &ones
        } else {
            &weights
        };
        for start in (0..tensor.elements()).step_by(values.len()) {
            let length = values.len().min(tensor.elements() - start);
            let planes = [&values[..length], &zeros[..length], &zeros[..length]];
            stage.upload_state(tensor.offset + start, planes)?;
        }
    }
    Ok(())
}

/// Seconds of forward, backward and optimizer.
fn one_step(
    card: &Card,
    stage: &mut Stage<Timed<Cuda>>,
    input: &[f32],
    gradient: &[f32],
) -> Result<[f64; 3]> {
    let mut times = [0.0; 3];
    let mut start = Instant::now();
    let mut lap = |time: &mut f64| -> Result<()> {
        card.synchronize()?;
        *time = start.elapsed().as_secs_f64();
        start = Instant::now();
        Ok(())
    };
    let (_, saved) = stage.forward(Input::Activation(input))?;
    lap(&mut times[0])?;
    stage.backward(saved, gradient)?;
    lap(&mut times[1])?;
    stage.step(1e-5, 1)?;
    lap(&mut times[2])?;
    Ok(times)
}

fn print_operations(entries: &[Entry], ceilings: &Ceilings, step_s: f64) -> Vec<Value> {
    println!(
        "  {:<20} {:>22} {:>6} {:>9} {:>9} {:>6}   one step, waiting for each kernel; floor by arithmetic or operands",
        "operation", "rows x columns x inner", "calls", "ms", "floor ms", "share"
    );
    entries
        .iter()
        .map(|entry| {
            let elapsed_s = entry.elapsed.as_secs_f64();
            let floor_s = ceilings.floor_s(entry);
            let shape = entry.product.map_or_else(String::new, |product| {
                format!("{} x {} x {}", product.rows, product.columns, product.inner)
            });
            if elapsed_s > step_s / 1000.0 {
                println!(
                    "  {:<20} {shape:>22} {:>6} {:>9.3} {:>9.3} {:>5.0}%",
                    entry.operation,
                    entry.calls,
                    1e3 * elapsed_s,
                    1e3 * floor_s,
                    100.0 * floor_s / elapsed_s
                );
            }
            json!({
                "operation": entry.operation,
                "product": shape,
                "calls": entry.calls,
                "elapsed_s": elapsed_s,
                "floor_s": floor_s,
                "arithmetic": entry.operations,
                "operand_bytes": entry.operand_bytes,
            })
        })
        .collect()
}
