//! Where the largest values of a chunk are, and their signs: all of them become one size, twice the smallest of them.
//!
//! ```text
//!         size bf16 │ upper bits of the places, 999 bits │ 488 x 4 bits                                 371 bytes
//!                                                           lower bits of the place 3 │ is negative 1
//! ```
//!
//! It makes sense with error feedback only, which makes a sigma-delta modulator of every parameter: what was learned gathers
//! until it is half of the size, then one whole size is sent, and half a size is owed that the next rounds work off. A
//! smaller size would take more sends for the same sum; with a larger one what is owed would grow from send to send. Sums
//! come out right although no single value does, and the mean over many replicas, whose parameters do not reach the border
//! in the same round, evens it out further. What that does for the loss, beside the values' own sizes, is in
//! docs/experiments.
//!
//! Sources: Sattler et al., *Robust and Communication-Efficient Federated Learning from Non-IID Data* (arXiv 1903.02891),
//! for places and signs of the largest with error feedback; their size is the mean of what is kept.

use super::float::{BF16_MAX, check, finite_bf16};
use super::places::{Layout, largest};
use super::{CHUNK, Refused};

/// Bytes before the places.
const HEADER: usize = 2;
/// About each value: its sign.
const VALUE_BITS: u32 = 1;

pub(super) const fn length(elements: usize, keep: u16) -> usize {
    HEADER + Layout::new(elements, keep, VALUE_BITS).length()
}

#[inline(always)]
pub(super) fn encode(values: &[f32], keep: u16, bytes: &mut Vec<u8>) -> Result<(), usize> {
    check(values, BF16_MAX)?;
    let layout = Layout::new(values.len(), keep, VALUE_BITS);
    let mut room = [0; CHUNK];
    let places = largest(values, layout.kept, &mut room);
    let smallest = places
        .iter()
        .map(|&place| values[place as usize].abs())
        .fold(f32::INFINITY, f32::min);
    // Rounded towards zero: with any more than twice, what is owed for the smallest would be more than it was.
    let size = (2.0 * smallest).min(BF16_MAX).to_bits() >> 16;
    bytes.extend_from_slice(&(size as u16).to_le_bytes());
    layout.write(places, bytes, |place| {
        values[place].is_sign_negative().into()
    });
    Ok(())
}

#[inline(always)]
pub(super) fn decode(bytes: &[u8], keep: u16, values: &mut [f32]) -> Result<usize, Refused> {
    let (&size, places) = bytes.split_first_chunk().expect("the length was checked");
    let size = finite_bf16(size)
        .filter(|size| size.is_sign_positive())
        .ok_or(Refused::Malformed("a size"))?;
    values.fill(0.0);
    let layout = Layout::new(values.len(), keep, VALUE_BITS);
    layout.read(places, |place, is_negative| {
        values[place] = if is_negative == 1 { -size } else { size };
    })?;
    Ok(HEADER + layout.length())
}
