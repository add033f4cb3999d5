//! Numbers as they are, or their upper halves.
//!
//! ```text
//! f32     sign │ exponent 8 │ fraction 23          4 bytes, little endian
//! bf16    sign │ exponent 8 │ fraction  7          2 bytes: the upper half, rounded to nearest, ties to even
//! ```

use super::Refused;

/// The largest f32 that does not round to an infinite bf16.
pub const BF16_MAX: f32 = f32::from_bits(0x7f7f_7fff);

const SIGN: u32 = 1 << 31;
const EXPONENT: u16 = 0x7f80;

/// The bits of a bf16. NaN and what is larger than [`BF16_MAX`] has to be kept away.
#[inline(always)]
pub(super) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    // Just under a half more rounds to nearest; the last bit that stays makes it a half where that is odd.
    ((bits + (0x7fff + (bits >> 16 & 1))) >> 16) as u16
}

#[inline(always)]
pub(super) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The number of two bytes, if it is finite.
#[inline(always)]
pub(super) fn finite_bf16(bytes: [u8; 2]) -> Option<f32> {
    let bits = u16::from_le_bytes(bytes);
    (bits & EXPONENT != EXPONENT).then(|| from_bf16(bits))
}

/// Whether no magnitude is above a limit, which no NaN is. On an error names the first.
#[inline(always)]
pub(super) fn check(values: &[f32], limit: f32) -> Result<(), usize> {
    let within = |x: &f32| x.to_bits() & !SIGN <= limit.to_bits();
    let all = values.iter().fold(true, |all, x| all & within(x));
    if all {
        return Ok(());
    }
    let first = values.iter().position(|x| !within(x));
    Err(first.expect("one of them is not within the limit"))
}

#[inline(always)]
pub(super) fn encode_f32(values: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
    check(values, f32::MAX)?;
    let begin = bytes.len();
    bytes.resize(begin + 4 * values.len(), 0);
    for (slot, value) in bytes[begin..].as_chunks_mut().0.iter_mut().zip(values) {
        *slot = value.to_le_bytes();
    }
    Ok(())
}

#[inline(always)]
pub(super) fn decode_f32(bytes: &[u8], values: &mut [f32]) -> Result<usize, Refused> {
    for (value, slot) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = f32::from_le_bytes(*slot);
    }
    check(values, f32::MAX).map_err(Refused::Value)?;
    Ok(4 * values.len())
}

#[inline(always)]
pub(super) fn encode_bf16(values: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
    check(values, BF16_MAX)?;
    let begin = bytes.len();
    bytes.resize(begin + 2 * values.len(), 0);
    for (slot, value) in bytes[begin..].as_chunks_mut().0.iter_mut().zip(values) {
        *slot = to_bf16(*value).to_le_bytes();
    }
    Ok(())
}

#[inline(always)]
pub(super) fn decode_bf16(bytes: &[u8], values: &mut [f32]) -> Result<usize, Refused> {
    for (value, slot) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = from_bf16(u16::from_le_bytes(*slot));
    }
    check(values, f32::MAX).map_err(Refused::Value)?;
    Ok(2 * values.len())
}
