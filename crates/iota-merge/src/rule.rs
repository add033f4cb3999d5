//! The rules by name, so that a run can choose one: what makes one range out of many copies of it.
//!
//! | rule | a minority of garbage | bytes of memory it reads | for |
//! |---|---|---|---|
//! | [`WeightedMean`](Rule::WeightedMean) | moves it anywhere, unless clipped | each copy once | weights, deltas |
//! | [`GeometricMean`](Rule::GeometricMean) | moves it, down to 0 | each copy once | weights, deltas |
//! | [`Median`](Rule::Median) | up to (k-1)/2 copies cannot | each copy once | weights, deltas that are not sparse |
//! | [`TrimmedMean`](Rule::TrimmedMean) | up to the trimmed ones cannot | each copy once | as the median |
//! | [`CenteredClip`](Rule::CenteredClip) | moves it by a bounded length | 1 + 2 times a round | weights, deltas |
//! | [`Radial`](Rule::Radial) | turns it, does not lengthen it if clipped | three times | deltas |
//!
//! A *delta* is what a copy has learned since all were equal ([`outer`](crate::outer)).
//!
//! [`Clip`] shortens copies before any rule looks at them. It and the rules that know lengths see the range that is
//! merged, in a run a cell, as a whole: merging it in pieces gives other bits. All others work element by element and give
//! the same bits however a range is cut; [`Rule::is_elementwise`] says which.

use serde::{Deserialize, Serialize};

use crate::element::Element;
use crate::error::Error;
use crate::mean::kernel::mean_of_parts;
use crate::mean::{Merged, WeightedCopy, check_lengths};
use crate::norm::{length_of, median, shrinking};
use crate::quarantine::{Quarantined, first_non_finite};
use crate::{centre, geometric, order};

/// How many copies become one. Formulas are in the modules that are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rule {
    /// The weighted arithmetic mean: [`mean`](crate::mean).
    #[default]
    WeightedMean,
    /// The weighted geometric mean of magnitudes where all signs agree, elsewhere 0: [`geometric`].
    GeometricMean,
    /// The median of each element: [`order`].
    Median,
    /// The mean of each element without its largest and smallest values: [`order`].
    TrimmedMean {
        /// Hundredths of the copies that are cut off at either end, rounded up to a whole copy; at most 49.
        trim_percent: u8,
    },
    /// The weighted mean, but no copy pulls further than the usual distance: [`centre`].
    CenteredClip {
        /// How far a copy may pull, in hundredths of the median distance from the centre; at least 1.
        radius_percent: u16,
        /// How often the centre is moved; at least 1. One is enough where the median is a good start.
        rounds: u8,
    },
    /// Directions and lengths averaged apart: [`centre`].
    Radial,
}

/// Whether copies are shortened before they are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Clip {
    /// They are taken as they are.
    #[default]
    None,
    /// A copy that is longer than the median of all lengths becomes as long as that:
    /// `x_i · min(1, median(|x|) / |x_i|)`, rounded to f32. For deltas: the length of weights says nothing.
    ///
    /// Source: SparseLoCo (arXiv 2508.15706) and Covenant-72B (arXiv 2603.08163), by submission; here by merged range.
    MedianNorm,
}

impl Rule {
    /// The trimmed mean that cuts off one of up to ten copies at either end.
    pub const TRIMMED: Self = Self::TrimmedMean { trim_percent: 10 };
    /// The centered clip with the median distance as its radius, and one round.
    pub const CLIPPED: Self = Self::CenteredClip {
        radius_percent: 100,
        rounds: 1,
    };

    /// Whether its settings make sense.
    ///
    /// # Errors
    /// [`Error::Setting`] names the one that does not.
    pub const fn validate(self) -> Result<(), Error> {
        match self {
            Self::TrimmedMean { trim_percent: 50.. } => Err(Error::Setting {
                name: "trim_percent",
                expected: "at most 49",
            }),
            Self::CenteredClip {
                radius_percent: 0, ..
            } => Err(Error::Setting {
                name: "radius_percent",
                expected: "at least 1",
            }),
            Self::CenteredClip { rounds: 0, .. } => Err(Error::Setting {
                name: "rounds",
                expected: "at least 1",
            }),
            _ => Ok(()),
        }
    }

    /// Whether merging a range in pieces gives the bits of merging it whole, with this clipping.
    #[must_use]
    pub fn is_elementwise(self, clip: Clip) -> bool {
        clip == Clip::None && !matches!(self, Self::CenteredClip { .. } | Self::Radial)
    }

    /// Merges copies.
    ///
    /// `copies`: all of one length; those of weight 0, and those that are not finite, take no part. The latter are named
    /// in the result. The order of the copies is part of the definition, except for median and trimmed mean.
    ///
    /// ```
    /// use iota_merge::{Clip, Rule, WeightedCopy};
    ///
    /// let copies = [[1.0, 2.0], [3.0, 2.0], [-1e30, 1e30]];
    /// let copies = copies.each_ref().map(|elements| WeightedCopy { elements, weight: 1 });
    /// assert_eq!(Rule::Median.merge(&copies, Clip::None)?.elements, [1.0, 2.0]);
    /// # Ok::<(), iota_merge::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoCopies`]; [`Error::Length`] names the first copy that is not as long as copy 0; [`Error::NoneFinite`];
    /// [`Error::ZeroWeight`]; [`Error::Setting`].
    pub fn merge<E: Element>(
        self,
        copies: &[WeightedCopy<'_, E>],
        clip: Clip,
    ) -> Result<Merged, Error> {
        let mut elements = vec![0.0; copies.first().ok_or(Error::NoCopies)?.elements.len()];
        let left_out = self.merge_into(copies, clip, &mut elements)?;
        Ok(Merged { elements, left_out })
    }

    /// As [`Rule::merge`], into memory that the caller has. Returns the copies that were left out.
    ///
    /// # Errors
    /// As [`Rule::merge`], with the length of `merged` as the one that all copies must have. `merged` then holds anything.
    pub fn merge_into<E: Element>(
        self,
        copies: &[WeightedCopy<'_, E>],
        clip: Clip,
        merged: &mut [f32],
    ) -> Result<Vec<Quarantined>, Error> {
        self.validate()?;
        check_lengths(copies, merged.len())?;
        // Honest copies are finite. Looking through them all first would read all memory twice for nothing, so they are
        // merged, and a copy that spoils the result is found afterwards. Copies of weight 0 would spoil nothing, so they
        // are looked at beforehand; they are rare.
        let idle = copies
            .iter()
            .any(|copy| copy.weight == 0 && first_non_finite(copy.elements).is_some());
        if !idle && self.merge_parts(parts(copies, &[]), clip, merged) {
            return Ok(Vec::new());
        }
        let left_out = not_finite(copies);
        if left_out.len() == copies.len() {
            return Err(Error::NoneFinite { left_out });
        }
        let parts = parts(copies, &left_out);
        if parts.is_empty() {
            return Err(Error::ZeroWeight);
        }
        let finite = self.merge_parts(parts, clip, merged);
        assert!(finite, "merging finite numbers gives finite numbers");
        Ok(left_out)
    }

    /// Merges what takes part. `false`, and anything in `merged`, if that is nothing or not finite.
    fn merge_parts<E: Element>(
        self,
        mut parts: Vec<Part<'_, E>>,
        clip: Clip,
        merged: &mut [f32],
    ) -> bool {
        if parts.is_empty() {
            return false;
        }
        if clip == Clip::MedianNorm {
            let norms: Vec<f64> = parts.iter().map(length_of).collect();
            if norms.iter().any(|norm| !norm.is_finite()) {
                return false;
            }
            let factors = shrinking(&norms, median(norms.clone()));
            for (part, factor) in parts.iter_mut().zip(factors) {
                part.factor = factor;
            }
        }
        let total = parts.iter().map(|part| part.whole_weight).sum::<u128>() as f64;
        match self {
            Self::WeightedMean => mean_of_parts(&parts, total, merged),
            Self::GeometricMean => geometric::geometric_mean(&parts, total, merged),
            Self::Median => order::mean_of_sorted(&parts, order::middle(parts.len()), merged),
            Self::TrimmedMean { trim_percent } => {
                order::mean_of_sorted(&parts, order::trimmed(parts.len(), trim_percent), merged)
            }
            Self::CenteredClip {
                radius_percent,
                rounds,
            } => centre::centered_clip(&parts, total, radius_percent, rounds, merged),
            Self::Radial => centre::radial(&parts, total, merged),
        }
    }
}

/// A copy that takes part in a merge.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a, E> {
    pub(crate) elements: &'a [E],
    /// As a sum is made of it.
    pub(crate) weight: f64,
    /// As the divisor is made of it.
    pub(crate) whole_weight: u128,
    /// What each element is multiplied with first; the product is rounded to f32.
    pub(crate) factor: f64,
}

impl<'a, E: Element> Part<'a, E> {
    /// A copy that counts once, unclipped.
    pub(crate) const fn whole(elements: &'a [E]) -> Self {
        Self {
            elements,
            weight: 1.0,
            whole_weight: 1,
            factor: 1.0,
        }
    }

    /// Fills `values` with the elements from `start` on.
    #[inline(always)]
    pub(crate) fn read(&self, start: usize, values: &mut [f32]) {
        let elements = &self.elements[start..start + values.len()];
        for (value, element) in values.iter_mut().zip(elements) {
            *value = element.to_f32();
        }
        if self.factor != 1.0 {
            for value in values {
                *value = (f64::from(*value) * self.factor) as f32;
            }
        }
    }
}

/// Copies with a weight that are not in `left_out`, which is in order.
pub(crate) fn parts<'a, E: Element>(
    copies: &[WeightedCopy<'a, E>],
    left_out: &[Quarantined],
) -> Vec<Part<'a, E>> {
    let takes_part = |index: usize, weight: u64| {
        weight > 0
            && left_out
                .binary_search_by_key(&index, |quarantined| quarantined.copy)
                .is_err()
    };
    copies
        .iter()
        .enumerate()
        .filter(|(index, copy)| takes_part(*index, copy.weight))
        .map(|(_, copy)| Part {
            elements: copy.elements,
            weight: copy.weight as f64,
            whole_weight: u128::from(copy.weight),
            factor: 1.0,
        })
        .collect()
}

/// All copies that are not finite, whatever their weight, in order.
pub(crate) fn not_finite<E: Element>(copies: &[WeightedCopy<'_, E>]) -> Vec<Quarantined> {
    let bad = |(copy, WeightedCopy { elements, .. }): (usize, &WeightedCopy<'_, E>)| {
        first_non_finite(elements).map(|element| Quarantined { copy, element })
    };
    copies.iter().enumerate().filter_map(bad).collect()
}
