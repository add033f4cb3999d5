//! A matrix by its few strongest directions.
//!
//! ```text
//!                columns
//!            ┌────────────┐        rank        columns
//!            │            │       ┌────┐    ┌────────────┐
//!     rows   │     M      │   ≈   │  P │  · │     Qᵀ     │ rank            rank · (rows + columns) bf16
//!            │            │       │    │    └────────────┘
//!            └────────────┘       └────┘
//! ```
//!
//! The range is read as rows of `columns` elements, the last one filled with zeros. What it takes depends on rows and
//! columns together, so it pays for whole matrices, not for short ranges. As bytes: the columns of `P`, then those of `Q`.
//!
//! Subspace iteration: `Q` starts with signs that a hash of their position decides; then twice `P = orthonormal(M·Q)`,
//! `Q = Mᵀ·P`. `P` is rounded to bf16 before the last `Q` is made of it, so that `Q` makes up for some of that. All in f64,
//! with sums in the order of [`norm`](mod@crate::norm) along rows and from top to bottom along columns.
//!
//! PowerSGD does one iteration and starts with the last step's `Q`; starting anew costs a second one, and gives
//! everybody who encodes the same values the same bytes, whatever came before. As there, error feedback has to make up for
//! what is left out.
//!
//! Source: Vogels et al., "PowerSGD" (NeurIPS 2019, arXiv 1905.13727).

use super::Refused;
use super::float::{BF16_MAX, check, finite_bf16, from_bf16, to_bf16};
use crate::norm::{LANES, tree};

/// Of subspace iteration.
const ITERATIONS: usize = 2;
/// A direction of which less is left after taking away those before it is rounding noise.
const NOISE: f64 = 1e-9;

/// A matrix as columns, each a slice of its length.
type Columns = Vec<Vec<f64>>;

/// Rows, columns and rank of so many elements.
fn shape(elements: usize, rank: u16, columns: u32) -> (usize, usize, usize) {
    let columns = (columns as usize).min(elements);
    let rows = if columns == 0 {
        0
    } else {
        elements.div_ceil(columns)
    };
    (rows, columns, usize::from(rank).min(rows).min(columns))
}

pub(super) fn length(elements: usize, rank: u16, columns: u32) -> usize {
    let (rows, columns, rank) = shape(elements, rank, columns);
    2 * rank * (rows + columns)
}

#[inline(always)]
pub(super) fn encode(
    values: &[f32],
    rank: u16,
    columns: u32,
    bytes: &mut Vec<u8>,
) -> Result<(), usize> {
    check(values, BF16_MAX)?;
    let (rows, columns, rank) = shape(values.len(), rank, columns);
    let mut q: Columns = (0..rank)
        .map(|nth| (0..columns).map(|row| sign(nth * columns + row)).collect())
        .collect();
    let mut p: Columns = vec![vec![0.0; rows]; rank];
    for iteration in 1..=ITERATIONS {
        for (p, q) in p.iter_mut().zip(&q) {
            for (p, row) in p.iter_mut().zip(values.chunks(columns)) {
                *p = product(row, q);
            }
        }
        orthonormalise(&mut p);
        if iteration == ITERATIONS {
            for x in p.iter_mut().flatten() {
                *x = f64::from(from_bf16(to_bf16(*x as f32)));
            }
        }
        for (q, p) in q.iter_mut().zip(&p) {
            q.fill(0.0);
            for (&p, row) in p.iter().zip(values.chunks(columns)) {
                for (q, &x) in q.iter_mut().zip(row) {
                    *q += p * f64::from(x);
                }
            }
        }
    }
    for &x in p.iter().chain(&q).flatten() {
        if x.abs() > f64::from(BF16_MAX) {
            return Err(largest(values));
        }
        bytes.extend_from_slice(&to_bf16(x as f32).to_le_bytes());
    }
    Ok(())
}

#[inline(always)]
pub(super) fn decode(
    bytes: &[u8],
    rank: u16,
    columns: u32,
    values: &mut [f32],
) -> Result<usize, Refused> {
    let (rows, columns, rank) = shape(values.len(), rank, columns);
    let used = 2 * rank * (rows + columns);
    let factors = bytes[..used].as_chunks().0.iter();
    let factors: Vec<f64> = factors
        .map(|bytes| finite_bf16(*bytes).map(f64::from))
        .collect::<Option<_>>()
        .ok_or(Refused::Malformed("a factor"))?;
    let (p, q) = factors.split_at(rank * rows);
    let mut sums = vec![0.0; columns];
    for (row, values) in values.chunks_mut(columns.max(1)).enumerate() {
        sums.fill(0.0);
        for (p, q) in p.chunks(rows).zip(q.chunks(columns)) {
            for (sum, q) in sums.iter_mut().zip(q) {
                *sum += p[row] * q;
            }
        }
        for (value, sum) in values.iter_mut().zip(&sums) {
            *value = *sum as f32;
        }
    }
    check(values, f32::MAX).map_err(Refused::Value)?;
    Ok(used)
}

/// 1 or -1, by a hash of the position (the finaliser of SplitMix64).
fn sign(position: usize) -> f64 {
    let mut state = (position as u64)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    if (state ^ (state >> 31)) & 1 == 0 {
        1.0
    } else {
        -1.0
    }
}

/// Sum of the products, of as many as the shorter one has: what a row lacks is zeros.
#[inline(always)]
fn product<A: Copy + Into<f64>>(a: &[A], b: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a.into() * b;
        }
    }
    tree(lanes)
}

/// Makes every column a unit at right angles to those before it, or zeros if nothing is left of it (modified
/// Gram-Schmidt).
#[inline(always)]
fn orthonormalise(columns: &mut [Vec<f64>]) {
    for nth in 0..columns.len() {
        let (before, from) = columns.split_at_mut(nth);
        let column = &mut from[0];
        let length_before = product(column, column).sqrt();
        for other in before {
            let share = product(other, column);
            for (x, other) in column.iter_mut().zip(other) {
                *x -= share * *other;
            }
        }
        let length = product(column, column).sqrt();
        let is_noise = length <= NOISE * length_before;
        for x in column {
            *x = if is_noise { 0.0 } else { *x / length };
        }
    }
}

/// Where the largest magnitude is.
fn largest(values: &[f32]) -> usize {
    let magnitudes = values.iter().map(|x| x.abs()).enumerate();
    magnitudes
        .fold((0, 0.0), |best, x| if x.1 > best.1 { x } else { best })
        .0
}
