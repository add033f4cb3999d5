//! What a matrix product is, element by element, and a comparison of products with it: for the tests of both kinds.

use super::instructions::InstructionSet;
use super::matmul::{Matrix, STRETCH, Size};

/// Factors in every layout, added to something or not, with all instructions, on one thread and on `MANY`: the bits of
/// `product(instructions, threads, size, out, a, b, add)` must be those of the definition.
///
/// `values`: so many numbers for a seed. `rounded`: what a factor's element counts for.
pub(super) fn assert_defined(
    size: Size,
    values: impl Fn(usize, u32) -> Vec<f32>,
    rounded: impl Fn(f32) -> f32,
    product: impl Fn(InstructionSet, usize, Size, &mut [f32], Matrix<'_>, Matrix<'_>, bool),
) {
    let Size {
        rows,
        columns,
        inner,
    } = size;
    let (left, right) = (values(rows * inner, 1), values(inner * columns, 2));
    let lefts = [Matrix::rows(&left, inner), Matrix::transposed(&left, rows)];
    let rights = [
        Matrix::rows(&right, columns),
        Matrix::transposed(&right, inner),
    ];
    for a in lefts {
        for b in rights {
            for add in [false, true] {
                let before = values(rows * columns, 3);
                let mut expected = before.clone();
                defined(size, &rounded, &mut expected, a, b, add);
                for instructions in InstructionSet::available() {
                    for threads in [1, MANY] {
                        let mut out = before.clone();
                        product(instructions, threads, size, &mut out, a, b, add);
                        let same = out
                            .iter()
                            .zip(&expected)
                            .all(|(x, y)| x.to_bits() == y.to_bits());
                        assert!(
                            same,
                            "{size:?} {instructions:?} {threads} threads, add: {add}"
                        );
                    }
                }
            }
        }
    }
}

/// Threads that do not divide the work evenly.
const MANY: usize = 3;

fn defined(
    size: Size,
    rounded: impl Fn(f32) -> f32,
    out: &mut [f32],
    a: Matrix<'_>,
    b: Matrix<'_>,
    add: bool,
) {
    for row in 0..size.rows {
        for column in 0..size.columns {
            let element = &mut out[row * size.columns + column];
            for start in (0..size.inner).step_by(STRETCH) {
                let mut sum = 0.0_f32;
                for term in start..size.inner.min(start + STRETCH) {
                    let left = a.data[row * a.row_stride + term * a.column_stride];
                    let right = b.data[term * b.row_stride + column * b.column_stride];
                    sum = rounded(left).mul_add(rounded(right), sum);
                }
                *element = if add || start > 0 {
                    *element + sum
                } else {
                    sum
                };
            }
        }
    }
}
