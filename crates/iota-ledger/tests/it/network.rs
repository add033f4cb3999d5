//! A small run by the rules alone, and everything that happened in it.

use std::time::Duration;

use iota_ledger::{Discrepancy, Ledger};
use iota_protocol::settings::{LearningRate, Merging, Registration, Timing};
use iota_protocol::work::{Lease, Outcome, Seal, Verdict, Work};
use iota_protocol::{
    Command, Digest, Event, PeerId, Role, RunId, RunSettings, Session, State, Timestamp,
};

/// Two epochs of four samples on two stages; peer 99 may validate.
pub(crate) fn settings() -> RunSettings {
    RunSettings {
        run: RunId::from_bytes([7; 16]),
        secret: [42; 32],
        stage_parameters: vec![12; 2],
        activation_bytes: 100,
        gradient_bytes: 100,
        cell_element_bytes: 4,
        cell_overhead_bytes: 8,
        sample_tokens: 16,
        epochs: 2,
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
        timing: Timing::default(),
    }
}

pub(crate) fn peer(name: u8) -> PeerId {
    PeerId::from_bytes([name; 32])
}

/// A run, from its first event to its end.
#[derive(Debug)]
pub(crate) struct Lived {
    pub(crate) events: Vec<(Timestamp, Event)>,
    pub(crate) state: State,
}

/// What else happens in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// The first miner that has done a backward pass leaves, and never comes back.
    OneLeaves,
    /// It goes on training, and never answers when it is to upload.
    OneNeverUploads,
}

/// Lives through a run of four miners and a validator, in which everybody is honest.
pub(crate) fn live(trouble: Trouble) -> Lived {
    let began = Timestamp::from_millis(1_000);
    let mut lived = Lived {
        events: Vec::new(),
        state: State::new(settings(), began).unwrap(),
    };
    let (mut now, mut victim) = (began, None);
    for _ in 0..5_000 {
        for name in [1, 2, 3, 4, 99] {
            if lived.state.is_over() {
                return lived;
            }
            now = now + Duration::from_millis(40);
            let Some(command) = turn(&lived.state, name, trouble, &mut victim) else {
                continue;
            };
            lived.command(&command, now);
        }
        lived.command(&Command::Tick, now);
    }
    panic!("the run does not end: {:?}", lived.state.summary(now));
}

impl Lived {
    fn command(&mut self, command: &Command, now: Timestamp) {
        let events = match self.state.handle(command, now) {
            Ok(events) => events,
            Err(rejection) => panic!("{command:?}: {rejection}"),
        };
        self.events
            .extend(events.into_iter().map(|event| (now, event)));
    }

    pub(crate) fn ledger(&self) -> Ledger {
        books(self.events.iter().map(|(_, event)| event))
    }

    /// What does not add up if these are said to be the run's events.
    pub(crate) fn check<'a>(
        &self,
        events: impl IntoIterator<Item = &'a Event>,
    ) -> Vec<Discrepancy> {
        books(events).check(&self.state)
    }
}

fn books<'a>(events: impl IntoIterator<Item = &'a Event>) -> Ledger {
    let mut ledger = Ledger::new(&settings());
    events.into_iter().for_each(|event| ledger.follow(event));
    ledger
}

/// What a peer does next; nothing if it keeps quiet.
fn turn(
    state: &State,
    name: u8,
    trouble: Trouble,
    victim: &mut Option<Session>,
) -> Option<Command> {
    let Some(session) = state.session_of(peer(name)) else {
        if victim.is_some_and(|session| session.peer == peer(name)) {
            return None;
        }
        return Some(Command::Join {
            peer: peer(name),
            role: if name == 99 {
                Role::Validator
            } else {
                Role::Miner
            },
            capacity: 2,
        });
    };
    let own = state.session(session).unwrap();
    if trouble != Trouble::None && victim.is_none() && own.backwards > 0 {
        *victim = Some(session);
        if trouble == Trouble::OneLeaves {
            return Some(Command::Leave { session });
        }
    }
    let Some(lease) = state.leases_of(session).next() else {
        return Some(Command::OfferRoom { session, room: 1 });
    };
    if *victim == Some(session)
        && trouble == Trouble::OneNeverUploads
        && matches!(lease.work, Work::Upload { .. })
    {
        // It is there and says so.
        return Some(Command::OfferRoom { session, room: 0 });
    }
    let outcome = honest(state, lease);
    let lease = lease.id;
    Some(Command::Complete {
        session,
        lease,
        outcome,
    })
}

fn seal(content: impl AsRef<[u8]>, length: u64) -> Seal {
    Seal {
        digest: Digest::of(content.as_ref()),
        length,
    }
}

fn honest(state: &State, lease: &Lease) -> Outcome {
    let log = state.session(lease.session).unwrap().log();
    let ordinal = log.iter().map(|entry| entry.ordinal + 1).max().unwrap_or(0);
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
        Work::Merge { range, inputs, .. } => Outcome::Merge {
            merged: seal(format!("{inputs:?}"), cell_bytes(range)),
            quarantined: Vec::new(),
            delta: None,
        },
        Work::Fetch { .. } => Outcome::Fetched,
        Work::Install { checkpoint, .. } => Outcome::Install {
            state: Digest::of(format!("{checkpoint:?}").as_bytes()),
        },
        Work::Replay { entries, .. } => Outcome::Audit {
            verdict: Verdict::Agrees {
                operations: u32::try_from(entries.len()).unwrap(),
            },
        },
        Work::Inspect { .. } => Outcome::Audit {
            verdict: Verdict::Agrees { operations: 1 },
        },
    }
}
