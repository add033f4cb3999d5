//! Median and trimmed mean, coordinate by coordinate: what a minority sends cannot move them far, however large it is.
//!
//! ```text
//!   sorted by value     x_(0) ≤ x_(1) ≤ ... ≤ x_(k-1)              of one element, over the k copies that take part
//!
//!   median              x_((k-1)/2)                                 k odd
//!                       (x_(k/2-1) + x_(k/2)) / 2                   k even
//!   trimmed mean        (x_(t) + ... + x_(k-1-t)) / (k - 2t)        t = ceil(k · percent / 100), at most (k-1)/2
//! ```
//!
//! Sums in ascending order in f64, rounded to f32 once. Every copy counts once: a weight only says whether it takes part,
//! for weights that untrusted machines earn by their own account would be the first thing to forge.
//!
//! Columns are sorted by a network, a fixed list of "put the smaller one here": no branches, so that a vector holds one
//! copy's elements of 64 columns and every step sorts all of them at once. The network is Batcher's odd-even merge sort for
//! any `k`, without the steps that none of the places in the middle depends on. Numbers are compared by the total order of
//! IEEE 754, as integers, so that the order in which copies are given does not matter, not even for zeros.
//!
//! Sources: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (ICML 2018, arXiv
//! 1803.01498); Batcher, "Sorting networks and their applications" (1968).

use std::ops::Range;

use crate::element::Element;
use crate::quarantine::is_all_finite;
use crate::rule::Part;
use crate::vector::{Kernel, dispatch};

/// Columns that are sorted side by side. 64 columns of 50 copies are 12.5 KiB and stay in L1.
const COLUMNS: usize = 64;

/// Of `k` sorted copies, those in the middle.
pub(crate) fn middle(k: usize) -> Range<usize> {
    (k - 1) / 2..k / 2 + 1
}

/// Of `k` sorted copies, those that are left when so many hundredths are cut off at either end.
pub(crate) fn trimmed(k: usize, percent: u8) -> Range<usize> {
    let trim = (k * usize::from(percent)).div_ceil(100).min((k - 1) / 2);
    trim..k - trim
}

/// Writes the mean of the sorted copies `keep`, column by column. `false` if an element of a copy is not finite.
pub(crate) fn mean_of_sorted<E: Element>(
    parts: &[Part<'_, E>],
    keep: Range<usize>,
    merged: &mut [f32],
) -> bool {
    let network = network(parts.len(), keep.clone());
    dispatch(Columns {
        parts,
        network: &network,
        keep,
        merged,
    })
}

struct Columns<'a, E> {
    parts: &'a [Part<'a, E>],
    network: &'a [(usize, usize)],
    keep: Range<usize>,
    merged: &'a mut [f32],
}

impl<E: Element> Kernel for Columns<'_, E> {
    type Output = bool;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> bool {
        let mut keys = vec![[0_i32; COLUMNS]; self.parts.len()];
        let mut values = [0.0; COLUMNS];
        let mut is_finite = true;
        let count = self.keep.len() as f64;
        for (tile, merged) in self.merged.chunks_mut(COLUMNS).enumerate() {
            let values = &mut values[..merged.len()];
            for (part, keys) in self.parts.iter().zip(&mut keys) {
                part.read(tile * COLUMNS, values);
                is_finite &= is_all_finite(values);
                for (key, value) in keys.iter_mut().zip(&*values) {
                    *key = to_key(*value);
                }
            }
            for &(low, high) in self.network {
                let (before, after) = keys.split_at_mut(high);
                for (a, b) in before[low].iter_mut().zip(&mut after[0]) {
                    (*a, *b) = ((*a).min(*b), (*a).max(*b));
                }
            }
            let mut sums = [-0.0_f64; COLUMNS];
            for keys in &keys[self.keep.clone()] {
                for (sum, &key) in sums.iter_mut().zip(keys) {
                    *sum += f64::from(from_key(key));
                }
            }
            for (mean, sum) in merged.iter_mut().zip(&sums) {
                *mean = (sum / count) as f32;
            }
        }
        is_finite
    }
}

/// An integer that is ordered as the number is: of a negative number all bits but the sign are turned over.
#[inline(always)]
fn to_key(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) & i32::MAX)
}

#[inline(always)]
fn from_key(key: i32) -> f32 {
    f32::from_bits((key ^ ((key >> 31) & i32::MAX)) as u32)
}

/// Pairs to be put in order, one after the other, until the places `keep` of `k` hold what they hold when all are sorted.
fn network(k: usize, keep: Range<usize>) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    let size = k.next_power_of_two();
    let mut run = 1;
    while run < size {
        let mut distance = run;
        while distance > 0 {
            for start in (distance % run..size - distance).step_by(2 * distance) {
                for low in start..start + distance {
                    let high = low + distance;
                    // Places from k on would hold the largest numbers, which are where they belong already.
                    if high < k && low / (2 * run) == high / (2 * run) {
                        pairs.push((low, high));
                    }
                }
            }
            distance /= 2;
        }
        run *= 2;
    }
    let mut needed = vec![false; k];
    needed[keep].fill(true);
    let mut kept: Vec<(usize, usize)> = pairs
        .into_iter()
        .rev()
        .filter(|&(low, high)| {
            let is_needed = needed[low] || needed[high];
            if is_needed {
                (needed[low], needed[high]) = (true, true);
            }
            is_needed
        })
        .collect();
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network that sorts all zeros and ones sorts everything (Knuth, volume 3, section 5.3.4).
    #[test]
    fn the_network_puts_into_the_middle_what_sorting_puts_there() {
        for k in 1..=13_usize {
            for keep in [0..k, middle(k), trimmed(k, 10), trimmed(k, 30)] {
                let network = network(k, keep.clone());
                for pattern in 0..1_u32 << k {
                    let mut places: Vec<u32> = (0..k).map(|place| pattern >> place & 1).collect();
                    for &(low, high) in &network {
                        if places[low] > places[high] {
                            places.swap(low, high);
                        }
                    }
                    let zeros = k - pattern.count_ones() as usize;
                    for place in keep.clone() {
                        assert_eq!(places[place], u32::from(place >= zeros), "{k} copies");
                    }
                }
            }
        }
    }

    #[test]
    fn a_median_takes_fewer_steps_than_sorting() {
        assert_eq!(network(8, 0..8).len(), 19);
        assert!(network(8, middle(8)).len() < 19);
        assert_eq!(network(1, 0..1), []);
    }

    #[test]
    fn trimming_leaves_at_least_one_copy_and_cuts_off_the_same_at_both_ends() {
        for (k, percent, kept) in [
            (1, 49, 0..1),
            (2, 10, 0..2),
            (3, 10, 1..2),
            (8, 10, 1..7),
            (8, 13, 2..6),
            (8, 49, 3..5),
            (50, 10, 5..45),
            (9, 0, 0..9),
        ] {
            assert_eq!(trimmed(k, percent), kept, "{k} copies, {percent} %");
        }
        assert_eq!((middle(5), middle(6)), (2..3, 2..4));
    }

    #[test]
    fn keys_are_ordered_as_numbers_are() {
        let sorted = [
            f32::MIN,
            -1.0,
            -f32::MIN_POSITIVE,
            -0.0,
            0.0,
            1e-45,
            1.0,
            f32::MAX,
        ];
        assert!(sorted.map(to_key).is_sorted());
        for value in sorted {
            assert_eq!(from_key(to_key(value)).to_bits(), value.to_bits());
        }
    }
}
