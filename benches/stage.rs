//! Compute: training steps of the `testnet` model in one piece, and passes through one of its body stages, in tokens per
//! second. `peers/stage_step.py` puts whole steps beside PyTorch's and says where their time goes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iota_compute::{Input, Stage, StageOptions};
use iota_model::{StagePlan, preset};

/// As the programs have it: without it, a third of a step goes to page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sequences in a sample, as in a testnet.
const SEQUENCES: usize = 4;
const STAGES: usize = 3;
const BODY: usize = 1;
/// So small that the model stays where it is, however many steps are measured.
const LEARNING_RATE: f32 = 1e-6;

fn whole(c: &mut Criterion) {
    let model = preset("testnet").expect("it is a preset");
    let plan = StagePlan::new(&model, 1).expect("every model is one stage");
    let tokens = SEQUENCES * model.context;
    let text: Vec<u32> = (0..=tokens)
        .map(|position| (position * position % model.vocabulary) as u32)
        .collect();
    let mut group = c.benchmark_group("testnet uncut: forward, backward, step");
    group.throughput(Throughput::Elements(tokens as u64));
    for threads in [1, 2] {
        let mut stage = stage(&plan, 0, threads);
        group.bench_function(BenchmarkId::new("threads", threads), |b| {
            b.iter(|| {
                let (loss, _) = stage
                    .forward_backward_loss(Input::Tokens(&text[..tokens]), &text[1..])
                    .expect("the sample has the model's shape");
                stage
                    .step(LEARNING_RATE, 1)
                    .expect("gradients of finite losses are finite");
                loss
            });
        });
    }
    group.finish();
}

fn body(c: &mut Criterion) {
    let model = preset("testnet").expect("it is a preset");
    let plan = StagePlan::new(&model, STAGES).expect("it has blocks enough");
    let tokens = SEQUENCES * model.context;
    let activation: Vec<f32> = (0..tokens * plan.boundary_width())
        .map(|element| (element * 37 % 1_013) as f32 / 506.0 - 1.0)
        .collect();
    let gradient: Vec<f32> = activation.iter().map(|value| value * 1e-3).collect();
    let mut stage = stage(&plan, BODY, 1);
    let mut group = c.benchmark_group("testnet body stage of 3, 1 thread");
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function("forward", |b| {
        b.iter_custom(|passes| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..passes {
                let started = Instant::now();
                let (output, saved) = stage
                    .forward(Input::Activation(black_box(&activation)))
                    .expect("the activation has the boundary's shape");
                elapsed += started.elapsed();
                black_box(output);
                stage.discard(saved);
            }
            elapsed
        });
    });
    group.bench_function("backward", |b| {
        b.iter_custom(|passes| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..passes {
                // A backward pass uses up what its forward pass kept.
                let (_, saved) = stage
                    .forward(Input::Activation(&activation))
                    .expect("the activation has the boundary's shape");
                let started = Instant::now();
                black_box(
                    stage
                        .backward(saved, black_box(&gradient))
                        .expect("the gradient has the boundary's shape"),
                );
                elapsed += started.elapsed();
                stage
                    .zero_gradients()
                    .expect("memory can be filled on a CPU");
            }
            elapsed
        });
    });
    group.finish();
}

fn stage(plan: &StagePlan, index: usize, threads: usize) -> Stage {
    let options = StageOptions {
        threads,
        ..StageOptions::default()
    };
    let mut stage = Stage::new(plan, index, options).expect("the plan has the stage");
    stage.initialise(1).expect("memory can be filled on a CPU");
    stage
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = whole, body
}
criterion_main!(benches);
