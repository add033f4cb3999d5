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
use crate::norm::{LANES, length_of, median, shrinking, sum_of_squares, widened};
use crate::order::{mean_of_sorted, middle};
use crate::rule::Part;
use crate::vector::{Kernel, dispatch};

/// Elements that are merged side by side.
const COLUMNS: usize = 32;

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
        sum_of_squares(self.centre.len(), |start, length| {
            let mut offsets = widened(self.part.tile(start, length));
            for (offset, &centre) in offsets.iter_mut().zip(&self.centre[start..start + length]) {
                *offset -= f64::from(centre);
            }
            offsets
        })
        .sqrt()
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
        for (tile, centre) in self.centre.chunks_mut(COLUMNS).enumerate() {
            let mut sums = [0.0_f64; COLUMNS];
            let mut from = [0.0_f32; COLUMNS];
            from[..centre.len()].copy_from_slice(centre);
            for (part, &pull) in self.parts.iter().zip(self.pulls) {
                let values: [f32; COLUMNS] = part.tile(tile * COLUMNS, centre.len());
                for column in 0..COLUMNS {
                    sums[column] += pull * (f64::from(values[column]) - f64::from(from[column]));
                }
            }
            for (centre, sum) in centre.iter_mut().zip(sums) {
                let moved = (f64::from(*centre) + sum / self.total) as f32;
                // Adding nothing would make 0 of -0.
                *centre = if sum == 0.0 { *centre } else { moved };
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
    let turns: Vec<f64> = parts
        .iter()
        .zip(&lengths)
        .map(|(part, &length)| {
            if length > 0.0 {
                part.weight / length
            } else {
                0.0
            }
        })
        .collect();
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
    /// The sum of the directions, not yet of the right length.
    #[inline(always)]
    fn tile(&self, start: usize, length: usize) -> [f64; LANES] {
        let mut sums = [0.0; LANES];
        for (part, &turn) in self.parts.iter().zip(self.turns) {
            for (sum, x) in sums.iter_mut().zip(widened(part.tile(start, length))) {
                *sum += turn * x;
            }
        }
        sums
    }
}

impl<E: Element> Kernel for Direction<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        const MAX: f64 = f32::MAX as f64;
        let squares = sum_of_squares(self.merged.len(), |start, length| self.tile(start, length));
        let scale = if squares > 0.0 {
            self.length / squares.sqrt()
        } else {
            0.0
        };
        for start in (0..self.merged.len()).step_by(LANES) {
            let length = LANES.min(self.merged.len() - start);
            let sums = self.tile(start, length);
            for (merged, sum) in self.merged[start..start + length].iter_mut().zip(sums) {
                // The length of long copies may be more than one element can hold.
                *merged = (scale * sum).clamp(-MAX, MAX) as f32;
            }
        }
    }
}
