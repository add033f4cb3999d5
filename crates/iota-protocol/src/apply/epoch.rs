//! Phases, checkpoints and verdicts.

use super::index;
use crate::audit;
use crate::cells;
use crate::event::{CellResult, Phase};
use crate::id::{AuditId, Digest, Epoch, Session};
use crate::state::State;
use crate::state::audits::{Audit, Coverage};
use crate::state::merging::{Made, MergeRecord, StageMerge};
use crate::state::sessions::Installation;
use crate::time::Timestamp;
use crate::work::{Checkpoint, Lease, Verdict, Work};

impl State {
    pub(super) fn apply_phase_begins(&mut self, at: Timestamp) {
        self.leases.stale_below = self.leases.next;
        match self.phase {
            Phase::Training => {
                self.samples.begin_epoch();
                self.note_quota(at);
            }
            Phase::Uploading => {
                self.forget_lapsed();
                if self.is_training() {
                    self.samples.begin_ahead();
                }
            }
            Phase::Installing => {
                self.forget_lapsed();
                for state in self.sessions.live.values_mut() {
                    state.installs = 0;
                }
            }
            Phase::Merging => {
                self.forget_lapsed();
                self.close_logs();
            }
            Phase::Settling | Phase::Over => {
                self.forget_lapsed();
                self.merging.fill(StageMerge::default());
                if self.phase == Phase::Over {
                    self.leases.in_vain.clear();
                }
            }
            Phase::Gathering => {}
        }
    }

    /// Forgets leases whose late results would be worth nothing. A late verdict always is worth something; a sample's
    /// work, while it may still be in the upload of its epoch.
    pub(super) fn forget_lapsed(&mut self) {
        let epoch = self.epoch;
        let phase = self.phase;
        let keep = |lease: &Lease| match lease.work {
            Work::Replay { .. } | Work::Inspect { .. } => true,
            Work::Install { .. } => lease.epoch == epoch,
            Work::Merge { .. } => phase == Phase::Merging,
            // Once it is merged, only what is done for the next epoch already.
            Work::Forward { .. } | Work::Backward { .. } => match phase {
                Phase::Uploading | Phase::Merging => true,
                _ => lease.epoch == epoch,
            },
            Work::Upload { .. } | Work::HandOver { .. } | Work::Fetch { .. } => false,
        };
        let forgotten: Vec<_> = self
            .leases
            .lapsed
            .values()
            .filter(|lease| !keep(lease))
            .map(|lease| (lease.id, lease.session))
            .collect();
        for (lease, session) in forgotten {
            if let Some(state) = self.sessions.get_mut(session) {
                state.lapsed.remove(&lease);
            }
            if let Some(lease) = self.leases.lapsed.remove(&lease) {
                self.give_up(&lease);
            }
        }
    }

    /// A session starts anew from a checkpoint: what it did before is not in its weights, so it is not logged any more.
    pub(crate) fn forget_lapsed_samples(&mut self, session: Session) {
        let Some(state) = self.sessions.get_mut(session) else {
            return;
        };
        let lapsed = &mut self.leases.lapsed;
        let mut forgotten = Vec::new();
        state.lapsed.retain(|lease| {
            let of_sample = lapsed
                .get(lease)
                .is_some_and(|lease| lease.work.sample().is_some());
            if of_sample {
                forgotten.extend(lapsed.remove(lease));
            }
            !of_sample
        });
        forgotten.iter().for_each(|lease| self.give_up(lease));
    }

    /// The time to upload is over: nothing that comes now is in an upload.
    pub(super) fn close_logs(&mut self) {
        let waiting = self.audits.pending.values();
        let subjects: Vec<Session> = waiting
            .filter(|audit| audit.awaits.is_some())
            .map(|audit| audit.subject)
            .collect();
        for subject in subjects {
            self.close_log(subject);
        }
    }

    /// Gives audits of a session what they redo: its log will not grow any more, or not in a way that matters to them.
    pub(crate) fn close_log(&mut self, subject: Session) {
        self.take_from_log(subject);
        let audits: Vec<AuditId> = self.index.audits_of(subject).collect();
        for id in &audits {
            let Some(audit) = self.audits.pending.get_mut(id) else {
                continue;
            };
            if audit.awaits.take().is_none() {
                continue;
            }
            // With where that is which it has handed over since.
            let delivered = self.merging[index(audit.stage)].uploads.get(&subject);
            if let Work::Replay {
                upload: Some(upload),
                ..
            } = &mut audit.work
                && let Some(delivered) = delivered
            {
                upload.clone_from(&delivered.record);
            }
        }
        if !audits.is_empty() {
            self.refile_audits_of(subject);
        }
    }

    /// Takes what audits of a session redo from its log, if they do not have it yet.
    pub(crate) fn take_from_log(&mut self, subject: Session) {
        let Some(state) = self.sessions.get(subject) else {
            return;
        };
        let mut unchecked = false;
        for id in self.index.audits_of(subject) {
            let Some(audit) = self.audits.pending.get_mut(&id) else {
                continue;
            };
            let (
                Some(coverage),
                Work::Replay {
                    entries,
                    ahead,
                    upload,
                    ..
                },
            ) = (audit.awaits, &mut audit.work)
            else {
                continue;
            };
            if !entries.is_empty() {
                continue;
            }
            let delivered = self.merging[index(audit.stage)].uploads.get(&subject);
            let log = audit::replayable(state.log(), delivered.is_some());
            unchecked |= log.len() < state.log().len();
            let operations = match coverage {
                Coverage::First { operations } => operations,
                Coverage::Everything => audit::OPERATIONS_MAX,
            } as usize;
            // What came to the log after the draw may have made it too long for one replay.
            if coverage == Coverage::Everything && log.len() <= operations {
                *upload = delivered.map(|upload| upload.record.clone());
            }
            *entries = log.into_iter().take(operations).cloned().collect();
            *ahead = state.done_ahead(entries);
        }
        // Work that nobody can redo is not paid, or skipping an operation and the upload would be a way to earn.
        if unchecked && let Some(ledger) = self.sessions.ledger_mut(subject.peer) {
            ledger.forfeit(self.epoch);
        }
    }

    /// A session begins anew before it has handed over what an audit begins with: nobody can redo what it did.
    pub(super) fn forget_taken(&mut self, subject: Session) {
        for id in self.index.audits_of(subject) {
            let audit = self.audits.pending.get_mut(&id);
            if let Some(audit) = audit.filter(|audit| audit.awaits.is_some())
                && let Work::Replay {
                    entries,
                    ahead,
                    upload,
                    ..
                } = &mut audit.work
            {
                entries.clear();
                *ahead = 0;
                *upload = None;
            }
        }
    }

    /// A session has not handed over what it had sealed. Nobody can follow what it has done ahead either: it begins anew.
    pub(super) fn apply_withheld(&mut self, subject: Session) {
        if let Some(ledger) = self.sessions.ledger_mut(subject.peer) {
            ledger.withhold(self.epoch);
        }
        let is_ahead = self.session(subject).is_some_and(|it| self.is_ahead(it));
        if is_ahead {
            let epoch = self.trains_for();
            if let Some(state) = self.sessions.get_mut(subject) {
                state.ahead = None;
            }
            if let Some(ledger) = self.sessions.ledger_mut(subject.peer) {
                ledger.forfeit(epoch);
            }
        }
    }

    pub(super) fn apply_checkpoint(&mut self, checkpoint: &Checkpoint) {
        let stage = checkpoint.stage;
        let merge = &self.merging[index(stage)];
        let mut record = MergeRecord {
            epoch: checkpoint.epoch,
            stage,
            seed: cells::seed(&self.settings.secret, stage, self.epoch),
            cells: merge.cells.len() as u64,
            covered: 0,
            agreed: 0,
            bytes_up: merge.handed_over_bytes,
            bytes_down: 0,
        };
        for upload in merge.uploads.values() {
            let seals = upload.record.seals.iter();
            record.bytes_up += seals.map(|seal| seal.length).sum::<u64>();
        }
        for cell in &merge.cells {
            let settled = cell.settled.as_ref();
            record.covered += u64::from(settled.is_some_and(|settled| settled.merged.is_some()));
            record.agreed +=
                u64::from(settled.is_some_and(|settled| settled.result == CellResult::Agreed));
            let elements = cell.range.end - cell.range.start;
            let written = |made: Made| {
                let delta = made.delta.map_or(0, |delta| delta.seal.length);
                made.object.seal.length + delta
            };
            record.bytes_up += cell.stored().map(written).sum::<u64>();
            let results = cell.results().count() as u64;
            let inputs = merge
                .uploads
                .values()
                .filter(|upload| !upload.excluded)
                .count() as u64;
            record.bytes_down += results * inputs * self.settings.upload_bytes(elements);
        }
        self.merges.push(record);
        let previous = std::mem::replace(&mut self.checkpoints[index(stage)], checkpoint.clone());
        self.previous_checkpoints[index(stage)] = previous;
        self.unreadable.retain(|(of, _, _)| *of != stage);
    }

    /// Nobody holds the checkpoint that this one replaces, and everybody may try anew.
    pub(super) fn apply_repair(&mut self, checkpoint: &Checkpoint) {
        let stage = checkpoint.stage;
        self.checkpoints[index(stage)] = checkpoint.clone();
        for session in &self.sessions.miners[index(stage)] {
            if let Some(state) = self.sessions.live.get_mut(session) {
                state.installation = None;
                state.installs = 0;
            }
        }
    }

    pub(super) fn apply_installed(
        &mut self,
        session: Session,
        epoch: Epoch,
        digest: Digest,
        at: Timestamp,
    ) {
        let Some(stage) = self.session(session).and_then(|state| state.stage) else {
            return;
        };
        let installed = &self.index.stage(stage).installed;
        let given_us = installed.first().map(|(given_us, _)| *given_us);
        if given_us.is_none() && self.samples.drains_since.is_some() {
            // The stage had nobody; whoever came now deserves the full time for what is left.
            self.samples.drains_since = Some(at);
        }
        if let Some(state) = self.sessions.get_mut(session) {
            state.installation = Some(Installation {
                epoch,
                state: digest,
                odd: false,
            });
            state.given_us = state.given_us.max(given_us.unwrap_or(0));
        }
    }

    pub(super) fn apply_verdict(&mut self, audit: &Audit, subject: Session, verdict: Verdict) {
        let epoch = self.epoch;
        let favourable = matches!(verdict, Verdict::Agrees { .. });
        self.audits.passed += u64::from(favourable);
        self.audits.failed += u64::from(!favourable);
        if let Some(ledger) = self.sessions.ledger_mut(subject.peer) {
            match verdict {
                Verdict::Agrees { operations } => {
                    ledger.audits_passed += 1;
                    if let Work::Replay { entries, .. } = &audit.work {
                        ledger.verified += u64::from(operations).min(entries.len() as u64);
                    }
                }
                Verdict::Differs { .. } => ledger.audits_failed += 1,
            }
        }
        if favourable && let Work::Inspect { accuser, .. } = audit.work {
            if let Some(ledger) = self.sessions.ledger_mut(accuser.peer) {
                ledger.accuse_falsely(epoch);
            }
            if let Some(accusers) = self.merging[index(audit.stage)]
                .accusations
                .get_mut(&subject)
            {
                accusers.remove(&accuser);
            }
        }
    }
}
