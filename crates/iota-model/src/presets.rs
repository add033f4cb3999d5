//! Named configurations.

use crate::boundary::Boundary;
use crate::config::{ModelConfig, Rope, RopeScaling};

/// No preset has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no preset is called {asked:?}; the nearest is {nearest:?}")]
pub struct UnknownPreset {
    /// What was asked for.
    pub asked: String,
    /// The name most like it.
    pub nearest: &'static str,
}

/// All names that [`preset`] knows, small models first.
pub fn names() -> impl Iterator<Item = &'static str> {
    SMALL
        .iter()
        .map(|(name, _)| *name)
        .chain(IOTA.iter().map(|preset| preset.name))
}

/// The configuration of that name, in upper or lower case.
///
/// - `tiny`: 35 thousand parameters over bytes; trains in seconds, for tests.
/// - `testnet`: 2.8 million parameters over bytes; learns to spell on two cores in minutes.
/// - `100M`, `1B`, `3B`, `5B`, `7B`, `8B`, `12B`, `15B`, `21B`: IOTA's models.
///
/// # Errors
/// [`UnknownPreset`] says which name is nearest.
pub fn preset(name: &str) -> Result<ModelConfig, UnknownPreset> {
    if let Some((_, build)) = SMALL
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
    {
        return Ok(build());
    }
    if let Some(preset) = IOTA
        .iter()
        .find(|preset| preset.name.eq_ignore_ascii_case(name))
    {
        return Ok(preset.config());
    }
    let likeness = |known: &str| strsim::jaro_winkler(&known.to_lowercase(), &name.to_lowercase());
    let nearest = names()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .expect("there is at least one preset");
    Err(UnknownPreset {
        asked: name.to_owned(),
        nearest,
    })
}

/// Where IOTA cuts its model of that name, in upper or lower case: the first blocks of all stages but the first. `None` for
/// models that it names but publishes no cuts of, and for presets that are not IOTA's.
///
/// ```
/// use iota_model::{StagePlan, preset, published_cuts};
///
/// let cuts = published_cuts("15B").expect("these are published");
/// let plan = StagePlan::with_cuts(&preset("15B")?, cuts.to_vec(), cuts)?;
/// let blocks: Vec<usize> = plan.stages().iter().map(|stage| stage.blocks.len()).collect();
/// assert_eq!(blocks, [8, 11, 11, 11, 9]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Source: macrocosm-os/iota, `MODEL_SPLITS` in `settings.py`; of `1B` the cuts of 2026, which are those of its 16 blocks
/// (in 2025 they were 5 and 10).
pub fn published_cuts(name: &str) -> Option<&'static [usize]> {
    IOTA.iter()
        .find(|preset| preset.name.eq_ignore_ascii_case(name))
        .map(|preset| preset.cuts)
        .filter(|cuts| !cuts.is_empty())
}

/// A preset of our own: its name and how to build it.
type Small = (&'static str, fn() -> ModelConfig);

const SMALL: [Small; 2] = [("tiny", tiny), ("testnet", testnet)];

fn tiny() -> ModelConfig {
    ModelConfig {
        vocabulary: 256,
        width: 32,
        blocks: 4,
        heads: 4,
        key_value_heads: 2,
        feed_forward: 48,
        context: 32,
        rope: Rope {
            base: 10_000.0,
            scaling: None,
        },
        norm_epsilon: 1e-5,
        boundary: Boundary::Iota { channels: 16 },
    }
}

fn testnet() -> ModelConfig {
    ModelConfig {
        vocabulary: 256,
        width: 192,
        blocks: 6,
        heads: 6,
        key_value_heads: 3,
        feed_forward: 576,
        context: 128,
        rope: Rope {
            base: 10_000.0,
            scaling: None,
        },
        norm_epsilon: 1e-5,
        boundary: Boundary::Iota { channels: 64 },
    }
}

/// What differs between IOTA's models.
struct IotaPreset {
    name: &'static str,
    width: usize,
    blocks: usize,
    heads: usize,
    feed_forward: usize,
    channels: usize,
    cuts: &'static [usize],
}

impl IotaPreset {
    fn config(&self) -> ModelConfig {
        ModelConfig {
            vocabulary: 128_256, // Llama 3's tokenizer
            width: self.width,
            blocks: self.blocks,
            heads: self.heads,
            key_value_heads: 8,
            feed_forward: self.feed_forward,
            context: 800,
            // Llama 3's base of 500,000, which IOTA rescales by its context of 8,192 over Llama's 131,072. (IOTA's code
            // does so again at every load of the model; here it is done once.)
            rope: Rope {
                base: 31_250.0,
                scaling: Some(RopeScaling {
                    factor: 32.0,
                    low_frequency_factor: 1.0,
                    high_frequency_factor: 4.0,
                    original_context: 8192,
                }),
            },
            norm_epsilon: 1e-5,
            boundary: Boundary::Iota {
                channels: self.channels,
            },
        }
    }
}

macro_rules! iota_presets {
    ($($name:literal $width:literal $blocks:literal $heads:literal $feed_forward:literal $channels:literal $cuts:tt;)*) => {
        [$(IotaPreset {
            name: $name,
            width: $width,
            blocks: $blocks,
            heads: $heads,
            feed_forward: $feed_forward,
            channels: $channels,
            cuts: &$cuts,
        }),*]
    };
}

/// The published dimensions (macrocosm-os/iota, `model/configs.py`): 8 key and value heads, vocabulary 128,256;
/// and where its settings cut them, if they do.
const IOTA: [IotaPreset; 9] = iota_presets! {
    // name width blocks heads feed_forward boundary_channels cuts
    "100M"   512   6  32    512   8  [2, 4];
    "1B"    2048  16  32   8192  32  [4, 12];
    "3B"    3072  28  24   8192  16  [9, 19];
    "5B"    4096  20  32  14336  16  [];
    "7B"    4096  28  32  14336  16  [];
    "8B"    4096  32  32  14336  64  [];
    "12B"   5120  40  40  13824  16  [11, 27];
    "15B"   5120  50  40  13824  80  [8, 19, 30, 41];
    "21B"   5120  64  40  16384  80  [];
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::StagePlan;

    #[test]
    fn every_preset_is_valid() {
        for name in names() {
            preset(name)
                .unwrap()
                .validate()
                .unwrap_or_else(|invalid| panic!("{name}: {invalid}"));
        }
    }

    #[test]
    fn published_cuts_can_be_cut() {
        let mut published = Vec::new();
        for name in names() {
            if let Some(cuts) = published_cuts(name) {
                StagePlan::with_cuts(&preset(name).unwrap(), cuts.to_vec(), cuts)
                    .unwrap_or_else(|refused| panic!("{name}: {refused}"));
                published.push(name);
            }
        }
        assert_eq!(published, ["100M", "1B", "3B", "12B", "15B"]);
    }

    #[test]
    fn parameter_counts_are_those_of_the_published_models() {
        for (name, parameters) in [
            ("100M", 139_991_552),
            ("1B", 1_498_482_688),
            ("3B", 3_606_752_256),
            ("5B", 5_412_917_248),
            ("7B", 7_157_813_248),
            ("8B", 8_030_261_248),
            ("12B", 12_323_804_160),
            ("15B", 15_076_418_560),
            ("21B", 21_446_661_120),
        ] {
            assert_eq!(preset(name).unwrap().parameters(), parameters, "{name}");
        }
    }

    #[test]
    fn the_testnet_has_about_two_and_three_quarter_million_parameters() {
        assert_eq!(preset("testnet").unwrap().parameters(), 2_755_008);
    }

    #[test]
    fn a_name_is_known_in_any_case_and_a_wrong_one_finds_the_nearest() {
        assert_eq!(preset("TestNet"), preset("testnet"));
        assert_eq!(preset("15b"), preset("15B"));
        assert_eq!(preset("testent").unwrap_err().nearest, "testnet");
        assert_eq!(preset("101M").unwrap_err().nearest, "100M");
        assert_eq!(preset("tny").unwrap_err().nearest, "tiny");
    }
}
