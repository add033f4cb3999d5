//! What a command does, decided before anything changes.

mod complete;
mod fail;

use std::time::Duration;

use crate::apply::LEAP_FURTHER_MAX;
use crate::command::{Command, Role};
use crate::event::{AbandonReason, Event, Phase, PhaseReason, SessionEnd};
use crate::id::{LeaseId, PeerId, Session};
use crate::registration::PlaceEnd;
use crate::rejection::Rejection;
use crate::state::State;
use crate::state::sessions::{Answer, CAPACITY_MAX, PEERS_MAX, SessionState};
use crate::time::Timestamp;
use crate::work::{Lease, Work};

impl State {
    /// Decides what a command does, does it, and does what follows from it. Returns everything that happened, in order;
    /// each event has been [applied](Self::apply) at `now`.
    ///
    /// A result that came too late to count ends in `Ok` too, because it is logged; [`Event::refusal`] says what to
    /// answer. A command that was carried out before is `Ok` and its own effect is not repeated; but time has passed, so
    /// other events may come.
    ///
    /// # Errors
    /// Says why the command is refused. Nothing has changed then.
    pub fn handle(&mut self, command: &Command, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        let now = now.max(self.clock);
        let mut happened = self.decide(command, now)?;
        for event in &happened {
            self.apply(now, event);
        }
        while let Some(events) = self.next_consequences(now) {
            for event in &events {
                self.apply(now, event);
            }
            happened.extend(events);
        }
        Ok(happened)
    }

    /// What the command itself does, without what follows.
    fn decide(&self, command: &Command, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Tick => Ok(Vec::new()),
            Command::Resume if self.is_over() => Ok(Vec::new()),
            Command::Resume => Ok(vec![Event::Resumed {
                away: now.since(self.clock),
            }]),
            Command::Wake { .. } if self.is_over() => Ok(Vec::new()),
            Command::Wake { away } => {
                let away = (*away).min(now.since(self.clock));
                let moves = away > Duration::ZERO;
                Ok(moves
                    .then_some(Event::Resumed { away })
                    .into_iter()
                    .collect())
            }
            Command::Restore { .. } if self.is_over() => Ok(Vec::new()),
            Command::Restore { chance } => Ok(self.decide_restore(*chance, now)),
            Command::Stop if self.is_over() => Ok(Vec::new()),
            Command::Stop => Ok(self.end_run(PhaseReason::Stopped)),
            _ if self.is_over() => Err(Rejection::RunOver),
            Command::Join {
                peer,
                role,
                capacity,
            } => self.decide_join(*peer, *role, *capacity, now),
            Command::Leave { session } => {
                self.live(*session)?;
                Ok(self.end_session(*session, SessionEnd::Left))
            }
            Command::OfferRoom { session, room } => self.decide_room(*session, *room, now),
            Command::Complete {
                session,
                lease,
                outcome,
            } => self.decide_complete(*session, *lease, outcome),
            Command::Fail {
                session,
                lease,
                failure,
            } => self.decide_fail(*session, *lease, *failure),
        }
    }

    fn decide_restore(&self, chance: u32, now: Timestamp) -> Vec<Event> {
        let away = now.since(self.clock);
        let mut events = vec![Event::Resumed { away }];
        for (session, _) in self.sessions() {
            events.extend(self.end_session(session, SessionEnd::Restored));
        }
        // A replay that lacks an object is given back and abandoned in the end; of an inspection the object is the point,
        // and that it is missing now says nothing against its author.
        let inspections = self
            .audits_pending()
            .filter(|(_, audit)| matches!(audit.work, Work::Inspect { .. }));
        events.extend(inspections.map(|(audit, state)| Event::AuditAbandoned {
            audit,
            subject: state.subject,
            why: AbandonReason::Restored,
        }));
        let further = chance % LEAP_FURTHER_MAX;
        events.push(Event::Restored { away, further });
        if self.is_learning() {
            events.push(Event::PhaseChanged {
                phase: Phase::Training,
                epoch: self.epoch,
                deadline: None,
                why: PhaseReason::Restored,
            });
        }
        events
    }

    fn decide_join(
        &self,
        peer: PeerId,
        role: Role,
        capacity: u32,
        now: Timestamp,
    ) -> Result<Vec<Event>, Rejection> {
        if self.sessions.is_banned(peer) {
            return Err(Rejection::Banned);
        }
        if role == Role::Validator && !self.settings.validators.contains(&peer) {
            return Err(Rejection::NotAValidator);
        }
        if role == Role::Miner && self.phase == Phase::Settling {
            return Err(Rejection::RunOver);
        }
        if !(1..=CAPACITY_MAX).contains(&capacity) {
            return Err(Rejection::OutOfBounds);
        }
        let record = self.peer(peer);
        if record.is_none() && self.sessions.peers.len() >= PEERS_MAX {
            return Err(Rejection::Full);
        }
        let earlier = record.and_then(|record| record.live);
        let generation = record
            .map_or(0, |record| record.generations)
            .max(self.sessions.generations_before)
            .checked_add(1)
            .ok_or(Rejection::OutOfBounds)?;
        let has_place = earlier
            .and_then(|session| self.session(session))
            .is_some_and(|state| state.stage.is_some())
            || self.places.kept.contains_key(&peer);
        if role == Role::Miner
            && !has_place
            && let Some(waits) = self.decide_waiting(peer, now)
        {
            return waits;
        }
        let stage = match role {
            Role::Miner => Some(self.stage_for_joiner(earlier).ok_or(Rejection::Full)?),
            Role::Validator => None,
        };
        let mut events = earlier.map_or_else(Vec::new, |earlier| {
            self.end_session(earlier, SessionEnd::Replaced)
        });
        if let Some(&ticket) = self.places.tickets.get(&peer) {
            let why = PlaceEnd::Admitted;
            events.push(Event::WaitEnded { peer, ticket, why });
        }
        events.push(Event::SessionJoined {
            session: Session { peer, generation },
            role,
            stage,
            capacity,
        });
        Ok(events)
    }

    /// Room changes, or a sign of life is due; a poll that says nothing new leaves no event behind.
    fn decide_room(
        &self,
        session: Session,
        room: u32,
        now: Timestamp,
    ) -> Result<Vec<Event>, Rejection> {
        let state = self.live(session)?;
        let held = u32::try_from(state.held.len()).unwrap_or(u32::MAX);
        let room = room.min(state.capacity.saturating_sub(held));
        let heard_of_lately =
            now.since(state.last_contact) < self.settings.timing.session_timeout / 8;
        if room == state.room && heard_of_lately {
            return Ok(Vec::new());
        }
        Ok(vec![Event::RoomOffered { session, room }])
    }

    /// A session that may speak.
    fn live(&self, session: Session) -> Result<&SessionState, Rejection> {
        self.session(session).ok_or_else(|| {
            if self.sessions.is_banned(session.peer) {
                Rejection::Banned
            } else {
                Rejection::NotRegistered
            }
        })
    }

    /// What a session means by a lease.
    fn find_lease<'a>(
        &'a self,
        session: Session,
        state: &'a SessionState,
        id: LeaseId,
    ) -> Result<Found<'a>, Rejection> {
        if let Some(answer) = state.answered.get(&id) {
            return Ok(Found::Answered(answer));
        }
        if let Some(lease) = self
            .leases
            .held
            .get(&id)
            .filter(|lease| lease.session == session)
        {
            return Ok(Found::Held(lease));
        }
        if let Some(lease) = self
            .leases
            .lapsed
            .get(&id)
            .filter(|lease| lease.session == session)
        {
            return Ok(Found::Lapsed(lease));
        }
        Err(if id < self.leases.stale_below {
            Rejection::StaleEpoch
        } else {
            Rejection::UnknownLease
        })
    }
}

/// A lease that a session may speak of.
enum Found<'a> {
    /// It runs.
    Held(&'a Lease),
    /// It ran out, and its result may still come.
    Lapsed(&'a Lease),
    /// It was answered before.
    Answered(&'a Answer),
}
