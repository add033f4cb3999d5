//! The operations by their definitions, one element after the other, in f64.

use iota_compute::backend::{AdamUpdate, AttentionShape, Form, MomentumUpdate, Product, Turn};
use iota_model::Precision;

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// What a factor of a product counts for: in bf16, the nearest number of 8 significant bits, ties to even.
fn factor(precision: Precision, x: f32) -> f64 {
    match precision {
        Precision::F32 => x.into(),
        Precision::Bf16 => {
            let bits = x.to_bits();
            let odd = (bits >> 16) & 1;
            let rounded = (bits + 0x7fff + odd) & 0xffff_0000;
            f32::from_bits(rounded).into()
        }
    }
}

pub(super) fn add_columns(
    out: &[f32],
    out_width: usize,
    source: &[f32],
    source_width: usize,
) -> Vec<f64> {
    let mut sum = wide(out);
    let rows = sum.chunks_mut(out_width).zip(source.chunks(source_width));
    for (row, source) in rows {
        for (out, source) in row.iter_mut().zip(source) {
            *out += f64::from(*source);
        }
    }
    sum
}

pub(super) fn multiply(product: Product, precision: Precision, a: &[f32], b: &[f32]) -> Vec<f64> {
    let Product {
        form,
        rows,
        columns,
        inner,
    } = product;
    let factors =
        |values: &[f32]| -> Vec<f64> { values.iter().map(|x| factor(precision, *x)).collect() };
    let (a, b) = (factors(a), factors(b));
    let mut out = vec![0.0; rows * columns];
    for row in 0..rows {
        for term in 0..inner {
            let left = match form {
                Form::TransposedRight | Form::Plain => a[row * inner + term],
                Form::TransposedLeft => a[term * rows + row],
            };
            for column in 0..columns {
                let right = match form {
                    Form::TransposedRight => b[column * inner + term],
                    Form::Plain | Form::TransposedLeft => b[term * columns + column],
                };
                out[row * columns + column] += left * right;
            }
        }
    }
    out
}

pub(super) struct RmsNorm {
    pub(super) out: Vec<f64>,
    pub(super) inverse: Vec<f64>,
    pub(super) x_gradient: Vec<f64>,
    pub(super) scale_gradient: Vec<f64>,
}

pub(super) fn rms_norm(x: &[f32], scale: &[f32], out_gradient: &[f32], epsilon: f64) -> RmsNorm {
    let (x, scale, dy) = (wide(x), wide(scale), wide(out_gradient));
    let width = scale.len();
    let mut result = RmsNorm {
        out: Vec::new(),
        inverse: Vec::new(),
        x_gradient: Vec::new(),
        scale_gradient: vec![0.0; width],
    };
    for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let inverse = (mean_square + epsilon).sqrt().recip();
        let along: f64 = (0..width).map(|i| dy[i] * scale[i] * x[i]).sum();
        for i in 0..width {
            result.out.push(x[i] * inverse * scale[i]);
            let pulled = x[i] * along * inverse.powi(3) / width as f64;
            result.x_gradient.push(dy[i] * scale[i] * inverse - pulled);
            result.scale_gradient[i] += dy[i] * x[i] * inverse;
        }
        result.inverse.push(inverse);
    }
    result
}

pub(super) fn rotate(
    shape: AttentionShape,
    packed: &[f32],
    cosines: &[f32],
    sines: &[f32],
    turn: Turn,
) -> Vec<f64> {
    let mut turned = wide(packed);
    let half = shape.head_width / 2;
    for (row, channels) in turned.chunks_mut(shape.packed_width()).enumerate() {
        let position = row % shape.tokens;
        let heads = channels
            .chunks_mut(shape.head_width)
            .take(shape.heads + shape.key_value_heads);
        for head in heads {
            for i in 0..half {
                let cosine = f64::from(cosines[position * half + i]);
                let sine = match turn {
                    Turn::Forward => f64::from(sines[position * half + i]),
                    Turn::Back => -f64::from(sines[position * half + i]),
                };
                let (x, y) = (head[i], head[i + half]);
                head[i] = x * cosine - y * sine;
                head[i + half] = x * sine + y * cosine;
            }
        }
    }
    turned
}

pub(super) struct Attention {
    pub(super) out: Vec<f64>,
    pub(super) log_sums: Vec<f64>,
    pub(super) packed_gradient: Vec<f64>,
}

pub(super) fn attention(shape: AttentionShape, packed: &[f32], out_gradient: &[f32]) -> Attention {
    let (packed, dout) = (wide(packed), wide(out_gradient));
    let AttentionShape {
        tokens,
        heads,
        key_value_heads,
        head_width,
        ..
    } = shape;
    let scale = (head_width as f64).sqrt().recip();
    let mut result = Attention {
        out: vec![0.0; dout.len()],
        log_sums: vec![0.0; shape.rows() * heads],
        packed_gradient: vec![0.0; packed.len()],
    };
    for sequence in 0..shape.sequences {
        for head in 0..heads {
            let key_value_head = head / (heads / key_value_heads);
            let at = |token: usize, head: usize| {
                (sequence * tokens + token) * shape.packed_width() + head * head_width
            };
            let query_at = |token| at(token, head);
            let key_at = |token| at(token, heads + key_value_head);
            let value_at = |token| at(token, heads + key_value_heads + key_value_head);
            for query in 0..tokens {
                let q = &packed[query_at(query)..][..head_width];
                let scores: Vec<f64> = (0..=query)
                    .map(|key| scale * dot(q, &packed[key_at(key)..][..head_width]))
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let log_sum = largest + sum.ln();
                result.log_sums[(sequence * heads + head) * tokens + query] = log_sum;
                let probabilities: Vec<f64> =
                    scores.iter().map(|score| (score - log_sum).exp()).collect();
                let out_at = (sequence * tokens + query) * shape.width() + head * head_width;
                let dy = &dout[out_at..][..head_width];
                for (key, probability) in probabilities.iter().enumerate() {
                    let value = &packed[value_at(key)..][..head_width];
                    add(&mut result.out[out_at..], *probability, value);
                }
                let along = dot(dy, &result.out[out_at..][..head_width]);
                for (key, probability) in probabilities.iter().enumerate() {
                    let value = &packed[value_at(key)..][..head_width];
                    let slope = probability * (dot(dy, value) - along) * scale;
                    let gradient = &mut result.packed_gradient;
                    let k = &packed[key_at(key)..][..head_width];
                    add(&mut gradient[query_at(query)..], slope, k);
                    add(&mut gradient[key_at(key)..], slope, q);
                    add(&mut gradient[value_at(key)..], *probability, dy);
                }
            }
        }
    }
    result
}

/// `out += weight x`, for the elements that `x` has.
fn add(out: &mut [f64], weight: f64, x: &[f64]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += weight * x;
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sigmoid(x: f64) -> f64 {
    (1.0 + (-x).exp()).recip()
}

fn silu_slope(x: f64) -> f64 {
    sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)))
}

/// Hidden channels, and the gradients of gates and ups.
pub(super) fn swiglu(
    gate_up: &[f32],
    hidden_gradient: &[f32],
    width: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (gate_up, gradient) = (wide(gate_up), wide(hidden_gradient));
    let (mut hidden, mut gradients) = (Vec::new(), Vec::new());
    for (row, gradient) in gate_up.chunks(2 * width).zip(gradient.chunks(width)) {
        let (gate, up) = row.split_at(width);
        hidden.extend((0..width).map(|i| gate[i] * sigmoid(gate[i]) * up[i]));
        gradients.extend((0..width).map(|i| gradient[i] * up[i] * silu_slope(gate[i])));
        gradients.extend((0..width).map(|i| gradient[i] * gate[i] * sigmoid(gate[i])));
    }
    (hidden, gradients)
}

pub(super) struct Activations {
    pub(super) silu: Vec<f64>,
    pub(super) silu_gradient: Vec<f64>,
    pub(super) relu: Vec<f64>,
    pub(super) relu_gradient: Vec<f64>,
}

pub(super) fn activations(x: &[f32], gradient: &[f32]) -> Activations {
    let (x, gradient) = (wide(x), wide(gradient));
    let both = x.iter().zip(&gradient);
    Activations {
        silu: x.iter().map(|x| x * sigmoid(*x)).collect(),
        silu_gradient: both.clone().map(|(x, g)| g * silu_slope(*x)).collect(),
        relu: x.iter().map(|x| x.max(0.0)).collect(),
        relu_gradient: both.map(|(x, g)| if *x > 0.0 { *g } else { 0.0 }).collect(),
    }
}

/// The rows, and the table's gradient with what was there.
pub(super) fn embedding(
    width: usize,
    table: &[f32],
    tokens: &[u32],
    out_gradient: &[f32],
    before: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    let table = wide(table);
    let mut gradient = wide(before);
    let mut out = Vec::new();
    for (token, row) in tokens.iter().zip(out_gradient.chunks(width)) {
        let start = *token as usize * width;
        out.extend_from_slice(&table[start..start + width]);
        for (sum, x) in gradient[start..].iter_mut().zip(row) {
            *sum += f64::from(*x);
        }
    }
    (out, gradient)
}

pub(super) struct CrossEntropy {
    pub(super) loss: f64,
    pub(super) x_gradient: Vec<f64>,
    pub(super) projection_gradient: Vec<f64>,
}

pub(super) fn cross_entropy(
    precision: Precision,
    width: usize,
    x: &[f32],
    projection: &[f32],
    targets: &[u32],
    before: &[f32],
) -> CrossEntropy {
    let factors =
        |values: &[f32]| -> Vec<f64> { values.iter().map(|x| factor(precision, *x)).collect() };
    let (x, projection) = (factors(x), factors(projection));
    let share = 1.0 / targets.len() as f64;
    let mut result = CrossEntropy {
        loss: 0.0,
        x_gradient: vec![0.0; x.len()],
        projection_gradient: wide(before),
    };
    for (row, target) in targets.iter().enumerate() {
        let of_row = row * width..(row + 1) * width;
        let x = &x[of_row.clone()];
        let logits: Vec<f64> = projection.chunks(width).map(|word| dot(x, word)).collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        let log_sum = largest + sum.ln();
        result.loss += share * (log_sum - logits[*target as usize]);
        for (token, logit) in logits.iter().enumerate() {
            let hit = if token == *target as usize { 1.0 } else { 0.0 };
            let slope = share * ((logit - log_sum).exp() - hit);
            let word = token * width..(token + 1) * width;
            let x_gradient = &mut result.x_gradient[of_row.clone()];
            for (sum, weight) in x_gradient.iter_mut().zip(&projection[word.clone()]) {
                *sum += slope * weight;
            }
            let word_gradient = &mut result.projection_gradient[word];
            for (sum, x) in word_gradient.iter_mut().zip(x) {
                *sum += slope * x;
            }
        }
    }
    result
}

/// Parameters, first and second moment, after a step from these and a gradient.
pub(super) fn adam(before: &[Vec<f32>; 4], update: &AdamUpdate) -> [Vec<f64>; 3] {
    let [mut p, mut m, mut v, g] = before.each_ref().map(|values| wide(values));
    let (beta1, beta2) = (f64::from(update.beta1), f64::from(update.beta2));
    let rate = f64::from(update.learning_rate);
    for i in 0..p.len() {
        let g = g[i] * f64::from(update.gradient_scale);
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        let towards =
            f64::from(update.gradient_weight) * g + f64::from(update.moment_weight) * m[i];
        let root = (v[i] * f64::from(update.second_correction)).sqrt();
        p[i] = p[i] * (1.0 - rate * f64::from(update.weight_decay))
            - rate * towards / (root + f64::from(update.epsilon));
    }
    [p, m, v]
}

/// The mean that is asked for, and the moment.
pub(super) fn momentum(
    moment: &[f32],
    gradients: &[f32],
    update: &MomentumUpdate,
) -> (Vec<f64>, Vec<f64>) {
    let keep = f64::from(update.momentum);
    let scaled = |g: &f32| f64::from(*g) * f64::from(update.gradient_scale);
    let moved: Vec<f64> = moment
        .iter()
        .zip(gradients)
        .map(|(m, g)| keep * f64::from(*m) + (1.0 - keep) * scaled(g))
        .collect();
    let ahead = moved
        .iter()
        .zip(gradients)
        .map(|(m, g)| keep * m + (1.0 - keep) * scaled(g));
    let mean = if update.look_ahead {
        ahead.collect()
    } else {
        moved.clone()
    };
    (mean, moved)
}

pub(super) fn blend(out: &[f32], keep: f32, x: &[f32], weight: f32) -> Vec<f64> {
    let pairs = out.iter().zip(x);
    pairs
        .map(|(out, x)| f64::from(keep) * f64::from(*out) + f64::from(weight) * f64::from(*x))
        .collect()
}
