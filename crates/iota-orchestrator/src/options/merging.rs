//! What an operator can set about how a stage's miners become of one mind again.

use iota_merge::{Clip, Codec, Outer, Rule};
use iota_protocol::cells::Cells;
use iota_protocol::settings::Merging;
use iota_run::{Merge, OptimizerState};
use serde::{Deserialize, Serialize};

/// How a stage's miners become of one mind again at the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MergingOptions {
    /// Cells that a stage is cut into; 0: one for every pair of its miners, IOTA's butterfly, which suits up to 50 miners.
    pub cells: u32,
    /// Miners that merge the same cell, if `cells` says how many there are: the more than half of them decide. A pair
    /// that differs asks a third.
    pub owners: u32,
    /// Owners of a cell that store what they merged; all others only commit to its digest. More than 1 is of use only where
    /// the store may lose what it had.
    pub copies: u32,
    /// How many values become one: `mean`, `geometric`, `median`, `trimmed`, `clipped` or `radial`. All but the means
    /// bear a few miners that upload garbage.
    pub rule: RuleName,
    /// Hundredths of the copies that `trimmed` cuts off at either end.
    pub trim_percent: u8,
    /// How far a copy may pull with `clipped`, in hundredths of the usual distance from the median.
    pub radius_percent: u16,
    /// Whether what a miner has learned is shortened to the usual length before it is merged.
    pub clip_to_median: bool,
    /// What is done with what the rule gives: `none`, `sgd` or `nesterov`.
    pub outer: OuterName,
    /// How far an outer step goes; 1 goes where the rule says.
    pub outer_learning_rate: f64,
    /// Momentum of `nesterov` from merge to merge.
    pub outer_momentum: f64,
    /// Its momentum at the first merge.
    pub outer_momentum_first: f64,
    /// Merges until it has risen to `outer_momentum`.
    pub outer_warmup_merges: u32,
    /// How uploads become bytes: `f32`, `bf16`, `int8`, `top-k`, `signs`, `ternary` or `low-rank`. All but `f32` send what
    /// was learned since the checkpoint.
    pub upload: CodecName,
    /// How that becomes bytes which a merge changed, for miners that hold the checkpoint before; `none`: everybody
    /// installs merged cells whole. `sparse` suits `top-k` uploads: it takes a bit for each parameter and half a byte
    /// for each that was uploaded; `ternary`, 1.7 bits for each parameter, suits `signs`.
    pub delta: DeltaChoice,
    /// Values of every 4096 that `top-k` sends.
    pub top_k: u16,
    /// Values of every 4096 that `signs` sends.
    pub signs: u16,
    /// Directions that `low-rank` sends.
    pub rank: u16,
    /// Elements of a row of the matrix that `low-rank` takes parameters for.
    pub rank_columns: u32,
    /// How much of what an upload leaves out is made up for by the next, from 0 to 1. With validators every miner that is
    /// drawn then uploads what it had not made up for, 4 bytes for each parameter, so that it can be audited.
    pub feedback: f64,
    /// What becomes of the optimizer's moments: `merged`, `local` or `dropped`. With `local` and validators every miner
    /// that is drawn uploads its moments, 8 bytes for each parameter, so that it can be audited.
    pub optimizer_state: OptimizerState,
    /// Whether miners train on while their stage merges, and put what they learn meanwhile on top of what was merged. Only with
    /// `optimizer_state = "local"`, and audits that compare bits. With validators every miner that is drawn then uploads the
    /// parameters that it trained on from, 4 bytes for each.
    pub overlap: bool,
}

/// How many values become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleName {
    /// [`Rule::WeightedMean`].
    #[default]
    Mean,
    /// [`Rule::GeometricMean`].
    Geometric,
    /// [`Rule::Median`].
    Median,
    /// [`Rule::TrimmedMean`].
    Trimmed,
    /// [`Rule::CenteredClip`].
    Clipped,
    /// [`Rule::Radial`].
    Radial,
}

/// What is done with what a rule gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OuterName {
    /// It is taken as it is.
    #[default]
    None,
    /// [`Outer::Sgd`].
    Sgd,
    /// [`Outer::Nesterov`].
    Nesterov,
}

/// How numbers become bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each names a variant of iota_merge::Codec")]
pub enum CodecName {
    #[default]
    F32,
    Bf16,
    Int8,
    TopK,
    Signs,
    Ternary,
    LowRank,
}

/// A codec, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each but the first names a codec")]
pub enum DeltaChoice {
    #[default]
    None,
    F32,
    Bf16,
    Int8,
    TopK,
    Signs,
    Ternary,
    LowRank,
    Sparse,
}

impl Default for MergingOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl MergingOptions {
    /// What was learned, in a byte for each parameter, shortened to the usual length and averaged in a butterfly; moments stay
    /// with their miner. Trains as whole values do, in a sixth of IOTA's bytes, and bears a liar (docs/experiments).
    pub const DEFAULT: Self = Self {
        clip_to_median: true,
        upload: CodecName::Int8,
        delta: DeltaChoice::Int8,
        feedback: 1.0,
        optimizer_state: OptimizerState::Local,
        ..Self::WHOLE
    };

    /// Whole values and moments in a butterfly, averaged, as IOTA has it: nothing is lost, and nobody that uploads garbage is
    /// borne.
    pub const WHOLE: Self = Self {
        cells: 0,
        owners: 2,
        copies: 1,
        rule: RuleName::Mean,
        trim_percent: 10,
        radius_percent: 100,
        clip_to_median: false,
        outer: OuterName::None,
        outer_learning_rate: 0.7,
        outer_momentum: 0.9,
        outer_momentum_first: 0.5,
        outer_warmup_merges: 20,
        upload: CodecName::F32,
        delta: DeltaChoice::None,
        top_k: 64,
        signs: 488,
        rank: 4,
        rank_columns: 1_024,
        feedback: 0.95,
        optimizer_state: OptimizerState::Merged,
        overlap: false,
    };

    /// What the rules are told. `audited`: whether there may be validators, who have to know what miners keep;
    /// `compares_values`: whether they compare values.
    pub(crate) fn rules(&self, audited: bool, compares_values: bool) -> Merging {
        let merge = self.merge();
        Merging {
            cells: match self.cells {
                0 => Cells::Butterfly,
                cells => Cells::Grid {
                    cells,
                    owners: self.owners,
                },
            },
            copies: self.copies,
            upload: merge.upload_size(),
            delta: merge.delta_size(),
            kept: merge.kept_size().filter(|_| audited),
            compares_kept: compares_values && merge.keeps_something() && audited,
            overlaps: merge.overlaps,
        }
    }

    /// What everybody is told.
    pub(crate) const fn merge(&self) -> Merge {
        let (upload, delta) = (self.codec(self.upload), self.delta_codec());
        Merge {
            rule: match self.rule {
                RuleName::Mean => Rule::WeightedMean,
                RuleName::Geometric => Rule::GeometricMean,
                RuleName::Median => Rule::Median,
                RuleName::Trimmed => Rule::TrimmedMean {
                    trim_percent: self.trim_percent,
                },
                RuleName::Clipped => Rule::CenteredClip {
                    radius_percent: self.radius_percent,
                    rounds: 1,
                },
                RuleName::Radial => Rule::Radial,
            },
            clip: if self.clip_to_median {
                Clip::MedianNorm
            } else {
                Clip::None
            },
            outer: match self.outer {
                OuterName::None => Outer::None,
                OuterName::Sgd => Outer::Sgd {
                    learning_rate: self.outer_learning_rate as f32,
                },
                OuterName::Nesterov => Outer::Nesterov {
                    learning_rate: self.outer_learning_rate as f32,
                    momentum: self.outer_momentum as f32,
                    warmup_from: self.outer_momentum_first as f32,
                    warmup_rounds: self.outer_warmup_merges,
                },
            },
            upload,
            delta,
            feedback: if self.feedback == 0.0 {
                None
            } else {
                Some(self.feedback as f32)
            },
            optimizer_state: self.optimizer_state,
            overlaps: self.overlap,
        }
    }

    const fn delta_codec(&self) -> Option<Codec> {
        let name = match self.delta {
            DeltaChoice::None => return None,
            DeltaChoice::F32 => CodecName::F32,
            DeltaChoice::Bf16 => CodecName::Bf16,
            DeltaChoice::Int8 => CodecName::Int8,
            DeltaChoice::TopK => CodecName::TopK,
            DeltaChoice::Signs => CodecName::Signs,
            DeltaChoice::Ternary => CodecName::Ternary,
            DeltaChoice::LowRank => CodecName::LowRank,
            DeltaChoice::Sparse => return Some(Codec::Sparse),
        };
        Some(self.codec(name))
    }

    const fn codec(&self, name: CodecName) -> Codec {
        match name {
            CodecName::F32 => Codec::F32,
            CodecName::Bf16 => Codec::Bf16,
            CodecName::Int8 => Codec::Int8,
            CodecName::TopK => Codec::TopK { keep: self.top_k },
            CodecName::Signs => Codec::Signs { keep: self.signs },
            CodecName::Ternary => Codec::Ternary,
            CodecName::LowRank => Codec::LowRank {
                rank: self.rank,
                columns: self.rank_columns,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_cells_is_a_butterfly() {
        let grid = MergingOptions {
            cells: 200,
            owners: 3,
            ..MergingOptions::default()
        };
        let of = |options: MergingOptions| options.rules(true, false).cells;
        assert_eq!(of(MergingOptions::default()), Cells::Butterfly);
        let wanted = Cells::Grid {
            cells: 200,
            owners: 3,
        };
        assert_eq!(of(grid), wanted);
    }

    #[test]
    fn what_miners_keep_is_asked_for_only_where_somebody_may_check_it() {
        let local = MergingOptions {
            optimizer_state: OptimizerState::Local,
            ..MergingOptions::WHOLE
        };
        assert!(local.rules(true, true).kept.is_some());
        assert!(local.rules(true, true).compares_kept);
        assert!(!local.rules(true, false).compares_kept);
        assert_eq!(local.rules(false, true).kept, None);
        let nothing = MergingOptions::WHOLE;
        assert_eq!(nothing.rules(true, true), Merging::default());
    }

    #[test]
    fn names_are_those_that_the_documentation_gives() {
        let options: MergingOptions = serde_json::from_str(
            r#"{"rule": "trimmed", "outer": "nesterov", "upload": "top-k", "delta": "low-rank", "optimizer_state": "dropped"}"#,
        )
        .unwrap();
        let merge = options.merge();
        assert_eq!(merge.rule, Rule::TRIMMED);
        assert!(merge.outer.has_momentum());
        assert_eq!(merge.upload, Codec::TOP_64);
        assert!(matches!(merge.delta, Some(Codec::LowRank { rank: 4, .. })));
        assert_eq!(merge.optimizer_state, OptimizerState::Dropped);
        assert_eq!(MergingOptions::default().merge().rule, Rule::WeightedMean);
        let small = r#"{"upload": "signs", "delta": "ternary", "feedback": 1.0, "clip_to_median": true, "optimizer_state": "local"}"#;
        let small = serde_json::from_str::<MergingOptions>(small)
            .unwrap()
            .merge();
        assert_eq!(
            (small.upload, small.delta),
            (Codec::SIGNS, Some(Codec::Ternary))
        );
        small.validate().unwrap();
        let overlapping: MergingOptions = serde_json::from_str(r#"{"overlap": true}"#).unwrap();
        overlapping.merge().validate().unwrap();
        assert!(overlapping.rules(true, false).overlaps);
    }
}
