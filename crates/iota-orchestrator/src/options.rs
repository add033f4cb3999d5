//! What an operator can set about a run.

use std::path::PathBuf;
use std::time::Duration;

use iota_protocol::settings::{LearningRate, Timing};
use iota_run::AdamW;
use serde::{Deserialize, Serialize};

/// A run as an operator describes it; every value has a default that trains a small model on the bundled text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunOptions {
    /// Name of the model; `iota-model` has the list.
    pub preset: String,
    /// Into how many stages it is cut.
    pub stages: u16,
    /// A UTF-8 file, or a folder of such; `bundled` is the text that comes with the program.
    pub corpus: String,
    /// Initial weights and the order of the data derive from it.
    pub seed: u64,
    /// How it trains.
    pub training: TrainingOptions,
    /// How long things may take, in milliseconds.
    pub timing: TimingOptions,
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
    /// Backward passes of a miner per step of its optimizer.
    pub backwards_per_step: u32,
    /// Whether forward passes keep the input of each block only, and backward passes compute the rest again: a tenth of
    /// the memory for each sample on its way, a fifth more time.
    pub recompute: bool,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Samples until the learning rate has reached its peak.
    pub warmup_samples: u64,
    /// Learning rate at the end, as a fraction of the peak.
    pub final_fraction: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
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
            stages: 3,
            corpus: BUNDLED.to_owned(),
            seed: 1,
            training: TrainingOptions::default(),
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
            backwards_per_step: 1,
            recompute: false,
            learning_rate: 2e-3,
            warmup_samples: 100,
            final_fraction: 0.1,
            beta1: 0.9,
            beta2: 0.95,
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
    pub(crate) const fn adamw(&self) -> AdamW {
        AdamW {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            epsilon: 1e-8,
            weight_decay: self.weight_decay as f32,
            clip_norm: self.clip_norm as f32,
        }
    }

    pub(crate) const fn schedule(&self) -> LearningRate {
        LearningRate {
            peak: self.learning_rate as f32,
            warmup_samples: self.warmup_samples,
            final_fraction: self.final_fraction as f32,
        }
    }
}

impl RunOptions {
    /// The corpus's path, unless it is the bundled one.
    pub fn corpus_path(&self) -> Option<PathBuf> {
        (self.corpus != BUNDLED).then(|| PathBuf::from(&self.corpus))
    }
}
