//! How each event changes the state. Nothing is decided here, and nothing else changes a state.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{CellResult, Direction, Event, LeaseEnd, Phase, Piece, RestartReason};
use crate::id::{Digest, Epoch, LeaseId, SampleId, Session, StageIndex};
use crate::state::State;
use crate::state::audits::{Audit, Coverage};
use crate::state::merging::{Cell, MergeRecord, MergedCell, Settled, Slot, StageMerge, Upload};
use crate::state::samples::{CompletedSample, Holder, Hop, Preference, SampleState};
use crate::state::sessions::{Answer, Installation, REMEMBERED_LEASES, SessionState};
use crate::time::Timestamp;
use crate::work::{
    Checkpoint, Failure, Lease, LogEntry, ObjectRef, Outcome, SegmentSource, UploadRecord, Verdict,
    Work, WorkKind,
};
use crate::{audit, cells};

impl State {
    /// Changes the state as an event says. Applying the events of a run in order, each at the time at which
    /// [`handle`](Self::handle) returned it, to a fresh state gives the run's state.
    ///
    /// Events come from [`handle`](Self::handle), here or in a journal; one that it did not return may leave a state
    /// that breaks the invariants.
    pub fn apply(&mut self, at: Timestamp, event: &Event) {
        self.clock = self.clock.max(at);
        let at = self.clock;
        match event {
            Event::SessionJoined {
                session,
                role,
                stage,
                capacity,
            } => {
                let given_us = stage.map_or(0, |stage| {
                    self.sessions
                        .miners_of(stage)
                        .map(|(_, state)| state.given_us)
                        .min()
                        .unwrap_or(0)
                });
                self.sessions.join(
                    *session,
                    SessionState::new(*role, *stage, *capacity, given_us, at),
                );
            }
            Event::SessionEnded { session, .. } => self.apply_session_ended(*session, at),
            Event::RoomOffered { session, room } => {
                if let Some(state) = self.sessions.get_mut(*session) {
                    state.room = *room;
                    state.last_contact = at;
                }
            }
            Event::SampleOpened { sample } => {
                self.samples.next = sample.next();
                self.samples.counts.opened += 1;
                self.samples.opened_in_epoch += 1;
                self.samples.flying.insert(*sample, SampleState::fresh());
                self.wait(*sample, Preference::default(), at);
                self.note_quota(at);
            }
            Event::Leased(lease) => self.apply_leased(lease),
            Event::LeaseEnded {
                lease,
                session,
                why,
            } => self.apply_lease_ended(*lease, *session, why, at),
            Event::Completed {
                lease,
                session,
                outcome,
                credited,
            } => {
                self.apply_completed(*lease, *session, outcome, *credited, at);
            }
            Event::PreferenceLapsed { sample } => self.wait(*sample, Preference::default(), at),
            Event::PieceUndone {
                sample,
                piece,
                producer,
                ..
            } => {
                self.apply_piece_undone(*sample, *piece, *producer, at);
            }
            Event::SampleCompleted { sample, loss, path } => {
                self.samples.unindex(*sample, self.settings.tail());
                self.samples.flying.remove(sample);
                self.samples.counts.completed += 1;
                self.samples.completed.insert(
                    *sample,
                    CompletedSample {
                        loss: *loss,
                        path: path.clone(),
                    },
                );
            }
            Event::SampleRestarted { sample, why } => {
                self.apply_sample_restarted(*sample, *why, at)
            }
            Event::SampleDropped { sample } => {
                self.samples.unindex(*sample, self.settings.tail());
                self.samples.flying.remove(sample);
                self.samples.counts.lost += 1;
            }
            Event::PhaseChanged {
                phase,
                epoch,
                deadline,
                ..
            } => {
                self.phase = *phase;
                self.epoch = *epoch;
                self.phase_since = at;
                self.phase_deadline = *deadline;
                self.apply_phase_begins(at);
            }
            Event::RosterFixed { stage, roster } => {
                let elements = self.settings.stage_parameters[index(*stage)];
                let plan = cells::plan(&self.settings.secret, *stage, self.epoch, roster, elements);
                self.merging[index(*stage)] = StageMerge {
                    roster: roster.iter().copied().collect(),
                    cells: plan.into_iter().map(Cell::planned).collect(),
                    ..StageMerge::default()
                };
            }
            Event::OwnersRelaxed => self
                .merging
                .iter_mut()
                .for_each(|merge| merge.relaxed = true),
            Event::UploadAccused {
                stage,
                producer,
                accuser,
                ..
            } => {
                self.merging[index(*stage)]
                    .accusations
                    .entry(*producer)
                    .or_default()
                    .insert(*accuser);
            }
            Event::UploadExcluded { stage, session, .. } => {
                let merge = &mut self.merging[index(*stage)];
                if let Some(upload) = merge.uploads.get_mut(session) {
                    upload.excluded = true;
                }
                for cell in &mut merge.cells {
                    cell.slots.clear();
                    cell.settled = None;
                }
            }
            Event::UploadQuarantined { stage, session, .. } => {
                self.merging[index(*stage)].quarantined.insert(*session);
                if let Some(ledger) = self.sessions.ledger_mut(session.peer) {
                    ledger.drop_work(self.epoch);
                    ledger.forfeit(self.epoch);
                }
            }
            Event::CellSettled {
                stage,
                cell,
                result,
                merged,
            } => {
                if let Some(cell) = self.merging[index(*stage)].cell_mut(*cell) {
                    cell.settled = Some(Settled {
                        result: *result,
                        merged: *merged,
                    });
                }
            }
            Event::CheckpointCommitted(checkpoint) => self.apply_checkpoint(checkpoint),
            Event::Installed {
                session,
                epoch,
                state,
                ..
            } => self.apply_installed(*session, *epoch, *state, at),
            Event::ReplicasDiffer { epoch, odd, .. } => {
                self.replicas_equal = false;
                for session in odd {
                    if let Some(installation) = self
                        .sessions
                        .get_mut(*session)
                        .and_then(|state| state.installation.as_mut())
                    {
                        installation.odd = true;
                    }
                    if let Some(ledger) = self.sessions.ledger_mut(session.peer) {
                        ledger.drop_work(*epoch);
                    }
                }
            }
            Event::AuditDrawn {
                audit,
                subject,
                stage,
                operations,
                of,
            } => {
                let work = Work::Replay {
                    subject: *subject,
                    checkpoint: self.checkpoint(*stage).clone(),
                    entries: Vec::new(),
                    upload: None,
                };
                let coverage = if operations == of {
                    Coverage::Everything
                } else {
                    Coverage::First {
                        operations: *operations,
                    }
                };
                let epoch = self.epoch;
                let audit_state = Audit {
                    subject: *subject,
                    stage: *stage,
                    epoch,
                    work,
                    awaits: Some(coverage),
                    lease: None,
                    attempts: 0,
                };
                self.audits.open(*audit, audit_state);
                if let Some(ledger) = self.sessions.ledger_mut(subject.peer) {
                    ledger.last_audited = Some(epoch);
                }
            }
            Event::DisputeOpened {
                audit,
                object,
                stage,
                producer,
                accuser,
            } => {
                let work = Work::Inspect {
                    object: *object,
                    producer: *producer,
                    accuser: *accuser,
                };
                let (subject, stage, epoch) = (*producer, *stage, self.epoch);
                self.audits.open(
                    *audit,
                    Audit {
                        subject,
                        stage,
                        epoch,
                        work,
                        awaits: None,
                        lease: None,
                        attempts: 0,
                    },
                );
            }
            Event::AuditSettled {
                audit,
                subject,
                verdict,
                ..
            } => {
                if let Some(audit) = self.audits.pending.remove(audit) {
                    self.apply_verdict(&audit, *subject, *verdict);
                }
            }
            Event::AuditAbandoned { audit, .. } => {
                self.audits.pending.remove(audit);
            }
            Event::PeerBanned { peer, why } => {
                if let Some(ledger) = self.sessions.ledger_mut(*peer) {
                    ledger.banned = Some(*why);
                }
                for cell in self.merging.iter_mut().flat_map(|merge| &mut merge.cells) {
                    if cell.settled.is_none() {
                        cell.slots.retain(|session, _| session.peer != *peer);
                    }
                }
            }
        }
    }

    fn apply_session_ended(&mut self, session: Session, at: Timestamp) {
        self.close_log(session);
        let Some(state) = self.sessions.get(session) else {
            return;
        };
        for lease in &state.lapsed {
            self.leases.lapsed.remove(lease);
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

    fn apply_leased(&mut self, lease: &Lease) {
        self.leases.next = lease.id.next();
        self.leases.due.insert((lease.deadline, lease.id));
        self.leases.held.insert(lease.id, lease.clone());
        let expected = self.expected_us(lease.session, lease.stage, lease.work.kind());
        if let Some(state) = self.sessions.get_mut(lease.session) {
            state.held.insert(lease.id);
            state.room = state.room.saturating_sub(1);
            if lease.work.sample().is_some() {
                state.given_us = state.given_us.saturating_add(expected);
            }
        }
        match &lease.work {
            Work::Forward { sample, .. } | Work::Backward { sample, .. } => {
                self.samples.lease(*sample, self.settings.tail(), lease.id);
            }
            Work::Merge { cell, .. } => {
                if let Some(cell) = self.merging[index(lease.stage)].cell_mut(*cell) {
                    cell.slots
                        .insert(lease.session, Slot::Leased { lease: lease.id });
                }
            }
            Work::Replay { .. } | Work::Inspect { .. } => {
                let waiting =
                    |audit: &&mut Audit| audit.lease.is_none() && audit.work == lease.work;
                if let Some(audit) = self.audits.pending.values_mut().find(waiting) {
                    audit.lease = Some(lease.id);
                }
            }
            Work::Install { .. } => {
                if let Some(state) = self.sessions.get_mut(lease.session) {
                    state.installs += 1;
                }
            }
            Work::Upload { .. } => {}
        }
    }

    /// Takes a lease from its holder. Returns it.
    fn take_lease(&mut self, lease: LeaseId) -> Option<Lease> {
        let lease = self.leases.held.remove(&lease)?;
        self.leases.due.remove(&(lease.deadline, lease.id));
        if let Some(state) = self.sessions.get_mut(lease.session) {
            state.held.remove(&lease.id);
        }
        Some(lease)
    }

    fn apply_lease_ended(&mut self, id: LeaseId, session: Session, why: &LeaseEnd, at: Timestamp) {
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
            LeaseEnd::SessionOver | LeaseEnd::EpochClosed | LeaseEnd::Withdrawn => {}
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
                if let Some(cell) = self.merging[index(lease.stage)].cell_mut(*cell)
                    && cell.slots.get(&session) == Some(&Slot::Leased { lease: id })
                {
                    cell.slots.remove(&session);
                    *cell.failures.entry(session).or_default() += 1;
                }
            }
            Work::Replay { .. } | Work::Inspect { .. } => {
                if let Some(audit) = self
                    .audits
                    .pending
                    .values_mut()
                    .find(|audit| audit.lease == Some(id))
                {
                    audit.lease = None;
                    audit.attempts += 1;
                }
            }
            Work::Upload { .. } | Work::Install { .. } => {}
        }
    }

    fn remember_lapsed(&mut self, lease: Lease) {
        let Some(state) = self.sessions.get_mut(lease.session) else {
            return;
        };
        state.lapsed.insert(lease.id);
        if state.lapsed.len() > REMEMBERED_LEASES
            && let Some(oldest) = state.lapsed.pop_first()
        {
            self.leases.lapsed.remove(&oldest);
        }
        self.leases.lapsed.insert(lease.id, lease);
    }

    fn apply_completed(
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
        if !credited {
            return;
        }
        let epoch = self.epoch;
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
                },
                Outcome::Upload {
                    cells: seals,
                    optimizer_steps,
                },
            ) => {
                let weight = self
                    .session(session)
                    .map_or(1, |state| state.backwards.max(1));
                let record = UploadRecord {
                    cells: cells.clone(),
                    seals: seals.clone(),
                    learning_rate: *learning_rate,
                    optimizer_steps: *optimizer_steps,
                };
                self.merging[index(lease.stage)].uploads.insert(
                    session,
                    Upload {
                        record,
                        weight,
                        excluded: false,
                    },
                );
                self.close_log(session);
            }
            (
                Work::Merge { cell, output, .. },
                Outcome::Merge {
                    merged,
                    quarantined,
                },
            ) => {
                let object = ObjectRef {
                    name: *output,
                    seal: *merged,
                };
                let merged = MergedCell {
                    object,
                    quarantined: quarantined.clone(),
                };
                if let Some(cell) = self.merging[index(lease.stage)].cell_mut(*cell) {
                    cell.slots.insert(session, Slot::Done { merged });
                }
            }
            (Work::Install { checkpoint }, Outcome::Install { state }) => {
                self.forget_lapsed_samples(session);
                if let Some(holder) = self.sessions.get_mut(session) {
                    holder.begin_epoch();
                    // Odd until it is known to be like the others: the event Installed follows if it is.
                    holder.installation = Some(Installation {
                        epoch: checkpoint.epoch,
                        state: *state,
                        odd: true,
                    });
                }
                let bytes: u64 = checkpoint
                    .segments
                    .iter()
                    .filter_map(|segment| match &segment.source {
                        SegmentSource::Genesis => None,
                        SegmentSource::Merged { object, .. } => Some(object.seal.length),
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

    /// Makes a sample's next piece its present one, and lets it wait.
    fn advance(&mut self, sample: SampleId, change: impl FnOnce(&mut SampleState), at: Timestamp) {
        let tail = self.settings.tail();
        self.samples.unindex(sample, tail);
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

    fn wait(&mut self, sample: SampleId, preference: Preference, at: Timestamp) {
        self.samples.wait(
            sample,
            self.settings.tail(),
            preference,
            at,
            self.settings.timing.affinity,
        );
    }

    fn apply_piece_undone(
        &mut self,
        sample: SampleId,
        piece: Piece,
        producer: Session,
        at: Timestamp,
    ) {
        let tail = self.settings.tail();
        self.samples.unindex(sample, tail);
        let Some(state) = self.samples.flying.get_mut(&sample) else {
            return;
        };
        state.undo(piece, tail);
        state.failed_by.insert(producer);
        let avoid = state.failed_by.clone();
        self.wait(sample, Preference { only: None, avoid }, at);
    }

    fn apply_sample_restarted(&mut self, sample: SampleId, why: RestartReason, at: Timestamp) {
        self.samples.unindex(sample, self.settings.tail());
        self.samples.flying.insert(sample, SampleState::fresh());
        self.samples.counts.restarted += u64::from(why == RestartReason::TooManyAttempts);
        self.wait(sample, Preference::default(), at);
    }

    /// Notes when the epoch's last sample is opened: from then on the rest is waited for.
    fn note_quota(&mut self, at: Timestamp) {
        if self.samples.opened_in_epoch >= self.settings.samples_per_epoch
            && self.samples.drains_since.is_none()
        {
            self.samples.drains_since = Some(at);
        }
    }

    fn apply_phase_begins(&mut self, at: Timestamp) {
        self.leases.stale_below = self.leases.next;
        match self.phase {
            Phase::Training => {
                self.samples.completed.clear();
                self.samples.opened_in_epoch = self.samples.flying.len() as u64;
                self.samples.drains_since = None;
                self.note_quota(at);
            }
            Phase::Uploading => self.forget_lapsed(),
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
            }
            Phase::Gathering => {}
        }
    }

    /// Forgets leases whose late results would be worth nothing. A late verdict always is worth something; a sample's
    /// work, while it may still be in the upload of its epoch.
    fn forget_lapsed(&mut self) {
        let epoch = self.epoch;
        let phase = self.phase;
        let keep = |lease: &Lease| match lease.work {
            Work::Replay { .. } | Work::Inspect { .. } => true,
            Work::Install { .. } => lease.epoch == epoch,
            Work::Merge { .. } => phase == Phase::Merging,
            Work::Forward { .. } | Work::Backward { .. } => {
                matches!(phase, Phase::Uploading | Phase::Merging)
            }
            Work::Upload { .. } => false,
        };
        let forgotten: Vec<_> = self
            .leases
            .lapsed
            .values()
            .filter(|lease| !keep(lease))
            .map(|lease| (lease.id, lease.session))
            .collect();
        for (lease, session) in forgotten {
            self.leases.lapsed.remove(&lease);
            if let Some(state) = self.sessions.get_mut(session) {
                state.lapsed.remove(&lease);
            }
        }
    }

    /// A session starts anew from a checkpoint: what it did before is not in its weights, so it is not logged any more.
    fn forget_lapsed_samples(&mut self, session: Session) {
        let Some(state) = self.sessions.get_mut(session) else {
            return;
        };
        let lapsed = &mut self.leases.lapsed;
        state.lapsed.retain(|lease| {
            let of_sample = lapsed
                .get(lease)
                .is_some_and(|lease| lease.work.sample().is_some());
            if of_sample {
                lapsed.remove(lease);
            }
            !of_sample
        });
    }

    /// The time to upload is over: nothing that comes now is in an upload.
    fn close_logs(&mut self) {
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
    fn close_log(&mut self, subject: Session) {
        let Some(state) = self.sessions.get(subject) else {
            return;
        };
        let mut unchecked = false;
        for audit in self.audits.pending.values_mut() {
            if audit.subject != subject {
                continue;
            }
            let (
                Some(coverage),
                Work::Replay {
                    entries, upload, ..
                },
            ) = (audit.awaits.take(), &mut audit.work)
            else {
                continue;
            };
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
        }
        // Work that nobody can redo is not paid, or skipping an operation and the upload would be a way to earn.
        if unchecked && let Some(ledger) = self.sessions.ledger_mut(subject.peer) {
            ledger.forfeit(self.epoch);
        }
    }

    fn apply_checkpoint(&mut self, checkpoint: &Checkpoint) {
        let stage = checkpoint.stage;
        let merge = &self.merging[index(stage)];
        let mut record = MergeRecord {
            epoch: checkpoint.epoch,
            stage,
            cells: merge.cells.len() as u64,
            covered: 0,
            agreed: 0,
            bytes_up: 0,
            bytes_down: 0,
        };
        for upload in merge.uploads.values() {
            record.bytes_up += upload
                .record
                .seals
                .iter()
                .map(|seal| seal.length)
                .sum::<u64>();
        }
        for cell in &merge.cells {
            let settled = cell.settled.as_ref();
            record.covered += u64::from(settled.is_some_and(|settled| settled.merged.is_some()));
            record.agreed +=
                u64::from(settled.is_some_and(|settled| settled.result == CellResult::Agreed));
            let cell_bytes = self.cell_bytes(cell.range.end - cell.range.start);
            let results = cell.results().count() as u64;
            let inputs = merge
                .uploads
                .values()
                .filter(|upload| !upload.excluded)
                .count() as u64;
            record.bytes_up += results * cell_bytes;
            record.bytes_down += results * inputs * cell_bytes;
        }
        self.merges.push(record);
        self.checkpoints[index(stage)] = checkpoint.clone();
    }

    fn apply_installed(&mut self, session: Session, epoch: Epoch, digest: Digest, at: Timestamp) {
        let Some(stage) = self.session(session).and_then(|state| state.stage) else {
            return;
        };
        if self.sessions.installed(stage, epoch).next().is_none()
            && self.samples.drains_since.is_some()
        {
            // The stage had nobody; whoever came now deserves the full time for what is left.
            self.samples.drains_since = Some(at);
        }
        let given_us = self
            .sessions
            .installed(stage, epoch)
            .map(|(_, state)| state.given_us)
            .min();
        if let Some(state) = self.sessions.get_mut(session) {
            state.installation = Some(Installation {
                epoch,
                state: digest,
                odd: false,
            });
            state.given_us = state.given_us.max(given_us.unwrap_or(0));
        }
    }

    fn apply_verdict(&mut self, audit: &Audit, subject: Session, verdict: Verdict) {
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

impl SampleState {
    /// A sample at its tokens.
    fn fresh() -> Self {
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
    fn undo(&mut self, piece: Piece, tail: StageIndex) {
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

impl Cell {
    fn planned(plan: cells::PlannedCell) -> Self {
        Self {
            range: plan.range,
            planned: plan.owners,
            slots: BTreeMap::new(),
            failures: BTreeMap::new(),
            settled: None,
        }
    }
}

fn index(stage: StageIndex) -> usize {
    usize::from(stage.get())
}
