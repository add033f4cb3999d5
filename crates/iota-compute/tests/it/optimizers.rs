use iota_compute::{
    AdamW, Beta1, Muon, NAdam, OptimizerSettings, Stage, StageOptions, UpdateRule, UpdateScale,
};
use iota_model::{Boundary, ModelConfig, StagePlan, TensorId, TensorLayout, preset};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::{distance, floats, noise};

/// Made by `benches/peers/golden_optimizers.py`, which says what is in it.
const FILE: &[u8] = include_bytes!("../data/optimizers.safetensors");

/// For steps in f32 against f64. What an optimizer *changed* is compared, not what it came to, so that nothing hides behind
/// the size of the weights. Measured: 5e-7 at most.
const ELEMENTWISE_TOLERANCE: f64 = 5e-6;
/// Newton-Schulz lifts small singular values by a factor of up to 480 in five iterations, and their rounding errors with
/// them. Measured: 1.4e-6 at most.
const MUON_TOLERANCE: f64 = 5e-5;
/// PyTorch orthogonalises in bf16, which has 8 bits: relative errors of 2^-9 that are lifted as above. Measured: 0.018 at
/// most.
const BF16_MUON_TOLERANCE: f64 = 0.05;

fn settings(rule: UpdateRule) -> OptimizerSettings {
    OptimizerSettings {
        rule,
        ..OptimizerSettings::default()
    }
}

/// Steps the stages of the file's model on the file's gradients, and holds what `selected` tensors have changed by to the
/// file's.
fn check(
    expected: &str,
    rule: UpdateRule,
    tolerance: f64,
    selected: impl Fn(&TensorLayout) -> bool,
) {
    let (_, header) = SafeTensors::read_metadata(FILE).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let model: ModelConfig = serde_json::from_str(&metadata["model"]).unwrap();
    let rates: Vec<f32> = serde_json::from_str(&metadata["learning_rates"]).unwrap();
    let backwards: u32 = serde_json::from_str(&metadata["backwards"]).unwrap();
    let file = SafeTensors::deserialize(FILE).unwrap();
    let plan = StagePlan::new(&model, 2).unwrap();
    let mut compared = 0;
    for index in 0..2 {
        let options = StageOptions {
            optimizer: settings(rule),
            ..StageOptions::default()
        };
        let mut stage = Stage::new(&plan, index, options).unwrap();
        let layout = stage.layout().clone();
        for tensor in layout.tensors() {
            let name = format!("weight.{}", tensor.id);
            assert_eq!(file.tensor(&name).unwrap().shape(), tensor.shape, "{name}");
            stage.state_mut().parameters[tensor.range()].copy_from_slice(&floats(&file, &name));
        }
        let mut clipped = Vec::new();
        for (step, &rate) in rates.iter().enumerate() {
            for tensor in layout.tensors() {
                stage.gradients_mut()[tensor.range()]
                    .copy_from_slice(&floats(&file, &format!("gradient.{step}.{}", tensor.id)));
            }
            clipped.push(stage.step(rate, backwards).unwrap().clipped);
        }
        assert_eq!(clipped, [true, true, false, true], "both ways are compared");
        for tensor in layout.tensors().iter().filter(|tensor| selected(tensor)) {
            let before = floats(&file, &format!("weight.{}", tensor.id));
            let change = |after: &[f32]| -> Vec<f32> {
                after.iter().zip(&before).map(|(a, b)| a - b).collect()
            };
            let distance = distance(
                &change(&stage.state().parameters[tensor.range()]),
                &change(&floats(&file, &format!("{expected}.{}", tensor.id))),
            );
            assert!(
                distance < tolerance,
                "{expected}: the change of {} is {distance:e} away from PyTorch's",
                tensor.id
            );
            compared += 1;
        }
    }
    let in_file = file
        .names()
        .iter()
        .filter(|name| name.starts_with(&format!("{expected}.")))
        .count();
    assert_eq!(compared, in_file, "nothing is left uncompared");
}

fn any(_: &TensorLayout) -> bool {
    true
}

fn hidden_matrix(tensor: &TensorLayout) -> bool {
    matches!(tensor.id, TensorId::Block { .. }) && tensor.shape.len() == 2
}

#[test]
fn adamw_steps_as_pytorchs() {
    let rule = UpdateRule::AdamW(AdamW::default());
    check("adamw", rule, ELEMENTWISE_TOLERANCE, any);
}

#[test]
fn nadam_with_a_beta_by_stage_steps_as_pytorchs_with_those_betas() {
    let rule = UpdateRule::NAdam(NAdam::default());
    check("nadam_by_stage", rule, ELEMENTWISE_TOLERANCE, any);
}

#[test]
fn nadam_with_pytorchs_slow_rise_of_momentum_steps_as_pytorchs() {
    let rule = UpdateRule::NAdam(NAdam {
        beta1: Beta1::Fixed(0.8),
        momentum_decay: 4e-3,
        ..NAdam::default()
    });
    check("nadam_fixed", rule, ELEMENTWISE_TOLERANCE, any);
}

#[test]
fn muon_steps_as_pytorchs_with_an_exact_orthogonalisation() {
    let rule = UpdateRule::Muon(Muon::default());
    check("muon_match_rms", rule, MUON_TOLERANCE, any);
    let rule = UpdateRule::Muon(Muon {
        nesterov: false,
        scale: UpdateScale::Original,
        rest_rate: 0.5,
        ..Muon::default()
    });
    check("muon_original", rule, MUON_TOLERANCE, any);
}

#[test]
fn muon_steps_as_pytorchs_within_the_precision_of_bf16() {
    let rule = UpdateRule::Muon(Muon::default());
    check("torch_muon", rule, BF16_MUON_TOLERANCE, hidden_matrix);
}

/// Singular values of `[rows, columns]`, largest first: turns pairs of columns until all are orthogonal (one-sided Jacobi).
fn singular_values(matrix: &[f32], [rows, columns]: [usize; 2]) -> Vec<f64> {
    let mut columns: Vec<Vec<f64>> = (0..columns)
        .map(|column| {
            (0..rows)
                .map(|row| f64::from(matrix[row * columns + column]))
                .collect()
        })
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for _ in 0..30 {
        for right in 1..columns.len() {
            let (lefts, rest) = columns.split_at_mut(right);
            let b = &mut rest[0];
            for a in lefts {
                let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
                if ab.abs() <= 1e-15 * (aa * bb).sqrt() {
                    continue;
                }
                let slope = (bb - aa) / (2.0 * ab);
                let tangent = slope.signum() / (slope.abs() + slope.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                for (a, b) in a.iter_mut().zip(b.iter_mut()) {
                    (*a, *b) = (cosine * (*a - tangent * *b), cosine * (*b + tangent * *a));
                }
            }
        }
    }
    let mut values: Vec<f64> = columns.iter().map(|c| dot(c, c).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values.truncate(rows.min(columns.len()));
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn muons_update_has_singular_values_near_one(
        half_width in 2..16_usize, feed_forward in 1..60_usize, bottleneck in 1..4_usize, seed in 1..u32::MAX,
    ) {
        let model = ModelConfig {
            vocabulary: 5,
            width: 2 * half_width,
            blocks: 2,
            heads: 1,
            key_value_heads: 1,
            feed_forward,
            boundary: Boundary::Iota { channels: bottleneck },
            ..preset("tiny").unwrap()
        };
        let plan = StagePlan::new(&model, 2).unwrap();
        let optimizer = OptimizerSettings {
            weight_decay: 0.0,
            clip_norm: f32::INFINITY,
            ..settings(UpdateRule::Muon(Muon { scale: UpdateScale::Original, ..Muon::default() }))
        };
        let mut stage = Stage::new(&plan, 0, StageOptions { optimizer, ..StageOptions::default() }).unwrap();
        let layout = stage.layout().clone();
        // Tiny gradients: that they are is not to be seen in the update.
        let gradients: Vec<f32> = noise(layout.elements(), seed).iter().map(|g| 1e-4 * g).collect();
        stage.gradients_mut().copy_from_slice(&gradients);
        stage.step(1.0, 1).unwrap();
        for tensor in layout.tensors().iter().filter(|tensor| hidden_matrix(tensor)) {
            let shape = [tensor.shape[0], tensor.shape[1]];
            let scale = (shape[0] as f64 / shape[1] as f64).max(1.0).sqrt();
            let update = &stage.state().parameters[tensor.range()];
            let actual: Vec<f64> = singular_values(update, shape).iter().map(|value| value / scale).collect();
            let before = singular_values(&gradients[tensor.range()], shape);
            let norm = before.iter().map(|value| value * value).sum::<f64>().sqrt();
            for (&value, &actual) in before.iter().zip(&actual) {
                if value / norm > 0.01 {
                    prop_assert!((0.65..1.25).contains(&actual), "{}: {actual}", tensor.id);
                }
            }
            // What Newton-Schulz does to a matrix is what its polynomial does to each singular value.
            let polynomial = |x: f64| 3.4445 * x - 4.775 * x.powi(3) + 2.0315 * x.powi(5);
            let mut expected: Vec<f64> = before
                .iter()
                .map(|value| (0..5).fold(value / norm, |x, _| polynomial(x)))
                .collect();
            expected.sort_by(|a, b| b.total_cmp(a));
            for (actual, expected) in actual.iter().zip(&expected) {
                prop_assert!((actual - expected).abs() < 1e-3, "{}: {actual} is not {expected}", tensor.id);
            }
        }
    }
}

#[test]
fn muon_leaves_a_matrix_without_gradients_where_it_is() {
    let plan = StagePlan::new(&preset("tiny").unwrap(), 2).unwrap();
    let optimizer = OptimizerSettings {
        weight_decay: 0.0,
        ..settings(UpdateRule::Muon(Muon::default()))
    };
    let mut stage = Stage::new(
        &plan,
        0,
        StageOptions {
            optimizer,
            ..StageOptions::default()
        },
    )
    .unwrap();
    stage.initialise(1).unwrap();
    let before = stage.state().parameters.to_vec();
    stage.step(0.1, 1).unwrap();
    assert_eq!(stage.state().parameters, before);
}
