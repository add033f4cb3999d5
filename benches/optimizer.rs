//! Optimizer steps of a stage that is too large for the caches, by every update rule, in parameters per second; and a copy
//! of the same number of bytes that AdamW moves, as the measure of what memory gives.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iota_compute::{AdamW, Muon, NAdam, OptimizerSettings, Stage, StageOptions, UpdateRule};
use iota_model::{ModelConfig, StagePlan, preset};

/// As the programs have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// So small that the parameters stay where they are, however many steps are measured.
const LEARNING_RATE: f32 = 1e-6;
const STAGES: usize = 3;
const BODY: usize = 1;
/// A step of AdamW reads parameters, gradients and moments (16 bytes) and writes all but the gradients (12); the norm reads
/// the gradients once more (4), and zeroing writes them (4). A copy moves 8 bytes for each element.
const COPIES: usize = (16 + 12 + 4 + 4) / 8;

fn steps(c: &mut Criterion) {
    let model = ModelConfig {
        width: 1024,
        feed_forward: 2816,
        ..preset("100M").expect("it is a preset")
    };
    let plan = StagePlan::new(&model, STAGES).expect("it has blocks enough");
    let elements = plan.layout(BODY).elements();
    let mut group = c.benchmark_group(format!("step of {elements} parameters"));
    group.throughput(Throughput::Elements(elements as u64));
    group.sample_size(10);
    let rules = [
        ("adamw", UpdateRule::AdamW(AdamW::default())),
        ("nadam", UpdateRule::NAdam(NAdam::default())),
        ("muon", UpdateRule::Muon(Muon::default())),
    ];
    for threads in [1, 2] {
        for (name, rule) in rules {
            let optimizer = OptimizerSettings {
                rule,
                ..OptimizerSettings::default()
            };
            let options = StageOptions {
                threads,
                optimizer,
                ..StageOptions::default()
            };
            let mut stage = Stage::new(&plan, BODY, options).expect("threads can be started");
            stage.initialise(1).expect("memory can be written");
            let gradients = stage.state().parameters.to_vec();
            group.bench_function(BenchmarkId::new(name, format!("{threads} threads")), |b| {
                b.iter_custom(|steps| {
                    let mut elapsed = Duration::ZERO;
                    for _ in 0..steps {
                        stage.gradients_mut().copy_from_slice(&gradients);
                        let started = Instant::now();
                        stage.step(LEARNING_RATE, 1).expect("they are finite");
                        elapsed += started.elapsed();
                    }
                    elapsed
                });
            });
        }
    }
    let (from, mut to) = (vec![1.0_f32; elements], vec![0.0_f32; elements]);
    group.bench_function("as many bytes as adamw, copied by 1 thread", |b| {
        b.iter(|| {
            for _ in 0..COPIES {
                black_box(&mut to).copy_from_slice(black_box(&from));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
