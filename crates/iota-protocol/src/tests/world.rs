//! A small network driven by hand: sessions that do what they are leased, when they are told to.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::command::{Command, Role};
use crate::event::{Event, Phase};
use crate::id::{Epoch, LeaseId, Session, StageIndex};
use crate::invariants::{a_place_never_gets_worse, check_all};
use crate::rejection::Rejection;
use crate::settings::RunSettings;
use crate::state::State;
use crate::testing::{honest, next_ordinal};
pub(super) use crate::testing::{installed, peer, seal, settings};
use crate::time::Timestamp;
use crate::work::{Failure, Lease, Outcome, Work, WorkKind};

/// A run and the time, with every event so far. After each command the invariants are checked, and a state that only
/// the events made is compared to the run's.
pub(super) struct World {
    pub(super) state: State,
    pub(super) now: Timestamp,
    pub(super) events: Vec<Event>,
    /// The events with their times: what a journal would hold.
    pub(super) log: Vec<(Timestamp, Event)>,
    /// How many events there were after each command that changed something.
    commands: Vec<usize>,
    replica: State,
    ordinals: BTreeMap<Session, u32>,
    /// How often it was restored.
    restored: u32,
}

impl World {
    pub(super) const START: Timestamp = Timestamp::from_millis(1_000);

    pub(super) fn new(settings: RunSettings) -> Self {
        let now = Self::START;
        let state = State::new(settings, now).unwrap();
        Self {
            replica: state.clone(),
            state,
            now,
            events: Vec::new(),
            log: Vec::new(),
            commands: Vec::new(),
            ordinals: BTreeMap::new(),
            restored: 0,
        }
    }

    /// One command, with everything that must hold after it.
    pub(super) fn command(&mut self, command: &Command) -> Result<Vec<Event>, Rejection> {
        let before = self.state.clone();
        let result = self.state.handle(command, self.now);
        match &result {
            Ok(events) => {
                for event in events {
                    self.replica.apply(self.now, event);
                }
                self.events.extend_from_slice(events);
                self.log
                    .extend(events.iter().map(|event| (self.now, event.clone())));
                if !events.is_empty() {
                    self.commands.push(self.log.len());
                }
                a_place_never_gets_worse(&before, &self.state)
                    .unwrap_or_else(|what| panic!("W3: {what} after {command:?}"));
                assert_eq!(
                    self.replica, self.state,
                    "events replay to another state after {command:?}"
                );
                if let Some(deadline) = self.state.next_deadline() {
                    assert!(deadline > self.now, "a timer in the past after {command:?}");
                }
            }
            Err(_) => assert_eq!(
                before, self.state,
                "a refused command changed the state: {command:?}"
            ),
        }
        check_all(&self.state).unwrap_or_else(|violation| panic!("{violation} after {command:?}"));
        result
    }

    /// Commands so far that changed something.
    pub(super) fn commands(&self) -> usize {
        self.commands.len()
    }

    /// How many events there were after so many commands.
    pub(super) fn kept_events(&self, commands: usize) -> usize {
        commands
            .checked_sub(1)
            .map_or(0, |last| self.commands[last])
    }

    /// Loses what happened after so many commands, and restores the run from what is left.
    pub(super) fn restore(&mut self, kept_commands: usize) -> Vec<Event> {
        self.commands.truncate(kept_commands);
        let kept = self.commands.last().copied().unwrap_or(0);
        self.log.truncate(kept);
        self.events.truncate(kept);
        let mut state = State::new(self.settings().clone(), Self::START).unwrap();
        for (at, event) in &self.log {
            state.apply(*at, event);
        }
        self.replica = state.clone();
        self.state = state;
        self.restored += 1;
        let chance = 1_000 * self.restored;
        self.command(&Command::Restore { chance }).unwrap()
    }

    pub(super) fn join(&mut self, name: u8) -> Session {
        self.join_as(name, Role::Miner, 2)
    }

    pub(super) fn join_as(&mut self, name: u8, role: Role, capacity: u32) -> Session {
        let peer = peer(name);
        self.command(&Command::Join {
            peer,
            role,
            capacity,
        })
        .unwrap();
        let session = self.state.session_of(peer).unwrap();
        self.ordinals.insert(session, 0);
        session
    }

    pub(super) fn offer(&mut self, session: Session, room: u32) -> Vec<Event> {
        self.command(&Command::OfferRoom { session, room }).unwrap()
    }

    pub(super) fn leases(&self, session: Session) -> Vec<Lease> {
        self.state.leases_of(session).cloned().collect()
    }

    /// The only lease that a session holds.
    pub(super) fn lease(&self, session: Session) -> Lease {
        let leases = self.leases(session);
        assert_eq!(leases.len(), 1, "{session:?} holds {leases:?}");
        leases[0].clone()
    }

    /// Something that only a long story would lead to.
    pub(super) fn happen(&mut self, event: Event) {
        self.state.apply(self.now, &event);
        self.replica.apply(self.now, &event);
        self.log.push((self.now, event.clone()));
        self.events.push(event);
    }

    pub(super) fn complete(
        &mut self,
        session: Session,
        lease: LeaseId,
        outcome: Outcome,
    ) -> Result<Vec<Event>, Rejection> {
        self.command(&Command::Complete {
            session,
            lease,
            outcome,
        })
    }

    /// What a session that says this is answered.
    pub(super) fn answer(
        &mut self,
        session: Session,
        lease: LeaseId,
        outcome: Outcome,
    ) -> Result<(), Rejection> {
        let events = self.complete(session, lease, outcome)?;
        events.iter().find_map(Event::refusal).map_or(Ok(()), Err)
    }

    pub(super) fn fail(
        &mut self,
        session: Session,
        lease: LeaseId,
        failure: Failure,
    ) -> Result<Vec<Event>, Rejection> {
        self.command(&Command::Fail {
            session,
            lease,
            failure,
        })
    }

    /// What an honest session says of this work. Draws its next ordinal.
    pub(super) fn honest(&mut self, lease: &Lease) -> Outcome {
        let next = self.ordinals.entry(lease.session).or_default();
        let ordinal = *next;
        let overlaps = self.state.settings().merging.overlaps;
        match lease.work {
            Work::Forward { .. } | Work::Backward { .. } => *next += 1,
            Work::Install { goes_on: true, .. } if overlaps => {}
            Work::Install { .. } => *next = 0,
            Work::Upload { .. } if overlaps => *next = 0,
            _ => {}
        }
        honest(self.state.settings(), lease, ordinal)
    }

    /// As [`honest`](Self::honest), with an ordinal that the session has not used whatever it said before.
    pub(super) fn fresh(&mut self, lease: &Lease) -> Outcome {
        let used = next_ordinal(&self.state, lease.session);
        self.ordinals.insert(lease.session, used);
        self.honest(lease)
    }

    /// Does one lease honestly.
    pub(super) fn work(&mut self, lease: &Lease) -> Vec<Event> {
        let outcome = self.honest(lease);
        self.complete(lease.session, lease.id, outcome).unwrap()
    }

    /// Every live session but the `idle` ones offers room and does its leases, one after another, until the run is in
    /// this phase.
    pub(super) fn work_until(&mut self, phase: Phase, idle: &[Session]) {
        for _ in 0..10_000 {
            if self.state.phase() == phase {
                return;
            }
            let sessions: Vec<(Session, u32)> = self
                .state
                .sessions()
                .map(|(session, state)| (session, state.capacity))
                .collect();
            for (session, capacity) in sessions {
                if self.state.phase() == phase {
                    return;
                }
                if idle.contains(&session) || self.state.session(session).is_none() {
                    continue;
                }
                self.offer(session, capacity);
                if self.state.phase() == phase {
                    return;
                }
                if let Some(lease) = self.leases(session).first().cloned() {
                    self.work(&lease);
                }
            }
        }
        panic!("never reached {phase:?}, stuck in {:?}", self.state.phase());
    }

    /// Lets time pass, with a tick at every deadline on the way; the `awake` sessions show that they live.
    pub(super) fn pass(&mut self, duration: Duration, awake: &[Session]) {
        let end = self.now + duration;
        while self.now < end {
            let step = self.now + Duration::from_secs(5);
            let next = self.state.next_deadline().unwrap_or(end).min(step).min(end);
            self.now = next;
            for session in awake {
                if let Some(room) = self.state.session(*session).map(|state| state.room) {
                    self.offer(*session, room);
                }
            }
            self.command(&Command::Tick).unwrap();
        }
    }

    pub(super) fn saw(&self, matches: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| matches(event)).count()
    }

    /// Joins one miner per name and installs the checkpoint in all of them.
    pub(super) fn gather(&mut self, names: std::ops::Range<u8>) -> Vec<Session> {
        let sessions: Vec<Session> = names.map(|name| self.join(name)).collect();
        for session in &sessions {
            self.offer(*session, 1);
        }
        for session in &sessions {
            let lease = self.lease(*session);
            assert_eq!(lease.work.kind(), WorkKind::Install);
            self.work(&lease);
        }
        sessions
    }

    pub(super) fn settings(&self) -> &RunSettings {
        self.state.settings()
    }

    pub(super) fn stage_of(&self, session: Session) -> StageIndex {
        self.state.session(session).unwrap().stage.unwrap()
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.state.epoch()
    }

    /// The live miners of a stage.
    pub(super) fn miners(&self, stage: u16) -> Vec<Session> {
        let held = Some(StageIndex::new(stage));
        self.state
            .sessions()
            .filter(|(_, state)| state.stage == held)
            .map(|(session, _)| session)
            .collect()
    }
}
