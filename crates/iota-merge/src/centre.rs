//! Centered clip and radial-directional averaging: rules that look at copies as arrows, by length and direction.
//!
//! **Centered clip** pulls a centre towards every copy, but by no copy further than the usual distance:
//!
//! ```text
//!   v_0      = coordinate-wise median
//!   d_i      = |x_i - v_n|,   r = radius · median(d_i)
//!   v_(n+1)  = v_n + sum( w_i · min(1, r/d_i) · (x_i - v_n) ) / sum( w_i )
//! ```
//!
//! So whatever a copy holds, a round moves the centre by at most `w_i / sum(w) · r` on its account, and `r` is set by the
//! majority. Where no copy is further than `r` one round gives the weighted mean. The radius of the paper is a
//! constant; in units of the median distance it needs no tuning while training goes on and distances change.
//!
//! **Radial-directional averaging** averages lengths and directions apart:
//!
//! ```text
//!   merged = ( sum(w_i · |x_i|) / sum(w_i) ) · unit( sum( w_i · unit(x_i) ) )
//! ```
//!
//! The plain mean of `k` arrows at right angles is shorter than they are, by the root of `k`; this one is as long as they
//! are. It makes sense for what copies have learned since they were equal, not for weights. `unit(0)` is 0.
//!
//! Lengths are those of [`norm`](crate::norm()), over the range that is merged; the paper on radial averaging takes them
//! by tensor.
//!
//! Sources: Karimireddy et al., "Learning from History for Byzantine Robust Optimization" (ICML 2021, arXiv 2012.10333);
//! "Decoupled DiLoCo" (arXiv 2604.21428) for radial-directional averaging.

use crate::element::Element;
use crate::norm::{BLOCK, length_of, median, shrinking, sum_of_squares};
use crate::order::{mean_of_sorted, middle};
use crate::rule::Part;
use crate::vector::{Kernel, dispatch};

/// Elements that are merged side by side.
const COLUMNS: usize = 1024;

/// Writes the centre after so many rounds. `false` if an element of a copy is not finite.
pub(crate) fn centered_clip<E: Element>(
    parts: &[Part<'_, E>],
    total: f64,
    radius_percent: u16,
    rounds: u8,
    merged: &mut [f32],
) -> bool {
    if !mean_of_sorted(parts, middle(parts.len()), merged) {
        return false;
    }
    for _ in 0..rounds {
        let distances: Vec<f64> = parts
            .iter()
            .map(|part| {
                dispatch(Distance {
                    part,
                    centre: merged,
                })
            })
            .collect();
        let radius = median(distances.clone()) * f64::from(radius_percent) / 100.0;
        let pulls: Vec<f64> = parts
            .iter()
            .zip(shrinking(&distances, radius))
            .map(|(part, factor)| part.weight * factor)
            .collect();
        dispatch(Pull {
            parts,
            pulls: &pulls,
            total,
            centre: merged,
        });
    }
    true
}

/// How far a copy is from the centre.
struct Distance<'a, E> {
    part: &'a Part<'a, E>,
    centre: &'a [f32],
}

impl<E: Element> Kernel for Distance<'_, E> {
    type Output = f64;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> f64 {
        let (mut values, mut offsets) = ([0.0_f32; BLOCK], [0.0_f64; BLOCK]);
        let mut total = 0.0;
        for (block, centre) in self.centre.chunks(BLOCK).enumerate() {
            let (values, offsets) = (&mut values[..centre.len()], &mut offsets[..centre.len()]);
            self.part.read(block * BLOCK, values);
            for ((offset, value), centre) in offsets.iter_mut().zip(&*values).zip(centre) {
                *offset = f64::from(*value) - f64::from(*centre);
            }
            total += sum_of_squares(offsets);
        }
        total.sqrt()
    }
}

/// A round.
struct Pull<'a, E> {
    parts: &'a [Part<'a, E>],
    /// Weight times clipping factor.
    pulls: &'a [f64],
    total: f64,
    centre: &'a mut [f32],
}

impl<E: Element> Kernel for Pull<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let (mut values, mut sums) = ([0.0_f32; COLUMNS], [0.0_f64; COLUMNS]);
        for (tile, centre) in self.centre.chunks_mut(COLUMNS).enumerate() {
            let (values, sums) = (&mut values[..centre.len()], &mut sums[..centre.len()]);
            sums.fill(0.0);
            for (part, &pull) in self.parts.iter().zip(self.pulls) {
                part.read(tile * COLUMNS, values);
                for ((sum, value), centre) in sums.iter_mut().zip(&*values).zip(&*centre) {
                    *sum += pull * (f64::from(*value) - f64::from(*centre));
                }
            }
            for (centre, sum) in centre.iter_mut().zip(&*sums) {
                let moved = (f64::from(*centre) + sum / self.total) as f32;
                // Adding nothing would make 0 of -0.
                *centre = if *sum == 0.0 { *centre } else { moved };
            }
        }
    }
}

/// Writes the radial-directional average. `false` if an element of a copy is not finite.
pub(crate) fn radial<E: Element>(parts: &[Part<'_, E>], total: f64, merged: &mut [f32]) -> bool {
    let lengths: Vec<f64> = parts.iter().map(length_of).collect();
    if lengths.iter().any(|length| !length.is_finite()) {
        return false;
    }
    let weighted = parts.iter().zip(&lengths);
    let length = weighted
        .map(|(part, length)| part.weight * length)
        .sum::<f64>()
        / total;
    let unit = |(part, length): (&Part<'_, E>, &f64)| match *length {
        0.0 => 0.0,
        length => part.weight / length,
    };
    let turns: Vec<f64> = parts.iter().zip(&lengths).map(unit).collect();
    dispatch(Direction {
        parts,
        turns: &turns,
        length,
        merged,
    });
    true
}

struct Direction<'a, E> {
    parts: &'a [Part<'a, E>],
    /// Weight over length.
    turns: &'a [f64],
    /// Of the result.
    length: f64,
    merged: &'a mut [f32],
}

impl<E: Element> Direction<'_, E> {
    /// Fills `sums` with the sum of the directions from `start` on, not yet of the right length.
    #[inline(always)]
    fn read(&self, start: usize, values: &mut [f32], sums: &mut [f64]) {
        sums.fill(0.0);
        for (part, &turn) in self.parts.iter().zip(self.turns) {
            part.read(start, values);
            for (sum, value) in sums.iter_mut().zip(&*values) {
                *sum += turn * f64::from(*value);
            }
        }
    }
}

impl<E: Element> Kernel for Direction<'_, E> {
    type Output = ();

    /// The sums are made twice, once for their length: keeping them would take twice the memory of the result.
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        const MAX: f64 = f32::MAX as f64;
        let (mut values, mut sums) = ([0.0; BLOCK], [0.0; BLOCK]);
        let mut squares = 0.0;
        for start in (0..self.merged.len()).step_by(BLOCK) {
            let length = BLOCK.min(self.merged.len() - start);
            self.read(start, &mut values[..length], &mut sums[..length]);
            squares += sum_of_squares(&sums[..length]);
        }
        let scale = if squares > 0.0 {
            self.length / squares.sqrt()
        } else {
            0.0
        };
        for start in (0..self.merged.len()).step_by(BLOCK) {
            let length = BLOCK.min(self.merged.len() - start);
            self.read(start, &mut values[..length], &mut sums[..length]);
            for (merged, sum) in self.merged[start..start + length].iter_mut().zip(&sums) {
                // The length of long copies may be more than one element can hold.
                *merged = (scale * sum).clamp(-MAX, MAX) as f32;
            }
        }
    }
}
