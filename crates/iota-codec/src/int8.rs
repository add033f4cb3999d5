//! 8 bits per value and a scale per token.
//!
//! ```text
//! one token     scale, f32 │ code │ code │ ...      value = code * scale
//!               4 bytes      1 byte each, two's complement
//! ```
//!
//! The scale is the row's largest magnitude / 127, so that the largest value is met almost exactly and every other lies
//! between two codes; it becomes one of them by chance, such that the mean is the value.
//!
//! Source: 8-bit activations between pipeline stages as in SWARM (Ryabinin et al., arXiv 2301.11913), there by blocks
//! and to nearest; rounding by chance as in QSGD (Alistarh et al., arXiv 1610.02132).

use crate::magnitude::{MAGNITUDE_MAX, MAGNITUDE_MIN, inverse_of, is_within, magnitude, refusal};
use crate::random::{RowChance, Seed, round};
use crate::{Error, Shape};

const SCALE_BYTES: usize = 4;
const LEVELS: f32 = 127.0;
/// No encoder writes a larger scale.
const SCALE_MAX: f32 = MAGNITUDE_MAX / LEVELS;

pub(crate) const fn row_bytes(channels: usize) -> usize {
    SCALE_BYTES + channels
}

#[inline(always)]
pub(crate) fn encode(
    values: &[f32],
    shape: Shape,
    seed: Seed,
    encoded: &mut [u8],
) -> Result<(), Error> {
    let rows = values.chunks_exact(shape.channels());
    let slots = encoded.chunks_exact_mut(row_bytes(shape.channels()));
    for (token, (row, slots)) in rows.zip(slots).enumerate() {
        let largest = magnitude(row);
        if !is_within(largest, MAGNITUDE_MAX) {
            return Err(refusal(values, shape, MAGNITUDE_MAX));
        }
        let (scale, codes) = slots.split_at_mut(SCALE_BYTES);
        if largest < MAGNITUDE_MIN {
            scale.fill(0);
            codes.fill(0);
            continue;
        }
        let step = largest / LEVELS;
        scale.copy_from_slice(&step.to_le_bytes());
        let inverse = inverse_of(step, largest, LEVELS);
        let chance = RowChance::new(seed, token);
        for (position, (code, value)) in codes.iter_mut().zip(row).enumerate() {
            *code = round(value * inverse, chance.bits(position as u32)) as u8;
        }
    }
    Ok(())
}

#[inline(always)]
pub(crate) fn decode(encoded: &[u8], shape: Shape, values: &mut [f32]) -> Result<(), Error> {
    let rows = values.chunks_exact_mut(shape.channels());
    let slots = encoded.chunks_exact(row_bytes(shape.channels()));
    for (token, (row, slots)) in rows.zip(slots).enumerate() {
        let (scale, codes) = slots
            .split_first_chunk()
            .expect("a row begins with its scale");
        let scale = f32::from_le_bytes(*scale);
        // Zero, but not its negative.
        if !(scale.to_bits() == 0 || (MAGNITUDE_MIN / LEVELS..=SCALE_MAX).contains(&scale)) {
            return Err(Error::Scale { token, channel: 0 });
        }
        for (value, code) in row.iter_mut().zip(codes) {
            *value = f32::from(code.cast_signed()) * scale;
        }
    }
    Ok(())
}
