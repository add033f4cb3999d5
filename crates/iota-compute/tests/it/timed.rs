use iota_compute::timed::{Entry, Timed};
use iota_compute::{Cpu, Input, OptimizerSettings, Stage, StageOptions};
use iota_model::{StagePlan, TensorId};

use crate::{odd_model, tokens};

fn operations_of(entries: &[Entry], operation: &str) -> u64 {
    entries
        .iter()
        .filter(|entry| entry.operation == operation)
        .map(|entry| entry.operations)
        .sum()
}

#[test]
fn a_timed_stage_computes_the_same_bits_and_counts_all_its_arithmetic() {
    let plan = StagePlan::new(&odd_model(), 1).unwrap();
    let text = tokens(141, plan.config().vocabulary, 1);
    let (input, targets) = (Input::Tokens(&text[..140]), &text[1..]);
    let mut plain = Stage::new(&plan, 0, StageOptions::default()).unwrap();
    plain.initialise(5).unwrap();
    let (expected, _) = plain.forward_backward_loss(input, targets).unwrap();

    let timed = Timed::new(Cpu::new(1).unwrap());
    let mut stage = Stage::on(timed.clone(), &plan, 0, OptimizerSettings::default()).unwrap();
    stage.initialise(5).unwrap();
    timed.take();
    let (loss, _) = stage.forward_backward_loss(input, targets).unwrap();
    let entries = timed.take();
    assert_eq!(loss.to_bits(), expected.to_bits());

    // Every matrix but the embedding, which is looked up, takes part in three products: forward, and the gradients of
    // its input and of itself.
    let elements: usize = plan
        .layout(0)
        .tensors()
        .iter()
        .filter(|tensor| tensor.shape.len() == 2 && tensor.id != TensorId::Embedding)
        .map(|tensor| tensor.elements())
        .sum();
    assert_eq!(
        operations_of(&entries, "matmul") + operations_of(&entries, "cross_entropy"),
        (3 * 2 * 140 * elements) as u64
    );
    // Two products going forward, and two of these again and three more going back.
    assert_eq!(
        5 * operations_of(&entries, "attention"),
        2 * operations_of(&entries, "attention_backward")
    );
    assert_eq!(
        operations_of(&entries, "attention"),
        (3 * 2 * 6 * (70 * 71 / 2) * 2 * 2 * 6) as u64
    );
    assert!(entries.is_sorted_by(|a, b| a.elapsed >= b.elapsed));
    assert_eq!(timed.take(), [], "what was taken is gone");
}
