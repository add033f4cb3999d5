//! Scalar functions and reductions that give the same bits whatever vector instructions they are compiled for.
//!
//! All are inlined into kernels, where the compiler turns loops over them into vector code.

/// Partial sums of a reduction. Sixteen fill one 512-bit register, or two of 256 bits.
pub(super) const LANES: usize = 16;

/// `e^x` to within two units in the last place; 0 below -87, and finite above 88.
///
/// The usual way: `x = n ln 2 + r` with `|r| <= ln 2 / 2`, a polynomial for `e^r` (coefficients of Cephes' `expf`), and
/// `2^n` by its bits. `ln 2` is split in two parts, so that `r` keeps its low bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even.
    const ROUND: f32 = 12_582_912.0;
    // 2^-126 is the smallest that the exponent's bits can say.
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;

    let clamped = x.clamp(LOWEST, HIGHEST);
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, clamped));
    let mut polynomial = 1.987_569_1e-4_f32;
    polynomial = polynomial.mul_add(r, 1.398_199_9e-3);
    polynomial = polynomial.mul_add(r, 8.333_452e-3);
    polynomial = polynomial.mul_add(r, 4.166_579_6e-2);
    polynomial = polynomial.mul_add(r, 1.666_666_5e-1);
    polynomial = polynomial.mul_add(r, 0.5);
    let mantissa = (polynomial * r).mul_add(r, r) + 1.0;
    // The low bits of `rounded` are n, |n| <= 127, so 2^n is a normal number. A cast to an integer would say the same, yet
    // it saturates, which compilers do one lane at a time.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if x < LOWEST { 0.0 } else { mantissa * power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Sum of `term(0) .. term(count - 1)`, by lanes: lane `l` adds up terms `l`, `l + 16`, and so on.
#[inline(always)]
#[expect(unsafe_code, reason = "tells the compiler what it does not see")]
pub(super) fn sum(count: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let whole = count - count % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, partial) in lanes.iter_mut().enumerate() {
            let index = start + lane;
            // SAFETY: `start` is a multiple of LANES below `whole`, which is one of at most `count`.
            unsafe { std::hint::assert_unchecked(index < count) };
            *partial += term(index);
        }
    }
    let mut total = 0.0;
    for partial in lanes {
        total += partial;
    }
    for index in whole..count {
        total += term(index);
    }
    total
}

/// Each element becomes `e^(element - shift)`. Returns their sum, by lanes as [`sum`] has it.
#[inline(always)]
pub(super) fn exp_all(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (partial, value) in lanes.iter_mut().zip(chunk) {
            *value = exp(*value - shift);
            *partial += *value;
        }
    }
    let mut total = 0.0;
    for partial in lanes {
        total += partial;
    }
    for value in rest {
        *value = exp(*value - shift);
        total += *value;
    }
    total
}

/// The largest element; negative infinity if there is none.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (largest, &value) in lanes.iter_mut().zip(chunk) {
            *largest = if value > *largest { value } else { *largest };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |largest, &value| {
            if value > largest { value } else { largest }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -86.9_f32;
        while x < 88.0 {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(
                error < 2.0 * f64::from(f32::EPSILON),
                "e^{x} is off by {error:e}"
            );
            x += 0.003_7;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(1000.0).is_finite());
    }

    #[test]
    fn sums_and_maxima_take_every_element_once() {
        for count in [0, 1, 15, 16, 17, 100] {
            assert_eq!(
                sum(count, |index| index as f32),
                (count * count.saturating_sub(1) / 2) as f32
            );
            let values: Vec<f32> = (0..count).map(|index| ((index * 7) % 101) as f32).collect();
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&values), largest);
        }
    }
}
