//! Causal grouped-query attention in blocks of queries.
//!
//! A job is a key-value head of a sequence, with the query heads that share it: it reads channels that others read too,
//! and writes channels that nobody else does. Keys (and, going back, values) are transposed once for all its queries,
//! because matrix products would turn them again for every block. Each query head takes its queries in blocks of
//! [`QUERIES`], against the keys up to the block's last query; scores of one block at a time are in memory. Going back,
//! they are computed again from the saved logarithms of the softmax's denominators.
#![expect(
    unsafe_code,
    reason = "kernels are compiled for several instruction sets, and jobs write channels of shared rows"
)]

use std::marker::PhantomData;
use std::ops::Range;

use gemm::Parallelism;

use super::instructions::{InstructionSet, vectorised};
use super::matmul::{Matrix, Size, matmul};
use super::numeric::{LANES, exp, max, sum};
use super::threads::Threads;
use crate::backend::AttentionShape;

/// Queries whose scores are held at a time. Half a block of scores on the diagonal is computed for nothing, so smaller
/// is less work, and larger makes better matrix products. With sequences of 128 tokens 48 took 7 % less time than 64 and
/// 15 % less than 96; with 256 it made no difference.
const QUERIES: usize = 48;

/// Blocks of queries: the first one, and how many.
fn blocks(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..tokens)
        .step_by(QUERIES)
        .map(move |first| (first, QUERIES.min(tokens - first)))
}

/// A key-value head of a sequence, and where its channels lie.
#[derive(Debug, Clone, Copy)]
struct Group {
    shape: AttentionShape,
    sequence: usize,
    key_value_head: usize,
}

impl Group {
    /// All of them, sequence by sequence.
    fn all(shape: AttentionShape) -> impl Iterator<Item = Self> {
        (0..shape.sequences).flat_map(move |sequence| {
            (0..shape.key_value_heads).map(move |key_value_head| Self {
                shape,
                sequence,
                key_value_head,
            })
        })
    }

    /// Query heads.
    const fn heads(&self) -> usize {
        self.shape.heads / self.shape.key_value_heads
    }

    /// Channels of the queries in a row; of the result too.
    fn queries(&self) -> Range<usize> {
        let width = self.heads() * self.shape.head_width;
        self.key_value_head * width..(self.key_value_head + 1) * width
    }

    /// Channels of the keys in a row.
    fn keys(&self) -> Range<usize> {
        let width = self.shape.head_width;
        let first = (self.shape.heads + self.key_value_head) * width;
        first..first + width
    }

    /// Channels of the values in a row.
    fn values(&self) -> Range<usize> {
        let (keys, behind) = (
            self.keys(),
            self.shape.key_value_heads * self.shape.head_width,
        );
        keys.start + behind..keys.end + behind
    }

    /// The first of the sequence's rows.
    const fn row(&self) -> usize {
        self.sequence * self.shape.tokens
    }

    /// The sequence's part of a buffer of rows.
    fn rows<'a>(&self, buffer: &'a [f32], row_width: usize) -> &'a [f32] {
        &buffer[self.row() * row_width..][..self.shape.tokens * row_width]
    }

    fn score_scale(&self) -> f32 {
        1.0 / (self.shape.head_width as f32).sqrt()
    }
}

/// Rows that several jobs write at the same time, each the channels of its own group.
struct SharedRows<'a> {
    start: *mut f32,
    row_width: usize,
    rows: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: what it points to is borrowed mutably for as long as it lives, and is reached through `write` alone.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    fn new(buffer: &'a mut [f32], row_width: usize) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            row_width,
            rows: buffer.len() / row_width,
            borrowed: PhantomData,
        }
    }

    /// Writes these channels of consecutive rows.
    ///
    /// # Safety
    /// At the same time, no other thread writes any of them.
    unsafe fn write(&self, first_row: usize, channels: Range<usize>, values: &[f32]) {
        let rows = values.len() / channels.len();
        assert!(
            channels.end <= self.row_width && first_row + rows <= self.rows,
            "a group lies within the rows"
        );
        for (row, values) in values.chunks_exact(channels.len()).enumerate() {
            let offset = (first_row + row) * self.row_width + channels.start;
            // SAFETY: by the assertion, the channels are within the buffer; by the contract, nobody else writes them;
            // and nobody reads them, since all that is left of the buffer's borrow is `self`.
            unsafe {
                self.start
                    .add(offset)
                    .copy_from_nonoverlapping(values.as_ptr(), values.len());
            }
        }
    }
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
    let shared = SharedRows::new(out, shape.width());
    let heads = shape.heads / shape.key_value_heads;
    let jobs = Group::all(shape).zip(log_sums.chunks_mut(heads * shape.tokens));
    threads.each(jobs, |(group, log_sums)| {
        let out = forward_group(instructions, group, log_sums, packed);
        // SAFETY: these channels belong to the group, and the group to this job.
        unsafe { shared.write(group.row(), group.queries(), &out) };
    });
}

/// Returns the result, `[tokens, heads of the group * head_width]`.
fn forward_group(
    instructions: InstructionSet,
    group: Group,
    log_sums: &mut [f32],
    packed: &[f32],
) -> Vec<f32> {
    let AttentionShape {
        tokens, head_width, ..
    } = group.shape;
    let packed_width = group.shape.packed_width();
    let packed = group.rows(packed, packed_width);
    let keys_turned = Turned::new(instructions, packed, packed_width, group.keys());
    let values = Matrix::rows(&packed[group.values().start..], packed_width);
    let out_width = group.queries().len();
    let mut out = vec![0.0; tokens * out_width];
    let stride = tokens.next_multiple_of(LANES);
    let mut scores = vec![0.0; QUERIES.min(tokens) * stride];
    let mut sums = [0.0; QUERIES];
    for (head, log_sums) in log_sums.chunks_exact_mut(tokens).enumerate() {
        let channel = head * head_width;
        for (first, count) in blocks(tokens) {
            let keys = first + count;
            let query = first * packed_width + group.queries().start + channel;
            product(
                instructions,
                Size {
                    rows: count,
                    columns: keys,
                    inner: head_width,
                },
                (&mut scores, stride),
                Matrix::rows(&packed[query..], packed_width),
                keys_turned.matrix(),
                false,
            );
            softmax(
                instructions,
                &mut scores,
                stride,
                &mut log_sums[first..keys],
                &mut sums[..count],
                first,
                group.score_scale(),
            );
            let out = &mut out[first * out_width + channel..];
            product(
                instructions,
                Size {
                    rows: count,
                    columns: head_width,
                    inner: keys,
                },
                (out, out_width),
                Matrix::rows(&scores, stride),
                values,
                false,
            );
            normalise(instructions, out, out_width, head_width, &sums[..count]);
        }
    }
    out
}

/// What the forward pass left.
#[derive(Clone, Copy)]
struct SavedAttention<'a> {
    out: &'a [f32],
    log_sums: &'a [f32],
    packed: &'a [f32],
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
    let saved = SavedAttention {
        out,
        log_sums,
        packed,
    };
    let shared = SharedRows::new(packed_gradient, shape.packed_width());
    threads.each(Group::all(shape), |group| {
        let gradients = backward_group(instructions, group, out_gradient, saved);
        for (channels, gradient) in [
            (group.queries(), gradients.queries),
            (group.keys(), gradients.keys),
            (group.values(), gradients.values),
        ] {
            // SAFETY: these channels belong to the group, and the group to this job.
            unsafe { shared.write(group.row(), channels, &gradient) };
        }
    });
}

/// Rows of the channels of a group.
struct Gradients {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// With scores `s`, probabilities `p = softmax(s)` and result `o = p v`: `dv = p^T do`, `dp = do v^T`,
/// `ds = p (dp - sum(do o))`, and from `ds` the gradients of queries and keys.
fn backward_group(
    instructions: InstructionSet,
    group: Group,
    out_gradient: &[f32],
    saved: SavedAttention<'_>,
) -> Gradients {
    let AttentionShape {
        tokens,
        head_width,
        heads: all_heads,
        ..
    } = group.shape;
    let (width, packed_width) = (group.shape.width(), group.shape.packed_width());
    let packed = group.rows(saved.packed, packed_width);
    let out = group.rows(saved.out, width);
    let out_gradient = group.rows(out_gradient, width);
    let first_head = group.sequence * all_heads + group.key_value_head * group.heads();
    let log_sums = &saved.log_sums[first_head * tokens..][..group.heads() * tokens];

    let keys_turned = Turned::new(instructions, packed, packed_width, group.keys());
    let values_turned = Turned::new(instructions, packed, packed_width, group.values());
    let stride = tokens.next_multiple_of(LANES);
    let mut probabilities = vec![0.0; QUERIES.min(tokens) * stride];
    let mut score_gradient = vec![0.0; QUERIES.min(tokens) * stride];
    let query_width = group.queries().len();
    let mut gradients = Gradients {
        queries: vec![0.0; tokens * query_width],
        keys: vec![0.0; tokens * head_width],
        values: vec![0.0; tokens * head_width],
    };
    for (head, log_sums) in log_sums.chunks_exact(tokens).enumerate() {
        let channel = head * head_width;
        for (first, count) in blocks(tokens) {
            let keys = first + count;
            let query = first * packed_width + group.queries().start + channel;
            let queries = Matrix::rows(&packed[query..], packed_width);
            let block = first * width + group.queries().start + channel;
            let out_gradient = Matrix::rows(&out_gradient[block..], width);

            let scores = Size {
                rows: count,
                columns: keys,
                inner: head_width,
            };
            product(
                instructions,
                scores,
                (&mut probabilities, stride),
                queries,
                keys_turned.matrix(),
                false,
            );
            product(
                instructions,
                scores,
                (&mut score_gradient, stride),
                out_gradient,
                values_turned.matrix(),
                false,
            );
            softmax_backward(
                instructions,
                &mut probabilities,
                &mut score_gradient,
                stride,
                &log_sums[first..keys],
                out_gradient,
                &out[block..],
                first,
                head_width,
                group.score_scale(),
            );

            let gathered = Size {
                rows: keys,
                columns: head_width,
                inner: count,
            };
            product(
                instructions,
                gathered,
                (&mut gradients.values, head_width),
                Matrix::transposed(&probabilities, stride),
                out_gradient,
                true,
            );
            product(
                instructions,
                gathered,
                (&mut gradients.keys, head_width),
                Matrix::transposed(&score_gradient, stride),
                queries,
                true,
            );
            product(
                instructions,
                Size {
                    rows: count,
                    columns: head_width,
                    inner: keys,
                },
                (
                    &mut gradients.queries[first * query_width + channel..],
                    query_width,
                ),
                Matrix::rows(&score_gradient, stride),
                Matrix::rows(&packed[group.keys().start..], packed_width),
                false,
            );
        }
    }
    gradients
}

/// Some channels of a sequence's rows, channel by channel: `[channels, tokens]`.
struct Turned {
    elements: Vec<f32>,
    stride: usize,
}

impl Turned {
    fn new(
        instructions: InstructionSet,
        rows: &[f32],
        row_width: usize,
        channels: Range<usize>,
    ) -> Self {
        let tokens = rows.len() / row_width;
        // Rows that lie a power of two apart would share few sets of the cache.
        let stride = tokens + LANES;
        let mut elements = vec![0.0; channels.len() * stride];
        turn(
            instructions,
            &mut elements,
            stride,
            rows,
            row_width,
            channels.start,
        );
        Self { elements, stride }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::rows(&self.elements, self.stride)
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
    /// Transposes a stretch of each row, a few rows at a time, so that they stay in the cache.
    fn turn(out: &mut [f32], stride: usize, rows: &[f32], row_width: usize, first: usize) {
        let channels = out.len() / stride;
        for (block, rows) in rows.chunks(LANES * row_width).enumerate() {
            let count = rows.len() / row_width;
            for channel in 0..channels {
                let out = &mut out[channel * stride + block * LANES..][..count];
                for (out, row) in out.iter_mut().zip(rows.chunks_exact(row_width)) {
                    *out = row[first + channel];
                }
            }
        }
    }
}

/// Makes scores of later keys invisible to `exp`, up to where the last vector of visible ones ends, and 0 behind that.
/// Returns the part that `exp` has to see.
#[inline(always)]
fn hide_later(row: &mut [f32], visible: usize) -> &mut [[f32; LANES]] {
    let (seen, later) = row.split_at_mut(visible.next_multiple_of(LANES));
    seen[visible..].fill(f32::NEG_INFINITY);
    later.fill(0.0);
    seen.as_chunks_mut().0
}

vectorised! {
    /// Turns a block's scores into weights, e^(score - highest), 0 for later keys, and notes the sum of each row, and its
    /// logarithm as a sum of e^score.
    ///
    /// Scores are rows of `stride`, which is a multiple of [`LANES`]; their scaling is done here.
    fn softmax(scores: &mut [f32], stride: usize, log_sums: &mut [f32], sums: &mut [f32], first: usize, scale: f32) {
        for (index, (row, total)) in scores.chunks_exact_mut(stride).zip(sums.iter_mut()).enumerate() {
            let seen = hide_later(row, first + index + 1);
            let highest = scale * max(seen.as_flattened());
            let mut lanes = [0.0; LANES];
            for scores in seen {
                for (score, lane) in scores.iter_mut().zip(&mut lanes) {
                    *score = exp(score.mul_add(scale, -highest));
                    *lane += *score;
                }
            }
            *total = sum(LANES, |lane| lanes[lane]);
            log_sums[index] = highest;
        }
        for (log_sum, total) in log_sums.iter_mut().zip(sums) {
            *log_sum += libm::logf(*total);
        }
    }
}

vectorised! {
    /// Divides rows by their sums.
    fn normalise(rows: &mut [f32], stride: usize, width: usize, sums: &[f32]) {
        for (row, total) in rows.chunks_mut(stride).zip(sums) {
            let share = 1.0 / total;
            for value in &mut row[..width] {
                *value *= share;
            }
        }
    }
}

vectorised! {
    /// Turns a block's scores into probabilities again, and the gradient of these into that of the unscaled scores. Rows
    /// are as in [`softmax`].
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
        let rows = scores.chunks_exact_mut(stride).zip(gradient.chunks_exact_mut(stride));
        for (index, ((scores, gradient), &log_sum)) in rows.zip(log_sums).enumerate() {
            let start = index * out_gradient.row_stride;
            let (out_gradient, out) = (&out_gradient.data[start..start + width], &out[start..start + width]);
            let mean = sum(width, |channel| out_gradient[channel] * out[channel]);
            let seen = hide_later(scores, first + index + 1);
            let (gradient, later) = gradient.split_at_mut(seen.as_flattened().len());
            later.fill(0.0);
            for (scores, gradient) in seen.iter_mut().zip(gradient.as_chunks_mut::<LANES>().0) {
                for (score, gradient) in scores.iter_mut().zip(gradient) {
                    *score = exp(score.mul_add(scale, -log_sum));
                    *gradient = *score * (*gradient - mean) * scale;
                }
            }
        }
    }
}
