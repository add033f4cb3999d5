//! Sessions, leases, and samples on their way.

use std::collections::BTreeSet;

use super::index;
use crate::event::{Direction, LeaseEnd, Piece, RestartReason};
use crate::id::{CellIndex, LeaseId, SampleId, Session, StageIndex};
use crate::state::State;
use crate::state::audits::Audit;
use crate::state::merging::{Made, MergeRecord, MergedCell, Slot, Upload};
use crate::state::samples::{Holder, Hop, Preference, SampleState};
use crate::state::sessions::{Answer, Installation, Kept, REMEMBERED_LEASES};
use crate::time::Timestamp;
use crate::work::{
    Failure, Lease, LogEntry, ObjectRef, Outcome, SegmentSource, UploadRecord, Work, WorkKind,
};

impl State {
    pub(super) fn apply_session_ended(&mut self, session: Session, at: Timestamp) {
        self.close_log(session);
        let Some(state) = self.sessions.get(session) else {
            return;
        };
        for lease in state.lapsed.clone() {
            if let Some(lease) = self.leases.lapsed.remove(&lease) {
                self.give_up(&lease);
            }
        }
        for sample in self
            .samples
            .bound
            .get(&session)
            .cloned()
            .unwrap_or_default()
        {
            self.wait(sample, Preference::default(), at);
        }
        self.sessions.end(session);
    }

    pub(super) fn apply_leased(&mut self, lease: &Lease) {
        self.leases.next = lease.id.next();
        self.leases.due.insert((lease.deadline, lease.id));
        self.leases.held.insert(lease.id, lease.clone());
        let expected = lease
            .work
            .sample()
            .map(|_| self.expected_us(lease.session, lease.stage, lease.work.kind()));
        if let Some(state) = self.sessions.get_mut(lease.session) {
            state.held.insert(lease.id);
            state.room = state.room.saturating_sub(1);
            state.given_us = state.given_us.saturating_add(expected.unwrap_or(0));
        }
        match &lease.work {
            Work::Forward { sample, .. } | Work::Backward { sample, .. } => {
                let waited_for = self.samples.waits_for(*sample);
                self.samples.lease(*sample, self.settings.tail(), lease.id);
                self.refile_all(waited_for);
            }
            Work::Merge { cell, stores, .. } => {
                if let Some(state) = self.merging[index(lease.stage)].cell_mut(*cell) {
                    state.lease(lease.session, lease.id, *stores);
                }
                self.refile_cell(lease.stage, *cell);
            }
            Work::Fetch { .. } => {
                let merge = &mut self.merging[index(lease.stage)];
                merge.fetched.insert(lease.session, merge.on_offer());
            }
            Work::Replay { .. } | Work::Inspect { .. } => {
                let waiting = |audit: &Audit| audit.lease.is_none() && audit.work == lease.work;
                self.change_audit_of(&lease.work, waiting, |audit| audit.lease = Some(lease.id));
            }
            Work::Install { .. } => {
                if let Some(state) = self.sessions.get_mut(lease.session) {
                    state.installs += 1;
                }
            }
            Work::Upload { .. } | Work::HandOver { .. } => {}
        }
    }

    /// Takes a lease from its holder. Returns it.
    pub(super) fn take_lease(&mut self, lease: LeaseId) -> Option<Lease> {
        let lease = self.leases.held.remove(&lease)?;
        self.leases.due.remove(&(lease.deadline, lease.id));
        if let Some(state) = self.sessions.get_mut(lease.session) {
            state.held.remove(&lease.id);
        }
        Some(lease)
    }

    pub(super) fn apply_lease_ended(
        &mut self,
        id: LeaseId,
        session: Session,
        why: &LeaseEnd,
        at: Timestamp,
    ) {
        let Some(lease) = self.take_lease(id) else {
            return;
        };
        match why {
            LeaseEnd::Expired | LeaseEnd::Superseded => self.remember_lapsed(lease.clone()),
            // Its holder's stage may have done it already: then it is in the upload, and has to be in the log.
            LeaseEnd::EpochClosed | LeaseEnd::Withdrawn if lease.work.sample().is_some() => {
                self.remember_lapsed(lease.clone());
            }
            LeaseEnd::Failed { .. } => {
                if let Some(state) = self.sessions.get_mut(session) {
                    state.last_contact = at;
                    state.remember(id, Answer::GivenBack);
                }
            }
            LeaseEnd::SessionOver => self.give_up(&lease),
            LeaseEnd::EpochClosed | LeaseEnd::Withdrawn => {}
        }
        let costs = match why {
            LeaseEnd::Expired => true,
            LeaseEnd::Failed { failure } => {
                !matches!(failure, Failure::Leaving | Failure::BadInput { .. })
            }
            _ => false,
        };
        if costs && let Some(ledger) = self.sessions.ledger_mut(session.peer) {
            ledger.drop_work(self.epoch);
        }
        if costs && lease.work.sample().is_some() {
            let expected = self.expected_us(session, lease.stage, lease.work.kind());
            if let Some(state) = self.sessions.get_mut(session) {
                state.charge_for_vain_work(expected);
            }
        }
        match &lease.work {
            Work::Forward { sample, .. } | Work::Backward { sample, .. } => {
                let holds = |state: &&mut SampleState| state.holder == Holder::Leased { lease: id };
                if let Some(state) = self.samples.flying.get_mut(sample).filter(holds) {
                    state.attempts += 1;
                    state.failed_by.insert(session);
                    let avoid = state.failed_by.clone();
                    self.wait(*sample, Preference { only: None, avoid }, at);
                }
            }
            Work::Merge { cell, .. } => {
                if let Some(state) = self.merging[index(lease.stage)].cell_mut(*cell) {
                    state.fail(session, id);
                }
                self.refile_cell(lease.stage, *cell);
            }
            Work::Replay { .. } | Work::Inspect { .. } => {
                let leased = |audit: &Audit| audit.lease == Some(id);
                self.change_audit_of(&lease.work, leased, |audit| {
                    audit.lease = None;
                    audit.attempts += 1;
                });
            }
            Work::Upload { .. }
            | Work::HandOver { .. }
            | Work::Fetch { .. }
            | Work::Install { .. } => {}
        }
    }

    pub(super) fn remember_lapsed(&mut self, lease: Lease) {
        let Some(state) = self.sessions.get_mut(lease.session) else {
            return;
        };
        state.lapsed.insert(lease.id);
        if state.lapsed.len() > REMEMBERED_LEASES
            && let Some(oldest) = state.lapsed.pop_first()
            && let Some(oldest) = self.leases.lapsed.remove(&oldest)
        {
            self.give_up(&oldest);
        }
        self.leases.lapsed.insert(lease.id, lease);
    }

    pub(super) fn apply_completed(
        &mut self,
        id: LeaseId,
        session: Session,
        outcome: &Outcome,
        credited: bool,
        at: Timestamp,
    ) {
        let Some(lease) = self
            .take_lease(id)
            .or_else(|| self.leases.lapsed.remove(&id))
        else {
            return;
        };
        let kind = lease.work.kind();
        let duration = at.since(lease.issued_at);
        self.durations
            .entry((lease.stage, kind))
            .or_default()
            .record(duration);
        if let Some(state) = self.sessions.get_mut(session) {
            state.lapsed.remove(&id);
            state.last_contact = at;
            state.measure(
                kind,
                u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            );
            if let Outcome::Forward { ordinal, .. } | Outcome::Backward { ordinal, .. } = outcome {
                let (ordinal, work, outcome) = (*ordinal, lease.work.clone(), outcome.clone());
                state.ordinals.insert(ordinal);
                state.log.push(LogEntry {
                    ordinal,
                    lease: id,
                    work,
                    outcome,
                    credited,
                });
                state.backwards += u64::from(credited && kind == WorkKind::Backward);
                state.vain = state.vain.saturating_sub(1);
            }
            let outcome = outcome.clone();
            state.remember(
                id,
                if credited {
                    Answer::Accepted { outcome }
                } else {
                    Answer::Superseded { outcome }
                },
            );
        }
        match outcome {
            Outcome::Forward { .. } => self.samples.work.finish(false, credited),
            Outcome::Backward { recomputed, .. } => {
                let redone = *recomputed && lease.stage != self.settings.tail();
                self.samples.work.finish(redone, credited);
            }
            _ => {}
        }
        if !credited {
            return;
        }
        let epoch = lease.epoch;
        match (&lease.work, outcome) {
            (Work::Forward { sample, output, .. }, Outcome::Forward { output: seal, .. }) => {
                if let Some(ledger) = self.sessions.ledger_mut(session.peer) {
                    ledger.credit_forward();
                }
                let hop = Hop {
                    session,
                    object: Some(ObjectRef {
                        name: *output,
                        seal: *seal,
                    }),
                };
                self.advance(*sample, |state| state.forwards.push(hop), at);
            }
            (
                Work::Backward {
                    sample, gradient, ..
                },
                Outcome::Backward {
                    gradient: seal,
                    loss,
                    ..
                },
            ) => {
                if let Some(ledger) = self.sessions.ledger_mut(session.peer) {
                    ledger.credit_backward(epoch);
                }
                let object = gradient
                    .zip(*seal)
                    .map(|(name, seal)| ObjectRef { name, seal });
                let advance = |state: &mut SampleState| {
                    state.backwards.push(Hop { session, object });
                    state.loss = state.loss.or(*loss);
                };
                self.advance(*sample, advance, at);
            }
            (
                Work::Upload {
                    cells,
                    learning_rate,
                    ..
                },
                Outcome::Upload {
                    cells: seals,
                    optimizer_steps,
                    kept,
                },
            ) => {
                if let Some(state) = self.sessions.get_mut(session) {
                    state.keeps = Some(Kept { seal: *kept });
                }
                let weight = self
                    .session(session)
                    .map_or(1, |state| state.backwards.max(1));
                let record = UploadRecord {
                    cells: cells.clone(),
                    seals: seals.clone(),
                    learning_rate: *learning_rate,
                    optimizer_steps: *optimizer_steps,
                    keeps: *kept,
                    keeps_at: None,
                };
                self.merging[index(lease.stage)].uploads.insert(
                    session,
                    Upload {
                        record,
                        weight,
                        excluded: false,
                    },
                );
                self.close_log_once_complete(session);
            }
            (Work::HandOver { began_with, keeps }, Outcome::HandedOver) => {
                self.apply_handed_over(session, lease.stage, *began_with, *keeps);
            }
            (
                Work::Merge {
                    cell,
                    output,
                    delta,
                    stores,
                    ..
                },
                Outcome::Merge {
                    merged,
                    quarantined,
                    delta: delta_seal,
                },
            ) => {
                let object = ObjectRef {
                    name: *output,
                    seal: *merged,
                };
                let delta = delta
                    .zip(*delta_seal)
                    .map(|(name, seal)| ObjectRef { name, seal });
                let made = Made {
                    object,
                    delta,
                    stored: *stores,
                };
                let merged = MergedCell {
                    made: Some(made),
                    quarantined: quarantined.clone(),
                };
                self.note_merged(lease.stage, *cell, session, merged);
            }
            (Work::Merge { cell, .. }, Outcome::Unmergeable { quarantined }) => {
                let merged = MergedCell {
                    made: None,
                    quarantined: quarantined.clone(),
                };
                self.note_merged(lease.stage, *cell, session, merged);
            }
            (
                Work::Install {
                    checkpoint,
                    goes_on,
                },
                Outcome::Install { state, operations },
            ) => {
                // Whoever goes on holds the checkpoint before, and so can do with what the merge changed.
                let had = self.session(session).and_then(|it| it.installation);
                let is_next = had.is_some_and(|it| it.epoch.next() == checkpoint.epoch);
                let trains_on =
                    *goes_on && self.session(session).is_some_and(|it| self.is_ahead(it));
                if !trains_on {
                    self.forget_lapsed_samples(session);
                    self.forget_taken(session);
                }
                if let Some(holder) = self.sessions.get_mut(session) {
                    match holder.ahead.as_mut().filter(|_| trains_on) {
                        Some(ahead) => ahead.installed_after = Some(*operations),
                        None => holder.begin_epoch(*goes_on),
                    }
                    // Odd until it is known to be like the others: the event Installed follows if it is.
                    holder.installation = Some(Installation {
                        epoch: checkpoint.epoch,
                        state: *state,
                        odd: true,
                    });
                }
                // Whatever it was to hand over for is no longer in its weights or its log.
                self.close_log_once_complete(session);
                let made = self.merging[index(lease.stage)].made_by(session);
                let bytes: u64 = checkpoint
                    .segments
                    .iter()
                    .filter_map(|segment| match &segment.source {
                        SegmentSource::Genesis => None,
                        // It has what it made itself.
                        SegmentSource::Merged { object, .. }
                            if made.contains(&object.seal.digest) =>
                        {
                            None
                        }
                        SegmentSource::Merged { object, delta, .. } => {
                            let smaller = delta.as_ref().filter(|_| is_next);
                            Some(smaller.unwrap_or(object).seal.length)
                        }
                    })
                    .sum();
                let merged = |record: &&mut MergeRecord| {
                    record.epoch == checkpoint.epoch && record.stage == lease.stage
                };
                if let Some(record) = self.merges.iter_mut().rev().find(merged) {
                    record.bytes_down += bytes;
                }
            }
            _ => {}
        }
    }

    fn note_merged(
        &mut self,
        stage: StageIndex,
        cell: CellIndex,
        session: Session,
        merged: MergedCell,
    ) {
        if let Some(state) = self.merging[index(stage)].cell_mut(cell) {
            state.slots.insert(session, Slot::Done { merged });
        }
        self.refile_cell(stage, cell);
    }

    /// Makes a sample's next piece its present one, and lets it wait.
    pub(super) fn advance(
        &mut self,
        sample: SampleId,
        change: impl FnOnce(&mut SampleState),
        at: Timestamp,
    ) {
        let tail = self.settings.tail();
        self.unwait(sample);
        let Some(state) = self.samples.flying.get_mut(&sample) else {
            return;
        };
        change(state);
        state.attempts = 0;
        state.failed_by.clear();
        // Whoever did the forward pass has kept what the backward pass needs.
        let did_forward = state
            .next_piece(tail)
            .filter(|_| !state.backwards.is_empty())
            .and_then(|piece| state.forwards.get(index(piece.stage)))
            .map(|hop| hop.session);
        let only = did_forward.filter(|session| self.sessions.live.contains_key(session));
        self.wait(
            sample,
            Preference {
                only,
                ..Preference::default()
            },
            at,
        );
    }

    pub(super) fn wait(&mut self, sample: SampleId, preference: Preference, at: Timestamp) {
        let waited_for = [self.samples.waits_for(sample), preference.only];
        self.samples.wait(
            sample,
            self.settings.tail(),
            preference,
            at,
            self.settings.timing.affinity,
        );
        self.refile_all(waited_for.into_iter().flatten());
    }

    /// A sample's piece waits no longer: its chain or its holder is about to change.
    pub(super) fn unwait(&mut self, sample: SampleId) {
        let waited_for = self.samples.waits_for(sample);
        self.samples.unindex(sample, self.settings.tail());
        self.refile_all(waited_for);
    }

    fn refile_all(&mut self, sessions: impl IntoIterator<Item = Session>) {
        for session in sessions {
            self.refile(session);
        }
    }

    /// Changes the first audit that this work is and that fits, and files it anew.
    fn change_audit_of(
        &mut self,
        work: &Work,
        fits: impl Fn(&Audit) -> bool,
        change: impl FnOnce(&mut Audit),
    ) {
        let Some(subject) = work.subject() else {
            return;
        };
        let pending = &mut self.audits.pending;
        let fitting = self
            .index
            .audits_of(subject)
            .find(|id| pending.get(id).is_some_and(&fits));
        if let Some(audit) = fitting.and_then(|id| pending.get_mut(&id)) {
            change(audit);
            self.refile_audits_of(subject);
        }
    }

    pub(super) fn apply_piece_undone(
        &mut self,
        sample: SampleId,
        piece: Piece,
        producer: Session,
        at: Timestamp,
    ) {
        let tail = self.settings.tail();
        self.unwait(sample);
        let Some(state) = self.samples.flying.get_mut(&sample) else {
            return;
        };
        let done = state.done();
        state.undo(piece, tail);
        self.samples.work.undone += done - state.done();
        state.failed_by.insert(producer);
        let avoid = state.failed_by.clone();
        self.wait(sample, Preference { only: None, avoid }, at);
    }

    pub(super) fn apply_sample_restarted(
        &mut self,
        sample: SampleId,
        why: RestartReason,
        at: Timestamp,
    ) {
        self.unwait(sample);
        self.note_undone(sample);
        self.samples.flying.insert(sample, SampleState::fresh());
        self.samples.counts.restarted += u64::from(why == RestartReason::TooManyAttempts);
        self.wait(sample, Preference::default(), at);
    }

    /// All that was done for a sample is of no use.
    pub(super) fn note_undone(&mut self, sample: SampleId) {
        let done = self
            .samples
            .flying
            .get(&sample)
            .map_or(0, SampleState::done);
        self.samples.work.undone += done;
    }

    /// Notes when the epoch's last sample is opened: from then on the rest is waited for.
    pub(super) fn note_quota(&mut self, at: Timestamp) {
        if self.samples.opened_in_epoch >= self.settings.samples_per_epoch
            && self.samples.drains_since.is_none()
        {
            self.samples.drains_since = Some(at);
        }
    }
}

impl SampleState {
    /// A sample at its tokens.
    pub(crate) fn fresh() -> Self {
        Self {
            forwards: Vec::new(),
            backwards: Vec::new(),
            loss: None,
            holder: Holder::Done,
            attempts: 0,
            failed_by: BTreeSet::new(),
        }
    }

    /// Forgets what a piece produced and all that was made from it.
    pub(super) fn undo(&mut self, piece: Piece, tail: StageIndex) {
        let stage = index(piece.stage);
        match piece.direction {
            Direction::Forward => {
                self.forwards.truncate(stage);
                self.backwards.clear();
                self.loss = None;
            }
            Direction::Backward => {
                self.backwards.truncate(index(tail) - stage);
                if self.backwards.is_empty() {
                    self.loss = None;
                }
            }
        }
    }
}
