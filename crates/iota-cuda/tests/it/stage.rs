use iota_compute::{
    Backend, Input, Muon, NAdam, OptimizerSettings, Recompute, Stage, StageOptions, UpdateRule,
};
use iota_cuda::{Cuda, Pieces};
use iota_model::{Boundary, ModelConfig, Precision, StagePlan, preset};

use crate::emulator::Emulator;

const STEPS: usize = 3;

pub(crate) fn model(boundary: Boundary) -> ModelConfig {
    ModelConfig {
        vocabulary: 61,
        width: 36,
        blocks: 2,
        heads: 6,
        key_value_heads: 2,
        feed_forward: 50,
        context: 24,
        boundary,
        ..preset("tiny").unwrap()
    }
}

/// The losses of a few steps of a model that is cut in two, on two devices of a kind.
fn losses<B: Backend>(
    devices: [B; 2],
    plan: &StagePlan,
    optimizer: OptimizerSettings,
    recompute: Recompute,
) -> Vec<f32> {
    let [mut head, mut tail] = [0, 1].map(|index| {
        let device = devices[index].clone();
        let mut stage = Stage::on(device, plan, index, optimizer).unwrap();
        stage.initialise(3).unwrap();
        stage.with_recompute(recompute)
    });
    let text: Vec<u32> = (0..49).map(|i| (i * i + 3 * i) % 61).collect();
    let (tokens, targets) = (&text[..48], &text[1..]);
    (0..STEPS)
        .map(|_| {
            let (activation, saved) = head.forward(Input::Tokens(tokens)).unwrap();
            let input = Input::of(plan, tokens, Some(&activation));
            let (loss, gradient) = tail.forward_backward_loss(input, targets).unwrap();
            head.backward(saved, &gradient.unwrap()).unwrap();
            head.step(0.003, 1).unwrap();
            tail.step(0.003, 1).unwrap();
            loss
        })
        .collect()
}

fn on_cuda(
    precision: Precision,
    plan: &StagePlan,
    optimizer: OptimizerSettings,
    recompute: Recompute,
) -> Option<Vec<f32>> {
    let device = Cuda::on(Emulator::new(1)?, precision).with_pieces(Pieces {
        queries: 16,
        scores: 2048,
        logits: 700,
    });
    Some(losses([device.clone(), device], plan, optimizer, recompute))
}

fn on_cpu(plan: &StagePlan, optimizer: OptimizerSettings) -> Vec<f32> {
    let device = || iota_compute::Cpu::new(1).unwrap();
    losses([device(), device()], plan, optimizer, Recompute::Nothing)
}

#[track_caller]
fn assert_close(computed: &[f32], expected: &[f32], tolerance: f32) {
    let worst = computed
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst < tolerance, "{computed:?} beside {expected:?}");
    assert!(expected[STEPS - 1] < expected[0], "it learns: {expected:?}");
}

#[test]
fn a_model_learns_as_it_does_on_a_cpu_with_every_optimizer() {
    let plan = StagePlan::new(&model(Boundary::Iota { channels: 10 }), 2).unwrap();
    for rule in [
        UpdateRule::default(),
        UpdateRule::NAdam(NAdam::default()),
        UpdateRule::Muon(Muon::default()),
    ] {
        let optimizer = OptimizerSettings {
            rule,
            ..OptimizerSettings::default()
        };
        let computed = on_cuda(Precision::F32, &plan, optimizer, Recompute::Nothing);
        let Some(computed) = computed else {
            return;
        };
        assert_close(&computed, &on_cpu(&plan, optimizer), 1e-4);
    }
}

#[test]
fn a_model_with_other_boundaries_and_recomputation_does_too() {
    for boundary in [
        Boundary::ResBm { channels: 17 },
        Boundary::Anchored { channels: 9 },
    ] {
        let plan = StagePlan::new(&model(boundary), 2).unwrap();
        let optimizer = StageOptions::default().optimizer;
        let computed = on_cuda(Precision::F32, &plan, optimizer, Recompute::Blocks);
        let Some(computed) = computed else {
            return;
        };
        assert_close(&computed, &on_cpu(&plan, optimizer), 1e-4);
    }
}

/// 8 significant bits in every factor move the losses of the first steps by about a thousandth.
#[test]
fn rounded_factors_move_the_losses_a_little() {
    let plan = StagePlan::new(&model(Boundary::None), 2).unwrap();
    let optimizer = StageOptions::default().optimizer;
    let computed = on_cuda(Precision::Bf16, &plan, optimizer, Recompute::Nothing);
    let Some(computed) = computed else {
        return;
    };
    let expected = on_cpu(&plan, optimizer);
    assert_close(&computed, &expected, 0.02);
    assert_ne!(computed, expected, "factors are rounded");
}

/// What is made as factors only has readers that differ with the boundary, and Muon multiplies gradients.
#[test]
fn factors_that_are_kept_suit_every_boundary_and_optimizer() {
    let muon = OptimizerSettings {
        rule: UpdateRule::Muon(Muon::default()),
        ..OptimizerSettings::default()
    };
    let adam = OptimizerSettings::default();
    for (boundary, optimizer, recompute) in [
        (Boundary::Iota { channels: 10 }, muon, Recompute::Nothing),
        (Boundary::Iota { channels: 10 }, adam, Recompute::Blocks),
        (Boundary::ResBm { channels: 17 }, adam, Recompute::Nothing),
        (Boundary::Anchored { channels: 9 }, adam, Recompute::Blocks),
    ] {
        let plan = StagePlan::new(&model(boundary), 2).unwrap();
        let computed = on_cuda(Precision::Bf16, &plan, optimizer, recompute);
        let Some(computed) = computed else {
            return;
        };
        assert_close(&computed, &on_cpu(&plan, optimizer), 0.02);
    }
}

/// Heads of 64 channels, for which there are fused kernels.
#[test]
fn a_model_with_fused_attention_learns_as_it_does_on_a_cpu() {
    let config = ModelConfig {
        width: 256,
        heads: 4,
        key_value_heads: 2,
        ..model(Boundary::None)
    };
    let plan = StagePlan::new(&config, 2).unwrap();
    let optimizer = StageOptions::default().optimizer;
    let computed = on_cuda(Precision::Bf16, &plan, optimizer, Recompute::Blocks);
    let Some(computed) = computed else {
        return;
    };
    assert_close(&computed, &on_cpu(&plan, optimizer), 0.02);
}
