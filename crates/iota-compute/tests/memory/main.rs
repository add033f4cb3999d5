//! A memory plan, held to what an allocator counts while the stage trains: a binary of its own, because its allocator
//! counts everything.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in helpers too"
)]

/// An allocator that counts.
mod counting;

use iota_compute::{
    AdamW, Input, MemoryPlan, Muon, OptimizerSettings, Recompute, Stage, StageOptions, UpdateRule,
};
use iota_model::{Boundary, ModelConfig, Precision, StagePlan, preset};

/// What a plan may be off by where its tenth part is less: what the products' packing keeps for a thread depends on the
/// CPU's caches.
const FLOOR_BYTES: u64 = 2 * 1024 * 1024;

/// A stage in training.
#[derive(Debug, Clone, Copy)]
struct Case {
    stages: usize,
    sequences: usize,
    recompute: Recompute,
    waiting: usize,
    precision: Precision,
    rule: UpdateRule,
}

/// The peak of what is allocated from before the stage is made until it has taken a step, less the inputs. On a thread of
/// its own, because the products' packing keeps memory for as long as a thread lives.
fn measure(model: &ModelConfig, case: Case, index: usize) -> (MemoryPlan, u64) {
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| train(model, case, index));
        measured.join().unwrap()
    })
}

fn train(model: &ModelConfig, case: Case, index: usize) -> (MemoryPlan, u64) {
    let plan = StagePlan::new(model, case.stages).unwrap();
    let options = StageOptions {
        recompute: case.recompute,
        precision: case.precision,
        optimizer: OptimizerSettings {
            rule: case.rule,
            ..OptimizerSettings::default()
        },
        ..StageOptions::default()
    };
    let count = case.sequences * model.context;
    let text: Vec<u32> = (0..=count)
        .map(|at| (at * at % model.vocabulary) as u32)
        .collect();
    let activation: Vec<f32> = (0..count * plan.boundary_width())
        .map(|at| (at % 7) as f32 - 3.0)
        .collect();

    let before = counting::reset_peak();
    let mut stage = Stage::new(&plan, index, options).unwrap();
    stage.initialise(1).unwrap();
    let received = (!stage.role().takes_tokens()).then_some(activation.as_slice());
    let input = Input::of(&plan, &text[..count], received);
    if stage.role().computes_loss() {
        for _ in 0..2 {
            stage.forward_backward_loss(input, &text[1..]).unwrap();
        }
    } else {
        let mut waiting: Vec<_> = (0..case.waiting)
            .map(|_| stage.forward(input).unwrap().1)
            .collect();
        // The oldest goes back while the others wait, and another forward takes its place.
        stage.backward(waiting.remove(0), &activation).unwrap();
        waiting.push(stage.forward(input).unwrap().1);
        for saved in waiting {
            stage.backward(saved, &activation).unwrap();
        }
    }
    stage.step(1e-3, 1).unwrap();
    let measured = counting::peak() - before;
    let planned = MemoryPlan::new(&plan, index, &options, count, case.waiting as u64).unwrap();
    (planned, measured)
}

/// Every stage of the case, one after the other: there is one peak.
fn check(name: &str, model: &ModelConfig, case: Case) {
    for index in 0..case.stages {
        let (planned, measured) = measure(model, case, index);
        let (total, allowed) = (planned.total_bytes(), (measured / 10).max(FLOOR_BYTES));
        println!(
            "{name}, stage {index} of {case:?}: planned {:.1} MiB, measured {:.1} MiB ({:+.1} %)",
            total as f64 / 1048576.0,
            measured as f64 / 1048576.0,
            100.0 * (total as f64 / measured as f64 - 1.0)
        );
        assert!(
            total.abs_diff(measured) <= allowed,
            "{name}, stage {index} of {case:?}: planned {total} bytes, measured {measured}\n{planned}"
        );
    }
}

/// What decides a stage's memory differs: here the weights, the kept forwards, the logits.
#[test]
fn plans_are_within_a_tenth_of_what_is_measured() {
    let testnet = preset("testnet").unwrap();
    let wide = ModelConfig {
        vocabulary: 8_000,
        width: 160,
        blocks: 3,
        heads: 5,
        key_value_heads: 1,
        feed_forward: 352,
        boundary: Boundary::Iota { channels: 32 },
        ..testnet.clone()
    };
    let unbroken = ModelConfig {
        boundary: Boundary::None,
        ..wide.clone()
    };
    let resbm = ModelConfig {
        boundary: Boundary::ResBm { channels: 20 },
        ..wide.clone()
    };
    let anchored = ModelConfig {
        boundary: Boundary::Anchored { channels: 2 },
        ..wide.clone()
    };
    let models = [
        ("tiny", preset("tiny").unwrap(), 8),
        ("testnet", testnet, 4),
        ("wide", wide, 3),
        ("unbroken", unbroken, 2),
        ("resbm", resbm.clone(), 3),
        ("anchored", anchored, 3),
    ];
    for (name, model, sequences) in models {
        for recompute in [Recompute::Nothing, Recompute::Blocks] {
            for (stages, sequences, waiting) in [
                (1, sequences, 1),
                (3, sequences, 1),
                (3, 1, 4),
                (3, sequences, 3),
            ] {
                let case = Case {
                    stages,
                    sequences,
                    recompute,
                    waiting,
                    precision: Precision::F32,
                    rule: UpdateRule::AdamW(AdamW::default()),
                };
                check(name, &model, case);
            }
        }
    }
    for precision in [Precision::F32, Precision::Bf16] {
        for rule in [
            UpdateRule::AdamW(AdamW::default()),
            UpdateRule::Muon(Muon::default()),
        ] {
            let case = Case {
                stages: 3,
                sequences: 3,
                recompute: Recompute::Nothing,
                waiting: 2,
                precision,
                rule,
            };
            check("resbm", &resbm, case);
        }
    }
}
