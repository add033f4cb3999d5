//! The dimensions of a model.

use serde::{Deserialize, Serialize};

use crate::boundary::Boundary;

/// A Llama-3-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, untied output projection, no
/// biases. Optionally with bottleneck boundaries (see [`Boundary`] and [`crate::StagePlan`]).
///
/// As data it is checked by [`validate`](Self::validate) only; [`crate::StagePlan`] accepts nothing that is invalid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Distinct tokens.
    pub vocabulary: usize,
    /// Channels of the residual stream, `d`.
    pub width: usize,
    /// Transformer blocks.
    pub blocks: usize,
    /// Query heads. Each has `width / heads` channels.
    pub heads: usize,
    /// Key and value heads, each shared by `heads / key_value_heads` query heads.
    pub key_value_heads: usize,
    /// Channels inside the feed-forward network.
    pub feed_forward: usize,
    /// Tokens per sequence, at most.
    pub context: usize,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Added to the mean square in RMSNorm.
    pub norm_epsilon: f32,
    /// What crosses from one stage to the next, and how.
    pub boundary: Boundary,
}

/// Rotary position embedding: pair `i` of a head of `h` channels turns by `position * base^(-2i/h)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// The larger, the slower the slowest pair turns.
    pub base: f64,
    /// Llama 3's change of the slow frequencies for long contexts. `None`: as they are.
    pub scaling: Option<RopeScaling>,
}

/// Llama 3's frequency scaling. Pairs that turn fast stay; pairs whose wavelength exceeds
/// `original_context / low_frequency_factor` turn `factor` times slower; those between are interpolated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// How much slower the slow pairs turn. At least 1.
    pub factor: f64,
    /// Wavelengths above `original_context / low_frequency_factor` are slow.
    pub low_frequency_factor: f64,
    /// Wavelengths below `original_context / high_frequency_factor` are fast.
    pub high_frequency_factor: f64,
    /// Tokens per sequence that the unscaled frequencies are meant for.
    pub original_context: usize,
}

/// No dimension is larger, so that no product of sizes overflows 64 bits.
const DIMENSION_MAX: usize = 1 << 20;

/// More blocks than any model has; keeps planning quick whatever a configuration says.
const BLOCKS_MAX: usize = 1 << 10;

/// A dimension that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("model setting {setting}: {problem}")]
pub struct InvalidModel {
    /// The field's name.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl ModelConfig {
    /// Channels of one attention head.
    pub const fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// Channels of all key heads together (and of all value heads).
    pub const fn key_value_width(&self) -> usize {
        self.head_width() * self.key_value_heads
    }

    /// Channels that cross from one stage to the next.
    pub const fn boundary_width(&self) -> usize {
        match self.boundary.channels() {
            Some(channels) => channels,
            None => self.width,
        }
    }

    /// Parameters of the model without boundary modules.
    pub fn parameters(&self) -> usize {
        2 * self.vocabulary * self.width + self.width + self.blocks * self.block_parameters()
    }

    /// Parameters of one block without boundary modules.
    pub fn block_parameters(&self) -> usize {
        let attention = 2 * self.width * (self.width + self.key_value_width());
        attention + 3 * self.width * self.feed_forward + 2 * self.width
    }

    /// The angle per position of each of the `head_width / 2` rotary pairs, in radians, fastest first.
    ///
    /// The same bits on every platform.
    ///
    /// Source: Llama 3.1's reference implementation (`apply_scaling`).
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let pairs = self.head_width() / 2;
        let plain = (0..pairs).map(|pair| libm::pow(self.rope.base, -(pair as f64) / pairs as f64));
        let Some(scaling) = self.rope.scaling else {
            return plain.collect();
        };
        let original = scaling.original_context as f64;
        let (low, high) = (scaling.low_frequency_factor, scaling.high_frequency_factor);
        plain
            .map(|frequency| {
                // Turns within the original context: few for slow pairs, many for fast ones.
                let turns = original * frequency / std::f64::consts::TAU;
                let unscaled = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                unscaled * frequency + (1.0 - unscaled) * frequency / scaling.factor
            })
            .collect()
    }

    /// Checks that the dimensions fit each other.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn validate(&self) -> Result<(), InvalidModel> {
        for (setting, value) in [
            ("vocabulary", self.vocabulary),
            ("width", self.width),
            ("heads", self.heads),
            ("key_value_heads", self.key_value_heads),
            ("feed_forward", self.feed_forward),
            ("context", self.context),
        ] {
            check(setting, (1..=DIMENSION_MAX).contains(&value), || {
                format!("{value} is not between 1 and {DIMENSION_MAX}")
            })?;
        }
        check("blocks", (1..=BLOCKS_MAX).contains(&self.blocks), || {
            format!("{} is not between 1 and {BLOCKS_MAX}", self.blocks)
        })?;
        check("heads", self.width.is_multiple_of(self.heads), || {
            format!("{} do not divide the width of {}", self.heads, self.width)
        })?;
        check("heads", self.head_width().is_multiple_of(2), || {
            format!(
                "a head of {} channels has no rotary pairs",
                self.head_width()
            )
        })?;
        check(
            "key_value_heads",
            self.heads.is_multiple_of(self.key_value_heads),
            || {
                format!(
                    "{} do not divide the {} heads",
                    self.key_value_heads, self.heads
                )
            },
        )?;
        check(
            "norm_epsilon",
            self.norm_epsilon.is_finite() && self.norm_epsilon > 0.0,
            || format!("{} is not a positive number", self.norm_epsilon),
        )?;
        if let Some(channels) = self.boundary.channels() {
            check(
                "boundary.channels",
                (1..self.width).contains(&channels),
                || {
                    format!(
                        "{channels} is not between 1 and {}, less than the width",
                        self.width - 1
                    )
                },
            )?;
        }
        self.rope.validate()
    }
}

impl Rope {
    fn validate(&self) -> Result<(), InvalidModel> {
        check(
            "rope.base",
            self.base.is_finite() && self.base > 1.0,
            || format!("{} is not above 1", self.base),
        )?;
        let Some(scaling) = self.scaling else {
            return Ok(());
        };
        check(
            "rope.scaling.factor",
            scaling.factor.is_finite() && scaling.factor >= 1.0,
            || format!("{} is not at least 1", scaling.factor),
        )?;
        let (low, high) = (scaling.low_frequency_factor, scaling.high_frequency_factor);
        check(
            "rope.scaling.low_frequency_factor",
            low > 0.0 && low < high && high.is_finite(),
            || format!("{low} is not between 0 and the high frequency factor of {high}"),
        )?;
        check(
            "rope.scaling.original_context",
            scaling.original_context > 0,
            || "0 is not positive".to_owned(),
        )
    }
}

fn check(
    setting: &'static str,
    holds: bool,
    problem: impl FnOnce() -> String,
) -> Result<(), InvalidModel> {
    if holds {
        Ok(())
    } else {
        Err(InvalidModel {
            setting,
            problem: problem(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    #[test]
    fn an_impossible_dimension_is_named() {
        let refused = |change: fn(&mut ModelConfig)| {
            let mut model = preset("tiny").unwrap();
            change(&mut model);
            model.validate().expect_err("the change is invalid").setting
        };
        assert_eq!(refused(|model| model.vocabulary = 0), "vocabulary");
        assert_eq!(refused(|model| model.width = usize::MAX), "width");
        assert_eq!(refused(|model| model.blocks = 0), "blocks");
        assert_eq!(refused(|model| model.heads = 3), "heads");
        assert_eq!(refused(|model| model.heads = model.width), "heads");
        assert_eq!(
            refused(|model| model.key_value_heads = 3),
            "key_value_heads"
        );
        assert_eq!(
            refused(|model| model.norm_epsilon = f32::NAN),
            "norm_epsilon"
        );
        let none = refused(|model| model.boundary = Boundary::ResBm { channels: 0 });
        assert_eq!(none, "boundary.channels");
        let all = refused(|model| {
            model.boundary = Boundary::Iota {
                channels: model.width,
            };
        });
        assert_eq!(all, "boundary.channels");
        assert_eq!(refused(|model| model.rope.base = 1.0), "rope.base");
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let mut json = serde_json::to_value(preset("tiny").unwrap()).unwrap();
        assert_eq!(
            serde_json::from_value::<ModelConfig>(json.clone()).unwrap(),
            preset("tiny").unwrap()
        );
        json["widht"] = 3.into();
        assert!(
            serde_json::from_value::<ModelConfig>(json)
                .unwrap_err()
                .to_string()
                .contains("widht")
        );
    }

    #[test]
    fn llama_3_scaling_keeps_fast_pairs_and_slows_slow_ones() {
        let model = preset("8B").unwrap();
        let scaled = model.rope_frequencies();
        let plain = ModelConfig {
            rope: Rope {
                scaling: None,
                ..model.rope
            },
            ..model.clone()
        }
        .rope_frequencies();
        assert_eq!(scaled.len(), model.head_width() / 2);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(plain[0], 1.0);
        let last = scaled.len() - 1;
        assert!((plain[last] / scaled[last] - 32.0).abs() < 1e-9);
        assert!(
            scaled
                .iter()
                .zip(&plain)
                .any(|(s, p)| s < p && s * 32.0 > p * 1.01),
            "some lie between"
        );
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
    }
}
