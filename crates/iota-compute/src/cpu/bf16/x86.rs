//! Packing and multiplying with AVX512-BF16.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, __mmask16, _CMP_NLT_UQ, _mm512_add_ps,
    _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask,
    _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh, _mm512_dpbf16_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_ps,
    _mm512_maskz_mov_ps, _mm512_or_si512, _mm512_rol_epi32, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32,
    _mm512_storeu_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
use std::marker::PhantomData;
use std::mem::transmute;
use std::ops::Range;

use super::super::instructions::Bf16;
use super::super::matmul::{Matrix, STRETCH, Size};
use super::{COLUMNS, ROWS};

/// Elements of a vector.
const VECTOR: usize = 16;

/// Vectors in a row of a tile.
const ACROSS: usize = COLUMNS / VECTOR;

/// Fills a panel with `lanes` rows of `matrix`, a pair of terms in each word: the earlier in the upper half.
///
/// # Panics
/// If matrix or panel are too short.
pub(super) fn pack(
    _: Bf16,
    panel: &mut [u32],
    width: usize,
    matrix: Matrix<'_>,
    lanes: usize,
    terms: usize,
) {
    assert!(0 < lanes && lanes <= width && width.next_multiple_of(VECTOR) <= 2 * VECTOR);
    assert!(terms > 0 && panel.len() == terms.div_ceil(2) * width);
    matrix.assert_holds(lanes, terms);
    // SAFETY: the first argument proves that the CPU has the instructions; the rest was asserted.
    unsafe {
        if matrix.column_stride == 1 {
            pack_along(panel, width, matrix, lanes, terms);
        } else {
            assert_eq!(matrix.row_stride, 1, "rows or columns are dense");
            pack_across(panel, width, matrix, lanes, terms);
        }
    }
}

/// Terms that lie one after the other: 32 of 16 lanes at a time, transposed on the way.
///
/// # Safety
/// The CPU has the instructions; `matrix` holds `lanes` x `terms`; `panel` holds `width` words for each pair of terms;
/// `lanes <= width <= 32`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_along(
    panel: &mut [u32],
    width: usize,
    matrix: Matrix<'_>,
    lanes: usize,
    terms: usize,
) {
    let pairs = terms.div_ceil(2);
    for first_lane in (0..lanes).step_by(VECTOR) {
        let rows = VECTOR.min(lanes - first_lane);
        let stored = mask(VECTOR.min(width - first_lane));
        for first_pair in (0..pairs).step_by(VECTOR) {
            let left = terms - 2 * first_pair;
            let masks = (
                mask(left.min(VECTOR)),
                mask(left.saturating_sub(VECTOR).min(VECTOR)),
            );
            let mut words = [_mm512_setzero_si512(); VECTOR];
            for (row, words) in words.iter_mut().enumerate().take(rows) {
                let start = (first_lane + row) * matrix.row_stride + 2 * first_pair;
                // SAFETY: elements that the masks leave out are not read, the others are of this row.
                let (earlier, later) = unsafe {
                    let start = matrix.data.as_ptr().add(start);
                    (
                        _mm512_maskz_loadu_ps(masks.0, start),
                        _mm512_maskz_loadu_ps(masks.1, start.wrapping_add(VECTOR)),
                    )
                };
                let rounded = _mm512_cvtne2ps_pbh(drop_tiny(later), drop_tiny(earlier));
                *words = _mm512_rol_epi32::<16>(words_of(rounded));
            }
            let columns = transpose(words);
            for (pair, column) in columns.into_iter().enumerate().take(pairs - first_pair) {
                let start = (first_pair + pair) * width + first_lane;
                // SAFETY: as many words as the panel has lanes from here, in a row that it has.
                unsafe {
                    _mm512_mask_storeu_epi32(panel.as_mut_ptr().add(start).cast(), stored, column);
                }
            }
        }
    }
}

/// Lanes that lie one after the other: two terms of 16 lanes at a time.
///
/// # Safety
/// As for [`pack_along`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pack_across(
    panel: &mut [u32],
    width: usize,
    matrix: Matrix<'_>,
    lanes: usize,
    terms: usize,
) {
    for first_lane in (0..lanes).step_by(VECTOR) {
        let read = mask(VECTOR.min(lanes - first_lane));
        let stored = mask(VECTOR.min(width - first_lane));
        for pair in 0..terms.div_ceil(2) {
            let start = 2 * pair * matrix.column_stride + first_lane;
            let second = if 2 * pair + 1 < terms { read } else { 0 };
            // SAFETY: elements that the masks leave out are not read; the others are of these lanes and terms.
            let (earlier, later) = unsafe {
                let start = matrix.data.as_ptr().add(start);
                (
                    _mm512_maskz_loadu_ps(read, start),
                    _mm512_maskz_loadu_ps(second, start.wrapping_add(matrix.column_stride)),
                )
            };
            let upper = _mm512_slli_epi32::<16>(halves(_mm512_cvtneps_pbh(drop_tiny(earlier))));
            let lower = halves(_mm512_cvtneps_pbh(drop_tiny(later)));
            let start = pair * width + first_lane;
            // SAFETY: as many words as the panel has lanes from here, in a row that it has.
            unsafe {
                _mm512_mask_storeu_epi32(
                    panel.as_mut_ptr().add(start).cast(),
                    stored,
                    _mm512_or_si512(upper, lower),
                );
            }
        }
    }
}

/// The lowest `count` lanes.
fn mask(count: usize) -> __mmask16 {
    ((1_u32 << count) - 1) as __mmask16
}

/// Zero where it is below 2^-55, see [`super::round`]; not-a-number stays.
#[target_feature(enable = "avx512f")]
fn drop_tiny(x: __m512) -> __m512 {
    const TINY: f32 = 1.0 / (1_u64 << 55) as f32;
    let magnitude = _mm512_castsi512_ps(_mm512_and_si512(
        _mm512_castps_si512(x),
        _mm512_set1_epi32(i32::MAX),
    ));
    let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(magnitude, _mm512_set1_ps(TINY));
    _mm512_maskz_mov_ps(kept, x)
}

const fn words_of(halves: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes of which any are valid.
    unsafe { transmute(halves) }
}

const fn halves_of(words: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which any are valid.
    unsafe { transmute(words) }
}

/// Sixteen halves, each in the lower half of a word.
#[target_feature(enable = "avx512f")]
fn halves(halves: __m256bh) -> __m512i {
    // SAFETY: both are 32 bytes of which any are valid.
    _mm512_cvtepu16_epi32(unsafe { transmute::<__m256bh, __m256i>(halves) })
}

/// Transposes a square of 16 x 16 words: first within quarters of the vectors, then the quarters.
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; VECTOR]) -> [__m512i; VECTOR] {
    let mut pairs = rows;
    for group in (0..VECTOR).step_by(2) {
        pairs[group] = _mm512_unpacklo_epi32(rows[group], rows[group + 1]);
        pairs[group + 1] = _mm512_unpackhi_epi32(rows[group], rows[group + 1]);
    }
    // `fours[4 g + i]` has, in quarter `q`, column `4 q + i` of rows `4 g .. 4 g + 4`.
    let mut fours = pairs;
    for group in (0..VECTOR).step_by(4) {
        let pairs = &pairs[group..group + 4];
        fours[group] = _mm512_unpacklo_epi64(pairs[0], pairs[2]);
        fours[group + 1] = _mm512_unpackhi_epi64(pairs[0], pairs[2]);
        fours[group + 2] = _mm512_unpacklo_epi64(pairs[1], pairs[3]);
        fours[group + 3] = _mm512_unpackhi_epi64(pairs[1], pairs[3]);
    }
    let mut columns = fours;
    for column in 0..4 {
        let (a, b, c, d) = (
            fours[column],
            fours[column + 4],
            fours[column + 8],
            fours[column + 12],
        );
        // Quarters 0 and 1, then 2 and 3, of two groups of rows each.
        let (low_ab, high_ab) = (
            _mm512_shuffle_i32x4::<0b01_00_01_00>(a, b),
            _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b),
        );
        let (low_cd, high_cd) = (
            _mm512_shuffle_i32x4::<0b01_00_01_00>(c, d),
            _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d),
        );
        columns[column] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low_ab, low_cd);
        columns[column + 4] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low_ab, low_cd);
        columns[column + 8] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high_ab, high_cd);
        columns[column + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high_ab, high_cd);
    }
    columns
}

/// A result that several threads write to, each in blocks of its own.
pub(super) struct Product<'a> {
    data: *mut f32,
    size: Size,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is written through `block` only, whose callers see to it that no two blocks overlap.
unsafe impl Sync for Product<'_> {}

impl<'a> Product<'a> {
    /// # Panics
    /// If it is not of this size.
    pub(super) fn new(out: &'a mut [f32], size: Size) -> Self {
        assert_eq!(out.len(), size.rows * size.columns, "shape of a product");
        Self {
            data: out.as_mut_ptr(),
            size,
            borrowed: PhantomData,
        }
    }
}

/// Computes one block of a product.
///
/// # Safety
/// Nobody reads or writes this block at the same time.
///
/// # Panics
/// If the block exceeds the product, or is not cut between panels, or a factor is too short.
pub(super) unsafe fn block(
    _: Bf16,
    product: &Product<'_>,
    left: &[u32],
    right: &[u32],
    rows: Range<usize>,
    columns: Range<usize>,
    add: bool,
) {
    let Size {
        rows: all_rows,
        columns: all_columns,
        inner,
    } = product.size;
    assert!(rows.end <= all_rows && columns.end <= all_columns);
    assert!(rows.start.is_multiple_of(ROWS) && columns.start.is_multiple_of(COLUMNS));
    let pairs = inner.div_ceil(2);
    assert!(left.len() >= rows.end.div_ceil(ROWS) * ROWS * pairs);
    assert!(right.len() >= columns.end.div_ceil(COLUMNS) * COLUMNS * pairs);

    for first_pair in (0..pairs).step_by(STRETCH / 2) {
        let count = (STRETCH / 2).min(pairs - first_pair);
        let add = add || first_pair > 0;
        for column in columns.clone().step_by(COLUMNS) {
            let right = &right[(column * pairs) + first_pair * COLUMNS..][..count * COLUMNS];
            for row in rows.clone().step_by(ROWS) {
                let left = &left[row * pairs + first_pair * ROWS..][..count * ROWS];
                let (height, width) = (ROWS.min(rows.end - row), COLUMNS.min(columns.end - column));
                // SAFETY: the first argument proves that the CPU has the instructions; the tile lies in the product.
                unsafe {
                    let out = product.data.add(row * all_columns + column);
                    if (height, width) == (ROWS, COLUMNS) {
                        tile(left, right, out, all_columns, add);
                    } else {
                        part_of_tile(left, right, (out, all_columns), height, width, add);
                    }
                }
            }
        }
    }
}

/// A tile of which only some rows and columns are in the result.
///
/// # Safety
/// The CPU has the instructions; `height` rows of `width` at `out`, `stride` apart, may be written by nobody else.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn part_of_tile(
    left: &[u32],
    right: &[u32],
    (out, stride): (*mut f32, usize),
    height: usize,
    width: usize,
    add: bool,
) {
    let mut whole = [0.0_f32; ROWS * COLUMNS];
    // SAFETY: `whole` is a tile.
    unsafe { tile(left, right, whole.as_mut_ptr(), COLUMNS, false) };
    for (row, values) in whole.chunks_exact(COLUMNS).enumerate().take(height) {
        for (column, value) in values.iter().enumerate().take(width) {
            // SAFETY: within the part that the caller answers for.
            unsafe {
                let out = out.add(row * stride + column);
                *out = if add { *out + value } else { *value };
            }
        }
    }
}

/// One stretch of a whole tile, from a panel of each factor.
///
/// # Safety
/// The CPU has the instructions; the panels are of [`ROWS`] and [`COLUMNS`] words for each of the same pairs;
/// [`ROWS`] rows of [`COLUMNS`] at `out`, `stride` apart, may be written by nobody else.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile(left: &[u32], right: &[u32], out: *mut f32, stride: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); ACROSS]; ROWS];
    for (left, right) in left.chunks_exact(ROWS).zip(right.chunks_exact(COLUMNS)) {
        let mut factors = [halves_of(_mm512_setzero_si512()); ACROSS];
        for (across, factor) in factors.iter_mut().enumerate() {
            // SAFETY: `right` has as many words.
            *factor = halves_of(unsafe {
                _mm512_loadu_si512(right.as_ptr().add(across * VECTOR).cast())
            });
        }
        for (sums, &word) in sums.iter_mut().zip(left) {
            let word = halves_of(_mm512_set1_epi32(word as i32));
            for (sum, factor) in sums.iter_mut().zip(factors) {
                *sum = _mm512_dpbf16_ps(*sum, word, factor);
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (across, sum) in sums.into_iter().enumerate() {
            // SAFETY: within the tile that the caller answers for.
            unsafe {
                let out = out.add(row * stride + across * VECTOR);
                let value = if add {
                    _mm512_add_ps(_mm512_loadu_ps(out), sum)
                } else {
                    sum
                };
                _mm512_storeu_ps(out, value);
            }
        }
    }
}
