//! A byte for each value, and a scale for every 256.
//!
//! ```text
//! block   scale f32 = largest magnitude / 127 │ 256 x i8 = value / scale, to the nearest, ties to even
//! ```
//!
//! -128 is never written, so that plus and minus are alike. A block of zeros has scale 0.

use super::Refused;
use super::float::{BF16_MAX, check};

/// Values of a block. One large value costs only its neighbours their precision.
pub const BLOCK: usize = 256;

/// Levels to either side of 0.
pub(super) const LEVELS: f32 = 127.0;

pub(super) const fn length(elements: usize) -> usize {
    4 * elements.div_ceil(BLOCK) + elements
}

/// The largest magnitude over [`LEVELS`].
#[inline(always)]
pub(super) fn scale_of(values: &[f32]) -> f32 {
    let largest = values
        .iter()
        .fold(0, |largest, x| x.abs().to_bits().max(largest));
    f32::from_bits(largest) / LEVELS
}

/// `value / scale` to the nearest integer, ties to even, within the levels; 0 if the scale is.
#[inline(always)]
pub(super) fn quantised(value: f32, scale: f32) -> i8 {
    /// 1.5 · 2^23: adding it rounds to integers.
    const ROUNDING: f32 = 12_582_912.0;
    let level = if scale > 0.0 { value / scale } else { 0.0 };
    let rounded = level.clamp(-LEVELS, LEVELS) + ROUNDING;
    (rounded.to_bits() as i32 - ROUNDING.to_bits() as i32) as i8
}

/// A scale that an encoder can have written.
#[inline(always)]
pub(super) fn read_scale(bytes: [u8; 4]) -> Option<f32> {
    let scale = f32::from_le_bytes(bytes);
    (scale.is_sign_positive() && scale <= BF16_MAX / LEVELS).then_some(scale)
}

#[inline(always)]
pub(super) fn encode(values: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
    check(values, BF16_MAX)?;
    for block in values.chunks(BLOCK) {
        let scale = scale_of(block);
        let mut levels = [0; BLOCK];
        for (level, &value) in levels.iter_mut().zip(block) {
            *level = quantised(value, scale) as u8;
        }
        bytes.extend_from_slice(&scale.to_le_bytes());
        bytes.extend_from_slice(&levels[..block.len()]);
    }
    Ok(())
}

#[inline(always)]
pub(super) fn decode(bytes: &[u8], values: &mut [f32]) -> Result<usize, Refused> {
    let mut rest = bytes;
    for block in values.chunks_mut(BLOCK) {
        let (scale, after) = rest.split_first_chunk().expect("the length was checked");
        let scale = read_scale(*scale).ok_or(Refused::Malformed("a scale"))?;
        let (levels, after) = after.split_at(block.len());
        let mut is_symmetric = true;
        for (value, &level) in block.iter_mut().zip(levels) {
            is_symmetric &= level != i8::MIN as u8;
            *value = f32::from(level as i8) * scale;
        }
        if !is_symmetric {
            return Err(Refused::Malformed("a level"));
        }
        rest = after;
    }
    Ok(bytes.len() - rest.len())
}
