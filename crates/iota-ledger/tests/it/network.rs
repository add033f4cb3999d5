//! A small run by the rules alone, and everything that happened in it.

use std::time::Duration;

use iota_ledger::{Discrepancy, Ledger};
use iota_protocol::cells::Cells;
use iota_protocol::settings::Merging;
use iota_protocol::testing;
pub(crate) use iota_protocol::testing::peer;
use iota_protocol::work::{Outcome, Work};
use iota_protocol::{Command, Digest, Event, Role, RunSettings, Session, State, Timestamp};

/// Two epochs of four samples on two stages, merged in three cells each; peer 99 may validate.
pub(crate) fn settings() -> RunSettings {
    RunSettings {
        miners_to_start: 2,
        validators: vec![peer(99)],
        merging: Merging {
            cells: Cells::Grid {
                cells: 3,
                owners: 2,
            },
            // So that a checkpoint could name either.
            copies: 2,
            ..Merging::default()
        },
        ..testing::settings(2)
    }
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
    /// In the second epoch nobody merges anything.
    NobodyMerges,
    /// The first that merges a cell says that something else came out.
    OneMergesWrong,
}

/// Lives through a run of four miners and a validator, in which everybody is honest but for the trouble.
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
        // Who has left or is banned does not come back.
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
    let strikes = matches!(trouble, Trouble::OneLeaves | Trouble::OneNeverUploads);
    if strikes && victim.is_none() && own.backwards > 0 {
        *victim = Some(session);
        if trouble == Trouble::OneLeaves {
            return Some(Command::Leave { session });
        }
    }
    let Some(lease) = state.leases_of(session).next() else {
        return Some(Command::OfferRoom { session, room: 1 });
    };
    let keeps_quiet = match trouble {
        Trouble::OneNeverUploads => {
            *victim == Some(session) && matches!(lease.work, Work::Upload { .. })
        }
        Trouble::NobodyMerges => lease.epoch.get() == 1 && matches!(lease.work, Work::Merge { .. }),
        _ => false,
    };
    if keeps_quiet {
        // It is there and says so.
        return Some(Command::OfferRoom { session, room: 0 });
    }
    let ordinal = testing::next_ordinal(state, session);
    let mut outcome = testing::honest(state.settings(), lease, ordinal);
    if let Outcome::Merge { merged, .. } = &mut outcome
        && trouble == Trouble::OneMergesWrong
        && victim.is_none()
    {
        *victim = Some(session);
        merged.digest = Digest::of(b"a lie");
    }
    let lease = lease.id;
    Some(Command::Complete {
        session,
        lease,
        outcome,
    })
}
