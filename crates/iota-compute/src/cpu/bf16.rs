//! Matrix products of factors rounded to bf16, with sums in f32: the same bits on every CPU, and at twice the speed of f32
//! where the CPU multiplies bf16 itself.
//!
//! ```text
//!   a: f32, any strides ──round, pack──► panels of 12 rows ────┐
//!                                                              ├──► tiles of 12 x 32, f32 ──► out
//!   b: f32, any strides ──round, pack──► panels of 32 columns ─┘
//! ```
//!
//! Each element is *defined* as in [`matmul`](super::matmul), with both factors [rounded](round) first: stretches of
//! 512 terms, each a chain of fused multiply-adds from zero in order, added to the element in order.
//!
//! AVX-512's bf16 instruction multiplies two terms at a time. It adds them one after the other, each rounded once: first
//! the pair's upper half, then its lower half. So a pair holds the earlier term in its upper half, and the chain is the
//! definition's. The instruction takes subnormal numbers for zero, on the way in and out. Rounding therefore drops what
//! is below 2^-55: every product is then a multiple of 2^-124, and so is every sum of products, rounded or not; a
//! subnormal number can never arise. (Source: Intel's architecture manual, VDPBF16PS; the tests below check the order
//! of the additions on the CPU that they run on.)
//!
//! Other CPUs round into f32 and multiply these.
#![expect(
    unsafe_code,
    reason = "kernels are compiled for several instruction sets, and tiles of one result are written by several threads"
)]

#[cfg_attr(target_arch = "x86_64", path = "bf16/x86.rs")]
#[cfg_attr(not(target_arch = "x86_64"), path = "bf16/absent.rs")]
mod kernels;

use std::ops::Range;

use super::instructions::{Bf16, InstructionSet, vectorised};
use super::matmul::{self, Matrix, Size};
use super::threads::Threads;
use crate::backend::Product;

/// Rows of a tile: as many as leave registers for a row of the other factor, with [`COLUMNS`].
const ROWS: usize = 12;

/// Columns of a tile: two vectors of 512 bits.
const COLUMNS: usize = 32;

/// Rows that a job rounds, where the CPU has no products of bf16.
const ROUNDED: usize = 64;

/// Rows and columns of the result that a job computes. Both factors' panels and the result stay in a core's second cache.
const JOB: (usize, usize) = (16 * ROWS, 8 * COLUMNS);

/// Rounds to the nearest bf16, ties to even; what is below 2^-55 becomes zero.
#[inline(always)]
pub(super) fn round(x: f32) -> f32 {
    const TINY: u32 = (127 - 55) << 23;
    const INFINITE: u32 = 0x7f80_0000;
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let rounded = if magnitude > INFINITE {
        f32::NAN.to_bits()
    } else {
        nearest
    };
    f32::from_bits(if magnitude < TINY { 0 } else { rounded })
}

/// Elements that both factors of a product take, which stay for the next product.
pub(super) fn packed_elements(instructions: InstructionSet, product: Product) -> usize {
    let Product {
        rows,
        columns,
        inner,
        ..
    } = product;
    left_elements(instructions, rows, inner) + right_elements(instructions, columns, inner)
}

pub(super) fn left_elements(instructions: InstructionSet, rows: usize, inner: usize) -> usize {
    factor_elements(instructions, ROWS, rows, inner)
}

pub(super) fn right_elements(instructions: InstructionSet, columns: usize, inner: usize) -> usize {
    factor_elements(instructions, COLUMNS, columns, inner)
}

fn factor_elements(
    instructions: InstructionSet,
    width: usize,
    lanes: usize,
    terms: usize,
) -> usize {
    match instructions.bf16() {
        Some(_) => lanes.next_multiple_of(width) * terms.div_ceil(2) + Aligned::SLACK,
        None => lanes * terms,
    }
}

/// `out = a b`, or `out += a b` if `add`, with both factors rounded to bf16.
///
/// # Panics
/// If a matrix exceeds its slice.
pub(super) fn matmul(
    context: (InstructionSet, &Threads),
    size: Size,
    out: &mut [f32],
    a: Matrix<'_>,
    b: Matrix<'_>,
    add: bool,
) {
    let Size {
        rows,
        columns,
        inner,
    } = size;
    let left = Factor::left(context, a, rows, inner);
    let right = Factor::right(context, b, inner, columns);
    multiply(context, out, &left, &right, add);
    left.recycle(context.1);
    right.recycle(context.1);
}

/// One factor of a product, rounded and laid out for the kernels. Worth keeping where it is used more than once.
#[derive(Debug)]
pub(super) struct Factor {
    /// Rows of a left factor, columns of a right one.
    lanes: usize,
    /// Terms of the product's sums.
    terms: usize,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    /// Pairs of terms, by panels of `width` lanes: `[panel][pair][lane]`. The last panel is filled up with anything, an
    /// odd last term with zero.
    Panels {
        bf16: Bf16,
        width: usize,
        pairs: Aligned,
    },
    /// As the matrix lies: `[lane][term]`, or `[term][lane]` if it is `transposed`. There may be more behind it.
    Dense { transposed: bool, values: Vec<f32> },
}

impl Factor {
    /// The left factor, `[rows, inner]`.
    pub(super) fn left(
        context: (InstructionSet, &Threads),
        matrix: Matrix<'_>,
        rows: usize,
        inner: usize,
    ) -> Self {
        Self::new(context, ROWS, matrix, rows, inner)
    }

    /// The right factor, `[inner, columns]`.
    pub(super) fn right(
        context: (InstructionSet, &Threads),
        matrix: Matrix<'_>,
        inner: usize,
        columns: usize,
    ) -> Self {
        Self::new(context, COLUMNS, matrix.transpose(), columns, inner)
    }

    /// `matrix`: `[lanes, terms]`.
    fn new(
        (instructions, threads): (InstructionSet, &Threads),
        width: usize,
        matrix: Matrix<'_>,
        lanes: usize,
        terms: usize,
    ) -> Self {
        if lanes > 0 && terms > 0 {
            matrix.assert_holds(lanes, terms);
        }
        let layout = if let Some(bf16) = instructions.bf16() {
            let panel = terms.div_ceil(2) * width;
            let mut pairs = Aligned::take(threads, lanes.div_ceil(width) * panel);
            let jobs = pairs.as_mut_slice().chunks_mut(panel.max(1)).enumerate();
            threads.each(jobs, |(index, panel)| {
                let first = index * width;
                let matrix = Matrix {
                    data: &matrix.data[first * matrix.row_stride..],
                    ..matrix
                };
                kernels::pack(bf16, panel, width, matrix, width.min(lanes - first), terms);
            });
            Layout::Panels { bf16, width, pairs }
        } else {
            let transposed = matrix.column_stride != 1;
            let (rows, columns, stride) = if transposed {
                assert_eq!(matrix.row_stride, 1, "rows or columns are dense");
                (terms, lanes, matrix.column_stride)
            } else {
                (lanes, terms, matrix.row_stride)
            };
            let mut values = threads.numbers.take(rows * columns);
            let jobs = values[..rows * columns]
                .chunks_mut((ROUNDED * columns).max(1))
                .enumerate();
            threads.each(jobs, |(index, values)| {
                for (row, values) in values.chunks_mut(columns.max(1)).enumerate() {
                    round_all(
                        instructions,
                        values,
                        &matrix.data[(index * ROUNDED + row) * stride..],
                    );
                }
            });
            Layout::Dense { transposed, values }
        };
        Self {
            lanes,
            terms,
            layout,
        }
    }

    /// `[lanes, terms]`.
    ///
    /// # Panics
    /// If it is laid out in panels.
    fn dense(&self) -> Matrix<'_> {
        match &self.layout {
            Layout::Dense {
                transposed: false,
                values,
            } => Matrix::rows(values, self.terms),
            Layout::Dense {
                transposed: true,
                values,
            } => Matrix::transposed(values, self.lanes),
            Layout::Panels { .. } => unreachable!("asked for by those who looked"),
        }
    }

    /// Hands its memory to the next factor.
    pub(super) fn recycle(self, threads: &Threads) {
        match self.layout {
            Layout::Panels { pairs, .. } => threads.words.give(pairs.memory),
            Layout::Dense { values, .. } => threads.numbers.give(values),
        }
    }
}

vectorised! {
    fn round_all(out: &mut [f32], row: &[f32]) {
        for (out, &value) in out.iter_mut().zip(row) {
            *out = round(value);
        }
    }
}

/// `out = left right`, or `out += left right` if `add`; `out`: `[rows, columns]`.
///
/// # Panics
/// If the factors do not fit each other or the result, or were made with other instructions.
pub(super) fn multiply(
    (instructions, threads): (InstructionSet, &Threads),
    out: &mut [f32],
    left: &Factor,
    right: &Factor,
    add: bool,
) {
    let size = Size {
        rows: left.lanes,
        columns: right.lanes,
        inner: left.terms,
    };
    assert_eq!(left.terms, right.terms, "terms of a product's factors");
    assert_eq!(out.len(), size.rows * size.columns, "shape of a product");
    match (&left.layout, &right.layout) {
        (Layout::Dense { .. }, Layout::Dense { .. }) => {
            let factors = (left.dense(), right.dense().transpose());
            let parallelism = threads.parallelism();
            let out = (out, size.columns);
            matmul::matmul(
                instructions,
                parallelism,
                size,
                out,
                factors.0,
                factors.1,
                add,
            );
        }
        (
            &Layout::Panels {
                bf16,
                width: ROWS,
                pairs: ref left,
            },
            Layout::Panels {
                width: COLUMNS,
                pairs: right,
                ..
            },
        ) => {
            if size.inner == 0 {
                if !add {
                    out.fill(0.0);
                }
                return;
            }
            let product = kernels::Product::new(out, size);
            let (left, right) = (left.as_slice(), right.as_slice());
            threads.each(
                jobs(size, threads.count()).into_iter(),
                |(rows, columns)| {
                    // SAFETY: jobs do not overlap.
                    unsafe { kernels::block(bf16, &product, left, right, rows, columns, add) };
                },
            );
        }
        _ => unreachable!("both factors are laid out for the same instructions, left and right"),
    }
}

/// The result in blocks: ranges of rows and of columns. Panels are never cut.
fn jobs(size: Size, threads: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let (mut height, mut width) = JOB;
    // Small results are cut finer, so that no thread waits long for another. Bits do not depend on how.
    while threads > 1
        && height > ROWS
        && size.rows.div_ceil(height) * size.columns.div_ceil(width) < 4 * threads
    {
        if height > 4 * ROWS || width <= 2 * COLUMNS {
            height /= 2;
        } else {
            width /= 2;
        }
    }
    let ranges = |total: usize, step: usize| {
        (0..total)
            .step_by(step)
            .map(move |start| start..total.min(start + step))
    };
    ranges(size.columns, width)
        .flat_map(|columns| ranges(size.rows, height).map(move |rows| (rows, columns.clone())))
        .collect()
}

/// Words that start at a multiple of 64 bytes, so that no vector of a panel straddles two lines of the cache.
#[derive(Debug)]
struct Aligned {
    memory: Vec<u32>,
    start: usize,
    length: usize,
}

impl Aligned {
    const ALIGNMENT: usize = 64;
    /// Words that aligning takes, at most.
    const SLACK: usize = Self::ALIGNMENT / size_of::<u32>();

    /// What it holds is left over from somewhere.
    fn take(threads: &Threads, length: usize) -> Self {
        let memory = threads.words.take(length + Self::SLACK);
        let start = memory.as_ptr().align_offset(Self::ALIGNMENT);
        Self {
            memory,
            start,
            length,
        }
    }

    fn as_slice(&self) -> &[u32] {
        &self.memory[self.start..][..self.length]
    }

    fn as_mut_slice(&mut self) -> &mut [u32] {
        &mut self.memory[self.start..][..self.length]
    }
}

#[cfg(test)]
mod tests;
