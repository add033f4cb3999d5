use iota_compute::Cpu;
use iota_cuda::conformance::{Operation, Outcome, small};
use iota_cuda::{Cuda, Pieces};
use iota_model::Precision;

use crate::emulator::Emulator;

/// So small that attention goes through several blocks of queries and batches of heads, and the loss through several
/// chunks of rows.
const PIECES: Pieces = Pieces {
    queries: 16,
    scores: 4096,
    logits: 2000,
};

fn run(operation: &Operation, precision: Precision, seed: u64) -> Option<Vec<Outcome>> {
    let device = Cuda::on(Emulator::new(seed)?, precision).with_pieces(PIECES);
    Some(operation.run(&device, precision, 7).unwrap())
}

/// f32 arithmetic against f64.
const F32: f64 = 3e-6;

/// 8 significant bits, half a unit off: of factors, and of what comes of probabilities that were factors in between.
pub(crate) fn tolerance(operation: &Operation, outcome: &Outcome, precision: Precision) -> f64 {
    match (operation, precision) {
        (Operation::Attention(_) | Operation::CrossEntropy { .. }, Precision::Bf16) => 6e-3,
        (_, Precision::Bf16) if outcome.is_factors => 4e-3,
        _ => F32,
    }
}

fn assert_exact(precision: Precision) {
    for operation in small() {
        let Some(outcomes) = run(&operation, precision, 1) else {
            return;
        };
        for outcome in outcomes {
            let allowed = tolerance(&operation, &outcome, precision);
            let error = outcome.error();
            assert!(
                error < allowed,
                "{} of {operation:?} is {error:e} away from its definition",
                outcome.name
            );
        }
    }
}

#[test]
fn every_operation_in_f32_is_what_its_definition_says() {
    assert_exact(Precision::F32);
}

#[test]
fn every_operation_in_bf16_is_what_its_definition_says() {
    assert_exact(Precision::Bf16);
}

/// Another order of threads and blocks gives other bits where a barrier is missing.
#[test]
fn the_order_in_which_threads_run_does_not_show_in_the_bits() {
    for operation in small() {
        let runs = [1, 2, 3].map(|seed| run(&operation, Precision::Bf16, seed));
        let [Some(first), Some(second), Some(third)] = runs else {
            return;
        };
        for ((first, second), third) in first.iter().zip(&second).zip(&third) {
            let bits = |outcome: &Outcome| -> Vec<u32> {
                outcome.computed.iter().map(|x| x.to_bits()).collect()
            };
            let same = bits(first) == bits(second) && bits(first) == bits(third);
            assert!(same, "{} of {operation:?}", first.name);
        }
    }
}

/// The definitions are written apart from both devices, so a mistake in one of them shows on the CPU.
#[test]
fn the_definitions_are_those_of_the_cpu() {
    let cpu = Cpu::new(2).unwrap();
    for operation in small() {
        for outcome in operation.run(&cpu, Precision::F32, 3).unwrap() {
            let error = outcome.error();
            let name = outcome.name;
            assert!(error < F32, "{name} of {operation:?} is {error:e} off");
        }
    }
}
