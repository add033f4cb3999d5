//! What is compared.

use std::fmt;

use iota_merge::{Clip, Codec, Outer, Rule};

/// How the tokens become one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Variant {
    /// One replica sees all tokens, one batch a step: as many times the steps as there would be replicas.
    Single,
    /// The replicas average their gradients before every step.
    Synchronous,
    /// The replicas train apart and are merged every so many steps.
    Merged(Merge),
}

/// A way of merging.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Merge {
    pub(crate) rule: Rule,
    pub(crate) clip: Clip,
    pub(crate) outer: Outer,
    /// Of what a replica uploads.
    pub(crate) upload: Codec,
    /// Of merged cells.
    pub(crate) merged: Codec,
    pub(crate) state: OptimizerState,
    /// Whether the first replica sends noise, a hundred times as long as what it has learned.
    pub(crate) garbage: bool,
    /// Whether replicas train on for half of the way to the next merge before they install what was merged, and put what they
    /// have learned meanwhile on top.
    pub(crate) overlaps: bool,
}

/// What becomes of Adam's moments when replicas are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OptimizerState {
    /// Every replica goes on with its own.
    Local,
    /// They are averaged, and travel as bf16.
    Merged,
    /// Every replica starts anew.
    Dropped,
}

/// The average of the weights, as f32.
const PLAIN: Merge = Merge {
    rule: Rule::WeightedMean,
    clip: Clip::None,
    outer: Outer::None,
    upload: Codec::F32,
    merged: Codec::F32,
    state: OptimizerState::Local,
    garbage: false,
    overlaps: false,
};

/// The same in a fiftieth of the bytes of IOTA's merge.
const SIGNS: Merge = Merge {
    upload: Codec::SIGNS,
    merged: Codec::Ternary,
    ..PLAIN
};

/// As DiLoCo and IOTA's code of 2026 have it: for hundreds of local steps.
const STRONG: Outer = Outer::Nesterov {
    learning_rate: 0.7,
    momentum: 0.9,
    warmup_from: 0.5,
    warmup_rounds: 20,
};

/// For few local steps.
const MILD: Outer = Outer::Nesterov {
    learning_rate: 0.9,
    momentum: 0.3,
    warmup_from: 0.3,
    warmup_rounds: 0,
};

/// Of the error feedback of codecs that leave values out; others make up for everything.
pub(crate) const FEEDBACK_DECAY: f32 = 0.95;

/// All that are compared, for a model of this width.
pub(crate) fn variants(width: usize) -> Vec<Variant> {
    let low_rank = Codec::LowRank {
        rank: 4,
        columns: u32::try_from(width).unwrap_or(u32::MAX),
    };
    let sparse = Merge {
        upload: Codec::TOP_64,
        merged: Codec::Sparse,
        ..PLAIN
    };
    let robust = Merge {
        clip: Clip::MedianNorm,
        ..sparse
    };
    let rules = [
        Rule::GeometricMean,
        Rule::Median,
        Rule::TRIMMED,
        Rule::CLIPPED,
        Rule::Radial,
    ]
    .map(|rule| Merge { rule, ..PLAIN });
    let outers = [
        Outer::Sgd { learning_rate: 0.7 },
        Outer::Sgd { learning_rate: 1.4 },
        MILD,
        STRONG,
    ]
    .map(|outer| Merge { outer, ..PLAIN });
    let states =
        [OptimizerState::Merged, OptimizerState::Dropped].map(|state| Merge { state, ..PLAIN });
    let codecs = [Codec::Bf16, Codec::Int8, low_rank].map(|codec| Merge {
        upload: codec,
        merged: Codec::Bf16,
        ..PLAIN
    });
    let small = [
        Merge {
            merged: Codec::Int8,
            upload: Codec::Int8,
            ..PLAIN
        },
        SIGNS,
        Merge {
            outer: MILD,
            ..SIGNS
        },
        Merge {
            clip: Clip::MedianNorm,
            ..SIGNS
        },
        Merge {
            rule: Rule::TRIMMED,
            ..SIGNS
        },
        Merge {
            rule: Rule::CLIPPED,
            ..SIGNS
        },
        sparse,
        robust,
        Merge {
            upload: Codec::TopK { keep: 256 },
            ..sparse
        },
        Merge {
            upload: Codec::TopK { keep: 512 },
            ..sparse
        },
    ];
    let late = [
        PLAIN,
        Merge {
            merged: Codec::Int8,
            upload: Codec::Int8,
            ..PLAIN
        },
        SIGNS,
        Merge {
            rule: Rule::CLIPPED,
            ..SIGNS
        },
    ]
    .map(|merge| Merge {
        overlaps: true,
        ..merge
    });
    let garbage = [
        PLAIN,
        Merge {
            clip: Clip::MedianNorm,
            ..PLAIN
        },
        Merge {
            rule: Rule::Median,
            ..PLAIN
        },
        Merge {
            rule: Rule::TRIMMED,
            ..PLAIN
        },
        Merge {
            rule: Rule::CLIPPED,
            ..PLAIN
        },
        SIGNS,
        Merge {
            clip: Clip::MedianNorm,
            ..SIGNS
        },
        Merge {
            rule: Rule::CLIPPED,
            ..SIGNS
        },
        robust,
    ]
    .map(|merge| Merge {
        garbage: true,
        ..merge
    });
    let clipped = Merge {
        clip: Clip::MedianNorm,
        ..PLAIN
    };
    let merges = [PLAIN, clipped]
        .into_iter()
        .chain(rules)
        .chain(outers)
        .chain(states)
        .chain(codecs)
        .chain(small)
        .chain(late)
        .chain(garbage);
    [Variant::Synchronous, Variant::Single]
        .into_iter()
        .chain(merges.map(Variant::Merged))
        .collect()
}

impl Variant {
    /// Whether it is what all others are compared with.
    pub(crate) fn is_reference(&self) -> bool {
        *self == Self::Synchronous
    }

    /// What it shares with the variants that a plot shows in one colour.
    pub(crate) fn family(&self) -> Option<String> {
        let Self::Merged(merge) = self else {
            return None;
        };
        let honest = if merge.garbage {
            ", one sends garbage"
        } else {
            ""
        };
        Some(format!("{}{honest}", merge.upload))
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single => formatter.write_str("one replica"),
            Self::Synchronous => formatter.write_str("synchronous"),
            Self::Merged(merge) => merge.fmt(formatter),
        }
    }
}

impl fmt::Display for Merge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Rule::WeightedMean => formatter.write_str("mean")?,
            Rule::GeometricMean => formatter.write_str("geometric mean")?,
            Rule::Median => formatter.write_str("median")?,
            Rule::TrimmedMean { trim_percent } => {
                write!(formatter, "trimmed mean {trim_percent} %")?
            }
            Rule::CenteredClip { .. } => formatter.write_str("centered clip")?,
            Rule::Radial => formatter.write_str("radial")?,
            other => write!(formatter, "{other:?}")?,
        }
        if self.clip == Clip::MedianNorm {
            formatter.write_str(", norms clipped")?;
        }
        match self.outer {
            Outer::None => {}
            Outer::Sgd { learning_rate } => write!(formatter, ", sgd {learning_rate}")?,
            Outer::Nesterov {
                learning_rate,
                momentum,
                ..
            } => write!(formatter, ", nesterov {learning_rate} {momentum}")?,
            other => write!(formatter, ", {other:?}")?,
        }
        write!(formatter, ", {}", self.upload)?;
        if self.merged != self.upload {
            write!(formatter, " then {}", self.merged)?;
        }
        formatter.write_str(match self.state {
            OptimizerState::Local => "",
            OptimizerState::Merged => ", moments merged",
            OptimizerState::Dropped => ", moments dropped",
        })?;
        if self.overlaps {
            formatter.write_str(", installed late")?;
        }
        formatter.write_str(if self.garbage {
            ", one sends garbage"
        } else {
            ""
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_variant_has_a_name_of_its_own_and_settings_that_make_sense() {
        let variants = variants(128);
        let names: BTreeSet<String> = variants.iter().map(Variant::to_string).collect();
        assert_eq!(names.len(), variants.len(), "{names:?}");
        for variant in variants {
            if let Variant::Merged(merge) = variant {
                merge.rule.validate().unwrap();
                merge.outer.validate().unwrap();
                merge.upload.validate().unwrap();
                merge.merged.validate().unwrap();
            }
        }
    }
}
