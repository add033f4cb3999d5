//! What a model's pieces cost on this machine.

use std::time::{Duration, Instant};

use iota_model::{Boundary, Costs, ModelConfig, StagePlan};

use crate::error::Result;
use crate::stage::{Input, Stage, StageOptions};

/// Timed passes of each piece, of which the median counts: one that was disturbed does not.
const PASSES: usize = 5;

/// Seconds that a forward and a backward pass of a sample take in one block, in the embedding, and in the projection with
/// the loss, for [`StagePlan::weighted`].
///
/// `plan`: any cut of the model. `sequences`: whole sequences in a sample. `options`: as the stages will run.
///
/// Three stages of one block each are timed, one after the other: a head, a body, a tail. What head and tail take beyond
/// the body is the price of their ends. Steps of the optimizer are not counted: how many there are is a setting. Neither
/// are boundary modules, which every stage has. Takes the memory of the largest of the three, and the time of eighteen
/// passes through a block.
///
/// # Errors
/// [`crate::Error::Threads`], [`crate::Error::Device`].
///
/// # Panics
/// If there are no sequences.
pub fn measure_costs(plan: &StagePlan, sequences: usize, options: StageOptions) -> Result<Costs> {
    assert!(sequences > 0, "a sample has at least one sequence");
    let config = ModelConfig {
        blocks: 3,
        boundary: Boundary::None,
        ..plan.config().clone()
    };
    let pieces = StagePlan::with_cuts(&config, Vec::new(), &[1, 2]).expect(
        "a valid model is valid with three blocks, and can be cut anywhere without boundaries",
    );
    let rows = sequences * config.context;
    let tokens: Vec<u32> = (0..rows)
        .map(|row| (row * 7919 % config.vocabulary) as u32)
        .collect();
    let activation: Vec<f32> = (0..rows * config.width)
        .map(|element| (element % 251) as f32 / 251.0 - 0.5)
        .collect();

    let head = median(&pieces, 0, options, |stage| {
        let (output, saved) = stage.forward(Input::Tokens(&tokens))?;
        stage.backward(saved, &output).map(drop)
    })?;
    let body = median(&pieces, 1, options, |stage| {
        let (output, saved) = stage.forward(Input::Activation(&activation))?;
        stage.backward(saved, &output).map(drop)
    })?;
    let tail = median(&pieces, 2, options, |stage| {
        let input = Input::Activation(&activation);
        stage.forward_backward_loss(input, &tokens).map(drop)
    })?;
    Ok(Costs {
        block: body.as_secs_f64(),
        head: head.saturating_sub(body).as_secs_f64(),
        tail: tail.saturating_sub(body).as_secs_f64(),
    })
}

/// The median time of a pass through one of the pieces, after a first one that allocates.
fn median(
    pieces: &StagePlan,
    index: usize,
    options: StageOptions,
    pass: impl Fn(&mut Stage) -> Result<()>,
) -> Result<Duration> {
    let mut stage = Stage::new(pieces, index, options)?;
    stage.initialise(0)?;
    pass(&mut stage)?;
    let mut times = Vec::with_capacity(PASSES);
    for _ in 0..PASSES {
        let started = Instant::now();
        pass(&mut stage)?;
        times.push(started.elapsed());
    }
    times.sort();
    Ok(times[PASSES / 2])
}
