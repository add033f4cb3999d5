//! What follows from the state and the time, one step at a time until nothing does.
//!
//! The order matters and is the order of this list: what is over ends before anything new begins, so that no work goes
//! to the dead or into a closed phase.

use crate::event::{AbandonReason, Event, LeaseEnd, Phase, PhaseReason, RestartReason, SessionEnd};
use crate::id::{LeaseId, Session};
use crate::registration::PlaceEnd;
use crate::state::sessions::INSTALLS_MAX;
use crate::state::{Audit, SessionState, State};
use crate::time::Timestamp;
use crate::work::Work;

/// Leases of one piece that may end in vain before its sample goes back to its tokens: by then what the piece is made
/// from is suspect.
const ATTEMPTS_MAX: u32 = 8;

/// Leases of one audit that may end in vain: validators are few, and what they cannot read will not come back.
const AUDIT_ATTEMPTS_MAX: u32 = 8;

/// Epochs for which an audit waits for a validator, beyond those within which every miner is audited.
const AUDIT_PATIENCE_EPOCHS: u64 = 4;

impl State {
    /// The next events that follow; none if the state is at rest.
    pub(crate) fn next_consequences(&self, now: Timestamp) -> Option<Vec<Event>> {
        if self.is_over() {
            return None;
        }
        self.silent_session(now)
            .or_else(|| self.hopeless_session())
            .or_else(|| self.overdue_lease(now))
            .or_else(|| self.lapsed_place(now))
            .or_else(|| self.next_window(now))
            .or_else(|| self.next_admission(now))
            .or_else(|| self.next_displacement(now))
            .or_else(|| self.lapsed_preference(now))
            .or_else(|| self.moot_audit())
            .or_else(|| self.next_repair(now))
            .or_else(|| self.next_merge_step(now))
            .or_else(|| self.next_phase(now))
            .or_else(|| self.next_assignment(now))
    }

    /// When the next consequence is due, if none comes before. Call [`handle`](Self::handle) with
    /// [`Command::Tick`](crate::Command::Tick) then; earlier calls do nothing.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if self.is_over() {
            return None;
        }
        let timeout = self.settings.timing.session_timeout;
        let silence = self.index.contacts.first().map(|(at, _)| *at + timeout);
        let lease = self.leases.due.first().map(|(deadline, _)| *deadline);
        let preference = self.samples.lapses.first().map(|(lapses_at, _)| *lapses_at);
        let phase = self.phase_change_at();
        let places = self.places_at();
        [silence, lease, preference, phase, places, self.repair_at()]
            .into_iter()
            .flatten()
            .min()
    }

    fn silent_session(&self, now: Timestamp) -> Option<Vec<Event>> {
        let timeout = self.settings.timing.session_timeout;
        let (at, session) = *self.index.contacts.first()?;
        (now >= at + timeout).then(|| self.end_session(session, SessionEnd::Silent))
    }

    /// A session whose last try to install has ended in vain. It may join again, which takes time.
    fn hopeless_session(&self) -> Option<Vec<Event>> {
        let session = *self.index.hopeless.first()?;
        Some(self.end_session(session, SessionEnd::CannotInstall))
    }

    fn overdue_lease(&self, now: Timestamp) -> Option<Vec<Event>> {
        let (deadline, lease) = *self.leases.due.first()?;
        (now >= deadline).then(|| self.end_lease(lease, LeaseEnd::Expired))
    }

    fn lapsed_preference(&self, now: Timestamp) -> Option<Vec<Event>> {
        let (lapses_at, sample) = *self.samples.lapses.first()?;
        (now >= lapses_at).then(|| vec![Event::PreferenceLapsed { sample }])
    }

    fn moot_audit(&self) -> Option<Vec<Event>> {
        let id = *self.index.moot_audits.first()?;
        let audit = &self.audits.pending[&id];
        let why = self.why_moot(audit)?;
        let mut events = self.withdraw(audit.lease);
        events.push(Event::AuditAbandoned {
            audit: id,
            subject: audit.subject,
            why,
        });
        Some(events)
    }

    /// Why nobody has to do this audit any more, if so.
    pub(crate) fn why_moot(&self, audit: &Audit) -> Option<AbandonReason> {
        let patience = AUDIT_PATIENCE_EPOCHS + u64::from(self.settings.audit_every_epochs);
        let waits = audit.lease.is_none();
        let empty = matches!(&audit.work, Work::Replay { entries, .. } if entries.is_empty());
        if self.sessions.is_banned(audit.subject.peer) {
            Some(AbandonReason::SubjectBanned)
        } else if waits && audit.epoch.get() + patience < self.epoch.get() {
            Some(AbandonReason::TooOld)
        } else if waits && audit.attempts >= AUDIT_ATTEMPTS_MAX {
            Some(AbandonReason::TooManyAttempts)
        } else if audit.awaits.is_none() && empty {
            Some(AbandonReason::NothingToRedo)
        } else {
            None
        }
    }

    fn withdraw(&self, lease: Option<LeaseId>) -> Vec<Event> {
        lease.map_or_else(Vec::new, |lease| self.end_lease(lease, LeaseEnd::Withdrawn))
    }

    /// Ends a lease, and sends its sample back to its tokens if this was one attempt too many.
    pub(crate) fn end_lease(&self, id: LeaseId, why: LeaseEnd) -> Vec<Event> {
        let Some(lease) = self.lease(id) else {
            return Vec::new();
        };
        let mut events = vec![Event::LeaseEnded {
            lease: id,
            session: lease.session,
            why,
        }];
        if let Some(sample) = lease.work.sample()
            && self
                .samples
                .flying
                .get(&sample)
                .is_some_and(|state| state.attempts + 1 >= ATTEMPTS_MAX)
        {
            events.push(Event::SampleRestarted {
                sample,
                why: RestartReason::TooManyAttempts,
            });
        }
        events
    }

    /// Ends a session and, before it, its leases.
    pub(crate) fn end_session(&self, session: Session, why: SessionEnd) -> Vec<Event> {
        let held = self.leases_of(session).map(|lease| lease.id);
        let mut events: Vec<Event> = held
            .flat_map(|lease| self.end_lease(lease, LeaseEnd::SessionOver))
            .collect();
        events.extend(self.takes_along(session, why));
        events.push(Event::SessionEnded { session, why });
        events
    }

    /// Ends the run: what is under way is dropped, everybody is let go.
    pub(crate) fn end_run(&self, why: PhaseReason) -> Vec<Event> {
        let mut events = Vec::new();
        for lease in self.leases() {
            let why = LeaseEnd::SessionOver;
            events.push(Event::LeaseEnded {
                lease: lease.id,
                session: lease.session,
                why,
            });
        }
        events.extend(
            self.samples
                .flying
                .keys()
                .map(|sample| Event::SampleDropped { sample: *sample }),
        );
        for (audit, state) in self.audits_pending() {
            events.push(Event::AuditAbandoned {
                audit,
                subject: state.subject,
                why: AbandonReason::RunOver,
            });
        }
        for (session, _) in self.sessions() {
            events.push(Event::SessionEnded {
                session,
                why: SessionEnd::RunOver,
            });
        }
        let absent = self.places.heard.iter().map(|(_, peer)| *peer);
        events.extend(absent.filter_map(|peer| self.end_place(peer, PlaceEnd::RunOver)));
        events.push(Event::PhaseChanged {
            phase: Phase::Over,
            epoch: self.epoch,
            deadline: None,
            why,
        });
        events
    }
}

/// Whether a session has had its last try to install, however that one ends.
pub(crate) const fn is_hopeless(session: &SessionState) -> bool {
    session.installs >= INSTALLS_MAX
}
