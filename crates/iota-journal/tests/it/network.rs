//! A small run over a journal: the loop of an orchestrator, and sessions that answer what they are leased.

use iota_journal::{Entry, Error, Genesis, Journal, Recovered, Snapshot};
use iota_protocol::invariants::check_all;
use iota_protocol::testing::{self, settings};
pub(crate) use iota_protocol::testing::{peer, seal};
use iota_protocol::work::{Lease, Outcome};
use iota_protocol::{Command, Event, PeerId, Rejection, Role, RunSettings, State, Timestamp};

/// Three epochs of a small model: `stages` stages of 12 parameters; peer 99 may validate.
pub(crate) fn genesis(stages: u16) -> Genesis {
    let settings = RunSettings {
        epochs: 3,
        miners_to_start: 2,
        validators: vec![peer(99)],
        ..settings(stages)
    };
    Genesis {
        settings,
        began: Timestamp::from_millis(1_000),
    }
}

/// An orchestrator's loop, a journal behind it, and the time.
#[derive(Debug)]
pub(crate) struct Loop<J> {
    pub(crate) journal: J,
    pub(crate) state: State,
    pub(crate) sequence: u64,
    pub(crate) now: Timestamp,
}

/// Why a command has no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    Refused(Rejection),
    /// The journal failed: this process is dead. The state is what it had decided and told nobody.
    Dead(Error),
}

impl<J: Journal> Loop<J> {
    /// # Errors
    /// If the journal dies at once.
    pub(crate) fn begin(mut journal: J, genesis: &Genesis) -> Result<Self, Error> {
        journal.begin(genesis)?;
        Ok(Self {
            journal,
            state: genesis.state().unwrap(),
            sequence: 0,
            now: genesis.began,
        })
    }

    pub(crate) fn resume(journal: J, recovered: Recovered, now: Timestamp) -> Self {
        Self {
            journal,
            state: recovered.state,
            sequence: recovered.sequence,
            now,
        }
    }

    /// Decides, appends, and only then answers.
    pub(crate) fn command(&mut self, command: &Command) -> Result<Vec<Event>, Unanswered> {
        let events = self
            .state
            .handle(command, self.now)
            .map_err(Unanswered::Refused)?;
        check_all(&self.state).unwrap_or_else(|violation| panic!("{violation} after {command:?}"));
        if !events.is_empty() {
            self.sequence += 1;
            let entry = Entry {
                sequence: self.sequence,
                at: self.now,
                events: events.clone(),
            };
            self.journal.append(&[entry]).map_err(Unanswered::Dead)?;
        }
        Ok(events)
    }

    pub(crate) fn keep_snapshot(&mut self) -> Result<(), Error> {
        self.journal
            .keep_snapshot(&Snapshot::of(self.sequence, &self.state))
    }
}

/// The next command of a network in which everybody is honest and one miner leaves in the middle of it. Follows from the
/// state and the number of commands so far, so that a network whose orchestrator was restarted goes on as it would have.
pub(crate) fn next_command(state: &State, turn: u64) -> Command {
    let everybody: Vec<(PeerId, Role)> = (1..=4)
        .map(|name| (peer(name), Role::Miner))
        .chain([(peer(99), Role::Validator)])
        .collect();
    // Each in turn: joins if it is not there, works if it holds something, offers room if it does not.
    let turns = everybody.len() as u64 + 1;
    let Some((peer, role)) = everybody.get((turn % turns) as usize) else {
        return Command::Tick;
    };
    let Some(session) = state.session_of(*peer) else {
        return Command::Join {
            peer: *peer,
            role: *role,
            capacity: 2,
        };
    };
    if turn == 10 * turns {
        return Command::Leave { session };
    }
    match state.leases_of(session).next() {
        Some(lease) if turn != 16 * turns + 1 => Command::Complete {
            session,
            lease: lease.id,
            outcome: honest(state, lease),
        },
        Some(lease) => Command::Fail {
            session,
            lease: lease.id,
            failure: iota_protocol::work::Failure::OutOfMemory,
        },
        None => Command::OfferRoom {
            session,
            room: 1 + (turn / turns % 2) as u32,
        },
    }
}

/// What an honest session says of its work.
pub(crate) fn honest(state: &State, lease: &Lease) -> Outcome {
    let ordinal = testing::next_ordinal(state, lease.session);
    testing::honest(state.settings(), lease, ordinal)
}

/// A state as it is written: two states are equal if these bytes are.
pub(crate) fn bytes(state: &State) -> String {
    serde_json::to_string(state).unwrap()
}
