//! How large values are: what is refused, and the step that fits them.

use crate::{Error, Shape};

/// Values beyond this have no 8- or 4-bit encoding: 2^64. A network whose activations are of that size has blown up, and
/// up to here no sum of a rotation can overflow, with whatever scales the bytes come.
pub(crate) const MAGNITUDE_MAX: f32 = (1_u64 << 32) as f32 * (1_u64 << 32) as f32;

/// Rows, or tiles of rotated rows, whose values all lie below this are written as zeros: 2^-80, some 8e-25. Then steps
/// and their inverses are far from where f32 gets imprecise, and processors that flush such numbers to zero get the same
/// bits as others.
pub(crate) const MAGNITUDE_MIN: f32 = 1.0 / ((1_u64 << 40) as f32 * (1_u64 << 40) as f32);

/// The largest magnitude of a row: infinite or NaN if one of its values is.
///
/// By bits: without their signs numbers are ordered as their bits are, with NaN last. A maximum of integers can be taken in
/// any order.
#[inline(always)]
pub(crate) fn magnitude(row: &[f32]) -> f32 {
    let bits = row
        .iter()
        .fold(0, |max, value| max.max(value.abs().to_bits() as i32));
    f32::from_bits(bits as u32)
}

/// What is wrong with a tensor one of whose values is larger than `limit`, or NaN. Values after the first such are not
/// looked at.
#[cold]
pub(crate) fn refusal(values: &[f32], shape: Shape, limit: f32) -> Error {
    let position = values
        .iter()
        .position(|value| !is_within(value.abs(), limit));
    let position = position.expect("a value is beyond the limit");
    let (token, channel) = (position / shape.channels(), position % shape.channels());
    if values[position].is_finite() {
        Error::TooLarge { token, channel }
    } else {
        Error::NotFinite { token, channel }
    }
}

/// Whether a magnitude is at most `limit`; NaN is not.
#[inline(always)]
pub(crate) fn is_within(magnitude: f32, limit: f32) -> bool {
    magnitude <= limit
}

/// The largest number by which anything of `magnitude` can be multiplied without exceeding `levels`, or its neighbour;
/// `step` is about its inverse.
#[inline(always)]
pub(crate) fn inverse_of(step: f32, magnitude: f32, levels: f32) -> f32 {
    let mut inverse = 1.0 / step;
    // Rounding may have carried it a bit or two too far.
    while magnitude * inverse > levels {
        inverse = inverse.next_down();
    }
    inverse
}
