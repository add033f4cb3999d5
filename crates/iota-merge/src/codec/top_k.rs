//! The largest values of a chunk: where they are, their signs, and which of two sizes they have.
//!
//! ```text
//! chunk   small bf16 │ large bf16 │ 64 x 14 bits, packed: place 12 │ is negative 1 │ is large 1          116 bytes
//!                                   ascending by place; bits from the lowest up, the last byte filled with zeros
//! ```
//!
//! Of equal magnitudes the first are taken. The two sizes are those that a division at their middle would give again,
//! nearly: starting with the mean magnitude as the border, values are divided, each side's mean becomes a size and the
//! middle of the sizes the new border, three times. (Lloyd's algorithm; two levels of a heavy-tailed distribution are found
//! in two or three rounds.) A shorter chunk keeps the same share of its values, rounded up.
//!
//! It makes sense with error feedback: without, nine tenths of what was learned would never be heard of.
//!
//! Source: SparseLoCo (arXiv 2508.15706): 64 of 4096, 2 bits a value, 12-bit places, feedback with decay 0.95.

use super::float::{BF16_MAX, check, finite_bf16, from_bf16, to_bf16};
use super::{CHUNK, Refused};

const PLACE_BITS: u32 = 12;
const ENTRY_BITS: usize = 14;
const NEGATIVE: u64 = 1 << PLACE_BITS;
const LARGE: u64 = 1 << (PLACE_BITS + 1);
/// Divisions into small and large.
const ROUNDS: usize = 3;
const SIGN: u32 = 1 << 31;
/// Bytes before the entries.
const HEADER: usize = 4;

/// Values kept of a chunk of so many.
const fn kept(elements: usize, keep: u16) -> usize {
    (elements * keep as usize).div_ceil(CHUNK)
}

pub(super) const fn length(elements: usize, keep: u16) -> usize {
    HEADER + (kept(elements, keep) * ENTRY_BITS).div_ceil(8)
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
    // Four entries are seven bytes.
    for group in places.chunks(4) {
        let mut packed = 0_u64;
        for (nth, &place) in group.iter().enumerate() {
            let value = values[place as usize];
            let mut entry = place;
            if value.is_sign_negative() {
                entry |= NEGATIVE;
            }
            if f64::from(value.abs()) >= border {
                entry |= LARGE;
            }
            packed |= entry << (ENTRY_BITS * nth);
        }
        let length = (group.len() * ENTRY_BITS).div_ceil(8);
        bytes.extend_from_slice(&packed.to_le_bytes()[..length]);
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
    let entries = &entries[..(kept * ENTRY_BITS).div_ceil(8)];
    let (mut left, mut next) = (kept, 0);
    for group in entries.chunks(7) {
        let mut packed = [0; 8];
        packed[..group.len()].copy_from_slice(group);
        let mut packed = u64::from_le_bytes(packed);
        for _ in 0..left.min(4) {
            let place = (packed & (NEGATIVE - 1)) as usize;
            if place < next || place >= values.len() {
                return Err(Refused::Malformed("a place"));
            }
            let size = if packed & LARGE != 0 { large } else { small };
            values[place] = if packed & NEGATIVE != 0 { -size } else { size };
            next = place + 1;
            packed >>= ENTRY_BITS;
        }
        if packed != 0 {
            return Err(Refused::Malformed("the last byte"));
        }
        left = left.saturating_sub(4);
    }
    Ok(HEADER + entries.len())
}
