//! The largest values of a chunk: where they are, their signs, and which of two sizes they have.
//!
//! ```text
//!         small bf16 │ large bf16 │ upper bits of the places, 128 bits │ 64 x 8 bits                          84 bytes
//!                                                                        lower bits of the place 6 │ is negative 1 │ is large 1
//! ```
//!
//! Places ascend, so their upper bits do, and are written in unary: the `i`-th place `p` sets bit `i + p / 64` of a bitmap.
//! Of `n` values `k` are kept with the lowest `log2(n / k)` bits of each place as they are, which takes `2 + log2(n / k)` bits
//! a place where no code of any length can take less than `1.44 + log2(n / k)`; it always takes as many, so that the length
//! of an upload is known before there is one. (Elias-Fano.) Bits are counted from the lowest up, and the last byte of the
//! bitmap and of the entries is filled with zeros.
//!
//! Of equal magnitudes the first are taken. The two sizes are those that a division at their middle would give again,
//! nearly: starting with the mean magnitude as the border, values are divided, each side's mean becomes a size and the
//! middle of the sizes the new border, three times. (Lloyd's algorithm; two levels of a heavy-tailed distribution are found
//! in two or three rounds.) A shorter chunk keeps the same share of its values, rounded up.
//!
//! It makes sense with error feedback: without, nine tenths of what was learned would never be heard of.
//!
//! Sources: SparseLoCo (arXiv 2508.15706) for 64 of 4096, 2 bits a value, feedback with decay 0.95; it sends places of 12 bits,
//! 116 bytes in all. Elias, *Efficient storage and retrieval by content and address of static files* (1974).

use super::float::{BF16_MAX, check, finite_bf16, from_bf16, to_bf16};
use super::{CHUNK, Refused};

/// Divisions into small and large.
const ROUNDS: usize = 3;
const SIGN: u32 = 1 << 31;
/// Bytes before the entries.
const HEADER: usize = 4;
/// Of an entry, above the lower bits of the place: its sign and its size.
const VALUE_BITS: u32 = 2;
const NEGATIVE: u64 = 1;
const LARGE: u64 = 2;

/// Values kept of a chunk of so many.
const fn kept(elements: usize, keep: u16) -> usize {
    (elements * keep as usize).div_ceil(CHUNK)
}

/// Bits of a place that are written as they are, of so many values kept of a chunk: 0 to 12.
const fn lower_bits(elements: usize, kept: usize) -> u32 {
    (elements / kept).ilog2()
}

/// Bytes of the bitmap and of the entries.
const fn lengths(elements: usize, kept: usize) -> (usize, usize) {
    let lower = lower_bits(elements, kept);
    let bitmap = kept + ((elements - 1) >> lower);
    let entries = kept * (lower + VALUE_BITS) as usize;
    (bitmap.div_ceil(8), entries.div_ceil(8))
}

pub(super) const fn length(elements: usize, keep: u16) -> usize {
    let (bitmap, entries) = lengths(elements, kept(elements, keep));
    HEADER + bitmap + entries
}

#[inline(always)]
pub(super) fn encode(values: &[f32], keep: u16, bytes: &mut Vec<u8>) -> Result<(), usize> {
    check(values, BF16_MAX)?;
    let mut room = [0; CHUNK];
    let places = largest(values, kept(values.len(), keep), &mut room);
    let (small, large) = sizes(values, places);
    let border = (f64::from(small) + f64::from(large)) / 2.0;
    bytes.extend_from_slice(&to_bf16(small).to_le_bytes());
    bytes.extend_from_slice(&to_bf16(large).to_le_bytes());
    let lower = lower_bits(values.len(), places.len());
    let bitmap = bytes.len();
    bytes.resize(bitmap + lengths(values.len(), places.len()).0, 0);
    let (mut packed, mut filled) = (0_u64, 0);
    for (nth, &place) in places.iter().enumerate() {
        let bit = nth + (place >> lower) as usize;
        bytes[bitmap + bit / 8] |= 1 << (bit % 8);
        let value = values[place as usize];
        let mut entry = 0;
        if value.is_sign_negative() {
            entry |= NEGATIVE;
        }
        if f64::from(value.abs()) >= border {
            entry |= LARGE;
        }
        packed |= (entry << lower | place & ((1 << lower) - 1)) << filled;
        filled += lower + VALUE_BITS;
        while filled >= 8 {
            bytes.push(packed as u8);
            packed >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        bytes.push(packed as u8);
    }
    Ok(())
}

/// Where the `count` largest magnitudes are, ascending.
#[inline(always)]
fn largest<'a>(values: &[f32], count: usize, room: &'a mut [u64; CHUNK]) -> &'a [u64] {
    /// The values are dealt to so many groups.
    const GROUPS: usize = 64;
    let key = |value: f32| value.to_bits() & !SIGN;

    // If `count` groups have a maximum of at least so much, `count` values are at least so much, and whatever is less can
    // be forgotten. That leaves about a tenth of the values, found without a branch.
    let mut maxima = [0_u32; GROUPS];
    for row in values.chunks(GROUPS) {
        for (maximum, &value) in maxima.iter_mut().zip(row) {
            *maximum = (*maximum).max(key(value));
        }
    }
    let least = if count <= GROUPS {
        maxima.sort_unstable();
        maxima[GROUPS - count]
    } else {
        0
    };
    let mut candidates = 0;
    for (place, &value) in values.iter().enumerate() {
        // Ordered by magnitude, of equal ones the first ahead.
        room[candidates] = u64::from(key(value)) << 32 | (CHUNK - 1 - place) as u64;
        candidates += usize::from(key(value) >= least);
    }
    let candidates = &mut room[..candidates];
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    }
    let places = &mut candidates[..count];
    for place in &mut *places {
        *place = (CHUNK - 1) as u64 - (*place & (CHUNK - 1) as u64);
    }
    places.sort_unstable();
    places
}

/// A size for the smaller ones of the values at these places, and one for the larger ones.
#[inline(always)]
fn sizes(values: &[f32], places: &[u64]) -> (f32, f32) {
    let magnitudes = || {
        places
            .iter()
            .map(|&place| f64::from(values[place as usize].abs()))
    };
    let all = magnitudes().sum::<f64>() / places.len() as f64;
    let (mut small, mut large) = (all, all);
    for _ in 0..ROUNDS {
        let border = (small + large) / 2.0;
        let (mut sums, mut counts) = ([0.0; 2], [0_u32; 2]);
        for magnitude in magnitudes() {
            let side = usize::from(magnitude >= border);
            sums[side] += magnitude;
            counts[side] += 1;
        }
        if counts.contains(&0) {
            break;
        }
        small = sums[0] / f64::from(counts[0]);
        large = sums[1] / f64::from(counts[1]);
    }
    let rounded = |size: f64| from_bf16(to_bf16(size as f32));
    (rounded(small), rounded(large))
}

#[inline(always)]
pub(super) fn decode(bytes: &[u8], keep: u16, values: &mut [f32]) -> Result<usize, Refused> {
    let (&[s0, s1, l0, l1], entries) = bytes.split_first_chunk().expect("the length was checked");
    let size = |bytes| finite_bf16(bytes).filter(|size| size.is_sign_positive());
    let sizes = size([s0, s1]).zip(size([l0, l1]));
    let (small, large) = sizes
        .filter(|(small, large)| small <= large)
        .ok_or(Refused::Malformed("a size"))?;
    values.fill(0.0);
    let kept = kept(values.len(), keep);
    let lower = lower_bits(values.len(), kept);
    let (bitmap, end) = lengths(values.len(), kept);
    let (bitmap, entries) = entries[..bitmap + end].split_at(bitmap);
    let mut entries = entries.iter();
    let (mut packed, mut filled) = (0_u64, 0);
    let (mut nth, mut next) = (0, 0);
    for (index, bits) in bitmap.iter().enumerate() {
        let mut bits = *bits;
        while bits != 0 {
            if nth == kept {
                return Err(Refused::Malformed("the bitmap"));
            }
            let upper = 8 * index + bits.trailing_zeros() as usize - nth;
            bits &= bits - 1;
            while filled < lower + VALUE_BITS {
                packed |= u64::from(*entries.next().expect("as many as were counted")) << filled;
                filled += 8;
            }
            let place = upper << lower | (packed & ((1 << lower) - 1)) as usize;
            let entry = packed >> lower;
            packed >>= lower + VALUE_BITS;
            filled -= lower + VALUE_BITS;
            if place < next || place >= values.len() {
                return Err(Refused::Malformed("a place"));
            }
            let size = if entry & LARGE != 0 { large } else { small };
            values[place] = if entry & NEGATIVE != 0 { -size } else { size };
            next = place + 1;
            nth += 1;
        }
    }
    if nth < kept {
        return Err(Refused::Malformed("the bitmap"));
    }
    if packed != 0 {
        return Err(Refused::Malformed("the last byte"));
    }
    Ok(length(values.len(), keep))
}
