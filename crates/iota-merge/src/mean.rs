//! The weighted mean: of copies that are all at hand, or one after the other as they arrive.
//!
//! For every element on its own, over the copies `i` that take part, in the order in which they were given:
//!
//! ```text
//!             w_0·x_0 + w_1·x_1 + ... + w_k·x_k         products, sums and the quotient in f64,
//!   mean  =  -----------------------------------         the quotient rounded to f32 once;
//!                 w_0 + w_1 + ... + w_k                  the divisor summed in whole numbers
//! ```
//!
//! Why this gives the same bits everywhere: IEEE 754 fixes the result of each of these operations, no two of them are
//! fused (Rust never contracts a product and a sum into one), and no element's sum depends on another element. So a
//! compiler may take two or eight elements at a time, and a caller may cut the range anywhere.
//!
//! Why copies of one tensor give it back: `x` has 24 significant bits and f64 has 53, so each of the `k` rounded
//! products and sums is off by at most one part in 2^53, and the quotient by about `k` parts in 2^52. Rounding to f32
//! forgives anything below one part in 2^25. For the same reason the mean never leaves the range of its inputs.
//!
//! Source: IOTA primer (arXiv 2507.17766), butterfly all-reduce. IOTA's published code computes the same quotient in
//! f32 and rounds it to bf16, with 1 + the backward passes of a miner as its weight.

use crate::error::Error;
use crate::quarantine::{Quarantined, first_non_finite};

/// One machine's copy of the range that is merged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightedCopy<'a> {
    /// Its elements.
    pub elements: &'a [f32],
    /// How much it counts, for example the backward passes that went into it. With 0 it takes no part.
    pub weight: u64,
}

/// A merged range.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// The mean of the copies that were not left out. All finite.
    pub elements: Vec<f32>,
    /// The copies that were not averaged in because they are not finite, in order. Usually empty.
    pub left_out: Vec<Quarantined>,
}

/// Elements that all copies are read for before the next ones. Their f64 sums (16 KiB) and a copy's elements (8 KiB)
/// stay in a 32 KiB L1 cache, so that the copies are streamed through once and nothing else moves.
const CHUNK: usize = 2048;

/// Where sums start: `-0.0 + x` is `x` for every x, while `0.0 + -0.0` would lose the sign of a negative zero.
const NOTHING: f64 = -0.0;

/// The weighted mean of `copies`, in their order.
///
/// `copies`: all of one length. Returns as many elements: `sum(w_i * x_i) / sum(w_i)` over the finite copies, see the
/// [module](self) for the exact arithmetic.
///
/// # Errors
/// [`Error::NoCopies`]; [`Error::Length`] names the first copy that is not as long as copy 0; [`Error::NoneFinite`];
/// [`Error::ZeroWeight`].
pub fn weighted_mean(copies: &[WeightedCopy<'_>]) -> Result<Merged, Error> {
    let mut elements = vec![0.0; copies.first().ok_or(Error::NoCopies)?.elements.len()];
    let left_out = weighted_mean_into(copies, &mut elements)?;
    Ok(Merged { elements, left_out })
}

/// As [`weighted_mean`], into memory that the caller has. Returns the copies that were left out.
///
/// Allocates nothing as long as no copy is left out.
///
/// # Errors
/// As [`weighted_mean`], with the length of `merged` as the one that all copies must have. `merged` then holds
/// anything.
pub fn weighted_mean_into(
    copies: &[WeightedCopy<'_>],
    merged: &mut [f32],
) -> Result<Vec<Quarantined>, Error> {
    if copies.is_empty() {
        return Err(Error::NoCopies);
    }
    for (copy, WeightedCopy { elements, .. }) in copies.iter().enumerate() {
        if elements.len() != merged.len() {
            return Err(Error::Length {
                copy,
                expected: merged.len(),
                found: elements.len(),
            });
        }
    }

    // Honest copies are finite. Looking through them all first would read all memory twice for nothing, so the mean is
    // tried, and a copy that spoils it is found afterwards. It does spoil it: finite f32 never overflow the f64 sums,
    // and a NaN or infinity in a sum never leaves it. Copies of weight 0 are not in the sum, so they are looked at
    // beforehand; they are rare.
    let idle = copies
        .iter()
        .any(|copy| copy.weight == 0 && first_non_finite(copy.elements).is_some());
    if !idle {
        let total = total_weight(copies, &[]);
        if total > 0 && mean_of_all(copies, &[], total, merged) {
            return Ok(Vec::new());
        }
    }

    let left_out: Vec<Quarantined> = copies
        .iter()
        .enumerate()
        .filter_map(|(copy, WeightedCopy { elements, .. })| {
            first_non_finite(elements).map(|element| Quarantined { copy, element })
        })
        .collect();
    if left_out.len() == copies.len() {
        return Err(Error::NoneFinite { left_out });
    }
    let total = total_weight(copies, &left_out);
    if total == 0 {
        return Err(Error::ZeroWeight);
    }
    let finite = mean_of_all(copies, &left_out, total, merged);
    assert!(finite, "a mean of finite numbers is finite");
    Ok(left_out)
}

/// Merges copies that come one after the other, holding none of them.
///
/// Gives the bits of [`weighted_mean`] over the same copies in the same order. Takes 8 bytes per element however many
/// copies there are, and moves several times the memory, for the sums do not stay in cache from one copy to the next.
///
/// ```
/// use iota_merge::Accumulator;
///
/// let mut cell = Accumulator::new(2);
/// cell.add(&[1.0, 2.0], 3)?;
/// cell.add(&[f32::INFINITY, 0.0], 9)?;
/// cell.add(&[5.0, 2.0], 1)?;
/// let merged = cell.finish()?;
/// assert_eq!(merged.elements, [2.0, 2.0]);
/// assert_eq!(merged.left_out[0].copy, 1);
/// # Ok::<(), iota_merge::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Accumulator {
    sums: Vec<f64>,
    total: u128,
    copies: usize,
    left_out: Vec<Quarantined>,
}

impl Accumulator {
    /// An accumulator for copies of this many elements.
    #[must_use]
    pub fn new(elements: usize) -> Self {
        Self {
            sums: vec![NOTHING; elements],
            total: 0,
            copies: 0,
            left_out: Vec::new(),
        }
    }

    /// Takes in the next copy, or notes it as left out if it is not finite.
    ///
    /// # Errors
    /// [`Error::Length`] if it does not have as many elements as the accumulator. It then does not count as a copy.
    pub fn add(&mut self, copy: &[f32], weight: u64) -> Result<(), Error> {
        if copy.len() != self.sums.len() {
            return Err(Error::Length {
                copy: self.copies,
                expected: self.sums.len(),
                found: copy.len(),
            });
        }
        // A copy cannot be taken out of a sum again, so this has to come first.
        if let Some(element) = first_non_finite(copy) {
            self.left_out.push(Quarantined {
                copy: self.copies,
                element,
            });
        } else if weight > 0 {
            add_weighted(&mut self.sums, copy, weight);
            self.total += u128::from(weight);
        }
        self.copies += 1;
        Ok(())
    }

    /// The mean of what was added.
    ///
    /// # Errors
    /// [`Error::NoCopies`], [`Error::NoneFinite`], [`Error::ZeroWeight`].
    pub fn finish(self) -> Result<Merged, Error> {
        if self.copies == 0 {
            return Err(Error::NoCopies);
        }
        if self.left_out.len() == self.copies {
            return Err(Error::NoneFinite {
                left_out: self.left_out,
            });
        }
        if self.total == 0 {
            return Err(Error::ZeroWeight);
        }
        let mut elements = vec![0.0; self.sums.len()];
        let finite = divide(&self.sums, self.total, &mut elements);
        assert!(finite, "a mean of finite numbers is finite");
        Ok(Merged {
            elements,
            left_out: self.left_out,
        })
    }
}

/// Sum of the weights, exact: 2^64 copies of the largest weight would not overflow it.
fn total_weight(copies: &[WeightedCopy<'_>], left_out: &[Quarantined]) -> u128 {
    taking_part(copies, left_out)
        .map(|copy| u128::from(copy.weight))
        .sum()
}

/// Copies with a weight that are not in `left_out`, which is in order.
fn taking_part<'a, 'b>(
    copies: &'b [WeightedCopy<'a>],
    left_out: &'b [Quarantined],
) -> impl Iterator<Item = &'b WeightedCopy<'a>> {
    copies.iter().enumerate().filter_map(move |(index, copy)| {
        let excluded = left_out
            .binary_search_by_key(&index, |quarantined| quarantined.copy)
            .is_ok();
        (copy.weight > 0 && !excluded).then_some(copy)
    })
}

/// Writes the mean chunk by chunk. Stops and says `false` at the first chunk that is not finite.
fn mean_of_all(
    copies: &[WeightedCopy<'_>],
    left_out: &[Quarantined],
    total: u128,
    merged: &mut [f32],
) -> bool {
    let mut sums = [NOTHING; CHUNK];
    for (index, merged) in merged.chunks_mut(CHUNK).enumerate() {
        let sums = &mut sums[..merged.len()];
        sums.fill(NOTHING);
        let start = index * CHUNK;
        for copy in taking_part(copies, left_out) {
            add_weighted(
                sums,
                &copy.elements[start..start + merged.len()],
                copy.weight,
            );
        }
        if !divide(sums, total, merged) {
            return false;
        }
    }
    true
}

/// `sums += weight * copy`. The lengths are equal.
fn add_weighted(sums: &mut [f64], copy: &[f32], weight: u64) {
    let weight = weight as f64;
    for (sum, &x) in sums.iter_mut().zip(copy) {
        *sum += weight * f64::from(x);
    }
}

/// `merged = sums / total`, and whether all of it is finite. The lengths are equal.
fn divide(sums: &[f64], total: u128, merged: &mut [f32]) -> bool {
    let total = total as f64;
    for (mean, &sum) in merged.iter_mut().zip(sums) {
        *mean = (sum / total) as f32;
    }
    first_non_finite(merged).is_none()
}
