use candle_core::{D, DType, Device, Tensor, Var};
use iota_compute::backend::{
    AdamUpdate, AttentionShape, Form, MomentumUpdate, Product, Turn, Write,
};
use iota_compute::{Backend, Cpu, InstructionSet};
use proptest::prelude::*;

use crate::{assert_close, noise, tokens};

fn cpu() -> Cpu {
    Cpu::new(2).unwrap()
}

/// Every choice of threads and vector instructions, which must not show in the bits.
fn cpus() -> Vec<Cpu> {
    let mut cpus = vec![cpu()];
    for instructions in InstructionSet::available() {
        cpus.push(Cpu::new(1).unwrap().with_instructions(instructions));
    }
    cpus
}

fn assert_bits(what: &str, actual: &[f32], expected: &[f32]) {
    let same = actual
        .iter()
        .zip(expected)
        .all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(
        same && actual.len() == expected.len(),
        "{what} has other bits"
    );
}

fn variable(values: &[f32], shape: &[usize]) -> Var {
    let tensor = Tensor::from_slice(values, shape, &Device::Cpu)
        .unwrap()
        .to_dtype(DType::F64)
        .unwrap();
    Var::from_tensor(&tensor).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The gradients of these variables, given the gradient of the result.
fn pull_back(result: &Tensor, gradient: &[f32], of: &[&Var]) -> Vec<Vec<f32>> {
    let gradient = variable(gradient, result.dims());
    let store = (result * gradient.as_tensor())
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    of.iter()
        .map(|variable| flat(store.get(variable).expect("candle has this gradient")))
        .collect()
}

#[test]
fn products_equal_candles_and_add_to_what_is_there() {
    let (rows, columns, inner) = (37, 29, 530);
    let (a, b, before) = (
        noise(rows * inner, 1),
        noise(inner * columns, 2),
        noise(rows * columns, 3),
    );
    for (form, a_shape, b_shape) in [
        (Form::TransposedRight, [rows, inner], [columns, inner]),
        (Form::Plain, [rows, inner], [inner, columns]),
        (Form::TransposedLeft, [inner, rows], [inner, columns]),
    ] {
        let mut left = variable(&a, &a_shape).into_inner();
        let mut right = variable(&b, &b_shape).into_inner();
        if form == Form::TransposedRight {
            right = right.t().unwrap();
        }
        if form == Form::TransposedLeft {
            left = left.t().unwrap();
        }
        let product = left.matmul(&right).unwrap();
        let mut out = before.clone();
        cpu()
            .matmul(
                Product {
                    form,
                    rows,
                    columns,
                    inner,
                },
                &mut out,
                &a,
                &b,
                Write::Replace,
            )
            .unwrap();
        assert_close("the product", &out, &flat(&product));
        out.copy_from_slice(&before);
        cpu()
            .matmul(
                Product {
                    form,
                    rows,
                    columns,
                    inner,
                },
                &mut out,
                &a,
                &b,
                Write::Add,
            )
            .unwrap();
        let sum = (product + variable(&before, &[rows, columns]).as_tensor()).unwrap();
        assert_close("the sum", &out, &flat(&sum));
    }
}

#[test]
fn rms_norm_equals_candles() {
    check_rms_norm(150, 37);
}

fn check_rms_norm(rows: usize, width: usize) {
    let (x, scale, gradient) = (
        noise(rows * width, 1),
        noise(width, 2),
        noise(rows * width, 3),
    );
    let (x_var, scale_var) = (variable(&x, &[rows, width]), variable(&scale, &[width]));
    let root = (x_var.sqr().unwrap().mean_keepdim(1).unwrap() + 1e-5)
        .unwrap()
        .sqrt()
        .unwrap();
    let expected = x_var
        .broadcast_div(&root)
        .unwrap()
        .broadcast_mul(&scale_var)
        .unwrap();

    let (mut out, mut inverse) = (vec![0.0; rows * width], vec![0.0; rows]);
    cpu()
        .rms_norm(&mut out, &mut inverse, &x, &scale, 1e-5)
        .unwrap();
    assert_close("the result", &out, &flat(&expected));

    let (mut x_gradient, mut scale_gradient) = (vec![9.0; rows * width], vec![0.0; width]);
    for cpu in cpus() {
        let (mut other, mut other_inverse) = (vec![0.0; rows * width], vec![0.0; rows]);
        cpu.rms_norm(&mut other, &mut other_inverse, &x, &scale, 1e-5)
            .unwrap();
        assert_bits("the result", &other, &out);
        assert_bits("the inverse", &other_inverse, &inverse);
    }
    let backward = |x_gradient: &mut [f32], write, scale_gradient: &mut [f32]| {
        cpu()
            .rms_norm_backward(
                (x_gradient, write),
                scale_gradient,
                &gradient,
                &x,
                &scale,
                &inverse,
            )
            .unwrap();
    };
    backward(&mut x_gradient, Write::Replace, &mut scale_gradient);
    let expected = pull_back(&expected, &gradient, &[&x_var, &scale_var]);
    assert_close("the gradient of x", &x_gradient, &expected[0]);
    assert_close("the gradient of the scale", &scale_gradient, &expected[1]);
    for cpu in cpus() {
        let (mut other, mut other_scale) = (vec![9.0; rows * width], vec![0.0; width]);
        let out = (&mut other[..], Write::Replace);
        cpu.rms_norm_backward(out, &mut other_scale, &gradient, &x, &scale, &inverse)
            .unwrap();
        assert_bits("the gradient of x", &other, &x_gradient);
        assert_bits("the gradient of the scale", &other_scale, &scale_gradient);
    }

    backward(&mut x_gradient, Write::Add, &mut scale_gradient);
    let twice = |values: &[f32]| values.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
    assert_close("the sum for x", &x_gradient, &twice(&expected[0]));
    assert_close(
        "the sum for the scale",
        &scale_gradient,
        &twice(&expected[1]),
    );
}

#[test]
fn swiglu_equals_candles_and_restores_its_result_going_back() {
    check_swiglu(90, 401);
}

fn check_swiglu(rows: usize, width: usize) {
    let gate_up: Vec<f32> = noise(rows * 2 * width, 1)
        .into_iter()
        .map(|x| 12.0 * x)
        .collect();
    let gradient = noise(rows * width, 2);
    let packed = variable(&gate_up, &[rows, 2 * width]);
    let gate = packed.narrow(1, 0, width).unwrap().silu().unwrap();
    let expected = (gate * packed.narrow(1, width, width).unwrap()).unwrap();

    let mut hidden = vec![0.0; rows * width];
    cpu().swiglu(&mut hidden, &gate_up, width).unwrap();
    assert_close("the result", &hidden, &flat(&expected));

    let (mut in_place, mut restored) = (gate_up.clone(), gradient.clone());
    cpu()
        .swiglu_backward(&mut in_place, &mut restored, width)
        .unwrap();
    assert_eq!(restored, hidden);
    assert_close(
        "the gradient",
        &in_place,
        &pull_back(&expected, &gradient, &[&packed])[0],
    );
    for cpu in cpus() {
        let (mut other, mut other_hidden) = (gate_up.clone(), vec![0.0; rows * width]);
        cpu.swiglu(&mut other_hidden, &other, width).unwrap();
        assert_bits("the result", &other_hidden, &hidden);
        other_hidden.copy_from_slice(&gradient);
        cpu.swiglu_backward(&mut other, &mut other_hidden, width)
            .unwrap();
        assert_bits("the gradient", &other, &in_place);
    }
}

#[test]
fn silu_and_relu_equal_candles() {
    let x: Vec<f32> = noise(20_011, 1).into_iter().map(|x| 30.0 * x).collect();
    let gradient = noise(x.len(), 2);
    let variable = variable(&x, &[x.len()]);

    let (mut silu, expected) = (vec![0.0; x.len()], variable.silu().unwrap());
    cpu().silu(&mut silu, &x).unwrap();
    assert_close("silu", &silu, &flat(&expected));
    let (mut restored, mut in_place) = (x.clone(), gradient.clone());
    cpu().silu_backward(&mut restored, &mut in_place).unwrap();
    assert_eq!(restored, silu);
    assert_close(
        "the gradient of silu",
        &in_place,
        &pull_back(&expected, &gradient, &[&variable])[0],
    );

    let (mut relu, expected) = (x.clone(), variable.relu().unwrap());
    cpu().relu(&mut relu).unwrap();
    assert_eq!(relu, flat(&expected));
    let mut in_place = gradient.clone();
    cpu().relu_backward(&mut in_place, &relu).unwrap();
    assert_eq!(in_place, pull_back(&expected, &gradient, &[&variable])[0]);
}

#[test]
fn columns_are_added_from_the_first_on() {
    let (mut narrow, mut wide) = (
        vec![1.0, 2.0, 3.0, 4.0],
        vec![10.0, 20.0, 30.0, 40.0, 50.0, 60.0],
    );
    cpu().add_columns((&mut narrow, 2), (&wide, 3), 2).unwrap();
    assert_eq!(narrow, [11.0, 22.0, 43.0, 54.0]);
    cpu().add_columns((&mut wide, 3), (&narrow, 2), 2).unwrap();
    assert_eq!(wide, [21.0, 42.0, 30.0, 83.0, 104.0, 60.0]);
}

/// More than two blocks of queries, and a last one that is not full.
const SHAPE: AttentionShape = AttentionShape {
    sequences: 2,
    tokens: 150,
    heads: 6,
    key_value_heads: 2,
    head_width: 10,
};

#[test]
fn attention_equals_candles() {
    check_attention(SHAPE);
}

#[test]
fn attention_takes_single_tokens_lonely_heads_and_full_blocks() {
    for (sequences, tokens, heads, key_value_heads, head_width) in [
        (1, 1, 1, 1, 2),
        (3, 1, 4, 2, 6),
        (2, 2, 3, 3, 16),
        (1, 48, 2, 1, 32),
        (2, 49, 1, 1, 8),
        (1, 144, 4, 4, 4),
    ] {
        check_attention(AttentionShape {
            sequences,
            tokens,
            heads,
            key_value_heads,
            head_width,
        });
    }
}

fn check_attention(shape: AttentionShape) {
    let packed: Vec<f32> = noise(shape.rows() * shape.packed_width(), 1)
        .into_iter()
        .map(|x| 3.0 * x)
        .collect();
    let gradient = noise(shape.rows() * shape.width(), 2);
    let variable = variable(
        &packed,
        &[shape.sequences, shape.tokens, shape.packed_width()],
    );
    let (all, shared, width) = (shape.heads, shape.key_value_heads, shape.head_width);
    let heads = |first: usize, count: usize| {
        let part = variable.narrow(2, first * width, count * width).unwrap();
        let part = part
            .reshape((shape.sequences, shape.tokens, count, width))
            .unwrap()
            .transpose(1, 2)
            .unwrap();
        let expanded = (shape.sequences, count, all / count, shape.tokens, width);
        let part = part
            .contiguous()
            .unwrap()
            .unsqueeze(2)
            .unwrap()
            .expand(expanded)
            .unwrap();
        part.reshape((shape.sequences, all, shape.tokens, width))
            .unwrap()
    };
    let (queries, keys, values) = (
        heads(0, all),
        heads(all, shared),
        heads(all + shared, shared),
    );
    let scores = (queries.matmul(&keys.t().unwrap()).unwrap() * (width as f64).powf(-0.5)).unwrap();
    let later: Vec<f64> = (0..shape.tokens)
        .flat_map(|query| {
            (0..shape.tokens).map(move |key| if key > query { f64::NEG_INFINITY } else { 0.0 })
        })
        .collect();
    let later = Tensor::from_vec(later, (shape.tokens, shape.tokens), &Device::Cpu).unwrap();
    let weights =
        candle_nn::ops::softmax(&scores.broadcast_add(&later).unwrap(), D::Minus1).unwrap();
    let expected = weights
        .matmul(&values)
        .unwrap()
        .transpose(1, 2)
        .unwrap()
        .contiguous()
        .unwrap();

    let (mut out, mut log_sums) = (
        vec![0.0; gradient.len()],
        vec![0.0; shape.rows() * shape.heads],
    );
    cpu()
        .attention(&mut out, &mut log_sums, &packed, shape)
        .unwrap();
    assert_close("the result", &out, &flat(&expected));

    let mut packed_gradient = vec![9.0; packed.len()];
    cpu()
        .attention_backward(
            &mut packed_gradient,
            &gradient,
            &out,
            &log_sums,
            &packed,
            shape,
        )
        .unwrap();
    assert_close(
        "the gradient",
        &packed_gradient,
        &pull_back(&expected, &gradient, &[&variable])[0],
    );
    for cpu in cpus() {
        let (mut other, mut other_sums) = (vec![9.0; out.len()], vec![9.0; log_sums.len()]);
        cpu.attention(&mut other, &mut other_sums, &packed, shape)
            .unwrap();
        assert_bits("the result", &other, &out);
        assert_bits("the logarithms", &other_sums, &log_sums);
        let mut other = vec![9.0; packed.len()];
        cpu.attention_backward(&mut other, &gradient, &out, &log_sums, &packed, shape)
            .unwrap();
        assert_bits("the gradient", &other, &packed_gradient);
    }
}

#[test]
fn turning_back_undoes_turning_and_leaves_values_alone() {
    let half = SHAPE.head_width / 2;
    let angles = noise(SHAPE.tokens * half, 1);
    let (cosines, sines): (Vec<f32>, Vec<f32>) = angles
        .iter()
        .map(|angle| (angle.cos(), angle.sin()))
        .unzip();
    let packed = noise(SHAPE.rows() * SHAPE.packed_width(), 2);
    let mut turned = packed.clone();
    cpu()
        .rotate(&mut turned, (&cosines, &sines), SHAPE, Turn::Forward)
        .unwrap();
    let row = SHAPE.tokens + 3; // the fourth token of the second sequence
    let (before, after) = (
        &packed[row * SHAPE.packed_width()..],
        &turned[row * SHAPE.packed_width()..],
    );
    let angle = angles[3 * half];
    assert_close(
        "a pair",
        &[after[0]],
        &[before[0] * angle.cos() - before[half] * angle.sin()],
    );
    assert_close(
        "a pair",
        &[after[half]],
        &[before[half] * angle.cos() + before[0] * angle.sin()],
    );
    let values = (SHAPE.heads + SHAPE.key_value_heads) * SHAPE.head_width;
    assert_eq!(
        before[values..SHAPE.packed_width()],
        after[values..SHAPE.packed_width()]
    );
    cpu()
        .rotate(&mut turned, (&cosines, &sines), SHAPE, Turn::Back)
        .unwrap();
    assert_close("what was turned and turned back", &turned, &packed);
}

#[test]
fn cross_entropy_equals_candles_over_several_chunks() {
    let (rows, width, vocabulary) = (1100, 20, 77);
    let x: Vec<f32> = noise(rows * width, 1)
        .into_iter()
        .map(|x| 4.0 * x)
        .collect();
    let (projection, targets) = (noise(vocabulary * width, 2), tokens(rows, vocabulary, 3));
    let (x_var, projection_var) = (
        variable(&x, &[rows, width]),
        variable(&projection, &[vocabulary, width]),
    );
    let logits = x_var.matmul(&projection_var.t().unwrap()).unwrap();
    let target_tensor = Tensor::new(targets.clone(), &Device::Cpu).unwrap();
    let expected = candle_nn::loss::cross_entropy(&logits, &target_tensor).unwrap();

    let alone = cpu()
        .cross_entropy(None, &x, &projection, &targets, width)
        .unwrap();
    assert_close("the loss", &[alone], &[flat(&expected)[0]]);
    let (mut x_gradient, mut projection_gradient) =
        (vec![9.0; x.len()], vec![0.0; projection.len()]);
    let gradients = Some((&mut x_gradient[..], &mut projection_gradient[..]));
    assert_eq!(
        cpu()
            .cross_entropy(gradients, &x, &projection, &targets, width)
            .unwrap(),
        alone
    );
    let expected = pull_back(&expected, &[1.0], &[&x_var, &projection_var]);
    assert_close("the gradient of x", &x_gradient, &expected[0]);
    assert_close(
        "the gradient of the projection",
        &projection_gradient,
        &expected[1],
    );
}

#[test]
fn an_embedding_gathers_and_its_gradient_adds_up_repeated_tokens() {
    let table = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let tokens = vec![2, 0, 2];
    let mut out = vec![0.0; 6];
    cpu().embedding(&mut out, &table, &tokens, 2).unwrap();
    assert_eq!(out, [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
    let mut gradient = vec![0.0; 6];
    cpu()
        .embedding_backward(&mut gradient, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &tokens, 2)
        .unwrap();
    assert_eq!(gradient, [3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
}

#[test]
fn adamw_steps_as_candles_optimizer_does() {
    use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
    let count = 20_000;
    let mut parameters = noise(count, 1);
    let expected = variable(&parameters, &[count]);
    let settings = ParamsAdamW {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };
    let mut optimizer = AdamW::new(vec![expected.clone()], settings).unwrap();
    let (mut first, mut second) = (vec![0.0; count], vec![0.0; count]);
    for step in 1..=3 {
        let gradient = noise(count, 10 + step);
        let loss = (expected.as_tensor() * variable(&gradient, &[count]).as_tensor())
            .unwrap()
            .sum_all()
            .unwrap();
        optimizer.backward_step(&loss).unwrap();
        let update = AdamUpdate {
            learning_rate: 0.01,
            gradient_scale: 1.0,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            gradient_weight: 0.0,
            moment_weight: (1.0 / (1.0 - 0.9_f64.powi(step as i32))) as f32,
            second_correction: (1.0 / (1.0 - 0.95_f64.powi(step as i32))) as f32,
        };
        cpu()
            .adam(
                &mut parameters,
                (&mut first, &mut second),
                &gradient,
                update,
            )
            .unwrap();
        assert_close("the parameters", &parameters, &flat(&expected));
    }
}

#[test]
fn momentum_is_a_running_mean_that_may_look_ahead() {
    let (gradients, before) = (noise(20_001, 1), noise(20_001, 2));
    for look_ahead in [false, true] {
        let (mut out, mut moment) = (vec![f32::NAN; 20_001], before.clone());
        let update = MomentumUpdate {
            gradient_scale: 0.5,
            momentum: 0.75,
            look_ahead,
        };
        cpu()
            .momentum(&mut out, &mut moment, &gradients, update)
            .unwrap();
        let mean = |m: f32, g: f32| (0.75 * f64::from(m) + 0.125 * f64::from(g)) as f32;
        let expected: Vec<f32> = before
            .iter()
            .zip(&gradients)
            .map(|(m, g)| mean(*m, *g))
            .collect();
        assert_close("the moment", &moment, &expected);
        let expected: Vec<f32> = expected
            .iter()
            .zip(&gradients)
            .map(|(m, g)| if look_ahead { mean(*m, *g) } else { *m })
            .collect();
        assert_close("the momentum", &out, &expected);
    }
}

#[test]
fn blending_with_nothing_kept_does_not_read_what_was_there() {
    let x = noise(20_001, 1);
    let mut out = vec![f32::NAN; x.len()];
    cpu().blend((&mut out, 0.0), (&x, 2.0)).unwrap();
    assert!(out.iter().zip(&x).all(|(out, x)| *out == 2.0 * x));
    cpu().blend((&mut out, -1.0), (&x, 0.5)).unwrap();
    assert!(out.iter().zip(&x).all(|(out, x)| *out == -1.5 * x));
}

#[test]
fn a_squared_norm_is_summed_in_f64() {
    let mut values = noise(100_003, 1);
    values[0] = 1e18;
    let expected: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
    assert!((cpu().squared_norm(&values).unwrap() / expected - 1.0).abs() < 1e-12);
    assert!(expected > f64::from(f32::MAX) / 1e3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn attention_of_any_shape_equals_candles(
        sequences in 1..4_usize,
        tokens in 1..140_usize,
        key_value_heads in 1..4_usize,
        group in 1..4_usize,
        half_width in 1..20_usize,
    ) {
        check_attention(AttentionShape {
            sequences,
            tokens,
            heads: group * key_value_heads,
            key_value_heads,
            head_width: 2 * half_width,
        });
    }

    // In fewer channels than these, gradients nearly cancel now and then, and f32 is all that differs.
    #[test]
    fn rms_norm_of_any_shape_equals_candles(rows in 1..140_usize, width in 5..90_usize) {
        check_rms_norm(rows, width);
    }

    #[test]
    fn swiglu_of_any_shape_equals_candles(rows in 1..40_usize, width in 1..90_usize) {
        check_swiglu(rows, width);
    }
}
