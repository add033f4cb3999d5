//! Matrix products with the same bits on every CPU.
//!
//! Each element of a product is *defined* as follows. The sum is cut into stretches of [`STRETCH`] terms; each stretch is
//! a chain of fused multiply-adds from zero, in order; the stretches are added to the element in order. The `gemm` crate
//! computes just that for a stretch, as long as its register tiles are used: it never cuts a sum of at most 512 terms,
//! whereas longer ones it cuts by the sizes of the CPU's caches. Where it would take another path (thin or very small
//! products, which it sums across vector lanes; CPUs for which it has no fused kernels), the chain is written out here.
#![expect(
    unsafe_code,
    reason = "the gemm crate takes pointers, and kernels are compiled for several instruction sets"
)]

use gemm::Parallelism;

use super::instructions::{InstructionSet, vectorised};
use crate::backend::{Form, Product};

/// Terms that are summed before the partial sum is rounded into the result. `gemm` leaves sums of this length whole.
pub(super) const STRETCH: usize = 512;

/// Up to so many elements `gemm` would compute by sums across lanes.
const SMALL_PRODUCT: usize = 16 * 16;

/// What `gemm` keeps per thread from its first product on: room for packing, of the size of the CPU's second cache, which
/// is from half of this to four times this.
pub(super) const KEPT_BYTES_PER_THREAD: u64 = 1024 * 1024;

/// Elements that `gemm` takes in passing for a product of flat matrices. It packs a stretch of a left factor that is
/// transposed or read often, as much of it as fits the CPU's third cache, and one of a transposed right factor of few
/// columns. Where these limits are depends on the CPU: here they are about right.
pub(super) fn packed_elements(product: Product) -> usize {
    let Product {
        form,
        rows,
        columns,
        inner,
    } = product;
    let transposed_left = form == Form::TransposedLeft && columns > 128;
    let packed_rows = if transposed_left || columns > 4096 {
        rows
    } else {
        0
    };
    let transposed_right = form == Form::TransposedRight && columns <= 1024;
    let packed_columns = if transposed_right { columns } else { 0 };
    (STRETCH.min(inner) * (packed_rows + packed_columns)).min(THIRD_CACHE)
}

/// Elements in the third cache of a large CPU.
const THIRD_CACHE: usize = 8 * 1024 * 1024;

/// A matrix somewhere in a slice: element `(i, j)` is at `i * row_stride + j * column_stride`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one after the other, `row_stride` apart.
    pub(super) const fn rows(data: &'a [f32], row_stride: usize) -> Self {
        Self {
            data,
            row_stride,
            column_stride: 1,
        }
    }

    /// The transpose of a matrix whose rows lie `row_stride` apart.
    pub(super) const fn transposed(data: &'a [f32], row_stride: usize) -> Self {
        Self {
            data,
            row_stride: 1,
            column_stride: row_stride,
        }
    }

    pub(super) const fn transpose(self) -> Self {
        Self {
            data: self.data,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    pub(super) fn assert_holds(&self, rows: usize, columns: usize) {
        let last = (rows - 1) * self.row_stride + (columns - 1) * self.column_stride;
        assert!(
            last < self.data.len(),
            "a {rows} x {columns} matrix exceeds its slice"
        );
    }
}

/// Rows of the result, its columns, and the terms of each sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
}

/// `out = a b`, or `out += a b` if `add`; `out`'s rows lie `out_stride` apart.
///
/// # Panics
/// If a matrix exceeds its slice, or rows of `out` overlap.
pub(super) fn matmul(
    instructions: InstructionSet,
    parallelism: Parallelism,
    size: Size,
    (out, out_stride): (&mut [f32], usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    add: bool,
) {
    let Size {
        rows,
        columns,
        inner,
    } = size;
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(
        columns <= out_stride && (rows - 1) * out_stride + columns <= out.len(),
        "the result exceeds its slice"
    );
    if inner == 0 {
        if !add {
            out.chunks_mut(out_stride)
                .take(rows)
                .for_each(|row| row[..columns].fill(0.0));
        }
        return;
    }
    a.assert_holds(rows, inner);
    b.assert_holds(inner, columns);

    let across_lanes = a.column_stride == 1 && b.row_stride == 1 && rows * columns <= SMALL_PRODUCT;
    let thin = rows == 1 || columns == 1;
    for start in (0..inner).step_by(STRETCH) {
        let terms = STRETCH.min(inner - start);
        let add = add || start > 0;
        let a = Matrix {
            data: &a.data[start * a.column_stride..],
            ..a
        };
        let b = Matrix {
            data: &b.data[start * b.row_stride..],
            ..b
        };
        if across_lanes || thin || terms <= 2 || !instructions.has_fused_gemm() {
            chain(
                instructions,
                out,
                out_stride,
                a,
                b,
                rows,
                columns,
                terms,
                add,
            );
            continue;
        }
        // SAFETY: the assertions above hold for all of `inner`, hence for each stretch: every element that gemm reads
        // of `a` and `b`, and reads or writes of `out`, is inside the slice. `out` is borrowed mutably, so it overlaps
        // neither, and its rows are disjoint because `columns <= out_stride`.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                terms,
                out.as_mut_ptr(),
                1,
                out_stride as isize,
                add,
                a.data.as_ptr(),
                a.column_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

vectorised! {
    /// One stretch by its definition, a tile of columns at a time.
    fn chain(
        out: &mut [f32],
        out_stride: usize,
        a: Matrix<'_>,
        b: Matrix<'_>,
        rows: usize,
        columns: usize,
        terms: usize,
        add: bool,
    ) {
        const TILE: usize = 64;
        for row in 0..rows {
            for first in (0..columns).step_by(TILE) {
                let tile = TILE.min(columns - first);
                let mut sums = [0.0_f32; TILE];
                for term in 0..terms {
                    let factor = a.data[row * a.row_stride + term * a.column_stride];
                    let start = term * b.row_stride + first * b.column_stride;
                    if b.column_stride == 1 {
                        for (sum, &value) in sums[..tile].iter_mut().zip(&b.data[start..start + tile]) {
                            *sum = factor.mul_add(value, *sum);
                        }
                    } else {
                        for (sum, value) in sums[..tile].iter_mut().zip(b.data[start..].iter().step_by(b.column_stride)) {
                            *sum = factor.mul_add(*value, *sum);
                        }
                    }
                }
                let out = &mut out[row * out_stride + first..][..tile];
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = if add { *out + sum } else { sum };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::definition::assert_defined;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    }

    fn check(rows: usize, columns: usize, inner: usize) {
        let size = Size {
            rows,
            columns,
            inner,
        };
        assert_defined(
            size,
            values,
            |x| x,
            |instructions, threads, size, out, a, b, add| {
                let parallelism = match threads {
                    1 => Parallelism::None,
                    threads => Parallelism::Rayon(threads),
                };
                matmul(
                    instructions,
                    parallelism,
                    size,
                    (out, size.columns),
                    a,
                    b,
                    add,
                );
            },
        );
    }

    #[test]
    fn products_equal_their_definition_where_gemm_changes_its_ways() {
        for (rows, columns, inner) in [
            (1, 40, 70),
            (40, 1, 70),
            (16, 16, 64),
            (17, 16, 64),
            (70, 33, 1),
            (70, 33, 2),
            (20, 30, 513),
            (65, 129, 1100),
        ] {
            check(rows, columns, inner);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn products_equal_their_definition(rows in 1..90_usize, columns in 1..90_usize, inner in 1..150_usize) {
            check(rows, columns, inner);
        }
    }

    #[test]
    fn an_empty_sum_is_zero() {
        let empty = Matrix::rows(&[], 0);
        let mut out = [1.0; 4];
        let size = Size {
            rows: 2,
            columns: 2,
            inner: 0,
        };
        matmul(
            InstructionSet::detect(),
            Parallelism::None,
            size,
            (&mut out, 2),
            empty,
            empty,
            true,
        );
        assert_eq!(out, [1.0; 4]);
        matmul(
            InstructionSet::detect(),
            Parallelism::None,
            size,
            (&mut out, 2),
            empty,
            empty,
            false,
        );
        assert_eq!(out, [0.0; 4]);
    }
}
