//! Causal grouped-query attention in blocks of queries.
//!
//! A job is a sequence: its rows are one stretch of every buffer, so jobs share nothing. Within it, each head takes its
//! queries in blocks of [`QUERIES`], against the keys up to the block's last query; scores of one block at a time are in
//! memory. Going back, they are computed again from the saved logarithms of the softmax's denominators.
#![expect(
    unsafe_code,
    reason = "kernels are compiled for several instruction sets"
)]

use gemm::Parallelism;

use super::instructions::{InstructionSet, vectorised};
use super::matmul::{Matrix, Size, matmul};
use super::numeric::{exp, max, sum};
use super::threads::Threads;
use crate::backend::AttentionShape;

/// Queries whose scores are held at a time. Half a block of scores on the diagonal is computed for nothing, so smaller
/// is less work, and larger makes better matrix products.
const QUERIES: usize = 64;

/// Where one head's queries, keys and values begin in a row.
#[derive(Clone, Copy)]
struct Head {
    query: usize,
    key: usize,
    value: usize,
}

impl Head {
    fn new(shape: AttentionShape, head: usize) -> Self {
        let shared = head / (shape.heads / shape.key_value_heads);
        let (query, key) = (
            head * shape.head_width,
            (shape.heads + shared) * shape.head_width,
        );
        Self {
            query,
            key,
            value: key + shape.key_value_heads * shape.head_width,
        }
    }
}

/// Blocks of queries: the first one, and how many.
fn blocks(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..tokens)
        .step_by(QUERIES)
        .map(move |first| (first, QUERIES.min(tokens - first)))
}

fn score_scale(shape: AttentionShape) -> f32 {
    1.0 / (shape.head_width as f32).sqrt()
}

/// Elements that [`forward`] takes in passing: a block of scores for each sequence that is being computed.
pub(super) fn forward_elements(shape: AttentionShape, threads: usize) -> usize {
    QUERIES.min(shape.tokens) * shape.tokens * threads.min(shape.sequences)
}

/// Elements that [`backward`] takes in passing: the scores and their gradient.
pub(super) fn backward_elements(shape: AttentionShape, threads: usize) -> usize {
    2 * forward_elements(shape, threads)
}

pub(super) fn forward(
    (instructions, threads): (InstructionSet, &Threads),
    out: &mut [f32],
    log_sums: &mut [f32],
    packed: &[f32],
    shape: AttentionShape,
) {
    assert_shapes(shape, packed.len(), out.len(), log_sums.len());
    let jobs = out
        .chunks_mut(shape.tokens * shape.width())
        .zip(log_sums.chunks_mut(shape.heads * shape.tokens))
        .zip(packed.chunks(shape.tokens * shape.packed_width()));
    threads.each(jobs, |((out, log_sums), packed)| {
        forward_sequence(instructions, out, log_sums, packed, shape)
    });
}

fn forward_sequence(
    instructions: InstructionSet,
    out: &mut [f32],
    log_sums: &mut [f32],
    packed: &[f32],
    shape: AttentionShape,
) {
    let (tokens, width, packed_width) = (shape.tokens, shape.head_width, shape.packed_width());
    let mut scores = vec![0.0; QUERIES.min(tokens) * tokens];
    for (head, log_sums) in log_sums.chunks_exact_mut(tokens).enumerate() {
        let Head { query, key, value } = Head::new(shape, head);
        for (first, count) in blocks(tokens) {
            let keys = first + count;
            product(
                instructions,
                Size {
                    rows: count,
                    columns: keys,
                    inner: width,
                },
                (&mut scores, tokens),
                Matrix::rows(&packed[first * packed_width + query..], packed_width),
                Matrix::transposed(&packed[key..], packed_width),
                false,
            );
            let log_sums = &mut log_sums[first..keys];
            softmax(
                instructions,
                &mut scores,
                tokens,
                log_sums,
                first,
                score_scale(shape),
            );
            product(
                instructions,
                Size {
                    rows: count,
                    columns: width,
                    inner: keys,
                },
                (&mut out[first * shape.width() + query..], shape.width()),
                Matrix::rows(&scores, tokens),
                Matrix::rows(&packed[value..], packed_width),
                false,
            );
        }
    }
}

pub(super) fn backward(
    (instructions, threads): (InstructionSet, &Threads),
    packed_gradient: &mut [f32],
    out_gradient: &[f32],
    out: &[f32],
    log_sums: &[f32],
    packed: &[f32],
    shape: AttentionShape,
) {
    assert_shapes(shape, packed.len(), out.len(), log_sums.len());
    assert_shapes(
        shape,
        packed_gradient.len(),
        out_gradient.len(),
        log_sums.len(),
    );
    let (out_elements, packed_elements) = (
        shape.tokens * shape.width(),
        shape.tokens * shape.packed_width(),
    );
    let jobs = packed_gradient
        .chunks_mut(packed_elements)
        .zip(out_gradient.chunks(out_elements))
        .zip(out.chunks(out_elements))
        .zip(log_sums.chunks(shape.heads * shape.tokens))
        .zip(packed.chunks(packed_elements));
    threads.each(
        jobs,
        |((((packed_gradient, out_gradient), out), log_sums), packed)| {
            let saved = SavedSequence {
                out,
                log_sums,
                packed,
            };
            backward_sequence(instructions, packed_gradient, out_gradient, saved, shape);
        },
    );
}

/// What the forward pass left of one sequence.
struct SavedSequence<'a> {
    out: &'a [f32],
    log_sums: &'a [f32],
    packed: &'a [f32],
}

/// With scores `s`, probabilities `p = softmax(s)` and result `o = p v`: `dv = p^T do`, `dp = do v^T`,
/// `ds = p (dp - sum(do o))`, and from `ds` the gradients of queries and keys.
fn backward_sequence(
    instructions: InstructionSet,
    packed_gradient: &mut [f32],
    out_gradient: &[f32],
    saved: SavedSequence<'_>,
    shape: AttentionShape,
) {
    let (tokens, width, packed_width) = (shape.tokens, shape.head_width, shape.packed_width());
    let packed = saved.packed;
    let mut probabilities = vec![0.0; QUERIES.min(tokens) * tokens];
    let mut score_gradient = vec![0.0; QUERIES.min(tokens) * tokens];
    // Keys and values gather from several heads and blocks.
    packed_gradient.fill(0.0);
    for (head, log_sums) in saved.log_sums.chunks_exact(tokens).enumerate() {
        let Head { query, key, value } = Head::new(shape, head);
        for (first, count) in blocks(tokens) {
            let keys = first + count;
            let queries = Matrix::rows(&packed[first * packed_width + query..], packed_width);
            let block = first * shape.width() + query;
            let out_gradient = Matrix::rows(&out_gradient[block..], shape.width());

            let scores = Size {
                rows: count,
                columns: keys,
                inner: width,
            };
            let all_keys = Matrix::transposed(&packed[key..], packed_width);
            product(
                instructions,
                scores,
                (&mut probabilities, tokens),
                queries,
                all_keys,
                false,
            );
            let all_values = Matrix::transposed(&packed[value..], packed_width);
            product(
                instructions,
                scores,
                (&mut score_gradient, tokens),
                out_gradient,
                all_values,
                false,
            );
            softmax_backward(
                instructions,
                &mut probabilities,
                &mut score_gradient,
                tokens,
                &log_sums[first..keys],
                out_gradient,
                &saved.out[block..],
                first,
                width,
                score_scale(shape),
            );

            let gathered = Size {
                rows: keys,
                columns: width,
                inner: count,
            };
            let weights = Matrix::transposed(&probabilities, tokens);
            let values = (&mut packed_gradient[value..], packed_width);
            product(instructions, gathered, values, weights, out_gradient, true);
            let weights = Matrix::transposed(&score_gradient, tokens);
            product(
                instructions,
                gathered,
                (&mut packed_gradient[key..], packed_width),
                weights,
                queries,
                true,
            );
            product(
                instructions,
                Size {
                    rows: count,
                    columns: width,
                    inner: keys,
                },
                (
                    &mut packed_gradient[first * packed_width + query..],
                    packed_width,
                ),
                Matrix::rows(&score_gradient, tokens),
                Matrix::rows(&packed[key..], packed_width),
                false,
            );
        }
    }
}

/// A product within a job: on this thread alone.
fn product(
    instructions: InstructionSet,
    size: Size,
    out: (&mut [f32], usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    add: bool,
) {
    matmul(instructions, Parallelism::None, size, out, a, b, add);
}

fn assert_shapes(shape: AttentionShape, packed: usize, out: usize, log_sums: usize) {
    let rows = shape.rows();
    let expected = (
        rows * shape.packed_width(),
        rows * shape.width(),
        rows * shape.heads,
    );
    assert_eq!((packed, out, log_sums), expected, "shapes of an attention");
}

vectorised! {
    /// Turns a block's scores into probabilities, 0 for later keys, and notes the logarithm of each row's denominator.
    fn softmax(scores: &mut [f32], stride: usize, log_sums: &mut [f32], first: usize, scale: f32) {
        let keys = first + log_sums.len();
        for (index, (row, log_sum)) in scores.chunks_exact_mut(stride).zip(log_sums).enumerate() {
            let (visible, later) = row[..keys].split_at_mut(first + index + 1);
            for score in visible.iter_mut() {
                *score *= scale;
            }
            let highest = max(visible);
            for score in visible.iter_mut() {
                *score = exp(*score - highest);
            }
            let total = sum(visible.len(), |key| visible[key]);
            let share = 1.0 / total;
            for score in visible.iter_mut() {
                *score *= share;
            }
            later.fill(0.0);
            *log_sum = highest + libm::logf(total);
        }
    }
}

vectorised! {
    /// Turns a block's scores into probabilities again, and the gradient of these into that of the unscaled scores.
    fn softmax_backward(
        scores: &mut [f32],
        gradient: &mut [f32],
        stride: usize,
        log_sums: &[f32],
        out_gradient: Matrix<'_>,
        out: &[f32],
        first: usize,
        width: usize,
        scale: f32,
    ) {
        let keys = first + log_sums.len();
        let rows = scores.chunks_exact_mut(stride).zip(gradient.chunks_exact_mut(stride));
        for (index, ((scores, gradient), &log_sum)) in rows.zip(log_sums).enumerate() {
            let start = index * out_gradient.row_stride;
            let (out_gradient, out) = (&out_gradient.data[start..start + width], &out[start..start + width]);
            let mean = sum(width, |channel| out_gradient[channel] * out[channel]);
            let (scores, later) = scores[..keys].split_at_mut(first + index + 1);
            let (gradient, later_gradient) = gradient[..keys].split_at_mut(first + index + 1);
            for (score, gradient) in scores.iter_mut().zip(gradient) {
                *score = exp(*score * scale - log_sum);
                *gradient = *score * (*gradient - mean) * scale;
            }
            later.fill(0.0);
            later_gradient.fill(0.0);
        }
    }
}
