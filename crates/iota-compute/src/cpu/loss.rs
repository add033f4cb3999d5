//! The two ends of a model: the embedding, and the output projection with its loss.
#![expect(
    unsafe_code,
    reason = "kernels are compiled for several instruction sets"
)]

use iota_model::Precision;

use super::bf16::{self, Factor};
use super::instructions::{InstructionSet, vectorised};
use super::matmul::{Matrix, Size, matmul, packed_elements};
use super::numeric::{exp_all, max};
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

/// Elements that [`cross_entropy`] keeps for the next call, and those that it takes in passing.
pub(super) fn cross_entropy_elements(
    precision: Precision,
    gradients: bool,
    rows: usize,
    vocabulary: usize,
    width: usize,
) -> (usize, usize) {
    let chunk = rows_at_a_time(rows, vocabulary);
    let logits = chunk * vocabulary;
    let (to_logits, to_projection) = (
        Product {
            form: Form::TransposedRight,
            rows: chunk,
            columns: vocabulary,
            inner: width,
        },
        Product {
            form: Form::TransposedLeft,
            rows: vocabulary,
            columns: width,
            inner: chunk,
        },
    );
    if precision == Precision::F32 {
        let product = if gradients { to_projection } else { to_logits };
        return (logits, packed_elements(product));
    }
    let instructions = InstructionSet::detect();
    let group = GROUP.min(chunk);
    let transposed = bf16::right_elements(instructions, vocabulary, width);
    let input = bf16::left_elements(instructions, group, width);
    if !gradients {
        return (logits + transposed + input, 0);
    }
    let plain = bf16::right_elements(instructions, width, vocabulary);
    let back = bf16::left_elements(instructions, group, vocabulary);
    let last = bf16::packed_elements(instructions, to_projection);
    (logits + transposed + plain + input.max(back).max(last), 0)
}

/// Rows whose logits, in products of bf16, are made and used up while they are in the cache.
const GROUP: usize = 96;

/// See [`crate::Backend::cross_entropy`].
pub(super) fn cross_entropy(
    (instructions, threads): (InstructionSet, &Threads),
    precision: Precision,
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
    let projection = Projection::new(
        (instructions, threads),
        precision,
        projection,
        width,
        gradients.is_some(),
    );
    let group = projection.group().min(chunk);
    let mut memory = threads.numbers.take(chunk * vocabulary);
    let logits = &mut memory[..chunk * vocabulary];
    let mut total = 0.0_f64;
    for (index, targets) in targets.chunks(chunk).enumerate() {
        let first = index * chunk;
        for (index, targets) in targets.chunks(group).enumerate() {
            let rows = first + index * group..first + index * group + targets.len();
            let logits = &mut logits[index * group * vocabulary..][..targets.len() * vocabulary];
            projection.logits(logits, &x[rows.start * width..rows.end * width]);
            let jobs = logits.chunks_mut(vocabulary).zip(targets);
            let losses = threads.map(jobs, |(logits, &target)| {
                row_loss(instructions, logits, target as usize, share)
            });
            total += losses.into_iter().map(f64::from).sum::<f64>();
            if let Some((x_gradient, _)) = &mut gradients {
                let x_gradient = &mut x_gradient[rows.start * width..rows.end * width];
                projection.input_gradient(x_gradient, logits);
            }
        }
        if let Some((_, projection_gradient)) = &mut gradients {
            let x = &x[first * width..(first + targets.len()) * width];
            let logits = &logits[..targets.len() * vocabulary];
            projection.weight_gradient(projection_gradient, x, logits);
        }
    }
    projection.recycle();
    threads.numbers.give(memory);
    (total / rows as f64) as f32
}

/// The output projection, `[vocabulary, width]`, ready for the products of every chunk.
struct Projection<'a> {
    context: (InstructionSet, &'a Threads),
    values: &'a [f32],
    vocabulary: usize,
    width: usize,
    rounded: Option<Rounded>,
}

/// As the right factor of products of bf16, which is laid out once for all chunks.
struct Rounded {
    /// `[width, vocabulary]`, for the logits.
    transposed: Factor,
    /// `[vocabulary, width]`, for the gradient of what came in.
    plain: Option<Factor>,
}

impl<'a> Projection<'a> {
    fn new(
        context: (InstructionSet, &'a Threads),
        precision: Precision,
        values: &'a [f32],
        width: usize,
        gradients: bool,
    ) -> Self {
        let vocabulary = values.len() / width;
        let rounded = (precision == Precision::Bf16).then(|| Rounded {
            transposed: Factor::right(
                context,
                Matrix::transposed(values, width),
                width,
                vocabulary,
            ),
            plain: gradients
                .then(|| Factor::right(context, Matrix::rows(values, width), vocabulary, width)),
        });
        Self {
            context,
            values,
            vocabulary,
            width,
            rounded,
        }
    }

    /// `x projection^T`.
    fn logits(&self, logits: &mut [f32], x: &[f32]) {
        let (rows, x) = (x.len() / self.width, Matrix::rows(x, self.width));
        match &self.rounded {
            None => self.product(
                (rows, self.vocabulary, self.width),
                logits,
                x,
                Matrix::transposed(self.values, self.width),
                false,
            ),
            Some(Rounded { transposed, .. }) => {
                let x = Factor::left(self.context, x, rows, self.width);
                bf16::multiply(self.context, logits, &x, transposed, false);
                x.recycle(self.context.1);
            }
        }
    }

    /// Rows whose logits are made, turned into gradients and carried back while they are in the cache. A product of f32
    /// lays the projection out anew each time, which pays for many rows only.
    const fn group(&self) -> usize {
        match &self.rounded {
            None => ROWS,
            Some(_) => GROUP,
        }
    }

    /// The gradient of `x` from that of its logits.
    fn input_gradient(&self, x_gradient: &mut [f32], logits: &[f32]) {
        let rows = logits.len() / self.vocabulary;
        let logits = Matrix::rows(logits, self.vocabulary);
        let size = (rows, self.width, self.vocabulary);
        match &self.rounded {
            None => {
                let values = Matrix::rows(self.values, self.width);
                self.product(size, x_gradient, logits, values, false);
            }
            Some(Rounded { plain, .. }) => {
                let plain = plain
                    .as_ref()
                    .expect("made whenever gradients are asked for");
                let left = Factor::left(self.context, logits, rows, self.vocabulary);
                bf16::multiply(self.context, x_gradient, &left, plain, false);
                left.recycle(self.context.1);
            }
        }
    }

    /// Adds to the gradient of the projection.
    fn weight_gradient(&self, gradient: &mut [f32], x: &[f32], logits: &[f32]) {
        let rows = x.len() / self.width;
        let logits = Matrix::transposed(logits, self.vocabulary);
        let x = Matrix::rows(x, self.width);
        let size = Size {
            rows: self.vocabulary,
            columns: self.width,
            inner: rows,
        };
        match &self.rounded {
            None => self.product((size.rows, size.columns, rows), gradient, logits, x, true),
            Some(_) => bf16::matmul(self.context, size, gradient, logits, x, true),
        }
    }

    fn product(
        &self,
        (rows, columns, inner): (usize, usize, usize),
        out: &mut [f32],
        a: Matrix<'_>,
        b: Matrix<'_>,
        add: bool,
    ) {
        let (instructions, threads) = self.context;
        let size = Size {
            rows,
            columns,
            inner,
        };
        matmul(
            instructions,
            threads.parallelism(),
            size,
            (out, columns),
            a,
            b,
            add,
        );
    }

    fn recycle(self) {
        if let Some(Rounded { transposed, plain }) = self.rounded {
            transposed.recycle(self.context.1);
            if let Some(plain) = plain {
                plain.recycle(self.context.1);
            }
        }
    }
}

vectorised! {
    /// The loss of one row; its logits become their gradients, times `share`.
    fn row_loss(logits: &mut [f32], target: usize, share: f32) -> f32 {
        let highest = max(logits);
        let wanted = logits[target];
        let total = exp_all(logits, highest);
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
