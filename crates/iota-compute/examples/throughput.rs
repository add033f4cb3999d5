//! Tokens per second of whole training steps: forward, backward and optimizer of an uncut model.
//!
//! ```text
//! cargo run --release -p iota-compute --example throughput -- [PRESET=testnet] [THREADS=1] [SEQUENCES=16] [STEPS=20] [recompute]
//! ```
//!
//! `wide` is a model of 45 million parameters with a vocabulary of 32,000, on which PyTorch was measured too.

use std::time::Instant;

use iota_compute::{Input, MemoryPlan, Recompute, Stage, StageOptions};
use iota_model::{Boundary, ModelConfig, StagePlan, preset};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("testnet", String::as_str);
    let number = |index: usize, default: usize| {
        arguments
            .get(index)
            .map_or(Ok(default), |value| value.parse())
    };
    let (threads, sequences, steps) = (number(1, 1)?, number(2, 16)?, number(3, 20)?);
    let recompute = match arguments.get(4).map(String::as_str) {
        None => Recompute::Nothing,
        Some("recompute") => Recompute::Blocks,
        Some(other) => return Err(format!("what is {other}?").into()),
    };

    let model = if name == "wide" {
        wide()?
    } else {
        preset(name)?
    };
    let plan = StagePlan::new(&model, 1)?;
    let options = StageOptions {
        threads,
        recompute,
        ..StageOptions::default()
    };
    let mut stage = Stage::new(&plan, 0, options)?;
    stage.initialise(1)?;

    let count = sequences * model.context;
    let text: Vec<u32> = (0..=count)
        .map(|index| (index * index % 251) as u32)
        .collect();
    let mut seconds = Vec::new();
    let mut loss = 0.0;
    for _ in 0..steps + 2 {
        let start = Instant::now();
        (loss, _) = stage.forward_backward_loss(Input::Tokens(&text[..count]), &text[1..])?;
        stage.step(1e-3, 1)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    // The first steps allocate.
    let timed = &mut seconds[2..];
    timed.sort_by(f64::total_cmp);
    let (best, median) = (timed[0], timed[timed.len() / 2]);
    println!(
        "{name}: {} parameters, {sequences} x {} tokens, {threads} threads: {:.0} tokens/s (best {:.0}), {:.1} ms a step, \
         loss {loss:.3}, {} MiB",
        plan.parameters(),
        model.context,
        count as f64 / median,
        count as f64 / best,
        median * 1e3,
        MemoryPlan::new(&plan, 0, &options, count, 1)?.total_bytes() >> 20,
    );
    Ok(())
}

fn wide() -> Result<ModelConfig, iota_model::UnknownPreset> {
    Ok(ModelConfig {
        vocabulary: 32_000,
        width: 512,
        blocks: 4,
        heads: 8,
        key_value_heads: 4,
        feed_forward: 1408,
        context: 256,
        boundary: Boundary::None,
        ..preset("testnet")?
    })
}
