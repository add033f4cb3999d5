//! What an operator can set about a run.

mod audits;
mod cut;
mod merging;
mod optimizer;
mod registration;

use std::path::PathBuf;
use std::time::Duration;

use iota_model::{Boundary, BoundaryKind, ModelConfig, Precision};
use iota_protocol::settings::{Decay, LearningRate, Timing};
use iota_run::{Codec, Wire};
use serde::{Deserialize, Serialize};

pub use self::audits::{AuditOptions, ComparisonName};
pub use self::cut::{CutError, CutOptions, CutRule, Cuts};
pub use self::merging::{CodecName, DeltaChoice, MergingOptions, OuterName, RuleName};
pub use self::optimizer::{MuonOptions, NAdamOptions, OptimizerName};
pub use self::registration::{OpensChoice, RegistrationOptions};

/// A run as an operator describes it; every value has a default that trains a small model on the bundled text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunOptions {
    /// Name of the model; `iota-model` has the list.
    pub preset: String,
    /// What of it is to be other than the preset says.
    pub model: ModelOptions,
    /// Into how many stages it is cut.
    pub stages: u16,
    /// Where it is cut.
    pub cut: CutOptions,
    /// A UTF-8 file, or a folder of such; `bundled` is the text that comes with the program.
    pub corpus: String,
    /// Initial weights and the order of the data derive from it.
    pub seed: u64,
    /// How it trains.
    pub training: TrainingOptions,
    /// How a stage's miners become of one mind again.
    pub merging: MergingOptions,
    /// How audits compare.
    pub audits: AuditOptions,
    /// How stages send tensors to each other: `f32`, `bf16`, `int8` or `int4`, for activations and for gradients. Training
    /// with `int8` ends at the loss of `f32` (docs/experiments), with a quarter of the bytes.
    pub wire: Wire,
    /// Who may become a miner, and when.
    pub registration: RegistrationOptions,
    /// How long things may take, in milliseconds.
    pub timing: TimingOptions,
}

/// What of a preset is to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelOptions {
    /// What crosses from a stage to the next: `none` sends all channels, `iota`, `resbm` and `anchored` are
    /// bottlenecks.
    pub boundary: BoundaryChoice,
    /// Channels that cross a bottleneck; 0: as many as the preset's.
    pub boundary_channels: usize,
}

/// A kind of boundary, or the preset's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundaryChoice {
    /// The preset's kind.
    #[default]
    Preset,
    /// [`Boundary::None`].
    None,
    /// [`Boundary::Iota`].
    Iota,
    /// [`Boundary::ResBm`].
    ResBm,
    /// [`Boundary::Anchored`].
    Anchored,
}

impl ModelOptions {
    /// The model with what is to be changed. Whether it makes sense, [`ModelConfig::validate`] says.
    pub fn apply(&self, preset: ModelConfig) -> ModelConfig {
        let kind = match self.boundary {
            BoundaryChoice::Preset => preset.boundary.kind(),
            BoundaryChoice::None => BoundaryKind::None,
            BoundaryChoice::Iota => BoundaryKind::Iota,
            BoundaryChoice::ResBm => BoundaryKind::ResBm,
            BoundaryChoice::Anchored => BoundaryKind::Anchored,
        };
        let channels = match self.boundary_channels {
            0 => preset.boundary.channels().unwrap_or_default(),
            channels => channels,
        };
        ModelConfig {
            boundary: Boundary::new(kind, channels),
            ..preset
        }
    }
}

/// How a run trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingOptions {
    /// Merges after which the run is complete.
    pub epochs: u64,
    /// Samples per epoch; every stage makes one backward pass for each (IOTA: `BATCHES_BEFORE_MERGING`).
    pub samples_per_epoch: u64,
    /// Token sequences in a sample.
    pub sequences: u32,
    /// Samples on their way at a time; 0: two for every miner of a stage, and at least one more than there are stages.
    /// More keep more miners busy; fewer keep gradients fresh: at 18 instead of 4 the default testnet learns a third as
    /// fast per token.
    pub samples_in_flight: u32,
    /// Whether samples set out in batches of so many, none before the last one of a batch is back. With
    /// `backwards_per_step` as large and one miner per stage, the network takes exactly the steps of the uncut model.
    pub in_batches: bool,
    /// What stages compute in: `f32`, or `bf16` for the factors of large matrix products. The bits are the same on every
    /// processor; one that multiplies bf16 trains the testnet's model 1.3 times as fast, another 1.04 times as long.
    pub precision: Precision,
    /// Backward passes of a miner per step of its optimizer.
    pub backwards_per_step: u32,
    /// Whether forward passes keep the input of each block only, and backward passes compute the rest again: a tenth of
    /// the memory for each sample on its way, a fifth more time.
    pub recompute: bool,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Samples until the learning rate has reached its peak.
    pub warmup_samples: u64,
    /// Samples at the peak, before the learning rate decays along half a cosine.
    pub constant_samples: u64,
    /// Learning rate at the end of its decay, as a fraction of the peak.
    pub final_fraction: f64,
    /// While it decays, the learning rate falls and begins anew every so many samples; 0: it does not.
    pub saw_samples: u64,
    /// Learning rate before it begins anew, as a fraction of what it begins with.
    pub saw_fraction: f64,
    /// Samples at the end of the run in which the learning rate goes from its final fraction to zero.
    pub tail_samples: u64,
    /// How gradients become changes of the parameters: `adamw`, `nadam` or `muon`.
    pub optimizer: OptimizerName,
    /// Decay of the first moment, the running mean of gradients; Muon's own is `muon.momentum`.
    pub beta1: f64,
    /// Decay of the second moment, the running mean of squared gradients.
    pub beta2: f64,
    /// What NAdam has beyond AdamW.
    pub nadam: NAdamOptions,
    /// What Muon has beyond AdamW.
    pub muon: MuonOptions,
    /// Decoupled decay of matrices.
    pub weight_decay: f64,
    /// Largest gradient norm of the whole model.
    pub clip_norm: f64,
    /// Epochs within which every miner is audited once.
    pub audit_every_epochs: u32,
    /// Fraction of the text, from its end, that is never trained on.
    pub held_out: f64,
}

/// How long things may take, in milliseconds; see [`Timing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "each is the field of Timing with the same name"
)]
pub struct TimingOptions {
    pub lease_initial_ms: u64,
    pub lease_min_ms: u64,
    pub lease_factor: u32,
    pub session_timeout_ms: u64,
    pub affinity_ms: u64,
    pub phase_max_ms: u64,
    pub quorum_relaxes_after_ms: u64,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            preset: "testnet".to_owned(),
            model: ModelOptions::default(),
            stages: 3,
            cut: CutOptions::default(),
            corpus: BUNDLED.to_owned(),
            seed: 1,
            training: TrainingOptions::default(),
            merging: MergingOptions::default(),
            audits: AuditOptions::default(),
            wire: Wire {
                activations: Codec::Int8,
                gradients: Codec::Int8,
            },
            registration: RegistrationOptions::default(),
            timing: TimingOptions::default(),
        }
    }
}

/// The corpus that comes with the program.
pub(crate) const BUNDLED: &str = "bundled";

impl Default for TrainingOptions {
    fn default() -> Self {
        Self {
            epochs: 6,
            samples_per_epoch: 600,
            sequences: 4,
            samples_in_flight: 0,
            in_batches: false,
            precision: Precision::Bf16,
            backwards_per_step: 1,
            recompute: false,
            learning_rate: 2e-3,
            warmup_samples: 100,
            constant_samples: 0,
            final_fraction: 0.1,
            saw_samples: 0,
            saw_fraction: 0.1,
            tail_samples: 0,
            optimizer: OptimizerName::default(),
            beta1: 0.9,
            beta2: 0.95,
            nadam: NAdamOptions::default(),
            muon: MuonOptions::default(),
            weight_decay: 0.1,
            clip_norm: 1.0,
            audit_every_epochs: 3,
            held_out: iota_data::HELD_OUT_FRACTION,
        }
    }
}

impl Default for TimingOptions {
    fn default() -> Self {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let timing = Timing::default();
        Self {
            lease_initial_ms: millis(timing.lease_initial),
            lease_min_ms: millis(timing.lease_min),
            lease_factor: timing.lease_factor,
            session_timeout_ms: millis(timing.session_timeout),
            affinity_ms: millis(timing.affinity),
            phase_max_ms: millis(timing.phase_max),
            quorum_relaxes_after_ms: millis(timing.quorum_relaxes_after),
        }
    }
}

impl From<TimingOptions> for Timing {
    fn from(options: TimingOptions) -> Self {
        Self {
            lease_initial: Duration::from_millis(options.lease_initial_ms),
            lease_min: Duration::from_millis(options.lease_min_ms),
            lease_factor: options.lease_factor,
            session_timeout: Duration::from_millis(options.session_timeout_ms),
            affinity: Duration::from_millis(options.affinity_ms),
            phase_max: Duration::from_millis(options.phase_max_ms),
            quorum_relaxes_after: Duration::from_millis(options.quorum_relaxes_after_ms),
        }
    }
}

impl TrainingOptions {
    pub(crate) const fn schedule(&self) -> LearningRate {
        LearningRate {
            peak: self.learning_rate as f32,
            warmup_samples: self.warmup_samples,
            constant_samples: self.constant_samples,
            decay: match self.saw_samples {
                0 => Decay::Cosine,
                tooth_samples => Decay::Saw {
                    tooth_samples,
                    tooth_fraction: self.saw_fraction as f32,
                },
            },
            final_fraction: self.final_fraction as f32,
            tail_samples: self.tail_samples,
        }
    }
}

impl RunOptions {
    /// The corpus's path, unless it is the bundled one.
    pub fn corpus_path(&self) -> Option<PathBuf> {
        (self.corpus != BUNDLED).then(|| PathBuf::from(&self.corpus))
    }
}

#[cfg(test)]
mod tests {
    use iota_model::preset;

    use super::*;

    #[test]
    fn a_boundary_is_chosen_by_kind_and_channels_and_otherwise_stays_the_presets() {
        let testnet = || preset("testnet").unwrap();
        let chosen = |boundary, boundary_channels| {
            let options = ModelOptions {
                boundary,
                boundary_channels,
            };
            options.apply(testnet()).boundary
        };
        assert_eq!(ModelOptions::default().apply(testnet()), testnet());
        assert_eq!(chosen(BoundaryChoice::None, 0), Boundary::None);
        assert_eq!(
            chosen(BoundaryChoice::ResBm, 0),
            Boundary::ResBm { channels: 64 }
        );
        assert_eq!(
            chosen(BoundaryChoice::ResBm, 4),
            Boundary::ResBm { channels: 4 }
        );
        assert_eq!(
            chosen(BoundaryChoice::Preset, 8),
            Boundary::Iota { channels: 8 }
        );
    }

    #[test]
    fn a_bottleneck_without_channels_is_refused_by_the_model() {
        let open = ModelConfig {
            boundary: Boundary::None,
            ..preset("testnet").unwrap()
        };
        let options = ModelOptions {
            boundary: BoundaryChoice::ResBm,
            boundary_channels: 0,
        };
        assert!(options.apply(open).validate().is_err());
    }
}
