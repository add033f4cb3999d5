//! Every operation against its definition.

use std::sync::Arc;

use iota_compute::Cpu;
use iota_cuda::conformance::{Operation, Outcome, large, small};
use iota_cuda::{Card, Cuda};
use iota_model::Precision;
use serde_json::{Value, json};

use crate::{Findings, Result};

/// Far above rounding, far below a wrong formula. What is measured is in the report; the audit's tolerances follow from it.
fn allowed(operation: &Operation, outcome: &Outcome, precision: Precision) -> f64 {
    match (operation, precision) {
        (Operation::Attention(_) | Operation::CrossEntropy { .. }, Precision::Bf16) => 1e-2,
        (_, Precision::Bf16) if outcome.is_factors => 1e-2,
        _ => 1e-5,
    }
}

pub(crate) fn check(card: &Arc<Card>, only_small: bool, findings: &mut Findings) -> Result<Value> {
    let mut operations = small();
    if !only_small {
        operations.extend(large());
    }
    let cpu = Cpu::new(std::thread::available_parallelism().map_or(1, usize::from))?;
    let mut entries = Vec::new();
    let mut worst = [0.0_f64; 2];
    println!(
        "\nlargest relative distance from the definition in f64, of all results of an operation"
    );
    println!(
        "  {:>9} {:>9} {:>9}  operation",
        "card f32", "card bf16", "CPU f32"
    );
    for (index, operation) in operations.iter().enumerate() {
        let seed = 1000 + index as u64;
        let mut errors = [0.0; 2];
        for (place, precision) in [Precision::F32, Precision::Bf16].into_iter().enumerate() {
            let device = Cuda::on(card.clone(), precision);
            let outcomes = operation.run(&device, precision, seed)?;
            let again = operation.run(&device, precision, seed)?;
            for (outcome, again) in outcomes.iter().zip(&again) {
                let (error, name) = (outcome.error(), outcome.name);
                if error.is_nan() || error > allowed(operation, outcome, precision) {
                    findings.failure(format!(
                        "{name} of {operation:?} in {precision:?} is {error:.1e} away from its definition"
                    ));
                }
                if bits(outcome) != bits(again) {
                    findings.failure(format!(
                        "{name} of {operation:?} in {precision:?} has other bits the second time"
                    ));
                }
                errors[place] = f64::max(errors[place], error);
            }
            worst[place] = f64::max(worst[place], errors[place]);
        }
        let on_cpu = operation.run(&cpu, Precision::F32, seed)?;
        let on_cpu = on_cpu.iter().map(Outcome::error).fold(0.0, f64::max);
        let [f32_error, bf16_error] = errors;
        println!("  {f32_error:>9.1e} {bf16_error:>9.1e} {on_cpu:>9.1e}  {operation:?}");
        entries.push(json!({
            "operation": format!("{operation:?}"),
            "card_f32": f32_error,
            "card_bf16": bf16_error,
            "cpu_f32": on_cpu,
        }));
    }
    findings.line(format!(
        "operations   {} shapes, worst distance from f64: {:.1e} in f32, {:.1e} in bf16; the same bits twice unless said below",
        entries.len(),
        worst[0],
        worst[1]
    ));
    Ok(entries.into())
}

fn bits(outcome: &Outcome) -> Vec<u32> {
    outcome.computed.iter().map(|x| x.to_bits()).collect()
}
