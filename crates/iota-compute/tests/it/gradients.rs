use candle_core::{DType, Device, Tensor};
use iota_compute::reference::Reference;
use iota_compute::{Input, StageOptions};
use iota_model::{Boundary, ModelConfig, StagePlan};

use crate::{assert_close, noise, odd_anchored_model, odd_model, odd_resbm_model, stages, tokens};

/// Every stage of the plan, each with an input of its own, against candle in f64.
fn check(plan: &StagePlan, rows: usize) {
    for (index, stage) in stages(plan, StageOptions::default()).iter_mut().enumerate() {
        let reference = Reference::new(plan, index, stage.state().parameters, DType::F64).unwrap();
        let activation = noise(rows * plan.boundary_width(), 7);
        let tokens_in = tokens(rows, plan.config().vocabulary, 8);
        let activation = (!stage.role().takes_tokens()).then_some(activation.as_slice());
        let input = Input::of(plan, &tokens_in, activation);
        let reference_input = reference.input(input).unwrap();

        let (objective, input_gradient) = if stage.role().computes_loss() {
            let targets = tokens(rows, plan.config().vocabulary, 9);
            let (loss, input_gradient) = stage.forward_backward_loss(input, &targets).unwrap();
            let targets = Tensor::new(targets, &Device::Cpu).unwrap();
            let objective = reference.loss(&reference_input, &targets).unwrap();
            let expected = objective.to_scalar::<f64>().unwrap() as f32;
            assert_close("the loss", &[loss], &[expected]);
            (objective, input_gradient)
        } else {
            let (output, saved) = stage.forward(input).unwrap();
            let expected = reference.output(&reference_input).unwrap();
            let flat = expected
                .to_dtype(DType::F32)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            assert_close("the output", &output, &flat);
            let gradient = noise(output.len(), 10);
            let input_gradient = stage.backward(saved, &gradient).unwrap();
            // The scalar whose gradient for the output is `gradient`.
            let gradient = Tensor::from_slice(&gradient, expected.shape(), &Device::Cpu).unwrap();
            let gradient = gradient.to_dtype(DType::F64).unwrap();
            (
                (expected * gradient).unwrap().sum_all().unwrap(),
                input_gradient,
            )
        };

        let (expected, expected_input) = reference.gradients(&objective, &reference_input).unwrap();
        for tensor in stage.layout().tensors() {
            let range = tensor.range();
            assert!(
                stage.gradients()[range.clone()].iter().any(|g| *g != 0.0),
                "{} has no gradient",
                tensor.id
            );
            assert_close(
                &tensor.name(),
                &stage.gradients()[range.clone()],
                &expected[range],
            );
        }
        assert_eq!(input_gradient.is_some(), !stage.role().takes_tokens());
        if let Some(input_gradient) = input_gradient {
            assert_close(
                "the input gradient",
                &input_gradient,
                &expected_input.expect("a variable"),
            );
        }
    }
}

#[test]
fn a_whole_model_has_candles_gradients() {
    check(&StagePlan::new(&odd_model(), 1).unwrap(), 140);
}

#[test]
fn stages_behind_and_before_bottlenecks_have_candles_gradients() {
    for model in [odd_model(), odd_resbm_model(), odd_anchored_model()] {
        check(&StagePlan::new(&model, 3).unwrap(), 140);
    }
}

#[test]
fn bottlenecks_inside_a_stage_have_candles_gradients() {
    for model in [odd_model(), odd_resbm_model(), odd_anchored_model()] {
        let cut = StagePlan::new(&model, 3).unwrap();
        check(&cut.regroup(1).unwrap(), 70);
    }
}

#[test]
fn stages_without_bottlenecks_have_candles_gradients() {
    check(
        &StagePlan::new(
            &ModelConfig {
                boundary: Boundary::None,
                ..odd_model()
            },
            3,
        )
        .unwrap(),
        70,
    );
}

#[test]
fn one_sequence_may_be_shorter_than_the_context() {
    check(&StagePlan::new(&odd_model(), 2).unwrap(), 23);
    check(&StagePlan::new(&odd_model(), 2).unwrap(), 2);
}
