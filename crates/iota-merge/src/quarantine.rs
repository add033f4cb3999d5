//! Finding copies that must not be averaged.
//!
//! One NaN in one copy makes the mean NaN, and the next step of training spreads it over the whole model. So a copy
//! with a NaN or an infinity is kept out, and whoever sent it can be named.

use crate::element::Element;

/// A copy that was left out of a merge because it is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quarantined {
    /// Position of the copy, counted from 0 in the order in which the copies were given.
    pub copy: usize,
    /// Its first NaN or infinity, counted in elements from the start of the merged range.
    pub element: usize,
}

/// All bits of the exponent: set together only in infinities and NaNs.
pub(crate) const EXPONENT: u32 = 0x7f80_0000;

/// Elements looked at before the search decides whether to go on. A search that may stop at every element cannot be
/// vectorised; one that never stops early wastes time on what is broken anyway.
const BLOCK: usize = 256;

/// Position of the first NaN or infinity.
///
/// ```
/// use iota_merge::first_non_finite;
/// assert_eq!(first_non_finite(&[1.0_f32, f32::MAX, f32::NEG_INFINITY, f32::NAN]), Some(2));
/// assert_eq!(first_non_finite(&[1.0_f32, -0.0, f32::MIN_POSITIVE]), None);
/// ```
#[must_use]
pub fn first_non_finite<E: Element>(elements: &[E]) -> Option<usize> {
    for (index, block) in elements.chunks(BLOCK).enumerate() {
        let any = block.iter().fold(false, |any, x| {
            any | (x.to_f32().to_bits() & EXPONENT == EXPONENT)
        });
        if any {
            let within = block.iter().position(|x| !x.to_f32().is_finite());
            return Some(
                index * BLOCK + within.expect("the block holds an element with a full exponent"),
            );
        }
    }
    None
}

/// Whether no element is a NaN or an infinity. For loops that go on anyway.
#[inline(always)]
pub(crate) fn is_all_finite(elements: &[f32]) -> bool {
    let largest = elements
        .iter()
        .fold(0, |largest, x| (x.to_bits() & !SIGN).max(largest));
    largest < EXPONENT
}

/// All bits but this one are the magnitude.
pub(crate) const SIGN: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_bad_element_is_found_wherever_it_hides(
            bits in prop::collection::vec(any::<u32>(), 0..600),
            planted in prop::collection::vec((0usize..600, prop::sample::select(vec![
                f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001),
            ])), 0..3),
        ) {
            let mut elements: Vec<f32> = bits.into_iter().map(|bits| f32::from_bits(bits & !0x0080_0000)).collect();
            for (at, bad) in planted {
                if let Some(element) = elements.get_mut(at) {
                    *element = bad;
                }
            }
            prop_assert_eq!(first_non_finite(&elements), elements.iter().position(|x| !x.is_finite()));
        }
    }
}
