//! How a run is doing, in numbers that a person can read.

use std::time::Duration;

use iota_protocol::event::Phase;
use iota_protocol::{Role, State, Timestamp};
use iota_wire::RunStatus;

/// Tells how a run is doing, from snapshots of its state. Rates are over the last few snapshots.
#[derive(Debug)]
pub struct StatusTracker {
    began: Timestamp,
    /// Tokens trained at earlier times, oldest first.
    trained: std::collections::VecDeque<(Timestamp, u64)>,
    loss: Option<f64>,
    completed: u64,
}

/// Rates are over so long.
const WINDOW: Duration = Duration::from_secs(10);

impl StatusTracker {
    /// A tracker of a run that begins now.
    pub fn new(began: Timestamp) -> Self {
        Self {
            began,
            trained: std::collections::VecDeque::new(),
            loss: None,
            completed: 0,
        }
    }

    /// How the run is doing.
    pub fn status(&mut self, state: &State, now: Timestamp) -> RunStatus {
        let counts = state.sample_counts();
        let tokens_trained = counts.completed * state.settings().sample_tokens;
        self.follow_loss(state, counts.completed);
        RunStatus {
            phase: state.phase(),
            epoch: state.epoch(),
            epochs: state.settings().epochs,
            samples_completed: counts.completed,
            samples_in_flight: state.samples_in_flight() as u64,
            samples_re_leased: counts.re_leased,
            work_finished: state.work_counts().finished,
            work_wasted: state.work_counts().wasted(),
            tokens_trained,
            tokens_per_second: self.rate(state.phase(), tokens_trained, now),
            loss: self.loss,
            miners_per_stage: miners_per_stage(state),
            registration_is_open: state.registration_is_open(),
            waiting: u32::try_from(state.waiting_list().count()).unwrap_or(u32::MAX),
            validators: count(state, Role::Validator),
            audits_passed: state.audits_settled().0,
            audits_failed: state.audits_settled().1,
            banned: u32::try_from(state.cheaters().count()).unwrap_or(u32::MAX),
            elapsed: now.since(self.began),
            phase_deadline_remaining: state.phase_deadline().map(|deadline| deadline.since(now)),
        }
    }

    /// A moving average over samples, so that one odd verse does not show as progress or its opposite.
    fn follow_loss(&mut self, state: &State, completed: u64) {
        let new = usize::try_from(completed - self.completed).unwrap_or(usize::MAX);
        let samples: Vec<f64> = state
            .completed_samples()
            .map(|(_, sample)| f64::from(sample.loss))
            .collect();
        // A new epoch starts an empty list; what completed between two snapshots around its start is passed over.
        for loss in &samples[samples.len().saturating_sub(new)..] {
            self.loss = Some(
                self.loss
                    .map_or(*loss, |average| average + (loss - average) / 16.0),
            );
        }
        self.completed = completed;
    }

    fn rate(&mut self, phase: Phase, tokens: u64, now: Timestamp) -> f64 {
        if phase != Phase::Gathering {
            self.trained.push_back((now, tokens));
        }
        while self.trained.len() > 2 && now.since(self.trained[1].0) > WINDOW {
            self.trained.pop_front();
        }
        let Some((since, earlier)) = self.trained.front() else {
            return 0.0;
        };
        let seconds = now.since(*since).as_secs_f64();
        if seconds > 0.0 {
            (tokens - earlier) as f64 / seconds
        } else {
            0.0
        }
    }
}

fn miners_per_stage(state: &State) -> Vec<u32> {
    let mut miners = vec![0; usize::from(state.settings().stages())];
    for (_, session) in state.sessions() {
        if let Some(stage) = session.stage {
            miners[usize::from(stage.get())] += 1;
        }
    }
    miners
}

fn count(state: &State, role: Role) -> u32 {
    let sessions = state
        .sessions()
        .filter(|(_, session)| session.role == role)
        .count();
    u32::try_from(sessions).unwrap_or(u32::MAX)
}
