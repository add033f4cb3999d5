//! A rotation that spreads every channel over all others, for next to nothing.
//!
//! A model's activations have a few channels that are many times larger than the rest. A 4-bit step that fits them
//! loses everybody else. After a rotation with a Hadamard matrix (all entries +-1, up to a factor) each rotated channel
//! holds a bit of every one: the large ones are shared out, what comes out looks Gaussian, and the same step fits all.
//! Random signs before it keep regular rows (all channels equal, say) from being rows of the matrix themselves, which
//! would be gathered instead of spread.
//!
//! ```text
//! 80 channels, window 64:      ┌──────── signs, H64 ────────┐
//!                              0 ............ 16 ........... 64 ........ 80
//!                                             └──── signs, H64 ─────────┘
//! ```
//!
//! Hadamard matrices are made here for powers of two. For another width two windows, each as wide as the largest power
//! of two below, cover all channels: first the front one is rotated, then the back one. Each step is a rotation, so both
//! together are, and nothing is padded. Signs before the second keep it from undoing the first.
//!
//! Source: the fast Walsh-Hadamard transform with random signs, as in Ailon & Chazelle, "The fast Johnson-Lindenstrauss
//! transform" (SIAM J. Comput. 2009); for activations that travel, TAH-Quant (He et al., arXiv 2506.01352).

use crate::random::{RowChance, Seed};

/// The rotation of rows of so many channels. Part of the format: everybody has the same, so a reader needs no seed.
#[derive(Debug)]
pub(crate) struct Rotation {
    front: Vec<f32>,
    /// Empty if the front window covers all channels.
    back: Vec<f32>,
}

/// Where the signs come from; any number would do.
const SIGNS: Seed = Seed::new(0x696f_7461);

impl Rotation {
    /// `channels`: at least 1.
    pub(crate) fn new(channels: usize) -> Self {
        let window = 1 << channels.ilog2();
        let factor = inverse_root(window);
        let factors = |row| {
            let chance = RowChance::new(SIGNS, row);
            let signed = |at| {
                let is_negative = chance.bits(at as u32) >> 31 == 1;
                if is_negative { -factor } else { factor }
            };
            (0..window).map(signed).collect()
        };
        Self {
            front: factors(0),
            back: if window == channels {
                Vec::new()
            } else {
                factors(1)
            },
        }
    }

    /// Rotates a row.
    #[inline(always)]
    pub(crate) fn apply(&self, row: &mut [f32]) {
        let front = &mut row[..self.front.len()];
        multiply(front, &self.front);
        transform(front);
        if !self.back.is_empty() {
            let start = row.len() - self.back.len();
            let back = &mut row[start..];
            multiply(back, &self.back);
            transform(back);
        }
    }

    /// Rotates a row back.
    #[inline(always)]
    pub(crate) fn revert(&self, row: &mut [f32]) {
        if !self.back.is_empty() {
            let start = row.len() - self.back.len();
            let back = &mut row[start..];
            transform(back);
            multiply(back, &self.back);
        }
        let front = &mut row[..self.front.len()];
        transform(front);
        multiply(front, &self.front);
    }
}

/// The root of 1 / `width`, a power of two: an exact power of two, or one times the root of a half.
fn inverse_root(width: usize) -> f32 {
    let exponent = width.ilog2();
    let whole = 1.0 / (1_u64 << (exponent / 2)) as f32;
    if exponent.is_multiple_of(2) {
        whole
    } else {
        whole * std::f32::consts::FRAC_1_SQRT_2
    }
}

#[inline(always)]
fn multiply(row: &mut [f32], factors: &[f32]) {
    for (value, factor) in row.iter_mut().zip(factors) {
        *value *= factor;
    }
}

/// Multiplies by the Hadamard matrix with entries +-1. The width is a power of two.
#[inline(always)]
fn transform(row: &mut [f32]) {
    match row.len() {
        1 => {}
        2 => narrow::<2>(row),
        4 => narrow::<4>(row),
        8 => wide::<8>(row),
        16 => wide::<16>(row),
        32 => wide::<32>(row),
        _ => {
            wide::<64>(row);
            let mut stride = 64;
            while stride < row.len() {
                for pair in row.chunks_exact_mut(2 * stride) {
                    butterflies(pair, stride);
                }
                stride *= 2;
            }
        }
    }
}

/// Transforms every `WIDTH` channels by themselves, without regard to vectors.
#[inline(always)]
fn narrow<const WIDTH: usize>(row: &mut [f32]) {
    for block in row.as_chunks_mut::<WIDTH>().0 {
        let mut stride = 1;
        while stride < WIDTH {
            for pair in block.chunks_exact_mut(2 * stride) {
                butterflies(pair, stride);
            }
            stride *= 2;
        }
    }
}

/// Transforms every `WIDTH` channels by themselves: 8 to 64, few enough to stay in registers.
#[inline(always)]
fn wide<const WIDTH: usize>(row: &mut [f32]) {
    for block in row.as_chunks_mut::<WIDTH>().0 {
        for lanes in block.as_chunks_mut().0 {
            within_lanes(lanes);
        }
        // Written out, so that every stride is a constant.
        if WIDTH >= 16 {
            for pair in block.as_chunks_mut::<16>().0 {
                butterflies(pair, 8);
            }
        }
        if WIDTH >= 32 {
            for pair in block.as_chunks_mut::<32>().0 {
                butterflies(pair, 16);
            }
        }
        if WIDTH >= 64 {
            for pair in block.as_chunks_mut::<64>().0 {
                butterflies(pair, 32);
            }
        }
    }
}

/// The sums and differences of the two halves of a slice of `2 * stride`.
#[inline(always)]
fn butterflies(pair: &mut [f32], stride: usize) {
    let (upper, lower) = pair.split_at_mut(stride);
    for (a, b) in upper.iter_mut().zip(lower) {
        (*a, *b) = (*a + *b, *a - *b);
    }
}

/// Strides 1, 2 and 4, whose partners sit in one vector: written as an exchange of lanes, a multiplication by +-1, which
/// is exact, and a sum.
#[inline(always)]
fn within_lanes(lanes: &mut [f32; 8]) {
    let [a, b, c, d, e, f, g, h] = *lanes;
    exchange(lanes, [b, a, d, c, f, e, h, g], 1);
    let [a, b, c, d, e, f, g, h] = *lanes;
    exchange(lanes, [c, d, a, b, g, h, e, f], 2);
    let [a, b, c, d, e, f, g, h] = *lanes;
    exchange(lanes, [e, f, g, h, a, b, c, d], 4);
}

#[inline(always)]
fn exchange(lanes: &mut [f32; 8], partners: [f32; 8], stride: usize) {
    for (lane, (value, partner)) in lanes.iter_mut().zip(partners).enumerate() {
        let sign = if lane & stride == 0 { 1.0 } else { -1.0 };
        *value = partner + *value * sign;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matrix of a rotation, row by row of the unit vectors that went in.
    fn matrix(channels: usize) -> Vec<Vec<f32>> {
        let rotation = Rotation::new(channels);
        (0..channels)
            .map(|channel| {
                let mut row = vec![0.0; channels];
                row[channel] = 1.0;
                rotation.apply(&mut row);
                row
            })
            .collect()
    }

    const WIDTHS: [usize; 14] = [1, 2, 3, 4, 5, 8, 16, 31, 32, 64, 65, 80, 192, 256];

    #[test]
    fn angles_and_lengths_survive_at_any_width() {
        for channels in WIDTHS {
            let matrix = matrix(channels);
            for (at, a) in matrix.iter().enumerate() {
                for (other, b) in matrix.iter().enumerate() {
                    let product: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum();
                    let expected = f64::from(u8::from(at == other));
                    assert!((product - expected).abs() < 1e-5, "{channels}: {product}");
                }
            }
        }
    }

    #[test]
    fn a_single_channel_is_spread_over_all() {
        for channels in [64, 256, 1024] {
            let share = 1.0 / (channels as f32).sqrt();
            for row in matrix(channels) {
                assert!(row.iter().all(|x| (x.abs() - share).abs() < 1e-6));
            }
        }
        // Where two windows overlap, chance decides how its parts add up.
        for channels in [65, 80, 127, 192, 320] {
            let share = 1.0 / (channels as f32).sqrt();
            for row in matrix(channels) {
                assert!(
                    row.iter().all(|x| x.abs() < 5.0 * share),
                    "{channels}: {row:?}"
                );
            }
        }
    }

    #[test]
    fn rotating_back_gives_the_row() {
        for channels in WIDTHS.into_iter().chain([5120]) {
            let rotation = Rotation::new(channels);
            let row: Vec<f32> = (0..channels)
                .map(|at| (at * 37 % 101) as f32 - 50.0)
                .collect();
            let mut turned = row.clone();
            rotation.apply(&mut turned);
            rotation.revert(&mut turned);
            for (a, b) in row.iter().zip(&turned) {
                assert!((a - b).abs() < 1e-4, "{channels}: {a} {b}");
            }
        }
    }

    #[test]
    fn a_row_of_equal_channels_is_not_gathered_into_one() {
        for channels in [64, 80, 192, 5120] {
            let mut row = vec![1.0; channels];
            Rotation::new(channels).apply(&mut row);
            let largest = row.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            // Unsigned it would be the root of the width, at least 8. Gaussian channels stay below this.
            assert!(largest < 5.0, "{channels}: {largest}");
        }
    }
}
