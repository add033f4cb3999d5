//! Which values of a chunk are not zero, and for each of those its sign and which of eight sizes it has.
//!
//! ```text
//! chunk   largest magnitude f32 │ bitmap, 4096 bits: not zero │ for each bit: size 3 │ is negative 1
//!                                                              sizes: 1, 3/4, 1/2, 3/8, 1/4, 3/16, 1/8, 3/32 of the largest
//! ```
//!
//! The mean of a few sparse deltas is sparse itself, with no fixed number of values. Each becomes the nearest size, at most a
//! fifth off; what is less than 3/64 of the largest is left out. Bit `i` of the bitmap is bit `i % 8`, from the lowest, of byte
//! `i / 8`; of two halves of a byte the lower comes first, and a half that is left over is zero.

use super::Refused;
use super::float::{BF16_MAX, check};

/// Shares of the largest magnitude. Each is a few bits long, so that a multiplication by it is the same everywhere.
const SIZES: [f32; 8] = [
    1.0,
    3.0 / 4.0,
    1.0 / 2.0,
    3.0 / 8.0,
    1.0 / 4.0,
    3.0 / 16.0,
    1.0 / 8.0,
    3.0 / 32.0,
];

/// What lies below the middle between a size and the next is the next; what lies below the last is left out.
const BORDERS: [f32; 8] = [
    7.0 / 8.0,
    5.0 / 8.0,
    7.0 / 16.0,
    5.0 / 16.0,
    7.0 / 32.0,
    5.0 / 32.0,
    7.0 / 64.0,
    3.0 / 64.0,
];

const NEGATIVE: u8 = 8;

/// Of a chunk of zeros: every other value takes half a byte more.
pub(super) const fn length(elements: usize) -> usize {
    4 + elements.div_ceil(8)
}

#[inline(always)]
pub(super) fn encode(values: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
    check(values, BF16_MAX)?;
    let largest = values
        .iter()
        .fold(0, |largest, x| x.abs().to_bits().max(largest));
    let largest = f32::from_bits(largest);
    let borders = BORDERS.map(|border| border * largest);
    bytes.extend_from_slice(&largest.to_le_bytes());
    let bitmap = bytes.len();
    bytes.resize(bitmap + values.len().div_ceil(8), 0);
    let mut half = None;
    for (index, group) in values.chunks(8).enumerate() {
        let mut bits = 0;
        for (bit, &value) in group.iter().enumerate() {
            let magnitude = value.abs();
            // A chunk of zeros has borders of zero.
            if magnitude == 0.0 || magnitude < borders[7] {
                continue;
            }
            bits |= 1 << bit;
            let size = borders[..7]
                .iter()
                .fold(0, |size, border| size + u8::from(magnitude < *border));
            let entry = size | if value < 0.0 { NEGATIVE } else { 0 };
            half = match half {
                None => Some(entry),
                Some(first) => {
                    bytes.push(first | entry << 4);
                    None
                }
            };
        }
        bytes[bitmap + index] = bits;
    }
    bytes.extend(half);
    Ok(())
}

#[inline(always)]
pub(super) fn decode(bytes: &[u8], values: &mut [f32]) -> Result<usize, Refused> {
    let shortest = length(values.len());
    if bytes.len() < shortest {
        return Err(Refused::TooShort { expected: shortest });
    }
    let (largest, rest) = bytes.split_first_chunk().expect("it was just looked at");
    let largest = f32::from_le_bytes(*largest);
    if !(largest.is_sign_positive() && largest <= BF16_MAX) {
        return Err(Refused::Malformed("the largest magnitude"));
    }
    let (bitmap, entries) = rest.split_at(values.len().div_ceil(8));
    let count: usize = bitmap.iter().map(|bits| bits.count_ones() as usize).sum();
    if largest == 0.0 && count > 0 {
        return Err(Refused::Malformed("the largest magnitude"));
    }
    let used = count.div_ceil(2);
    if entries.len() < used {
        return Err(Refused::TooShort {
            expected: shortest + used,
        });
    }
    let entries = &entries[..used];
    let sizes = SIZES.map(|size| size * largest);
    let mut nth = 0;
    for (group, &bits) in values.chunks_mut(8).zip(bitmap) {
        if u32::from(bits) >> group.len() != 0 {
            return Err(Refused::Malformed("the end of the bitmap"));
        }
        for (bit, value) in group.iter_mut().enumerate() {
            *value = 0.0;
            if bits >> bit & 1 == 1 {
                let entry = entries[nth / 2] >> (nth % 2 * 4) & 0xf;
                let size = sizes[usize::from(entry & 7)];
                *value = if entry & NEGATIVE != 0 { -size } else { size };
                nth += 1;
            }
        }
    }
    if count % 2 == 1 && entries[used - 1] >> 4 != 0 {
        return Err(Refused::Malformed("the last byte"));
    }
    Ok(shortest + used)
}
