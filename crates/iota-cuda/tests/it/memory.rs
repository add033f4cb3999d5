use std::sync::Arc;

use iota_compute::backend::AttentionShape;
use iota_compute::memory::MemoryCount;
use iota_compute::{Backend, Error, Input, OptimizerSettings, Stage, StageOptions};
use iota_cuda::{AttentionPath, Cuda, Planner, memory_plan};
use iota_model::{Precision, StagePlan, preset};

use crate::emulator::Emulator;

fn plan() -> StagePlan {
    StagePlan::new(&preset("tiny").unwrap(), 2).unwrap()
}

/// A pass of the second stage on a card with so much memory.
fn pass(room_bytes: usize) -> Option<Result<(), Error>> {
    let emulator = Emulator::with_room(1, room_bytes)?;
    let device = Cuda::on(emulator, Precision::Bf16);
    let tokens: Vec<u32> = (0..32).collect();
    let result =
        Stage::on(device, &plan(), 1, OptimizerSettings::default()).and_then(|mut stage| {
            let activation = vec![0.1; 32 * stage.plan().boundary_width()];
            stage.initialise(1)?;
            stage.forward_backward_loss(Input::Activation(&activation), &tokens)?;
            stage.step(0.01, 1)?;
            Ok(())
        });
    Some(result)
}

#[test]
fn a_stage_runs_in_the_memory_that_was_planned_for_it() {
    let options = StageOptions {
        precision: Precision::Bf16,
        ..StageOptions::default()
    };
    let memory = memory_plan(&plan(), 1, &options, 32, 1).unwrap();
    let Some(result) = pass(memory.total_bytes() as usize) else {
        return;
    };
    result.unwrap();
    // The tokens and targets are not part of the plan, nor are a tenth more than is needed.
    let result = pass(memory.total_bytes() as usize * 9 / 10).unwrap();
    assert!(matches!(result, Err(Error::OutOfMemory { .. })));
}

#[test]
fn a_card_that_is_full_is_an_error_that_says_so() {
    let Some(result) = pass(1 << 16) else {
        return;
    };
    let error = result.unwrap_err();
    let Error::OutOfMemory { bytes, .. } = error else {
        panic!("{error}");
    };
    assert!(bytes > 0);
}

#[test]
fn fused_attention_is_planned_without_room_for_scores() {
    let shape = AttentionShape {
        sequences: 1,
        tokens: 4096,
        heads: 32,
        key_value_heads: 8,
        head_width: 128,
    };
    let planned = |path| {
        let planner = Planner::default();
        let device = Cuda::on(Arc::new(planner.clone()), Precision::Bf16).with_attention_path(path);
        let buffer = |elements| device.allocate(elements).unwrap();
        let packed = buffer(shape.rows() * shape.packed_width());
        let mut out = buffer(shape.rows() * shape.width());
        let mut log_sums = buffer(shape.rows() * shape.heads);
        let before = planner.held_bytes();
        device
            .attention(
                device.all_mut(&mut out),
                device.all_mut(&mut log_sums),
                device.all(&packed),
                shape,
            )
            .unwrap();
        planner.held_bytes_max() - before
    };
    let [fused, products] = [AttentionPath::Fused, AttentionPath::Products].map(planned);
    let rounded_bytes = 2 * (shape.rows() * shape.packed_width()) as u64;
    assert_eq!(fused, rounded_bytes);
    // Scores of 256 queries and all keys, for each head in f32 and bf16.
    let scores_bytes = (4 + 2) * 256 * (shape.tokens * shape.heads) as u64;
    assert!(products > fused + scores_bytes / 2, "{products}");
}
