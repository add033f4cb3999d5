use iota_compute::{Input, MemoryPlan, OptimizerSettings, Recompute, Stage, StageOptions};
use iota_model::{Boundary, ModelConfig, StagePlan, preset};

use crate::{assert_close, noise, optimizers, stages, tokens, train_pass};

fn tiny(stages: usize) -> StagePlan {
    StagePlan::new(&preset("tiny").unwrap(), stages).unwrap()
}

#[test]
fn stages_start_from_the_weights_of_the_uncut_model() {
    let plan = tiny(3);
    let parameters = |plan: &StagePlan| -> Vec<f32> {
        (0..plan.stages().len())
            .flat_map(|index| {
                let mut stage = Stage::new(plan, index, StageOptions::default()).unwrap();
                stage.initialise(11).unwrap();
                stage.state().parameters.to_vec()
            })
            .collect()
    };
    assert_eq!(parameters(&plan), parameters(&plan.regroup(1).unwrap()));
}

/// The way of a state to and from a device whose memory is not the host's.
#[test]
fn a_state_that_travels_in_ranges_is_the_same_state() {
    let mut original = stages(&tiny(1), StageOptions::default());
    let (text, targets) = (tokens(64, 256, 1), tokens(64, 256, 2));
    train_pass(&mut original, &text, &targets);
    original[0].step(0.01, 1).unwrap();
    let mut copy = Stage::new(&tiny(1), 0, StageOptions::default()).unwrap();
    let elements = copy.layout().elements();
    for start in (0..elements).step_by(1000) {
        let range = start..(start + 1000).min(elements);
        let planes = original[0].download_state(range).unwrap();
        let planes = planes.each_ref().map(Vec::as_slice);
        copy.upload_state(start, planes).unwrap();
    }
    assert_ne!(copy.digest(), original[0].digest(), "the steps are missing");
    copy.set_optimizer_steps(original[0].optimizer_steps());
    assert_eq!(copy.digest(), original[0].digest());
    assert_eq!(copy.download_digest().unwrap(), copy.digest());
}

#[test]
fn a_digest_tells_states_apart_and_a_copied_state_goes_on_with_the_same_bits() {
    for optimizer in optimizers() {
        let options = StageOptions {
            optimizer,
            ..StageOptions::default()
        };
        let mut original = stages(&tiny(1), options);
        let (text, targets) = (tokens(64, 256, 1), tokens(64, 256, 2));
        let mut digests = vec![original[0].digest()];
        for _ in 0..2 {
            train_pass(&mut original, &text, &targets);
            original[0].step(0.01, 1).unwrap();
            digests.push(original[0].digest());
        }
        digests.dedup();
        assert_eq!(digests.len(), 3);

        let mut copy = vec![Stage::new(&tiny(1), 0, options).unwrap()];
        let (from, to) = (original[0].state(), copy[0].state_mut());
        to.parameters.copy_from_slice(from.parameters);
        to.first_moment.copy_from_slice(from.first_moment);
        to.second_moment.copy_from_slice(from.second_moment);
        assert_ne!(
            copy[0].digest(),
            digests[2],
            "the steps are part of the state"
        );
        *copy[0].state_mut().optimizer_steps = 2;
        assert_eq!(copy[0].digest(), digests[2]);
        for stage in [&mut original, &mut copy] {
            train_pass(stage, &text, &targets);
            stage[0].step(0.01, 1).unwrap();
        }
        assert_eq!(original[0].digest(), copy[0].digest(), "{optimizer:?}");
    }
}

#[test]
fn a_step_takes_the_mean_of_the_passes() {
    let (text, targets) = (tokens(64, 256, 1), tokens(64, 256, 2));
    let step = |passes: u32| {
        let mut stages = stages(&tiny(1), StageOptions::default());
        for _ in 0..passes {
            train_pass(&mut stages, &text, &targets);
        }
        let summary = stages[0].step(0.01, passes).unwrap();
        (
            summary.gradient_norm as f32,
            stages[0].state().first_moment.to_vec(),
        )
    };
    let (once, twice) = (step(1), step(2));
    assert_close("the norm", &[twice.0], &[once.0]);
    assert_close("the first moment", &twice.1, &once.1);
}

#[test]
fn a_gradient_beyond_the_stages_share_of_the_norm_is_clipped() {
    let plan = tiny(2);
    let share = OptimizerSettings::default()
        .clip_norm_of_stage(plan.layout(0).elements(), plan.parameters());
    let step = |size: f32| {
        let mut stages = stages(&plan, StageOptions::default());
        let (output, saved) = stages[0].forward(Input::Tokens(&[1; 32])).unwrap();
        let gradient: Vec<f32> = noise(output.len(), 4)
            .into_iter()
            .map(|x| x * size)
            .collect();
        stages[0].backward(saved, &gradient).unwrap();
        let summary = stages[0].step(0.0, 1).unwrap();
        let moment = stages[0].state().first_moment;
        let norm = moment
            .iter()
            .map(|m| f64::from(*m).powi(2))
            .sum::<f64>()
            .sqrt();
        // After one step the first moment is a tenth of the gradient that was taken.
        (summary, norm / 0.1)
    };
    let (summary, taken) = step(1e-4);
    assert!(!summary.clipped && summary.gradient_norm < share);
    assert!((taken / summary.gradient_norm - 1.0).abs() < 1e-3);
    let (summary, taken) = step(1.0);
    assert!(summary.clipped && summary.gradient_norm > share);
    assert!(
        (taken / share - 1.0).abs() < 1e-3,
        "{taken} instead of {share}"
    );
}

#[test]
fn matrices_decay_and_norm_scales_do_not() {
    let plan = tiny(1);
    let mut stage = stages(&plan, StageOptions::default()).remove(0);
    let before = stage.state().parameters.to_vec();
    stage.step(0.5, 1).unwrap();
    for tensor in stage.layout().tensors() {
        let kept = if tensor.decays { 1.0 - 0.5 * 0.1 } else { 1.0 };
        for index in tensor.range() {
            assert_eq!(
                stage.state().parameters[index],
                before[index] * kept,
                "{}",
                tensor.id
            );
        }
    }
}

#[test]
fn a_forward_pass_knows_the_step_it_was_made_at() {
    let mut head = stages(&tiny(2), StageOptions::default()).remove(0);
    let (_, old) = head.forward(Input::Tokens(&[1; 32])).unwrap();
    head.step(0.1, 1).unwrap();
    let (_, new) = head.forward(Input::Tokens(&[1; 32])).unwrap();
    assert_eq!((old.optimizer_steps(), new.optimizer_steps()), (0, 1));
    head.discard(old);
    head.discard(new);
}

#[test]
fn the_plan_of_saved_memory_is_exact() {
    let resbm = ModelConfig {
        boundary: Boundary::ResBm { channels: 3 },
        ..preset("tiny").unwrap()
    };
    let anchored = ModelConfig {
        boundary: Boundary::Anchored { channels: 3 },
        ..resbm.clone()
    };
    for recompute in [Recompute::Nothing, Recompute::Blocks] {
        let options = StageOptions {
            recompute,
            ..StageOptions::default()
        };
        let plans = (2..=4).flat_map(|stages| {
            let cut = |model| StagePlan::new(model, stages).unwrap();
            [tiny(stages), cut(&resbm), cut(&anchored)]
        });
        for plan in plans {
            let stages_in_plan = plan.stages().len();
            let mut stages = stages(&plan, options);
            stages.pop();
            for (index, stage) in stages.iter_mut().enumerate() {
                let (text, activation) = (tokens(64, 256, 1), noise(64 * plan.boundary_width(), 2));
                let activation = (!stage.role().takes_tokens()).then_some(activation.as_slice());
                let input = Input::of(&plan, &text, activation);
                let (_, saved) = stage.forward(input).unwrap();
                let planned = MemoryPlan::new(&plan, index, &options, 64, 1).unwrap();
                assert_eq!(
                    saved.bytes(stage),
                    planned.saved_bytes,
                    "stage {index} of {stages_in_plan}, {recompute:?}"
                );
            }
        }
    }
}
