//! Values as they are, and their upper halves.
//!
//! ```text
//! f32     sign │ exponent 8 │ fraction 23          4 bytes, little endian
//! bf16    sign │ exponent 8 │ fraction  7          2 bytes: the upper half, rounded to nearest, ties to even
//! ```

use crate::magnitude::{is_within, magnitude, refusal};
use crate::{Error, Shape};

/// The largest f32 that does not round to an infinite bfloat16.
pub(crate) const BF16_MAX: f32 = f32::from_bits(0x7f7f_7fff);

/// Values are checked and written in runs of so many: few enough to still be in the nearest cache for the second look.
const RUN: usize = 1 << 10;

#[inline(always)]
pub(crate) fn encode_f32(values: &[f32], shape: Shape, encoded: &mut [u8]) -> Result<(), Error> {
    let slots = encoded.as_chunks_mut().0.chunks_mut(RUN);
    for (run, slots) in values.chunks(RUN).zip(slots) {
        if !is_within(magnitude(run), f32::MAX) {
            return Err(refusal(values, shape, f32::MAX));
        }
        for (slot, value) in slots.iter_mut().zip(run) {
            *slot = value.to_le_bytes();
        }
    }
    Ok(())
}

#[inline(always)]
pub(crate) fn decode_f32(encoded: &[u8], shape: Shape, values: &mut [f32]) -> Result<(), Error> {
    let slots = encoded.as_chunks().0.chunks(RUN);
    let mut is_finite = true;
    for (run, slots) in values.chunks_mut(RUN).zip(slots) {
        for (value, slot) in run.iter_mut().zip(slots) {
            *value = f32::from_le_bytes(*slot);
        }
        is_finite &= is_within(magnitude(run), f32::MAX);
    }
    if is_finite {
        Ok(())
    } else {
        Err(refusal(values, shape, f32::MAX))
    }
}

#[inline(always)]
pub(crate) fn encode_bf16(values: &[f32], shape: Shape, encoded: &mut [u8]) -> Result<(), Error> {
    let slots = encoded.as_chunks_mut().0.chunks_mut(RUN);
    for (run, slots) in values.chunks(RUN).zip(slots) {
        if !is_within(magnitude(run), BF16_MAX) {
            return Err(refusal(values, shape, BF16_MAX));
        }
        for (slot, value) in slots.iter_mut().zip(run) {
            let bits = value.to_bits();
            // Just under a half more rounds to nearest; the last bit that stays makes it a half where that is odd.
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            *slot = ((rounded >> 16) as u16).to_le_bytes();
        }
    }
    Ok(())
}

#[inline(always)]
pub(crate) fn decode_bf16(encoded: &[u8], shape: Shape, values: &mut [f32]) -> Result<(), Error> {
    let slots = encoded.as_chunks().0.chunks(RUN);
    let mut is_finite = true;
    for (run, slots) in values.chunks_mut(RUN).zip(slots) {
        for (value, slot) in run.iter_mut().zip(slots) {
            *value = f32::from_bits(u32::from(u16::from_le_bytes(*slot)) << 16);
        }
        is_finite &= is_within(magnitude(run), f32::MAX);
    }
    if is_finite {
        Ok(())
    } else {
        Err(refusal(values, shape, f32::MAX))
    }
}
