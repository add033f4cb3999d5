//! The two ends of a model: the embedding, and the output projection with its loss.
#![expect(
    unsafe_code,
    reason = "kernels are compiled for several instruction sets"
)]

use super::instructions::{InstructionSet, vectorised};
use super::matmul::{Matrix, Size, matmul, packed_elements};
use super::numeric::{exp, max, sum};
use super::threads::Threads;
use crate::backend::{Form, Product};

/// Logits held at a time, about (64 MiB): one chunk of rows, for all of the vocabulary.
const LOGITS: usize = 16 * 1024 * 1024;

/// Rows of a chunk, at most, so that a small vocabulary's logits stay in the cache.
const ROWS: usize = 512;

/// Rows whose logits are held at a time.
fn rows_at_a_time(rows: usize, vocabulary: usize) -> usize {
    (LOGITS / vocabulary).clamp(1, ROWS).min(rows.max(1))
}

/// Elements that [`cross_entropy`] takes in passing: the logits, and what its products pack.
pub(super) fn cross_entropy_elements(
    gradients: bool,
    rows: usize,
    vocabulary: usize,
    width: usize,
) -> usize {
    let chunk = rows_at_a_time(rows, vocabulary);
    let product = if gradients {
        Product {
            form: Form::TransposedLeft,
            rows: vocabulary,
            columns: width,
            inner: chunk,
        }
    } else {
        Product {
            form: Form::TransposedRight,
            rows: chunk,
            columns: vocabulary,
            inner: width,
        }
    };
    chunk * vocabulary + packed_elements(product)
}

/// See [`crate::Backend::cross_entropy`].
pub(super) fn cross_entropy(
    (instructions, threads): (InstructionSet, &Threads),
    mut gradients: Option<(&mut [f32], &mut [f32])>,
    x: &[f32],
    projection: &[f32],
    targets: &[u32],
    width: usize,
) -> f32 {
    let (rows, vocabulary) = (targets.len(), projection.len() / width);
    assert_eq!(
        (x.len(), projection.len()),
        (rows * width, vocabulary * width),
        "shapes of the output projection"
    );
    if let Some((x_gradient, projection_gradient)) = &gradients {
        let lengths = (x_gradient.len(), projection_gradient.len());
        assert_eq!(
            lengths,
            (x.len(), projection.len()),
            "shapes of the output projection's gradients"
        );
    }
    let chunk = rows_at_a_time(rows, vocabulary);
    let share = 1.0 / rows as f32;
    let parallelism = threads.parallelism();
    let mut logits = vec![0.0; chunk * vocabulary];
    let mut total = 0.0_f64;
    for (index, targets) in targets.chunks(chunk).enumerate() {
        let count = targets.len();
        let range = index * chunk * width..(index * chunk + count) * width;
        let (x, logits) = (&x[range.clone()], &mut logits[..count * vocabulary]);
        matmul(
            instructions,
            parallelism,
            Size {
                rows: count,
                columns: vocabulary,
                inner: width,
            },
            (logits, vocabulary),
            Matrix::rows(x, width),
            Matrix::transposed(projection, width),
            false,
        );
        let jobs = logits.chunks_mut(vocabulary).zip(targets);
        let losses = threads.map(jobs, |(logits, &target)| {
            row_loss(instructions, logits, target as usize, share)
        });
        total += losses.into_iter().map(f64::from).sum::<f64>();

        let Some((x_gradient, projection_gradient)) = &mut gradients else {
            continue;
        };
        matmul(
            instructions,
            parallelism,
            Size {
                rows: count,
                columns: width,
                inner: vocabulary,
            },
            (&mut x_gradient[range], width),
            Matrix::rows(logits, vocabulary),
            Matrix::rows(projection, width),
            false,
        );
        matmul(
            instructions,
            parallelism,
            Size {
                rows: vocabulary,
                columns: width,
                inner: count,
            },
            (projection_gradient, width),
            Matrix::transposed(logits, vocabulary),
            Matrix::rows(x, width),
            true,
        );
    }
    (total / rows as f64) as f32
}

vectorised! {
    /// The loss of one row; its logits become their gradients, times `share`.
    fn row_loss(logits: &mut [f32], target: usize, share: f32) -> f32 {
        let highest = max(logits);
        let wanted = logits[target];
        for logit in logits.iter_mut() {
            *logit = exp(*logit - highest);
        }
        let total = sum(logits.len(), |token| logits[token]);
        let scale = share / total;
        for logit in logits.iter_mut() {
            *logit *= scale;
        }
        logits[target] -= share;
        highest + libm::logf(total) - wanted
    }
}

/// See [`crate::Backend::embedding`].
pub(super) fn embedding(out: &mut [f32], table: &[f32], tokens: &[u32], width: usize) {
    assert_eq!(
        out.len(),
        tokens.len() * width,
        "shape of the embedded tokens"
    );
    for (out, &token) in out.chunks_exact_mut(width).zip(tokens) {
        out.copy_from_slice(&table[token as usize * width..][..width]);
    }
}

/// See [`crate::Backend::embedding_backward`].
pub(super) fn embedding_backward(
    table_gradient: &mut [f32],
    out_gradient: &[f32],
    tokens: &[u32],
    width: usize,
) {
    assert_eq!(
        out_gradient.len(),
        tokens.len() * width,
        "shape of the embedded tokens' gradient"
    );
    for (gradient, &token) in out_gradient.chunks_exact(width).zip(tokens) {
        let row = &mut table_gradient[token as usize * width..][..width];
        row.iter_mut()
            .zip(gradient)
            .for_each(|(row, gradient)| *row += gradient);
    }
}
