//! The geometric mean, element by element, for numbers that have signs.
//!
//! ```text
//!                ± 2^( (w_0·log2|x_0| + ... + w_k·log2|x_k|) / (w_0 + ... + w_k) )     if all have the sign ±
//!   merged  =
//!                0                                                                   if one is 0, or signs differ
//! ```
//!
//! A geometric mean is defined for positive numbers only. The convention here, agreement or nothing, is the one that is
//! continuous: while a number goes to 0 so does the mean, and on the other side it stays 0. It never exceeds the
//! arithmetic mean, and never has another sign. On weights, whose signs the copies share, it shrinks those that the copies
//! disagree about; on what the copies have learned, whose signs often differ, it keeps what all of them want.
//! (-0 only if all are negative or -0.)
//!
//! Logarithm and power are made here, of products and sums in f64 that are the same on every machine, which a system's
//! mathematics library is not; both are good to 12 digits, so that rounding to f32 gives copies of one tensor back.
//!
//! Sources: IOTA's documentation names a geometric mean of weights, its published code has none. Zero where signs differ:
//! Parascandolo et al., "Learning explanations that are hard to vary" (arXiv 2009.00329), for gradients of several
//! environments.

use crate::element::Element;
use crate::quarantine::is_all_finite;
use crate::rule::Part;
use crate::vector::{Kernel, dispatch};

/// Elements that are merged side by side.
const COLUMNS: usize = 128;

/// Writes the geometric mean. `total` is the sum of the weights. `false` if an element of a copy is not finite.
pub(crate) fn geometric_mean<E: Element>(
    parts: &[Part<'_, E>],
    total: f64,
    merged: &mut [f32],
) -> bool {
    dispatch(Geometric {
        parts,
        total,
        merged,
    })
}

struct Geometric<'a, E> {
    parts: &'a [Part<'a, E>],
    total: f64,
    merged: &'a mut [f32],
}

impl<E: Element> Kernel for Geometric<'_, E> {
    type Output = bool;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> bool {
        let mut values = [0.0; COLUMNS];
        let mut is_finite = true;
        for (tile, merged) in self.merged.chunks_mut(COLUMNS).enumerate() {
            let values = &mut values[..merged.len()];
            let mut sums = [0.0_f64; COLUMNS];
            // Bits that all numbers have, that any has, and the least magnitude.
            let mut all = [u32::MAX; COLUMNS];
            let mut any = [0_u32; COLUMNS];
            let mut least = [u32::MAX; COLUMNS];
            for part in self.parts {
                part.read(tile * COLUMNS, values);
                is_finite &= is_all_finite(values);
                for (sum, x) in sums.iter_mut().zip(&*values) {
                    *sum += part.weight * log2(f64::from(x.abs()));
                }
                for ((all, any), x) in all.iter_mut().zip(&mut any).zip(&*values) {
                    *all &= x.to_bits();
                    *any |= x.to_bits();
                }
                for (least, x) in least.iter_mut().zip(&*values) {
                    *least = (*least).min(x.abs().to_bits());
                }
            }
            for (merged, sum) in merged.iter_mut().zip(&sums) {
                *merged = exp2(sum / self.total) as f32;
            }
            for (((merged, all), any), least) in merged.iter_mut().zip(&all).zip(&any).zip(&least) {
                let agreed = (all ^ any) & SIGN == 0 && *least > 0;
                let magnitude = if agreed { merged.to_bits() } else { 0 };
                *merged = f32::from_bits(magnitude | (all & SIGN));
            }
        }
        is_finite
    }
}

const SIGN: u32 = 1 << 31;
const FRACTION_BITS: u32 = 52;
const FRACTION: u64 = (1 << FRACTION_BITS) - 1;
/// Of f64.
const BIAS: f64 = 1023.0;
/// 2^52: in its neighbourhood the fraction of an f64 counts in ones, so that integers can be put into it and read from it.
const ONES: f64 = (1_u64 << FRACTION_BITS) as f64;

/// The logarithm of a positive normal number to base 2; some finite number for 0.
#[inline(always)]
fn log2(x: f64) -> f64 {
    let bits = x.to_bits();
    let exponent = f64::from_bits(ONES.to_bits() | (bits >> FRACTION_BITS)) - ONES - BIAS;
    let fraction = f64::from_bits(bits & FRACTION | 1.0_f64.to_bits());
    let is_high = fraction > std::f64::consts::SQRT_2;
    let (fraction, exponent) = if is_high {
        (fraction * 0.5, exponent + 1.0)
    } else {
        (fraction, exponent)
    };
    // ln(f) = 2·atanh(s) = 2·(s + s³/3 + s⁵/5 + ...); |s| ≤ 0.172, so the first term that is left out is below 2e-14.
    let s = (fraction - 1.0) / (fraction + 1.0);
    let square = s * s;
    let mut series = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / odd;
    }
    exponent + 2.0 * std::f64::consts::LOG2_E * s * series
}

/// 2 to the power of a number between -1000 and 1000.
#[inline(always)]
fn exp2(x: f64) -> f64 {
    // Adding 1.5 · 2^52 rounds to an integer, which then stands in the low bits.
    let shifted = x + 1.5 * ONES;
    let whole = shifted - 1.5 * ONES;
    let power = f64::from_bits((shifted.to_bits().wrapping_add(BIAS as u64)) << FRACTION_BITS);
    // e^r = 1 + r + r²/2! + ...; |r| ≤ 0.347, so the first term that is left out is below 1e-14.
    let r = (x - whole) * std::f64::consts::LN_2;
    let mut series = 1.0;
    for divisor in [11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        series = 1.0 + series * r * (1.0 / divisor);
    }
    power * series
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn logarithm_and_power_are_good_to_twelve_digits(exponent in -149.0..128.0_f64) {
            let x = exponent.exp2();
            prop_assert!((log2(x) - x.log2()).abs() < 1e-12 * x.log2().abs().max(1.0));
            prop_assert!((exp2(exponent) / x - 1.0).abs() < 1e-12);
        }
    }
}
