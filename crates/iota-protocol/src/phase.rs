//! From gathering to the end of the run. Every phase but gathering ends by its deadline at the latest (P3); training,
//! which may wait for miners, has one from when its last sample is opened.

use std::time::Duration;

use crate::checkpoint;
use crate::event::{Event, LeaseEnd, Phase, PhaseReason, RestartReason};
use crate::id::StageIndex;
use crate::settings::Timing;
use crate::state::State;
use crate::time::Timestamp;
use crate::work::WorkKind;

impl State {
    /// The change to the next phase, if it is time.
    pub(crate) fn next_phase(&self, now: Timestamp) -> Option<Vec<Event>> {
        match self.phase {
            Phase::Gathering => self
                .has_gathered()
                .then(|| vec![self.enter(Phase::Training, PhaseReason::Gathered, now)]),
            Phase::Training => {
                if self.samples.completed.len() as u64 >= self.settings.samples_per_epoch {
                    Some(self.close_training(PhaseReason::QuotaTrained, now))
                } else {
                    (now >= self.drained_by()?)
                        .then(|| self.close_training(PhaseReason::DrainTimedOut, now))
                }
            }
            Phase::Uploading => self
                .crowd_is_done(now)
                .map(|why| self.close_uploading(why, now)),
            Phase::Merging => self.all_cells_settled().then(|| self.close_merging(now)),
            Phase::Installing => self.crowd_is_done(now).map(|why| {
                if self.epoch.get() >= self.settings.epochs {
                    let mut events = self.close_leases(|kind| kind == WorkKind::Install);
                    events.push(self.enter(Phase::Settling, PhaseReason::LastEpochMerged, now));
                    events
                } else {
                    let mut events: Vec<_> = self.recall_passes_of_late_installers().collect();
                    events.push(self.enter(Phase::Training, why, now));
                    events
                }
            }),
            Phase::Settling => {
                if self.audits.pending.is_empty() {
                    Some(self.end_run(PhaseReason::AuditsSettled))
                } else {
                    self.is_due(now)
                        .then(|| self.end_run(PhaseReason::TimedOut))
                }
            }
            Phase::Over => None,
        }
    }

    /// When the phase changes if nothing else happens; none if it waits for somebody.
    pub(crate) fn phase_change_at(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Gathering | Phase::Over => None,
            Phase::Training => self.drained_by(),
            Phase::Uploading | Phase::Installing => [self.quorum_at(), self.phase_deadline]
                .into_iter()
                .flatten()
                .min(),
            Phase::Merging => {
                let relaxes = self.phase_since + self.settings.timing.quorum_relaxes_after;
                let relaxed = self.merging.iter().all(|merge| merge.relaxed);
                if relaxed {
                    self.phase_deadline
                } else {
                    self.phase_deadline.min(Some(relaxes))
                }
            }
            Phase::Settling => self.phase_deadline,
        }
    }

    /// Whether the phase's deadline has come.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        self.phase_deadline.is_some_and(|deadline| now >= deadline)
    }

    fn enter(&self, phase: Phase, why: PhaseReason, now: Timestamp) -> Event {
        let epoch = if phase == Phase::Installing {
            self.epoch.next()
        } else {
            self.epoch
        };
        let bounded = !matches!(phase, Phase::Gathering | Phase::Training | Phase::Over);
        let deadline = bounded.then(|| now + self.settings.timing.phase_max);
        Event::PhaseChanged {
            phase,
            epoch,
            deadline,
            why,
        }
    }

    fn has_gathered(&self) -> bool {
        let enough = self.settings.miners_to_start as usize;
        self.stages()
            .all(|stage| self.index.stage(stage).installed.len() >= enough)
    }

    /// When the epoch's last samples are no longer waited for. While a stage has nobody there is no such time: training
    /// pauses, and nothing is lost.
    fn drained_by(&self) -> Option<Timestamp> {
        let since = self.samples.drains_since.filter(|_| self.is_staffed())?;
        Some(since + self.settings.timing.phase_max)
    }

    /// Leases of some kinds end with their phase.
    fn close_leases(&self, closes: impl Fn(WorkKind) -> bool) -> Vec<Event> {
        let closing = self.leases().filter(|lease| closes(lease.work.kind()));
        closing
            .map(|lease| Event::LeaseEnded {
                lease: lease.id,
                session: lease.session,
                why: LeaseEnd::EpochClosed,
            })
            .collect()
    }

    fn close_training(&self, why: PhaseReason, now: Timestamp) -> Vec<Event> {
        let mut events =
            self.close_leases(|kind| matches!(kind, WorkKind::Forward | WorkKind::Backward));
        let last = self.epoch.get() + 1 >= self.settings.epochs;
        events.extend(self.samples.flying.keys().map(|sample| {
            let sample = *sample;
            if last {
                Event::SampleDropped { sample }
            } else {
                Event::SampleRestarted {
                    sample,
                    why: RestartReason::Carried,
                }
            }
        }));
        events.extend(self.draw_audits());
        events.push(self.enter(Phase::Uploading, why, now));
        events.extend(self.stages().map(|stage| {
            let members = self
                .sessions
                .installed(stage, self.epoch)
                .filter(|(_, state)| state.backwards > 0);
            Event::RosterFixed {
                stage,
                roster: members.map(|(session, _)| session).collect(),
            }
        }));
        events
    }

    fn close_uploading(&self, why: PhaseReason, now: Timestamp) -> Vec<Event> {
        let mut events =
            self.close_leases(|kind| matches!(kind, WorkKind::Upload | WorkKind::HandOver));
        events.extend(self.nothing_handed_over());
        events.push(self.enter(Phase::Merging, why, now));
        events
    }

    fn all_cells_settled(&self) -> bool {
        self.stages()
            .all(|stage| self.index.merge(stage).unsettled().is_none())
    }

    fn close_merging(&self, now: Timestamp) -> Vec<Event> {
        let mut events = self.close_leases(|kind| {
            matches!(kind, WorkKind::Merge | WorkKind::Fetch | WorkKind::Install)
        });
        events.extend(
            self.stages()
                .map(|stage| Event::CheckpointCommitted(self.merged_checkpoint(stage))),
        );
        events.push(self.enter(
            Phase::Installing,
            if self.is_due(now) {
                PhaseReason::TimedOut
            } else {
                PhaseReason::AllDone
            },
            now,
        ));
        events
    }

    fn merged_checkpoint(&self, stage: StageIndex) -> crate::work::Checkpoint {
        let previous = self.checkpoint(stage);
        let merge = self.merge_of(stage);
        let cells: Vec<_> = merge
            .cells
            .iter()
            .map(|cell| (cell.range.clone(), cell.merged()))
            .collect();
        if cells.iter().all(|(_, merged)| merged.is_none()) {
            let everything = 0..self.settings.stage_parameters[usize::from(stage.get())];
            return checkpoint::succeed(previous, previous.optimizer_steps, &[(everything, None)]);
        }
        // Each uploader says how many steps it took. The middle one is out of a liar's reach while most are honest, and
        // nobody takes more steps in an epoch than there are samples.
        let mut steps: Vec<u64> = merge
            .uploads
            .values()
            .filter(|upload| !upload.excluded)
            .map(|upload| upload.record.optimizer_steps)
            .collect();
        steps.sort_unstable();
        let middle = steps
            .get(steps.len().saturating_sub(1) / 2)
            .copied()
            .unwrap_or(previous.optimizer_steps);
        let most = previous
            .optimizer_steps
            .saturating_add(self.settings.samples_per_epoch)
            .saturating_add(1);
        checkpoint::succeed(
            previous,
            middle.clamp(previous.optimizer_steps, most),
            &cells,
        )
    }

    /// Of a stage: who is waited for in this phase, and whether they are done.
    fn crowd(&self, stage: StageIndex) -> (usize, usize) {
        let index = self.index.stage(stage);
        match self.phase {
            Phase::Uploading => (index.uploaders, index.uploaded),
            _ => (index.miners.len(), index.installed.len()),
        }
    }

    fn crowd_is_done(&self, now: Timestamp) -> Option<PhaseReason> {
        if self
            .stages()
            .map(|stage| self.crowd(stage))
            .all(|(live, done)| live == done)
        {
            return Some(PhaseReason::AllDone);
        }
        if self.is_due(now) {
            return Some(PhaseReason::TimedOut);
        }
        (now >= self.quorum_at()?).then_some(PhaseReason::Quorum)
    }

    /// When enough of every stage are done if nobody else gets done; none if a stage has none at all.
    fn quorum_at(&self) -> Option<Timestamp> {
        let mut waits = self.stages().map(|stage| {
            let (live, done) = self.crowd(stage);
            quorum_after(&self.settings.timing, live as u64, done as u64)
        });
        let longest = waits.try_fold(Duration::ZERO, |longest, wait| Some(longest.max(wait?)))?;
        let quorum_at = self.phase_since + longest;
        Some(quorum_at.max(self.uploads_may_last_until().unwrap_or(quorum_at)))
    }

    /// Until when uploads may take that were begun in time, before less than all were enough, and what is handed over with
    /// them: as long as the slowest of their kind and stage lately took, times the factor of all leases. The phase's
    /// deadline bounds them too.
    fn uploads_may_last_until(&self) -> Option<Timestamp> {
        if self.phase != Phase::Uploading {
            return None;
        }
        let timing = &self.settings.timing;
        let relaxes = self.phase_since + timing.quorum_relaxes_after;
        let uploads = self.leases().filter(|lease| {
            let kind = lease.work.kind();
            matches!(kind, WorkKind::Upload | WorkKind::HandOver) && lease.issued_at < relaxes
        });
        let ends = uploads.filter_map(|lease| {
            let measured = self.durations.get(&(lease.stage, lease.work.kind()))?;
            Some(lease.issued_at + measured.longest()?.saturating_mul(timing.lease_factor))
        });
        ends.max()
    }
}

/// After how much of a phase `done` of `live` are enough; none if they never are.
///
/// All are asked for at first. From `quorum_relaxes_after` on the share falls in a straight line, down to half of them at
/// `phase_max`; somebody has to be done.
fn quorum_after(timing: &Timing, live: u64, done: u64) -> Option<Duration> {
    if done >= live {
        return Some(Duration::ZERO);
    }
    let missing = live - done;
    if done == 0 || 2 * missing > live {
        return None;
    }
    let relaxing = timing.phase_max.saturating_sub(timing.quorum_relaxes_after);
    // live * (1 - t / (2 * relaxing)) <= done, solved for t and rounded up to a millisecond.
    let relaxing_ms = u64::try_from(relaxing.as_millis()).unwrap_or(u64::MAX);
    let after_ms = (2 * u128::from(relaxing_ms) * u128::from(missing)).div_ceil(u128::from(live));
    let after = Duration::from_millis(u64::try_from(after_ms).unwrap_or(u64::MAX));
    Some(timing.quorum_relaxes_after.saturating_add(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(live: u64, done: u64) -> Option<u64> {
        let timing = Timing {
            quorum_relaxes_after: Duration::from_secs(20),
            phase_max: Duration::from_secs(120),
            ..Timing::default()
        };
        quorum_after(&timing, live, done).map(|after| after.as_secs())
    }

    #[test]
    fn the_quorum_falls_in_a_straight_line_from_all_to_half() {
        assert_eq!(seconds(10, 10), Some(0));
        assert_eq!(seconds(10, 9), Some(40));
        assert_eq!(seconds(10, 7), Some(80));
        assert_eq!(seconds(10, 5), Some(120));
        assert_eq!(seconds(10, 4), None);
    }

    #[test]
    fn a_stage_without_anybody_is_not_waited_for_but_one_without_anybody_done_is() {
        assert_eq!(seconds(0, 0), Some(0));
        assert_eq!(seconds(1, 0), None);
        assert_eq!(seconds(2, 1), Some(120));
    }
}
