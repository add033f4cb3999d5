//! How a replay's results are compared with what a miner committed to.
//!
//! ```text
//!   Bits     digest of ours == digest of theirs        where the same operations give the same bits: on CPUs
//!
//!   Close    |ours - theirs| within a tolerance        anywhere; theirs is read from the store, by that digest
//!               tolerance │          ┌────
//!                         │     ┌────┘                 of how far two honest machines come apart, measured
//!                         │ ────┘
//!                         └──────────────── optimizer steps since the checkpoint
//! ```
//!
//! Two machines that round differently come apart with each step of the optimizer, at first slowly. Nobody knows by how
//! much from first principles, so a run carries a table of what was measured with its model and its settings, times a
//! margin; `iota-orchestrator tolerances` makes it.

use serde::{Deserialize, Serialize};

/// How a replay's results are compared with what a miner committed to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how", deny_unknown_fields)]
pub enum Comparison {
    /// Bit for bit.
    #[default]
    Bits,
    /// Within tolerances.
    Close {
        /// By steps, ascending.
        tolerances: Vec<Tolerances>,
    },
}

/// How far what an honest miner computes may be from what a validator does, while no more than so many steps lie between
/// the checkpoint and the weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerances {
    /// Optimizer steps since the checkpoint.
    pub steps: u64,
    /// Of what a stage hands on, as it arrives.
    pub activation: Tolerance,
    /// Of what it hands back, as it arrives.
    pub gradient: Tolerance,
    /// Of the loss, as a fraction of it.
    pub loss: f64,
    /// Of what became of a cell's parameters since the checkpoint.
    pub change: Tolerance,
    /// Of the optimizer's first moment.
    pub first_moment: Tolerance,
    /// Of its second moment.
    pub second_moment: Tolerance,
}

/// How far a tensor may be from another. Each has to hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// `|theirs - ours| / |ours|`: how much of it may be something else.
    pub relative: f64,
    /// The largest difference of a row (of a token's channels, or of 256 neighbouring parameters), as a fraction of that
    /// row's length and the usual row's together: whether a little of it is something else altogether.
    pub row: f64,
    /// `|<theirs, ours> / <ours, ours> - 1|`: whether it is longer or shorter.
    pub scale: f64,
}

/// Tolerances that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ComparisonError {
    /// There are none.
    #[error(
        "a run that compares closely needs tolerances; `iota-orchestrator tolerances` measures them"
    )]
    Missing,
    /// Not a growing number of steps.
    #[error("tolerances go by steps, ascending")]
    Order,
    /// Negative, infinite or not a number.
    #[error("a tolerance is a finite number from 0")]
    Number,
    /// So wide that a tensor of zeros would be close to everything, or nearly.
    #[error("a relative tolerance above {RELATIVE_MAX} finds nobody: epochs need fewer steps")]
    TooWide,
    /// Two honest uploads of this kind may differ in which values they send.
    #[error(
        "uploads by {codec}, or that make up for what earlier ones left out, cannot be compared closely: \
         merging.upload has to be f32, or bf16 with merging.feedback 0"
    )]
    Upload {
        /// As the run has it.
        codec: iota_merge::Codec,
    },
    /// What a miner trains on from is not compared closely.
    #[error("a run that trains on while it merges compares bits")]
    Overlap,
}

/// Tensors that have nothing to do with each other are 1.4 apart, and zeros are 1 from anything.
pub const RELATIVE_MAX: f64 = 0.5;

impl Comparison {
    /// Whether it is bit for bit.
    pub const fn is_bits(&self) -> bool {
        matches!(self, Self::Bits)
    }

    /// What holds with so many steps since the checkpoint. None where nothing has been measured, and of bits.
    pub fn tolerances(&self, steps: u64) -> Option<&Tolerances> {
        match self {
            Self::Bits => None,
            Self::Close { tolerances } => tolerances.iter().find(|row| steps <= row.steps),
        }
    }

    /// Whether work so many steps after the checkpoint cannot be compared.
    pub fn is_beyond(&self, steps: u64) -> bool {
        self.steps_max().is_some_and(|max| steps > max)
    }

    /// Steps since the checkpoint up to which work can be compared; none: any number.
    pub fn steps_max(&self) -> Option<u64> {
        match self {
            Self::Bits => None,
            Self::Close { tolerances } => Some(tolerances.last().map_or(0, |row| row.steps)),
        }
    }

    /// Whether an honest miner would pass and some other would not.
    ///
    /// # Errors
    /// [`ComparisonError`] says what cannot be.
    pub fn validate(&self) -> Result<(), ComparisonError> {
        let Self::Close { tolerances } = self else {
            return Ok(());
        };
        if tolerances.is_empty() {
            return Err(ComparisonError::Missing);
        }
        if !tolerances.is_sorted_by(|a, b| a.steps < b.steps) {
            return Err(ComparisonError::Order);
        }
        for row in tolerances {
            let all = row.each();
            let numbers = all.iter().flat_map(|it| [it.relative, it.row, it.scale]);
            let mut numbers = numbers.chain([row.loss]);
            if !numbers.all(|number| number.is_finite() && number >= 0.0) {
                return Err(ComparisonError::Number);
            }
            if all.iter().any(|it| it.relative > RELATIVE_MAX) || row.loss > RELATIVE_MAX {
                return Err(ComparisonError::TooWide);
            }
        }
        Ok(())
    }
}

impl Tolerances {
    const fn each(&self) -> [Tolerance; 5] {
        [
            self.activation,
            self.gradient,
            self.change,
            self.first_moment,
            self.second_moment,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(steps: u64, relative: f64) -> Tolerances {
        let tolerance = Tolerance {
            relative,
            row: 2.0 * relative,
            scale: 0.1 * relative,
        };
        Tolerances {
            steps,
            activation: tolerance,
            gradient: tolerance,
            loss: relative,
            change: tolerance,
            first_moment: tolerance,
            second_moment: tolerance,
        }
    }

    fn close(tolerances: &[Tolerances]) -> Comparison {
        Comparison::Close {
            tolerances: tolerances.to_vec(),
        }
    }

    #[test]
    fn what_was_measured_for_as_many_steps_or_more_holds_and_nothing_beyond() {
        let comparison = close(&[row(4, 0.01), row(16, 0.1)]);
        comparison.validate().unwrap();
        let of = |steps| comparison.tolerances(steps).map(|row| row.steps);
        assert_eq!([of(0), of(4), of(5), of(16)], [4, 4, 16, 16].map(Some));
        assert_eq!(of(17), None);
        assert_eq!(comparison.steps_max(), Some(16));
        assert_eq!(Comparison::Bits.steps_max(), None);
    }

    #[test]
    fn tolerances_that_find_nobody_or_say_nothing_are_refused() {
        use ComparisonError::{Missing, Number, Order, TooWide};
        for (tolerances, error) in [
            (vec![], Missing),
            (vec![row(4, 0.1), row(4, 0.1)], Order),
            (vec![row(4, f64::NAN)], Number),
            (vec![row(4, -0.1)], Number),
            (vec![row(4, 0.6)], TooWide),
        ] {
            assert_eq!(close(&tolerances).validate(), Err(error));
        }
    }

    #[test]
    fn tolerances_come_back_as_they_were_sent() {
        let comparison = close(&[row(4, 0.25), row(9, 0.5)]);
        let json = serde_json::to_string(&comparison).unwrap();
        assert_eq!(
            serde_json::from_str::<Comparison>(&json).unwrap(),
            comparison
        );
    }
}
