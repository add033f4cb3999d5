//! What is fixed when a run is created.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cells::{CELLS_MAX, Cells, OWNERS_MAX};
use crate::id::{PeerId, RunId, StageIndex};
use crate::registration::COME_BACK_MAX;

/// Everything that the rules need to know of a run. Sizes come in as numbers: the rules know nothing of tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// The run's name.
    pub run: RunId,
    /// Known to the orchestrator alone. Object ids and audit draws derive from it, so that nobody foresees them.
    pub secret: [u8; 32],
    /// Per stage, from the head: elements of its flat parameters. Its length is the number of stages, at least 1.
    pub stage_parameters: Vec<u64>,
    /// Length in bytes of the object that carries one sample forward across one boundary.
    pub activation_bytes: u64,
    /// Length in bytes of the object that carries one sample's gradient backward across one boundary.
    pub gradient_bytes: u64,
    /// Length in bytes of an object that holds a cell of this many elements is `cell_overhead_bytes` + elements times
    /// `cell_element_bytes`.
    pub cell_element_bytes: u64,
    /// See `cell_element_bytes`.
    pub cell_overhead_bytes: u64,
    /// Tokens in one sample.
    pub sample_tokens: u64,
    /// Merges after which the run is complete. At least 1.
    pub epochs: u64,
    /// Samples per epoch: backward passes per stage before it merges (IOTA: `BATCHES_BEFORE_MERGING`). At least 1.
    pub samples_per_epoch: u64,
    /// Samples on their way at a time, at most. At least 1.
    pub samples_in_flight: u32,
    /// Whether samples set out in batches of `samples_in_flight`, none before the last one of a batch is back. With a step
    /// after as many backward passes, a stage with one miner then steps on exactly the gradients that the uncut model
    /// would: no forward pass meets weights that its batch has changed. It costs the idle time at a batch's ends.
    #[serde(default)]
    pub in_batches: bool,
    /// Backward passes of a miner per step of its optimizer. At least 1.
    pub backwards_per_step: u32,
    /// Miners that every stage needs before training starts. At least 1.
    pub miners_to_start: u32,
    /// Miners that a stage takes at most (IOTA: 50).
    pub miners_per_stage_max: u32,
    /// Who else may become a miner, and when.
    #[serde(default)]
    pub registration: Registration,
    /// Who may join as a validator.
    pub validators: Vec<PeerId>,
    /// Epochs within which every miner is audited once, if there is a validator. At least 1.
    pub audit_every_epochs: u32,
    /// The learning rate over the run.
    pub learning_rate: LearningRate,
    /// How a stage's miners become of one mind again.
    #[serde(default)]
    pub merging: Merging,
    /// How long things may take.
    pub timing: Timing,
}

/// Who may become a miner, and when. A miner that has a place may come back to it at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// When newcomers are taken. While a stage lacks the miners without whom the run would stand still, as many are taken
    /// at any time.
    pub opens: Opens,
    /// Miners of the whole run, at most.
    pub miners_max: u32,
    /// Places on the waiting list. Beyond them nobody is told more than to come again.
    pub waiting_max: u32,
    /// For how long a place, in the run or on the waiting list, is kept for a miner that is not heard of. At least a minute.
    pub place_kept: Duration,
}

/// When registration is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Opens {
    /// Always.
    #[default]
    Always,
    /// Never: once training has begun, those who are there are those who train.
    Never,
    /// Now and then, at times that nobody can foresee who does not know the run's secret. The first window begins with the
    /// run.
    Windows {
        /// Time from the end of a window to the beginning of the next, on average.
        closed_mean: Duration,
        /// How long a window lasts.
        open_for: Duration,
    },
}

impl Default for Registration {
    fn default() -> Self {
        Self {
            opens: Opens::default(),
            miners_max: u32::MAX,
            waiting_max: 4_096,
            place_kept: Duration::from_secs(300),
        }
    }
}

/// Learning rate by samples opened, in phases: a linear warm-up to the peak, a constant stretch, a decay over whatever
/// the other phases leave of the run, and a tail. [`learning_rate_at`](crate::learning_rate_at) draws them.
///
/// Source: the schedule of IOTA's miners, where each phase is counted in optimizer steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// After the warm-up.
    pub peak: f32,
    /// Samples until the peak is reached.
    pub warmup_samples: u64,
    /// Samples at the peak, after the warm-up.
    #[serde(default)]
    pub constant_samples: u64,
    /// How the peak comes down to the final fraction.
    #[serde(default)]
    pub decay: Decay,
    /// At the end of the decay, as a fraction of the peak.
    pub final_fraction: f32,
    /// Samples at the end of the run in which the rate goes from the final fraction to zero.
    #[serde(default)]
    pub tail_samples: u64,
}

/// How a learning rate comes down from its peak to its final fraction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// Along half a cosine.
    #[default]
    Cosine,
    /// As the cosine, times a smaller one that begins anew every few samples.
    Saw {
        /// Samples from one beginning to the next. At least 1.
        tooth_samples: u64,
        /// At the end of a tooth, as a fraction of what it began with.
        tooth_fraction: f32,
    },
}

impl LearningRate {
    /// Warm-up, then half a cosine to the end of the run.
    pub const fn cosine(peak: f32, warmup_samples: u64, final_fraction: f32) -> Self {
        Self {
            peak,
            warmup_samples,
            constant_samples: 0,
            decay: Decay::Cosine,
            final_fraction,
            tail_samples: 0,
        }
    }
}

/// How a stage's miners become of one mind again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Merging {
    /// How its parameters are cut into cells, and how many miners merge each.
    pub cells: Cells,
    /// Owners of a cell that store what they make of it; the others only say what it is, and must have come to the same
    /// bits. At least 1. More are of use only where the store may lose objects that it had.
    pub copies: u32,
    /// Length of the object with what a miner uploads of a cell; none: that of a merged cell.
    pub upload: Option<ObjectSize>,
    /// Length of the object with what a merge changed in a cell, by how many copies it was made of. None: there is no such
    /// object, and everybody installs merged cells whole.
    pub delta: Option<ObjectSize>,
    /// Length of the object with what a miner keeps for itself from epoch to epoch. Audits start from it, so a miner seals it
    /// as it uploads, and hands it over if the next epoch of it is audited. None: nothing is kept, or there is no validator.
    pub kept: Option<ObjectSize>,
    /// Whether a replay of everything compares the values of what is kept at its end, and so has to read it; if not, what
    /// the miner sealed is enough.
    #[serde(default)]
    pub compares_kept: bool,
    /// Whether miners train on while their stage merges: whoever has uploaded works for the next epoch on what it has, and
    /// puts what it learns meanwhile on top of what was merged. Asks for [`kept`](Self::kept) if there are validators.
    #[serde(default)]
    pub overlaps: bool,
}

/// How long an object is that holds something about so many elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectSize {
    /// Whatever the number of elements.
    pub overhead_bytes: u64,
    /// For each element.
    pub element_bytes: u64,
    /// For each begun chunk of elements.
    pub chunk_bytes: u64,
    /// Elements of a chunk. At least 1.
    pub chunk_elements: u64,
    /// For each begun chunk and each of the copies that it was made of, up to `copies_max` of them.
    #[serde(default)]
    pub copy_chunk_bytes: u64,
    /// Further copies take no more bytes.
    #[serde(default)]
    pub copies_max: u64,
}

impl ObjectSize {
    /// As many bytes for each element, and no others.
    pub const fn per_element(element_bytes: u64) -> Self {
        Self {
            overhead_bytes: 0,
            element_bytes,
            chunk_bytes: 0,
            chunk_elements: 1,
            copy_chunk_bytes: 0,
            copies_max: 0,
        }
    }

    /// Length in bytes of the object about so many elements that was made of one copy.
    ///
    /// ```
    /// use iota_protocol::settings::ObjectSize;
    ///
    /// let size = ObjectSize {
    ///     overhead_bytes: 512,
    ///     chunk_bytes: 4,
    ///     chunk_elements: 256,
    ///     ..ObjectSize::per_element(1)
    /// };
    /// assert_eq!(size.bytes(257), 512 + 257 + 2 * 4);
    /// ```
    pub fn bytes(&self, elements: u64) -> u64 {
        self.bytes_from(elements, 1)
    }

    /// Length in bytes of the object about so many elements that was made of so many copies.
    pub fn bytes_from(&self, elements: u64, copies: u64) -> u64 {
        let chunks = elements.div_ceil(self.chunk_elements.max(1));
        let copies_bytes = copies
            .min(self.copies_max)
            .saturating_mul(self.copy_chunk_bytes);
        self.overhead_bytes
            .saturating_add(elements.saturating_mul(self.element_bytes))
            .saturating_add(chunks.saturating_mul(self.chunk_bytes.saturating_add(copies_bytes)))
    }
}

impl Default for Merging {
    fn default() -> Self {
        Self {
            cells: Cells::default(),
            copies: 1,
            upload: None,
            delta: None,
            kept: None,
            compares_kept: false,
            overlaps: false,
        }
    }
}

impl Merging {
    /// Checks what the rules rely on.
    fn validate(&self) -> Result<(), InvalidSetting> {
        let within = |setting, value: u32, range: RangeInclusive<u32>, why: &str| {
            if range.contains(&value) {
                return Ok(());
            }
            let (least, most) = range.into_inner();
            let problem = format!("must be between {least} and {most}{why}");
            Err(InvalidSetting { setting, problem })
        };
        if let Cells::Grid { cells, owners } = self.cells {
            within("merging.cells", cells, 1..=CELLS_MAX, "")?;
            let why = ": nobody's word is taken alone";
            within("merging.owners", owners, 2..=OWNERS_MAX, why)?;
        }
        within("merging.copies", self.copies, 1..=OWNERS_MAX, "")?;
        let sizes = [self.upload, self.delta, self.kept];
        if sizes.iter().flatten().any(|size| size.chunk_elements == 0) {
            return Err(InvalidSetting {
                setting: "merging.chunk_elements",
                problem: "must be at least 1".to_owned(),
            });
        }
        Ok(())
    }
}

/// How long things may take. Lease deadlines follow measured durations; these are the edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// Deadline of a lease while too few of its kind have been measured.
    pub lease_initial: Duration,
    /// A deadline is never shorter.
    pub lease_min: Duration,
    /// A deadline is the 95th percentile of the measured durations times this.
    pub lease_factor: u32,
    /// A session not heard of for so long is over.
    pub session_timeout: Duration,
    /// A backward pass waits so long for the miner that did the forward.
    pub affinity: Duration,
    /// Uploading, merging and installing each end after this at the latest, if anybody at all is done.
    pub phase_max: Duration,
    /// In those phases: from here on, live miners that are still busy are waited for less and less, down to half of
    /// them at `phase_max`.
    pub quorum_relaxes_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_initial: Duration::from_secs(60),
            lease_min: Duration::from_secs(5),
            lease_factor: 4,
            session_timeout: Duration::from_secs(30),
            affinity: Duration::from_secs(10),
            phase_max: Duration::from_secs(120),
            quorum_relaxes_after: Duration::from_secs(30),
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct InvalidSetting {
    /// Its name.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl RunSettings {
    /// Number of stages.
    ///
    /// # Panics
    /// If the settings are not [valid](Self::validate).
    pub fn stages(&self) -> u16 {
        u16::try_from(self.stage_parameters.len())
            .expect("validated: few enough stages for a StageIndex")
    }

    /// The first stage, which reads tokens.
    pub const fn head(&self) -> StageIndex {
        StageIndex::new(0)
    }

    /// The last stage, which computes the loss.
    pub fn tail(&self) -> StageIndex {
        StageIndex::new(self.stages() - 1)
    }

    /// Samples that the whole run trains on.
    pub const fn samples_total(&self) -> u64 {
        self.epochs.saturating_mul(self.samples_per_epoch)
    }

    /// Length in bytes of the object that holds a merged cell of so many elements.
    pub const fn cell_bytes(&self, elements: u64) -> u64 {
        elements
            .saturating_mul(self.cell_element_bytes)
            .saturating_add(self.cell_overhead_bytes)
    }

    /// Length in bytes of the object that holds what a miner uploads of a cell of so many elements.
    pub fn upload_bytes(&self, elements: u64) -> u64 {
        let size = self.merging.upload;
        size.map_or_else(|| self.cell_bytes(elements), |size| size.bytes(elements))
    }

    /// Length in bytes of the object that holds what a merge of so many copies changed in a cell of so many elements; none
    /// if nobody asks for it.
    pub fn delta_bytes(&self, elements: u64, copies: usize) -> Option<u64> {
        let size = self.merging.delta?;
        Some(size.bytes_from(elements, copies as u64))
    }

    /// Checks what the rules rely on.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let invalid = |setting, problem: &str| {
            Err(InvalidSetting {
                setting,
                problem: problem.to_owned(),
            })
        };
        if self.stage_parameters.is_empty() || self.stage_parameters.len() > usize::from(u16::MAX) {
            return invalid(
                "stage_parameters",
                "there must be between 1 and 65535 stages",
            );
        }
        if self.stage_parameters.contains(&0) {
            return invalid("stage_parameters", "every stage must have parameters");
        }
        for (setting, value) in [
            ("activation_bytes", self.activation_bytes),
            ("gradient_bytes", self.gradient_bytes),
            ("cell_element_bytes", self.cell_element_bytes),
            ("sample_tokens", self.sample_tokens),
            ("epochs", self.epochs),
            ("samples_per_epoch", self.samples_per_epoch),
            ("samples_in_flight", self.samples_in_flight.into()),
            ("backwards_per_step", self.backwards_per_step.into()),
            ("miners_to_start", self.miners_to_start.into()),
            ("audit_every_epochs", self.audit_every_epochs.into()),
            ("timing.lease_factor", self.timing.lease_factor.into()),
        ] {
            if value == 0 {
                return invalid(setting, "must be at least 1");
            }
        }
        if self.miners_per_stage_max < self.miners_to_start {
            return invalid("miners_per_stage_max", "must not be below miners_to_start");
        }
        let Registration {
            opens,
            miners_max,
            place_kept,
            ..
        } = self.registration;
        let needed = u64::from(self.stages()) * u64::from(self.miners_to_start);
        if u64::from(miners_max) < needed {
            return invalid(
                "registration.miners_max",
                "must not be below miners_to_start times the number of stages",
            );
        }
        if place_kept < COME_BACK_MAX * 2 {
            return invalid("registration.place_kept", "must be at least a minute");
        }
        if let Opens::Windows {
            closed_mean,
            open_for,
        } = opens
            && (closed_mean.is_zero() || open_for.is_zero())
        {
            return invalid(
                "registration.opens.windows",
                "neither closed_mean nor open_for may be zero",
            );
        }
        self.merging.validate()?;
        if self.merging.overlaps && self.merging.kept.is_none() && !self.validators.is_empty() {
            return invalid(
                "merging.overlaps",
                "needs miners to keep and seal what they train on from, or no validator can follow",
            );
        }
        let LearningRate {
            peak,
            final_fraction,
            decay,
            ..
        } = self.learning_rate;
        if !(peak.is_finite() && peak > 0.0) {
            return invalid("learning_rate.peak", "must be a positive number");
        }
        if !(0.0..=1.0).contains(&final_fraction) {
            return invalid("learning_rate.final_fraction", "must lie between 0 and 1");
        }
        if let Decay::Saw {
            tooth_samples,
            tooth_fraction,
        } = decay
        {
            if tooth_samples == 0 {
                return invalid(
                    "learning_rate.decay.saw.tooth_samples",
                    "must be at least 1",
                );
            }
            if !(0.0..=1.0).contains(&tooth_fraction) {
                return invalid(
                    "learning_rate.decay.saw.tooth_fraction",
                    "must lie between 0 and 1",
                );
            }
        }
        if self.timing.lease_min.is_zero() || self.timing.lease_initial < self.timing.lease_min {
            return invalid(
                "timing.lease_initial",
                "must not be below timing.lease_min, which must not be zero",
            );
        }
        if self.timing.phase_max < self.timing.quorum_relaxes_after {
            return invalid(
                "timing.phase_max",
                "must not be below timing.quorum_relaxes_after",
            );
        }
        if self.timing.session_timeout.is_zero() {
            return invalid("timing.session_timeout", "must not be zero");
        }
        Ok(())
    }
}
