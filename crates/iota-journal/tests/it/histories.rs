//! Random histories: whatever happened, what was written down leads to the same state, and that state goes on the same way.

use std::time::Duration;

use iota_journal::{
    Entry, Journal, MemoryDisk, Point, Snapshot, SqliteJournal, check, recover, recover_at,
};
use iota_protocol::work::{Failure, Outcome};
use iota_protocol::{Command, LeaseId, Role, Session, State};
use proptest::prelude::*;

use crate::network::{Loop, bytes, genesis, honest, peer, seal};

/// One thing that happens. The numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    Join { name: u8, capacity: u32 },
    Leave(usize),
    Offer { who: usize, room: u32 },
    Work(usize),
    Lie(usize),
    Repeat(usize),
    Fail(usize),
    Wait { millis: u64 },
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 0_usize..1_000;
    prop_oneof![
        3 => (1_u8..9, 1_u32..4).prop_map(|(name, capacity)| Step::Join { name, capacity }),
        1 => Just(Step::Join { name: 99, capacity: 2 }),
        1 => index().prop_map(Step::Leave),
        12 => (index(), 0_u32..4).prop_map(|(who, room)| Step::Offer { who, room }),
        24 => index().prop_map(Step::Work),
        2 => index().prop_map(Step::Lie),
        2 => index().prop_map(Step::Repeat),
        3 => index().prop_map(Step::Fail),
        3 => prop_oneof![4 => 10_u64..2_000, 1 => 2_000_u64..200_000].prop_map(|millis| Step::Wait { millis }),
        1 => Just(Step::Snapshot),
    ]
}

/// What a step asks for; none if there is nobody who could.
fn command(state: &State, said: &[Command], step: &Step) -> Option<Command> {
    let session = |index: usize| -> Option<Session> {
        let live: Vec<Session> = state.sessions().map(|(session, _)| session).collect();
        live.get(index % live.len().max(1)).copied()
    };
    let lease = |index: usize| {
        let held: Vec<_> = state.leases().collect();
        held.get(index % held.len().max(1)).copied()
    };
    let complete = |session, lease: LeaseId, outcome| Command::Complete {
        session,
        lease,
        outcome,
    };
    match step {
        Step::Join { name, capacity } => Some(Command::Join {
            peer: peer(*name),
            role: if *name == 99 {
                Role::Validator
            } else {
                Role::Miner
            },
            capacity: *capacity,
        }),
        Step::Leave(who) => session(*who).map(|session| Command::Leave { session }),
        Step::Offer { who, room } => session(*who).map(|session| Command::OfferRoom {
            session,
            room: *room,
        }),
        Step::Work(index) => {
            lease(*index).map(|lease| complete(lease.session, lease.id, honest(state, lease)))
        }
        Step::Lie(index) => lease(*index).map(|lease| {
            let outcome = match honest(state, lease) {
                Outcome::Merge { merged, .. } => Outcome::Merge {
                    merged: seal("a lie", merged.length),
                    quarantined: Vec::new(),
                    delta: None,
                },
                Outcome::Install { .. } => Outcome::Install {
                    state: seal("a lie", 0).digest,
                    operations: 0,
                },
                honest => honest,
            };
            complete(lease.session, lease.id, outcome)
        }),
        Step::Repeat(index) => said.get(index % said.len().max(1)).cloned(),
        Step::Fail(index) => lease(*index).map(|lease| Command::Fail {
            session: lease.session,
            lease: lease.id,
            failure: Failure::StoreUnavailable,
        }),
        Step::Wait { .. } | Step::Snapshot => Some(Command::Tick),
    }
}

/// A history in memory: the loop that lived it, and the disk that it left.
fn lived(stages: u16, steps: &[Step]) -> (Loop<iota_journal::MemoryJournal>, MemoryDisk) {
    let disk = MemoryDisk::default();
    let mut network = Loop::begin(disk.open(), &genesis(stages)).unwrap();
    let mut said = Vec::new();
    for step in steps {
        if let Step::Wait { millis } = step {
            network.now = network.now + Duration::from_millis(*millis);
        }
        if let Some(command) = command(&network.state, &said, step) {
            // Refusals are part of life; a journal in memory that was not told to die does not.
            drop(network.command(&command));
            said.push(command);
        }
        if let Step::Snapshot = step {
            network.keep_snapshot().unwrap();
        }
    }
    (network, disk)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_down_leads_to_the_state_that_was_lived(
        stages in 1_u16..4,
        steps in prop::collection::vec(step(), 0..250),
        then in prop::collection::vec(step(), 0..30),
    ) {
        let (mut network, disk) = lived(stages, &steps);
        let recovered = recover(&disk.open()).unwrap().unwrap();
        prop_assert_eq!(recovered.sequence, network.sequence);
        prop_assert_eq!(bytes(&recovered.state), bytes(&network.state));
        let checked = check(&disk.open()).unwrap();
        prop_assert_eq!(checked.entries, network.sequence);

        // A recovered state is not only equal: it goes on as the other does. (What a state does not write down, such as an
        // index, would show here.)
        let mut again = recovered.state;
        for step in &then {
            if let Some(command) = command(&network.state, &[], step) {
                network.now = network.now + Duration::from_millis(100);
                prop_assert_eq!(again.handle(&command, network.now), network.state.handle(&command, network.now));
            }
        }
        prop_assert_eq!(bytes(&again), bytes(&network.state));
    }

    #[test]
    fn a_snapshot_is_unpacked_into_what_was_packed(stages in 1_u16..4, steps in prop::collection::vec(step(), 0..250)) {
        let (network, _) = lived(stages, &steps);
        let snapshot = Snapshot::of(network.sequence, &network.state);
        let unpacked = snapshot.state().unwrap();
        prop_assert_eq!(bytes(&unpacked), bytes(&network.state));
        prop_assert_eq!(Snapshot::of(network.sequence, &unpacked), snapshot);
    }
}

proptest! {
    // Every case waits for the disk.
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_file_keeps_the_same_history_as_memory_does(
        steps in prop::collection::vec(step(), 0..250),
        commits in prop::collection::vec(1_usize..20, 250),
    ) {
        let (network, disk) = lived(2, &steps);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        let mut journal = SqliteJournal::create(&path).unwrap();
        journal.begin(&genesis(2)).unwrap();
        let entries = disk.open().entries_after(0, usize::MAX).unwrap();
        let mut rest: &[Entry] = &entries;
        for length in commits {
            let (together, after) = rest.split_at(length.min(rest.len()));
            if !together.is_empty() {
                journal.append(together).unwrap();
            }
            rest = after;
        }
        let snapshots = disk.open().snapshots().unwrap();
        for sequence in &snapshots {
            journal.keep_snapshot(&disk.open().snapshot(*sequence).unwrap()).unwrap();
        }
        drop(journal);

        let journal = SqliteJournal::open(&path).unwrap();
        prop_assert_eq!(journal.entries_after(0, usize::MAX).unwrap(), entries);
        let recovered = recover(&journal).unwrap().unwrap();
        prop_assert_eq!(bytes(&recovered.state), bytes(&network.state));
        let checked = journal.check().unwrap();
        prop_assert_eq!(checked.entries, network.sequence);
        prop_assert!(checked.snapshots <= 2);
    }
}

#[test]
fn the_past_can_be_looked_at_from_either_side_of_a_snapshot() {
    let disk = MemoryDisk::default();
    let mut run = Loop::begin(disk.open(), &genesis(2)).unwrap();
    let mut past = vec![(run.now, 0, bytes(&run.state))];
    for turn in 0..400 {
        run.now = run.now + Duration::from_millis(turn % 3);
        let before = run.sequence;
        if run
            .command(&crate::network::next_command(&run.state, turn))
            .is_ok()
            && run.sequence > before
        {
            past.push((run.now, run.sequence, bytes(&run.state)));
            if turn % 150 == 100 {
                run.keep_snapshot().unwrap();
            }
        }
    }
    let journal = disk.open();
    assert!(journal.snapshots().unwrap().len() >= 2);
    for (at, sequence, state) in &past {
        let then = recover_at(&journal, Point::Entry(*sequence))
            .unwrap()
            .unwrap();
        assert_eq!(
            (then.sequence, bytes(&then.state)),
            (*sequence, state.clone())
        );
        // Several entries may be of one time: all of them have happened then.
        let last = past.iter().rfind(|(other, ..)| other == at);
        let (_, last, state) = last.unwrap();
        let then = recover_at(&journal, Point::Time(*at)).unwrap().unwrap();
        assert_eq!((then.sequence, bytes(&then.state)), (*last, state.clone()));
    }
    let end = recover_at(&journal, Point::Entry(u64::MAX)).unwrap();
    assert_eq!(end, recover(&journal).unwrap());
}
