//! The outer step: from what the copies have learned together to the parameters that all go on with.
//!
//! ```text
//!   anchor ────────────────► what all started from, the last checkpoint
//!     │  ╲
//!     │   trained copies     delta_i = anchor - trained_i                       a pseudo-gradient: it points back
//!     │
//!     └─► merged delta g ──► none      parameters = anchor - g                  the average of the copies
//!                            sgd       parameters = anchor - η·g
//!                            nesterov  b ← μ·b + g,   parameters = anchor - η·(g + μ·b)
//!                                      μ rises in a straight line from warmup_from to momentum over warmup_rounds rounds
//! ```
//!
//! Computed in f64 from f32 inputs, element by element, and rounded once to f32 for the momentum `b` and once for the
//! parameters. So all who hold the same anchor, momentum and merged delta step to the same bits, and momentum never has to
//! travel between those who were there from the start.
//!
//! Radial-directional averaging needs the copies themselves, so it is a [`Rule`](crate::Rule), to be followed by one of
//! these.
//!
//! Sources: DiLoCo (arXiv 2311.08105), η 0.7 and μ 0.9 with hundreds of local steps; IOTA's code of 2026, the same with μ
//! from 0.5 to 0.9 over 20 merges. With few local steps deltas of one merge resemble those of the next, and a large μ
//! then overshoots.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::quarantine::first_non_finite;

/// How a merged delta changes the parameters. Formulas are in the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outer {
    /// The parameters become the average of the copies.
    #[default]
    None,
    /// Further, or less far, in the same direction.
    Sgd {
        /// η, above 0; 1 is the average.
        learning_rate: f32,
    },
    /// With Nesterov's momentum from merge to merge.
    Nesterov {
        /// η, above 0.
        learning_rate: f32,
        /// μ after the warm-up, at least 0 and below 1.
        momentum: f32,
        /// μ at round 0, at least 0 and below 1.
        warmup_from: f32,
        /// Rounds of merging until μ is `momentum`. 0: no warm-up.
        warmup_rounds: u32,
    },
}

impl Outer {
    /// Whether its settings make sense.
    ///
    /// # Errors
    /// [`Error::Setting`] names the one that does not.
    pub fn validate(&self) -> Result<(), Error> {
        let require = |holds: bool, name, expected| {
            holds.then_some(()).ok_or(Error::Setting { name, expected })
        };
        let above_zero = |rate: f32| {
            let holds = rate.is_finite() && rate > 0.0;
            require(holds, "learning_rate", "above 0")
        };
        let below_one = |factor: f32, name| {
            require((0.0..1.0).contains(&factor), name, "at least 0 and below 1")
        };
        match *self {
            Self::None => Ok(()),
            Self::Sgd { learning_rate } => above_zero(learning_rate),
            Self::Nesterov {
                learning_rate,
                momentum,
                warmup_from,
                ..
            } => {
                above_zero(learning_rate)?;
                below_one(momentum, "momentum")?;
                below_one(warmup_from, "warmup_from")
            }
        }
    }

    /// Whether it remembers something from merge to merge, as many elements as there are parameters, zeros at first.
    #[must_use]
    pub const fn has_momentum(&self) -> bool {
        matches!(self, Self::Nesterov { .. })
    }

    /// The parameters after a merge.
    ///
    /// `anchor`: the parameters that all copies started from. `merged`: the merged delta. `momentum`: as long as they are
    /// if this [has momentum](Self::has_momentum), else empty; it is brought up to date. `round`: merges before this one,
    /// which decides the warm-up. Any range of a stage may be stepped by itself.
    ///
    /// ```
    /// use iota_merge::{Outer, pseudo_gradient};
    ///
    /// let (anchor, trained) = ([1.0, 2.0], [0.5, 2.5]);
    /// let delta = pseudo_gradient(&anchor, &trained)?;
    /// assert_eq!(Outer::None.step(&anchor, &delta, &mut [], 0)?, trained);
    /// let twice = Outer::Sgd { learning_rate: 2.0 };
    /// assert_eq!(twice.step(&anchor, &delta, &mut [], 0)?, [0.0, 3.0]);
    /// # Ok::<(), iota_merge::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::OtherLength`]; [`Error::Value`] names an element of the result that is not finite. The
    /// momentum is changed only without an error.
    pub fn step(
        &self,
        anchor: &[f32],
        merged: &[f32],
        momentum: &mut [f32],
        round: u64,
    ) -> Result<Vec<f32>, Error> {
        self.validate()?;
        same_length("the merged delta", anchor.len(), merged.len())?;
        let expected = if self.has_momentum() { anchor.len() } else { 0 };
        same_length("the momentum", expected, momentum.len())?;
        let pairs = anchor
            .iter()
            .zip(merged)
            .map(|(&a, &g)| (f64::from(a), f64::from(g)));
        match *self {
            Self::None => finite(pairs.map(|(a, g)| (a - g) as f32).collect()),
            Self::Sgd { learning_rate } => {
                let rate = f64::from(learning_rate);
                finite(pairs.map(|(a, g)| (a - rate * g) as f32).collect())
            }
            Self::Nesterov { learning_rate, .. } => {
                let (rate, factor) = (f64::from(learning_rate), self.momentum_at(round));
                let next: Vec<f32> = momentum
                    .iter()
                    .zip(merged)
                    .map(|(&b, &g)| (factor * f64::from(b) + f64::from(g)) as f32)
                    .collect();
                let step = pairs
                    .zip(&next)
                    .map(|((a, g), &b)| (a - rate * (g + factor * f64::from(b))) as f32);
                let parameters = finite(step.collect())?;
                momentum.copy_from_slice(&finite(next)?);
                Ok(parameters)
            }
        }
    }

    /// μ at a round; 0 without momentum.
    #[must_use]
    pub fn momentum_at(&self, round: u64) -> f64 {
        let Self::Nesterov {
            momentum,
            warmup_from,
            warmup_rounds,
            ..
        } = *self
        else {
            return 0.0;
        };
        let (from, to) = (f64::from(warmup_from), f64::from(momentum));
        if round >= u64::from(warmup_rounds) {
            return to;
        }
        from + (to - from) * (round as f64 / f64::from(warmup_rounds))
    }
}

/// What a copy has learned: `anchor - trained`, rounded to f32.
///
/// # Errors
/// [`Error::OtherLength`] if they are not equally long; [`Error::Value`] names an element where the difference is not
/// finite.
pub fn pseudo_gradient(anchor: &[f32], trained: &[f32]) -> Result<Vec<f32>, Error> {
    same_length("the trained copy", anchor.len(), trained.len())?;
    finite(anchor.iter().zip(trained).map(|(a, x)| a - x).collect())
}

pub(crate) fn same_length(what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found {
        Ok(())
    } else {
        Err(Error::OtherLength {
            what,
            expected,
            found,
        })
    }
}

fn finite(elements: Vec<f32>) -> Result<Vec<f32>, Error> {
    match first_non_finite(&elements) {
        Some(element) => Err(Error::Value { element }),
        None => Ok(elements),
    }
}
