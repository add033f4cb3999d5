//! A run at a glance, for screens, reports and logs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::Phase;
use crate::id::{Epoch, StageIndex};
use crate::state::{SampleCounts, State, WorkCounts};
use crate::time::Timestamp;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The phase.
    pub phase: Phase,
    /// The epoch that work is stamped with.
    pub epoch: Epoch,
    /// How long the phase has lasted.
    pub phase_age: Duration,
    /// When it ends at the latest.
    pub phase_deadline: Option<Timestamp>,
    /// Why nothing moves, if nothing does.
    pub paused: Option<PauseReason>,
    /// Samples of this epoch that are trained on, and how many there are to be.
    pub samples_of_epoch: (u64, u64),
    /// Samples on their way.
    pub samples_in_flight: usize,
    /// Samples over the whole run.
    pub samples: SampleCounts,
    /// Work that was finished over the whole run, and how much of it was wasted.
    pub work: WorkCounts,
    /// Tokens trained on over the whole run; those of each sample count once.
    pub tokens_trained: u64,
    /// Mean loss of the samples that this epoch completed, in nats per token.
    pub mean_loss: Option<f32>,
    /// Each stage, from the head.
    pub stages: Vec<StageSummary>,
    /// Whether newcomers are taken now, if there is room.
    pub registration_is_open: bool,
    /// Peers on the waiting list.
    pub waiting: usize,
    /// Validators that are there.
    pub validators: usize,
    /// Audits without a verdict, with one in the subject's favour, and with one against it.
    pub audits: (usize, u64, u64),
}

/// Why a run makes no progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "paused")]
pub enum PauseReason {
    /// Training has not begun: a stage lacks miners.
    Gathering {
        /// The first such stage.
        stage: StageIndex,
        /// Miners that it has and that hold the checkpoint.
        ready: usize,
        /// Miners that it needs.
        needed: u32,
    },
    /// All miners of a stage are gone or still install its checkpoint. Nothing is lost; the next one goes on.
    Unstaffed {
        /// The first such stage.
        stage: StageIndex,
    },
}

/// Where a stage stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSummary {
    /// Which.
    pub stage: StageIndex,
    /// Its live miners.
    pub miners: usize,
    /// Those of them that hold the epoch's checkpoint.
    pub installed: usize,
    /// Members of the roster that have uploaded.
    pub uploads: usize,
    /// Cells that are settled, and how many there are.
    pub cells: (usize, usize),
}

impl State {
    /// The run at a glance.
    pub fn summary(&self, now: Timestamp) -> Summary {
        let losses: Vec<f32> = self
            .completed_samples()
            .map(|(_, sample)| sample.loss)
            .collect();
        let samples = self.sample_counts();
        let (passed, failed) = self.audits_settled();
        Summary {
            phase: self.phase(),
            epoch: self.epoch(),
            phase_age: now.since(self.phase_since()),
            phase_deadline: self.phase_deadline(),
            paused: self.pause_reason(),
            samples_of_epoch: (losses.len() as u64, self.settings().samples_per_epoch),
            samples_in_flight: self.samples_in_flight(),
            samples,
            work: self.work_counts(),
            tokens_trained: samples
                .completed
                .saturating_mul(self.settings().sample_tokens),
            mean_loss: (!losses.is_empty())
                .then(|| losses.iter().sum::<f32>() / losses.len() as f32),
            stages: self
                .stages()
                .map(|stage| self.stage_summary(stage))
                .collect(),
            registration_is_open: self.registration_is_open(),
            waiting: self.waiting_list().count(),
            validators: self.sessions.validators.len(),
            audits: (self.audits.pending.len(), passed, failed),
        }
    }

    /// Why the run makes no progress, if somebody is missing.
    pub fn pause_reason(&self) -> Option<PauseReason> {
        let ready = |stage| self.index.stage(stage).installed.len();
        match self.phase {
            Phase::Gathering => {
                let needed = self.settings.miners_to_start;
                let lacking = self
                    .stages()
                    .find(|stage| ready(*stage) < needed as usize)?;
                Some(PauseReason::Gathering {
                    stage: lacking,
                    ready: ready(lacking),
                    needed,
                })
            }
            Phase::Training => self
                .stages()
                .find(|stage| ready(*stage) == 0)
                .map(|stage| PauseReason::Unstaffed { stage }),
            _ => None,
        }
    }

    fn stage_summary(&self, stage: StageIndex) -> StageSummary {
        let merge = self.merge_of(stage);
        StageSummary {
            stage,
            miners: self.index.stage(stage).miners.len(),
            installed: self.index.stage(stage).installed.len(),
            uploads: merge.uploads.len(),
            cells: (
                merge
                    .cells
                    .iter()
                    .filter(|cell| cell.settled.is_some())
                    .count(),
                merge.cells.len(),
            ),
        }
    }
}
