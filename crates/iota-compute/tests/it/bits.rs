use iota_compute::{Cpu, InstructionSet, OptimizerSettings, Recompute, Stage, StageOptions};
use iota_model::{Boundary, ModelConfig, Precision, StagePlan, preset};

use crate::{distance, odd_model, odd_resbm_model, optimizers, stages, tokens, train_pass};

/// Trains for some steps. Returns the losses, the gradients of the last pass, and the parameters, from head to tail.
fn train(
    plan: &StagePlan,
    options: StageOptions,
    instructions: Option<InstructionSet>,
) -> [Vec<u32>; 3] {
    let mut stages = stages(plan, options);
    if let Some(instructions) = instructions {
        stages = (0..stages.len())
            .map(|index| {
                let cpu = Cpu::new(options.threads)
                    .unwrap()
                    .with_instructions(instructions)
                    .with_precision(options.precision);
                let mut stage = Stage::on(cpu, plan, index, options.optimizer).unwrap();
                stage
                    .state_mut()
                    .parameters
                    .copy_from_slice(stages[index].state().parameters);
                stage
            })
            .collect();
    }
    let (context, vocabulary) = (plan.config().context, plan.config().vocabulary);
    let mut losses = Vec::new();
    let mut pass = |stages: &mut [Stage], seed| {
        let text = tokens(2 * context + 1, vocabulary, seed);
        losses.push(train_pass(stages, &text[..2 * context], &text[1..]).to_bits());
    };
    for step in 0..3 {
        pass(&mut stages, 2 * step);
        pass(&mut stages, 2 * step + 1);
        for stage in &mut stages {
            stage.step(0.01, 2).unwrap();
        }
    }
    pass(&mut stages, 99);
    let bits = |slice: &[f32]| slice.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let gradients = stages
        .iter()
        .flat_map(|stage| bits(stage.gradients()))
        .collect();
    let parameters = stages
        .iter()
        .flat_map(|stage| bits(stage.state().parameters))
        .collect();
    [losses, gradients, parameters]
}

/// Clipping looks at the norm of a stage's own gradient, which a cut changes; all else does not depend on cuts.
fn without_clipping() -> StageOptions {
    let optimizer = OptimizerSettings {
        clip_norm: f32::INFINITY,
        ..OptimizerSettings::default()
    };
    StageOptions {
        optimizer,
        ..StageOptions::default()
    }
}

#[test]
fn a_model_that_is_cut_computes_the_bits_of_the_uncut_model() {
    for model in [preset("tiny").unwrap(), odd_model(), odd_resbm_model()] {
        let plan = StagePlan::new(&model, model.blocks).unwrap();
        let uncut = train(&plan.regroup(1).unwrap(), without_clipping(), None);
        for stages in 2..=model.blocks {
            assert!(
                train(&plan.regroup(stages).unwrap(), without_clipping(), None) == uncut,
                "{stages} stages"
            );
        }
    }
}

#[test]
fn without_a_bottleneck_any_cut_computes_the_bits_of_the_uncut_model() {
    let model = ModelConfig {
        boundary: Boundary::None,
        ..odd_model()
    };
    let uncut = train(
        &StagePlan::new(&model, 1).unwrap(),
        without_clipping(),
        None,
    );
    for cuts in [vec![1], vec![2], vec![1, 2]] {
        let plan = StagePlan::with_cuts(&model, Vec::new(), &cuts).unwrap();
        assert!(
            train(&plan, without_clipping(), None) == uncut,
            "cut at {cuts:?}"
        );
    }
}

fn each_with_each<A: Clone, B: Copy>(
    left: impl IntoIterator<Item = A>,
    right: [B; 2],
) -> impl Iterator<Item = (A, B)> {
    left.into_iter()
        .flat_map(move |a| right.map(|b| (a.clone(), b)))
}

#[test]
fn any_number_of_threads_computes_the_same_bits() {
    // Wide enough for gemm to share its work out, and for sums of more than one stretch.
    let model = ModelConfig {
        width: 144,
        feed_forward: 600,
        vocabulary: 256,
        ..odd_model()
    };
    let of_the_model = each_with_each(
        [
            model.boundary,
            Boundary::ResBm { channels: 33 },
            Boundary::Anchored { channels: 4 },
        ],
        [Precision::F32, Precision::Bf16],
    )
    .map(|(boundary, precision)| (boundary, precision, optimizers()[0]));
    let of_the_optimizer =
        optimizers().map(|optimizer| (model.boundary, Precision::F32, optimizer));
    for (boundary, precision, optimizer) in of_the_model.chain(of_the_optimizer) {
        let model = ModelConfig {
            boundary,
            ..model.clone()
        };
        let plan = StagePlan::new(&model, 2).unwrap();
        let with = |threads| StageOptions {
            threads,
            precision,
            optimizer,
            ..StageOptions::default()
        };
        let alone = train(&plan, with(1), None);
        for threads in [2, 3] {
            assert!(
                train(&plan, with(threads), None) == alone,
                "{threads} threads, {boundary:?}, {precision:?}, {optimizer:?}"
            );
        }
    }
}

#[test]
fn any_vector_instructions_compute_the_same_bits() {
    let of_the_model = each_with_each(
        [odd_model(), odd_resbm_model()],
        [Precision::F32, Precision::Bf16],
    )
    .map(|(model, precision)| (model, precision, optimizers()[0]));
    let of_the_optimizer = optimizers().map(|optimizer| (odd_model(), Precision::F32, optimizer));
    for (model, precision, optimizer) in of_the_model.chain(of_the_optimizer) {
        let plan = StagePlan::new(&model, 2).unwrap();
        let options = StageOptions {
            precision,
            optimizer,
            ..StageOptions::default()
        };
        let best = train(&plan, options, None);
        for instructions in InstructionSet::available() {
            assert!(
                train(&plan, options, Some(instructions)) == best,
                "{instructions:?}, {:?}, {precision:?}, {optimizer:?}",
                model.boundary
            );
        }
    }
}

#[test]
fn bf16_gives_other_bits_and_nearly_the_same_gradients() {
    let plan = StagePlan::new(&odd_model(), 2).unwrap();
    let pass = |precision| {
        let mut stages = stages(
            &plan,
            StageOptions {
                precision,
                ..StageOptions::default()
            },
        );
        let text = tokens(141, 61, 3);
        let loss = train_pass(&mut stages, &text[..140], &text[1..]);
        let gradients: Vec<f32> = stages
            .iter()
            .flat_map(|stage| stage.gradients().to_vec())
            .collect();
        (loss, gradients)
    };
    let (exact, rounded) = (pass(Precision::F32), pass(Precision::Bf16));
    // A factor is rounded by at most 2^-9 of itself.
    assert_ne!(exact.0.to_bits(), rounded.0.to_bits());
    assert!(
        (exact.0 - rounded.0).abs() < 0.01 * exact.0,
        "{exact:?} {rounded:?}",
        exact = exact.0,
        rounded = rounded.0
    );
    let distance = distance(&rounded.1, &exact.1);
    assert!((1e-4..0.03).contains(&distance), "{distance:e}");
}

#[test]
fn recomputing_blocks_computes_the_same_bits() {
    let without_boundary = ModelConfig {
        boundary: Boundary::None,
        ..odd_model()
    };
    for model in [odd_model(), odd_resbm_model(), without_boundary] {
        // Cuts at boundaries, boundaries inside a stage, and none.
        for stages in [1, 3] {
            let plan = StagePlan::new(&model, model.blocks)
                .and_then(|plan| plan.regroup(stages))
                .unwrap();
            let recomputing = StageOptions {
                recompute: Recompute::Blocks,
                ..StageOptions::default()
            };
            assert!(
                train(&plan, recomputing, None) == train(&plan, StageOptions::default(), None),
                "{stages} stages, {:?}",
                model.boundary
            );
        }
    }
}
