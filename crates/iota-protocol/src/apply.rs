//! How each event changes the state. Nothing is decided here, and nothing else changes a state.

mod epoch;
mod restored;
mod resumed;
mod vain;
mod work;

pub(crate) use restored::LEAP_FURTHER_MAX;

use std::collections::BTreeMap;

use crate::cells;
use crate::event::{AbandonReason, Event, SessionEnd};
use crate::id::StageIndex;
use crate::state::State;
use crate::state::audits::{Audit, Coverage};
use crate::state::merging::{Cell, Settled, StageMerge};
use crate::state::samples::{CompletedSample, Preference, SampleState};
use crate::state::sessions::SessionState;
use crate::time::Timestamp;
use crate::work::Work;

impl State {
    /// Changes the state as an event says. Applying the events of a run in order, each at the time at which
    /// [`handle`](Self::handle) returned it, to a fresh state gives the run's state.
    ///
    /// Events come from [`handle`](Self::handle), here or in a journal; one that it did not return may leave a state
    /// that breaks the invariants.
    pub fn apply(&mut self, at: Timestamp, event: &Event) {
        self.clock = self.clock.max(at);
        self.change(self.clock, event);
        self.refile_after(event);
    }

    fn change(&mut self, at: Timestamp, event: &Event) {
        match event {
            Event::Resumed { away } => self.apply_resumed(*away),
            Event::Restored { away, further } => self.apply_restored(*away, *further),
            Event::SessionJoined {
                session,
                role,
                stage,
                capacity,
            } => {
                let least = stage.and_then(|stage| self.index.stage(stage).miners.first());
                let given_us = least.map_or(0, |(given_us, _)| *given_us);
                self.places.release(session.peer);
                self.sessions.join(
                    *session,
                    SessionState::new(*role, *stage, *capacity, given_us, at),
                );
            }
            Event::SessionEnded { session, why } => {
                let was_miner = self.session(*session).is_some_and(|it| it.stage.is_some());
                self.apply_session_ended(*session, at);
                if was_miner && matches!(why, SessionEnd::Silent | SessionEnd::Restored) {
                    self.places.keep(session.peer, at);
                }
            }
            Event::WaitBegan { peer, ticket, .. } => self.places.begin_waiting(*peer, *ticket, at),
            Event::WaiterHeard { peer } => self.places.hear(*peer, at),
            Event::WaitEnded { ticket, why, .. } => self.places.end_waiting(*ticket, *why),
            Event::PlaceLapsed { peer, .. } => self.places.release(*peer),
            Event::RegistrationChanged { is_open, until } => {
                self.places.change_window(*is_open, *until);
            }
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
            Event::FinishedInVain {
                lease,
                session,
                passes,
                ..
            } => self.apply_finished_in_vain(*lease, *session, *passes),
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
                self.unwait(*sample);
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
                self.unwait(*sample);
                self.note_undone(*sample);
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
                let seed = cells::seed(&self.settings.secret, *stage, self.epoch);
                let plan = cells::plan(self.settings.merging.cells, &seed, roster, elements);
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
                merge.begin_again();
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
                let settled = Settled {
                    result: *result,
                    merged: *merged,
                };
                self.merging[index(*stage)].note_settled(*cell, settled);
            }
            Event::CheckpointCommitted(checkpoint) => self.apply_checkpoint(checkpoint),
            Event::CheckpointAccused {
                stage,
                object,
                accuser,
                ..
            } => {
                self.unreadable.insert((*stage, *object, accuser.peer));
            }
            Event::CheckpointRepaired { checkpoint, .. } => self.apply_repair(checkpoint),
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
                    kept: None,
                    entries: Vec::new(),
                    ahead: 0,
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
                if let Some(state) = self.sessions.get_mut(*subject) {
                    state.drawn = Some(*audit);
                }
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
            Event::AuditAbandoned {
                audit,
                subject,
                why,
            } => {
                self.audits.pending.remove(audit);
                if *why == AbandonReason::NotHandedOver {
                    self.apply_withheld(*subject);
                }
            }
            Event::PeerBanned { peer, why } => {
                if let Some(ledger) = self.sessions.ledger_mut(*peer) {
                    ledger.banned = Some(*why);
                }
                self.leases.in_vain.forget(*peer);
                for cell in self.merging.iter_mut().flat_map(|merge| &mut merge.cells) {
                    if cell.settled.is_none() {
                        cell.slots.retain(|session, _| session.peer != *peer);
                    }
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
