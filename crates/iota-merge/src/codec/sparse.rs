//! Which values of a chunk are not zero, and a byte for each of those.
//!
//! ```text
//! chunk   scale f32 = largest magnitude / 127 │ bitmap, 4096 bits: not zero │ i8 for each bit = value / scale
//! ```
//!
//! The mean of a few sparse deltas is sparse itself, with no fixed number of values. Values that round to 0 are left out.
//! Bit `i` of the bitmap is bit `i % 8`, from the lowest, of byte `i / 8`.

use super::Refused;
use super::float::{BF16_MAX, check};
use super::int8::{quantised, read_scale, scale_of};

/// Of a chunk of zeros: every other value takes one more byte.
pub(super) const fn length(elements: usize) -> usize {
    4 + elements.div_ceil(8)
}

#[inline(always)]
pub(super) fn encode(values: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
    check(values, BF16_MAX)?;
    let scale = scale_of(values);
    bytes.extend_from_slice(&scale.to_le_bytes());
    let bitmap = bytes.len();
    bytes.resize(bitmap + values.len().div_ceil(8), 0);
    for (index, group) in values.chunks(8).enumerate() {
        let mut bits = 0;
        for (bit, &value) in group.iter().enumerate() {
            let level = quantised(value, scale);
            if level != 0 {
                bits |= 1 << bit;
                bytes.push(level as u8);
            }
        }
        bytes[bitmap + index] = bits;
    }
    Ok(())
}

#[inline(always)]
pub(super) fn decode(bytes: &[u8], values: &mut [f32]) -> Result<usize, Refused> {
    let shortest = length(values.len());
    if bytes.len() < shortest {
        return Err(Refused::TooShort { expected: shortest });
    }
    let (scale, rest) = bytes.split_first_chunk().expect("it was just looked at");
    let scale = read_scale(*scale).ok_or(Refused::Malformed("the scale"))?;
    let (bitmap, levels) = rest.split_at(values.len().div_ceil(8));
    let count: usize = bitmap.iter().map(|bits| bits.count_ones() as usize).sum();
    if levels.len() < count {
        return Err(Refused::TooShort {
            expected: shortest + count,
        });
    }
    let mut levels = levels[..count].iter();
    for (group, &bits) in values.chunks_mut(8).zip(bitmap) {
        if u32::from(bits) >> group.len() != 0 {
            return Err(Refused::Malformed("the end of the bitmap"));
        }
        for (bit, value) in group.iter_mut().enumerate() {
            *value = 0.0;
            if bits >> bit & 1 == 1 {
                let level = *levels.next().expect("there are as many as bits") as i8;
                if level == 0 || level == i8::MIN {
                    return Err(Refused::Malformed("a level"));
                }
                *value = f32::from(level) * scale;
            }
        }
    }
    Ok(shortest + count)
}
