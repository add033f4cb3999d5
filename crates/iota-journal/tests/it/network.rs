//! A small run over a journal: the loop of an orchestrator, and sessions that answer what they are leased.

use std::time::Duration;

use iota_journal::{Entry, Error, Genesis, Journal, Recovered, Snapshot};
use iota_protocol::invariants::check_all;
use iota_protocol::settings::{LearningRate, Merging, Registration, Timing};
use iota_protocol::work::{Lease, Outcome, Seal, Verdict, Work};
use iota_protocol::{
    Command, Digest, Event, PeerId, Rejection, Role, RunId, RunSettings, Session, State, Timestamp,
};

/// Three epochs of a small model: `stages` stages of 12 parameters; peer 99 may validate.
pub(crate) fn genesis(stages: u16) -> Genesis {
    let settings = RunSettings {
        run: RunId::from_bytes([7; 16]),
        secret: [42; 32],
        stage_parameters: vec![12; stages.into()],
        activation_bytes: 100,
        gradient_bytes: 100,
        cell_element_bytes: 4,
        cell_overhead_bytes: 8,
        sample_tokens: 16,
        epochs: 3,
        samples_per_epoch: 4,
        samples_in_flight: 3,
        in_batches: false,
        backwards_per_step: 2,
        miners_to_start: 2,
        miners_per_stage_max: 8,
        registration: Registration::default(),
        validators: vec![peer(99)],
        audit_every_epochs: 1,
        learning_rate: LearningRate::cosine(0.001, 2, 0.1),
        merging: Merging::default(),
        timing: Timing {
            lease_initial: Duration::from_secs(20),
            lease_min: Duration::from_secs(5),
            lease_factor: 4,
            session_timeout: Duration::from_secs(30),
            affinity: Duration::from_secs(10),
            phase_max: Duration::from_secs(120),
            quorum_relaxes_after: Duration::from_secs(30),
        },
    };
    Genesis {
        settings,
        began: Timestamp::from_millis(1_000),
    }
}

pub(crate) fn peer(name: u8) -> PeerId {
    PeerId::from_bytes([name; 32])
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

pub(crate) fn seal(content: impl AsRef<[u8]>, length: u64) -> Seal {
    Seal {
        digest: Digest::of(content.as_ref()),
        length,
    }
}

/// What an honest session says of its work.
pub(crate) fn honest(state: &State, lease: &Lease) -> Outcome {
    let ordinal = next_ordinal(state, lease.session);
    let cell_bytes = |range: &std::ops::Range<u64>| 8 + 4 * (range.end - range.start);
    match &lease.work {
        Work::Forward { sample, .. } => Outcome::Forward {
            ordinal,
            output: seal(format!("forward {sample} {}", lease.stage), 100),
        },
        Work::Backward {
            sample,
            gradient,
            output_gradient,
            ..
        } => Outcome::Backward {
            ordinal,
            recomputed: output_gradient.is_none(),
            gradient: gradient.map(|_| seal(format!("backward {sample} {}", lease.stage), 100)),
            loss: output_gradient.is_none().then_some(2.5),
        },
        Work::Upload { cells, .. } => Outcome::Upload {
            cells: cells
                .iter()
                .map(|cell| seal(format!("upload {}", cell.cell), cell_bytes(&cell.range)))
                .collect(),
            optimizer_steps: 3,
            kept: None,
        },
        Work::Merge { range, inputs, .. } => {
            let digests = inputs.iter().map(|input| input.object.seal.digest);
            let content: String = digests.map(|digest| digest.to_string()).collect();
            Outcome::Merge {
                merged: seal(content, cell_bytes(range)),
                quarantined: Vec::new(),
                delta: None,
            }
        }
        Work::Fetch { .. } => Outcome::Fetched,
        Work::Install { checkpoint, .. } => Outcome::Install {
            state: Digest::of(format!("{checkpoint:?}").as_bytes()),
        },
        Work::Replay { entries, .. } => Outcome::Audit {
            verdict: Verdict::Agrees {
                operations: entries.len() as u32,
            },
        },
        Work::Inspect { .. } => Outcome::Audit {
            verdict: Verdict::Agrees { operations: 1 },
        },
    }
}

/// The first ordinal that the session has not used.
fn next_ordinal(state: &State, session: Session) -> u32 {
    let log = state
        .session(session)
        .map_or(&[][..], |session| session.log());
    log.iter()
        .map(|entry| entry.ordinal + 1)
        .max()
        .unwrap_or_default()
}

/// A state as it is written: two states are equal if these bytes are.
pub(crate) fn bytes(state: &State) -> String {
    serde_json::to_string(state).unwrap()
}
