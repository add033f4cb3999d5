//! What a step asks of a card, without one: bytes and arithmetic of each kernel, and what an H100 cannot go below.
//!
//! ```text
//! cargo run --release -p iota-cuda --example step_costs [muon]
//! ```
//!
//! With `muon` the step is Muon's instead of AdamW's.
//!
//! The floor is a sum over kernels and products, each at the data sheet's rate of what limits it, one after the other and
//! with nothing between them. A card reaches some 85 % of its memory's rate and 70 % of its products'.

#[path = "cuda_check/cases.rs"]
mod cases;

use iota_compute::{Muon, OptimizerSettings, StageOptions, UpdateRule};
use iota_cuda::{Cost, memory_plan, step_costs};
use iota_model::{Precision, StagePlan};

use crate::cases::{CASES, Case, TOKENS_MAX, arithmetic, batch, plan};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// An H100 with SXM, by its data sheet: memory, and dense products of bf16 factors.
const BYTES_PER_S: f64 = 3.35e12;
const OPERATIONS_PER_S: f64 = 989e12;

/// Of its 80 GiB, what a driver and its libraries leave.
const FREE_BYTES: u64 = 77 << 30;

fn main() -> Result<()> {
    let rule = match std::env::args().nth(1).as_deref() {
        None => UpdateRule::default(),
        Some("muon") => UpdateRule::Muon(Muon::default()),
        Some(other) => return Err(format!("there is no optimizer {other} here").into()),
    };
    for case in CASES {
        let plan = plan(case, false, None)?;
        let options = StageOptions {
            precision: Precision::Bf16,
            recompute: case.recompute,
            optimizer: OptimizerSettings {
                rule,
                ..OptimizerSettings::default()
            },
            ..StageOptions::default()
        };
        let (most, _) = batch(FREE_BYTES, &plan, &options, TOKENS_MAX)?;
        for sequences in [1, most] {
            print(case, &plan, &options, sequences)?;
            if most == 1 {
                break;
            }
        }
    }
    Ok(())
}

fn print(case: Case, plan: &StagePlan, options: &StageOptions, sequences: usize) -> Result<()> {
    let tokens = sequences * case.tokens;
    let costs = step_costs(plan, 1, options, tokens)?;
    let memory = memory_plan(plan, 1, options, tokens, 1)?;
    let floor_ms = |cost: &Cost| 1e3 * cost.floor_s(BYTES_PER_S, OPERATIONS_PER_S);
    let total_ms: f64 = costs.iter().map(floor_ms).sum();
    let calls: u64 = costs.iter().map(|cost| cost.calls).sum();
    let at_peak_ms = 1e3 * arithmetic(plan, tokens) / OPERATIONS_PER_S;
    println!(
        "\n{case:?}, {sequences} sequences, {:.1} GiB: {calls} operations, not below {total_ms:.1} ms, of which {at_peak_ms:.1} count for MFU: {:.1} % at most",
        memory.total_bytes() as f64 / f64::from(1 << 30),
        100.0 * at_peak_ms / total_ms,
    );
    println!(
        "  {:<26} {:>6} {:>9} {:>9} {:>9}",
        "operation", "calls", "GB", "TFLOP", "floor ms"
    );
    for cost in &costs {
        println!(
            "  {:<26} {:>6} {:>9.2} {:>9.2} {:>9.2}",
            cost.name,
            cost.calls,
            cost.bytes as f64 / 1e9,
            cost.operations as f64 / 1e12,
            floor_ms(cost)
        );
    }
    Ok(())
}
