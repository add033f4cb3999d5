//! 4 bits per value of a rotated token, and a scale per tile of 64.
//!
//! ```text
//! one token, rotated     tile of 64 channels            tile of 64         the rest
//!                        scale, bf16 │ 32 bytes         scale │ 32 bytes   scale │ half as many bytes
//!                                      byte i: code i in the low half, code i + 32 in the high half
//! ```
//!
//! Codes are two's complement, -7 to 7. A scale is the tile's largest magnitude / 7, rounded up to a bfloat16. Tiles cost
//! a quarter of a bit per value and are worth more than that: over a row of 5,120 the largest rotated value is some 4
//! standard deviations, over 64 it is 2.5, and the step shrinks with it. A tile's codes lie half a tile apart in one byte,
//! not side by side, so that a vector of codes is packed without reordering.
//!
//! Source: TAH-Quant (He et al., arXiv 2506.01352) for tiles and a Hadamard transform under 4-bit activations. It then
//! chooses bits by entropy and swaps pivots; here every tile has 4 bits, so that lengths are known beforehand, and the
//! whole token is rotated with random signs.

use crate::hadamard::Rotation;
use crate::magnitude::{MAGNITUDE_MAX, MAGNITUDE_MIN, inverse_of, is_within, magnitude, refusal};
use crate::random::{RowChance, Seed, round};
use crate::{CHANNELS_MAX, Error, Shape};

const TILE: usize = 64;
const SCALE_BYTES: usize = 2;
const LEVELS: f32 = 7.0;
/// No encoder writes a larger scale. A rotated value is at most the length of its row, which is the root of
/// [`CHANNELS_MAX`] times the largest value: a seventh of that, and some room for rounding.
const SCALE_MAX: f32 = MAGNITUDE_MAX * (CHANNELS_MAX.isqrt() as f32) / 6.0;

pub(crate) const fn row_bytes(channels: usize) -> usize {
    let rest = channels % TILE;
    channels / TILE * tile_bytes(TILE) + if rest > 0 { tile_bytes(rest) } else { 0 }
}

const fn tile_bytes(channels: usize) -> usize {
    SCALE_BYTES + channels.div_ceil(2)
}

#[inline(always)]
pub(crate) fn encode(
    values: &[f32],
    shape: Shape,
    seed: Seed,
    encoded: &mut [u8],
) -> Result<(), Error> {
    let channels = shape.channels();
    let rotation = Rotation::new(channels);
    let mut rotated = vec![0.0; channels];
    let rows = values.chunks_exact(channels);
    let slots = encoded.chunks_exact_mut(row_bytes(channels));
    for (token, (row, slots)) in rows.zip(slots).enumerate() {
        if !is_within(magnitude(row), MAGNITUDE_MAX) {
            return Err(refusal(values, shape, MAGNITUDE_MAX));
        }
        rotated.copy_from_slice(row);
        rotation.apply(&mut rotated);
        let chance = RowChance::new(seed, token);
        let (tiles, rest) = rotated.as_chunks::<TILE>();
        let (tile_slots, rest_slots) = slots.split_at_mut(tiles.len() * const { tile_bytes(TILE) });
        let tile_slots = tile_slots.as_chunks_mut::<{ tile_bytes(TILE) }>().0;
        for (index, (tile, slots)) in tiles.iter().zip(tile_slots).enumerate() {
            encode_tile(tile, chance, index * TILE, slots);
        }
        if !rest.is_empty() {
            encode_tile(rest, chance, tiles.len() * TILE, rest_slots);
        }
    }
    Ok(())
}

#[inline(always)]
fn encode_tile(tile: &[f32], chance: RowChance, start: usize, slots: &mut [u8]) {
    let largest = magnitude(tile);
    let (scale, codes) = slots.split_at_mut(SCALE_BYTES);
    if largest < MAGNITUDE_MIN {
        scale.fill(0);
        codes.fill(0);
        return;
    }
    // The upper half of an f32 is a bfloat16; one more if anything was cut off.
    let bits = (largest / LEVELS).to_bits().wrapping_add(0xffff) >> 16;
    scale.copy_from_slice(&(bits as u16).to_le_bytes());
    let inverse = inverse_of(f32::from_bits(bits << 16), largest, LEVELS);
    let code =
        |at: usize, value: f32| round(value * inverse, chance.bits((start + at) as u32)) as u8;
    let half = codes.len();
    let (low, high) = tile.split_at(half);
    for (at, (slot, value)) in codes.iter_mut().zip(low).enumerate() {
        *slot = code(at, *value) & 0x0f;
    }
    for (at, (slot, value)) in codes.iter_mut().zip(high).enumerate() {
        *slot |= code(half + at, *value) << 4;
    }
}

#[inline(always)]
pub(crate) fn decode(encoded: &[u8], shape: Shape, values: &mut [f32]) -> Result<(), Error> {
    let channels = shape.channels();
    let rotation = Rotation::new(channels);
    let rows = values.chunks_exact_mut(channels);
    let slots = encoded.chunks_exact(row_bytes(channels));
    for (token, (row, slots)) in rows.zip(slots).enumerate() {
        let (tiles, rest) = row.as_chunks_mut::<TILE>();
        let (tile_slots, rest_slots) = slots.split_at(tiles.len() * const { tile_bytes(TILE) });
        let tile_slots = tile_slots.as_chunks::<{ tile_bytes(TILE) }>().0;
        let wrong_scale = |channel| Error::Scale { token, channel };
        let rest_start = tiles.len() * TILE;
        for (index, (tile, slots)) in tiles.iter_mut().zip(tile_slots).enumerate() {
            decode_tile(slots, tile).ok_or_else(|| wrong_scale(index * TILE))?;
        }
        if !rest.is_empty() {
            decode_tile(rest_slots, rest).ok_or_else(|| wrong_scale(rest_start))?;
        }
        rotation.revert(row);
    }
    Ok(())
}

/// None if the scale is none.
#[inline(always)]
fn decode_tile(slots: &[u8], tile: &mut [f32]) -> Option<()> {
    let (scale, codes) = slots.split_first_chunk()?;
    let scale = f32::from_bits(u32::from(u16::from_le_bytes(*scale)) << 16);
    // Zero, but not its negative.
    if !(scale.to_bits() == 0 || (MAGNITUDE_MIN / LEVELS..=SCALE_MAX).contains(&scale)) {
        return None;
    }
    let (low, high) = tile.split_at_mut(codes.len());
    for (value, code) in low.iter_mut().zip(codes) {
        *value = f32::from((code << 4).cast_signed() >> 4) * scale;
    }
    for (value, code) in high.iter_mut().zip(codes) {
        *value = f32::from(code.cast_signed() >> 4) * scale;
    }
    Some(())
}
