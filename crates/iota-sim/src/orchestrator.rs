//! The orchestrator as its runtime would drive it: the state, a journal, open polls. After every command it is checked.

use std::collections::BTreeMap;
use std::time::Duration;

use iota_protocol::invariants::{a_place_never_gets_worse, check_all};
use iota_protocol::registration::Place;
use iota_protocol::work::{Failure, Lease, Outcome, Work};
use iota_protocol::{
    Command, Epoch, Event, LeaseId, PeerId, Rejection, Role, RunSettings, Session, State, Timestamp,
};

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) node: usize,
    /// Which of its lives made the call.
    pub(crate) life: u32,
    pub(crate) call: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Request {
    Join {
        peer: PeerId,
        role: Role,
        capacity: u32,
    },
    Poll {
        session: Session,
        room: u32,
        held: Vec<LeaseId>,
    },
    Complete {
        session: Session,
        lease: LeaseId,
        outcome: Outcome,
    },
    Fail {
        session: Session,
        lease: LeaseId,
        failure: Failure,
    },
    Leave {
        session: Session,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Joined(Session),
    /// A place on the waiting list; none if there is one in the run by now, or if nobody else may wait.
    Waits(Option<Place>),
    Work {
        leases: Vec<Lease>,
        revoked: Vec<LeaseId>,
        epoch: Epoch,
        run_over: bool,
    },
    Done,
    Refused(Rejection),
    /// The other side could not be reached, or did not answer in time.
    Unreachable,
}

/// How far a request gets before the orchestrator dies, if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered,
    /// Decided and not in the journal.
    DecisionLost,
    /// In the journal and not answered.
    AnswerDied,
}

/// How long a poll without work is held, in milliseconds.
const HOLD: u64 = 10_000;

/// The orchestrator, up or down.
#[derive(Debug)]
pub(crate) struct Orchestrator {
    state: State,
    /// A state that only events made. What it differs from the state in is lost in a crash.
    twin: State,
    /// What survives.
    journal: Vec<(Timestamp, Event)>,
    snapshot: Option<(usize, String)>,
    /// How long the journal was when it was backed up; the newest last.
    backups: Vec<usize>,
    settings: RunSettings,
    started_at: Timestamp,
    parked: BTreeMap<Session, Parked>,
    pub(crate) is_up: bool,
    /// What its clock shows beyond the time that it is, in milliseconds. Large enough to leap back from.
    pub(crate) clock_ahead: u64,
    pub(crate) commands: u64,
}

#[derive(Debug)]
struct Parked {
    caller: Caller,
    held: Vec<LeaseId>,
    until: u64,
}

/// The answers that a request or the passing of time led to.
pub(crate) type Answers = Vec<(Caller, Answer)>;

impl Orchestrator {
    pub(crate) fn new(settings: RunSettings, clock_ahead: u64) -> Result<Self, String> {
        let started_at = Timestamp::from_millis(clock_ahead);
        let state = State::new(settings.clone(), started_at).map_err(|error| error.to_string())?;
        Ok(Self {
            twin: state.clone(),
            state,
            journal: Vec::new(),
            snapshot: None,
            backups: vec![0],
            settings,
            started_at,
            parked: BTreeMap::new(),
            is_up: true,
            clock_ahead,
            commands: 0,
        })
    }

    pub(crate) const fn state(&self) -> &State {
        &self.state
    }

    /// Replays that were leased of what somebody had done while its stage merged.
    pub(crate) fn replays_of_work_ahead(&self) -> u64 {
        let is_one = |event: &Event| {
            let Event::Leased(lease) = event else {
                return false;
            };
            matches!(lease.work, Work::Replay { ahead, .. } if ahead > 0)
        };
        self.journal()
            .iter()
            .filter(|(_, event)| is_one(event))
            .count() as u64
    }

    pub(crate) fn journal(&self) -> &[(Timestamp, Event)] {
        &self.journal
    }

    fn clock(&self, now: u64) -> Timestamp {
        Timestamp::from_millis(now + self.clock_ahead)
    }

    /// When [`tick`](Self::tick) is due, in the world's time.
    pub(crate) fn wakes_at(&self) -> Option<u64> {
        let deadline = self.state.next_deadline();
        let deadline = deadline.map(|at| at.as_millis().saturating_sub(self.clock_ahead));
        deadline
            .into_iter()
            .chain(self.parked.values().map(|parked| parked.until))
            .min()
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: u64) -> Result<Answers, String> {
        let mut answers = Answers::new();
        if self
            .state
            .next_deadline()
            .is_some_and(|at| at <= self.clock(now))
        {
            let decided = self.decide(&Command::Tick, now, &mut answers)?;
            if let Err(rejection) = decided {
                return Err(format!("time was refused: {rejection}"));
            }
        }
        let overdue = |parked: &Parked| parked.until <= now;
        self.release(overdue, &mut answers);
        Ok(answers)
    }

    /// A request has arrived.
    pub(crate) fn take(
        &mut self,
        caller: Caller,
        request: &Request,
        now: u64,
        fate: Fate,
    ) -> Result<Answers, String> {
        let command = command(request);
        if fate == Fate::DecisionLost {
            // What was decided is nowhere; nobody was told.
            let mut lost = self.state.clone();
            drop(lost.handle(&command, self.clock(now)));
            return Ok(Answers::new());
        }
        let mut answers = Answers::new();
        let decided = self.decide(&command, now, &mut answers)?;
        match (request, decided) {
            (Request::Join { peer, .. }, Err(Rejection::Waiting)) => {
                answers.push((caller, Answer::Waits(self.state.place_of(*peer))));
            }
            (_, Err(rejection)) => answers.push((caller, Answer::Refused(rejection))),
            (Request::Join { peer, .. }, Ok(events)) => {
                let answer = if events.iter().any(|event| event.refusal().is_some()) {
                    Answer::Waits(self.state.place_of(*peer))
                } else {
                    let session = self.state.session_of(*peer);
                    Answer::Joined(session.ok_or("who has joined has no session")?)
                };
                answers.push((caller, answer));
            }
            (Request::Poll { session, held, .. }, Ok(_)) => {
                let parked = Parked {
                    caller,
                    held: held.clone(),
                    until: now + HOLD,
                };
                if let Some(earlier) = self.parked.remove(session) {
                    answers.push((earlier.caller, self.nothing()));
                }
                self.park_or_answer(*session, parked, &mut answers);
            }
            (_, Ok(events)) => {
                let refusal = events.iter().find_map(Event::refusal);
                answers.push((caller, refusal.map_or(Answer::Done, Answer::Refused)));
            }
        }
        Ok(if fate == Fate::AnswerDied {
            Answers::new()
        } else {
            answers
        })
    }

    /// The process is gone, and with it whatever was not in the journal.
    pub(crate) fn crash(&mut self) {
        self.is_up = false;
        self.parked.clear();
    }

    /// Takes a picture of the state, to begin from after the next crash.
    pub(crate) fn save_snapshot(&mut self) -> Result<(), String> {
        let written = serde_json::to_string(&self.state).map_err(|error| error.to_string())?;
        self.snapshot = Some((self.journal.len(), written));
        Ok(())
    }

    pub(crate) const fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Its machine sleeps for so many milliseconds, in which nothing happens to anybody else: to them its clock leaps. When
    /// it looks again, nothing has run out that had not before (J4).
    pub(crate) fn sleep(&mut self, far: u64, now: u64) -> Result<Answers, String> {
        let mut answers = Answers::new();
        let was_due = self.state.next_deadline();
        let was_due = was_due.is_some_and(|at| at <= self.clock(now));
        self.clock_ahead += far;
        let away = Duration::from_millis(far);
        let woken = self.decide(&Command::Wake { away }, now, &mut answers)?;
        let events = woken.map_err(|rejection| format!("waking up was refused: {rejection}"))?;
        let moved = matches!(events[..], [Event::Resumed { .. }] | []);
        if !moved && !was_due {
            return Err(format!("J4: while the orchestrator slept: {events:?}"));
        }
        Ok(answers)
    }

    /// The process comes back, with what the journal says, from its beginning or from a snapshot.
    pub(crate) fn restart(&mut self, from_snapshot: bool, now: u64) -> Result<Answers, String> {
        let (mut state, tail) = match &self.snapshot {
            Some((length, written)) if from_snapshot => {
                let state = serde_json::from_str(written).map_err(|error| error.to_string())?;
                (state, &self.journal[*length..])
            }
            _ => {
                let fresh = State::new(self.settings.clone(), self.started_at);
                (fresh.map_err(|error| error.to_string())?, &self.journal[..])
            }
        };
        for (at, event) in tail {
            state.apply(*at, event);
        }
        if state != self.state {
            return Err("the journal does not lead to the state that was lost".into());
        }
        check_all(&state).map_err(|violation| violation.to_string())?;
        self.state = state;
        self.is_up = true;
        let mut answers = Answers::new();
        match self.decide(&Command::Resume, now, &mut answers)? {
            Ok(_) => Ok(answers),
            Err(rejection) => Err(format!("coming back was refused: {rejection}")),
        }
    }

    /// The process comes back from a backup, the newest or one of those before it; what happened since is lost.
    pub(crate) fn restore(&mut self, older: usize, chance: u32, now: u64) -> Result<(), String> {
        let newest = self.backups.len() - 1;
        self.backups.truncate(newest.saturating_sub(older) + 1);
        let kept = self.backups.last().copied().unwrap_or(0);
        self.journal.truncate(kept);
        self.snapshot = self.snapshot.take().filter(|(length, _)| *length <= kept);
        let fresh = State::new(self.settings.clone(), self.started_at);
        let mut state = fresh.map_err(|error| error.to_string())?;
        for (at, event) in &self.journal {
            state.apply(*at, event);
        }
        self.twin = state.clone();
        self.state = state;
        self.is_up = true;
        match self.decide(&Command::Restore { chance }, now, &mut Answers::new())? {
            Ok(_) => Ok(()),
            Err(rejection) => Err(format!("coming back was refused: {rejection}")),
        }
    }

    fn decide(
        &mut self,
        command: &Command,
        now: u64,
        answers: &mut Answers,
    ) -> Result<Result<Vec<Event>, Rejection>, String> {
        self.commands += 1;
        let at = self.clock(now);
        let decided = self.state.handle(command, at);
        a_place_never_gets_worse(&self.twin, &self.state)
            .map_err(|what| format!("W3: {what} after {command:?}"))?;
        for event in decided.iter().flatten() {
            self.twin.apply(at, event);
            self.journal.push((at, event.clone()));
        }
        if self.twin != self.state {
            return Err(match decided {
                Ok(_) => format!("P4: the events replay to another state after {command:?}"),
                Err(_) => format!("P2: a refused command changed the state: {command:?}"),
            });
        }
        if decided.is_ok()
            && let Some(deadline) = self.state.next_deadline()
            && deadline <= at.max(self.state.clock())
        {
            return Err(format!("a timer in the past after {command:?}"));
        }
        check_all(&self.state).map_err(|violation| format!("{violation} after {command:?}"))?;
        let Ok(events) = &decided else {
            return Ok(decided);
        };
        let milestone =
            |event: &Event| matches!(event, Event::PhaseChanged { .. } | Event::Restored { .. });
        if events.iter().any(milestone) {
            self.backups.push(self.journal.len());
        }
        for session in touched(events) {
            if let Some(parked) = self.parked.remove(&session) {
                self.park_or_answer(session, parked, answers);
            }
        }
        if self.state.is_over() {
            self.release(|_| true, answers);
        }
        Ok(decided)
    }

    fn park_or_answer(&mut self, session: Session, parked: Parked, answers: &mut Answers) {
        let mut revoked = parked.held.clone();
        let mut leases = Vec::new();
        for lease in self.state.leases_of(session) {
            revoked.retain(|held| *held != lease.id);
            if !parked.held.contains(&lease.id) {
                leases.push(lease.clone());
            }
        }
        let is_live = self.state.session(session).is_some();
        if leases.is_empty() && revoked.is_empty() && is_live {
            self.parked.insert(session, parked);
            return;
        }
        let answer = Answer::Work {
            leases,
            revoked,
            epoch: self.state.epoch(),
            run_over: self.state.is_over(),
        };
        answers.push((parked.caller, answer));
    }

    fn nothing(&self) -> Answer {
        Answer::Work {
            leases: Vec::new(),
            revoked: Vec::new(),
            epoch: self.state.epoch(),
            run_over: self.state.is_over(),
        }
    }

    fn release(&mut self, which: impl Fn(&Parked) -> bool, answers: &mut Answers) {
        let nothing = self.nothing();
        self.parked.retain(|_, parked| {
            let released = which(parked);
            if released {
                answers.push((parked.caller, nothing.clone()));
            }
            !released
        });
    }
}

/// Sessions whose leases events changed.
fn touched(events: &[Event]) -> Vec<Session> {
    let mut sessions: Vec<Session> = events
        .iter()
        .filter_map(|event| match event {
            Event::Leased(lease) => Some(lease.session),
            Event::LeaseEnded { session, .. } | Event::SessionEnded { session, .. } => {
                Some(*session)
            }
            _ => None,
        })
        .collect();
    sessions.sort_unstable();
    sessions.dedup();
    sessions
}

fn command(request: &Request) -> Command {
    match request {
        Request::Join {
            peer,
            role,
            capacity,
        } => Command::Join {
            peer: *peer,
            role: *role,
            capacity: *capacity,
        },
        Request::Poll { session, room, .. } => Command::OfferRoom {
            session: *session,
            room: *room,
        },
        Request::Complete {
            session,
            lease,
            outcome,
        } => Command::Complete {
            session: *session,
            lease: *lease,
            outcome: outcome.clone(),
        },
        Request::Fail {
            session,
            lease,
            failure,
        } => Command::Fail {
            session: *session,
            lease: *lease,
            failure: *failure,
        },
        Request::Leave { session } => Command::Leave { session: *session },
    }
}
