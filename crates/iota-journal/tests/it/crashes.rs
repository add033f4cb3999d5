//! The process dies at every write to its journal, once before the write and once after it, and the next one goes on.

use std::time::Duration;

use iota_journal::{Crash, Error, Journal, MemoryDisk, MemoryJournal, check, recover};
use iota_protocol::{Command, State};

use crate::network::{Loop, Unanswered, bytes, genesis, next_command};

/// Commands between snapshots: an odd number, so that they come after every kind of command.
const SNAPSHOT_EVERY: u64 = 23;

/// A run to its end; returns its last state. With a crash, what is found afterwards is compared with what was told before,
/// and whoever got no answer asks again.
fn run(disk: &MemoryDisk, crash: Option<Crash>) -> State {
    let journal = match crash {
        Some(crash) => disk.open_until(crash),
        None => disk.open(),
    };
    let mut network = match Loop::begin(journal, &genesis(2)) {
        Ok(network) => network,
        Err(Error::Crashed { .. }) => {
            if recover(&disk.open()).unwrap().is_none() {
                disk.open().begin(&genesis(2)).unwrap();
            }
            let recovered = recover(&disk.open()).unwrap().unwrap();
            assert_eq!(recovered.state, genesis(2).state().unwrap());
            Loop::resume(disk.open(), recovered, genesis(2).began)
        }
        Err(error) => panic!("{error}"),
    };
    for turn in 0..10_000 {
        if network.state.is_over() {
            return network.state;
        }
        network.now = network.now + Duration::from_millis(50);
        let command = next_command(&network.state, turn);
        let before = network.state.clone();
        match network.command(&command) {
            Ok(_) => {}
            Err(Unanswered::Refused(rejection)) => panic!("{command:?}: {rejection}"),
            Err(Unanswered::Dead(_)) => {
                let kept = crash.is_some_and(|crash| crash.kept);
                let decided = network.state.clone();
                network = reopened(disk, &network);
                let expected = if kept { &decided } else { &before };
                assert_eq!(bytes(&network.state), bytes(expected), "after {command:?}");
                ask_again(&mut network, &command);
            }
        }
        if turn % SNAPSHOT_EVERY == 0
            && let Err(error) = network.keep_snapshot()
        {
            assert!(matches!(error, Error::Crashed { .. }), "{error}");
            let acknowledged = bytes(&network.state);
            network = reopened(disk, &network);
            assert_eq!(bytes(&network.state), acknowledged, "after a snapshot");
        }
    }
    panic!("the run does not end: {:?}", network.state);
}

fn reopened(disk: &MemoryDisk, dead: &Loop<MemoryJournal>) -> Loop<MemoryJournal> {
    let recovered = recover(&disk.open()).unwrap().unwrap();
    Loop::resume(disk.open(), recovered, dead.now)
}

/// A repeated call is answered as the first would have been, whether that one was carried out or not; only who gives back
/// what it gave back before is told that there is no such lease.
fn ask_again(network: &mut Loop<MemoryJournal>, command: &Command) {
    match network.command(command) {
        Ok(_) => {}
        Err(Unanswered::Refused(_))
            if matches!(command, Command::Fail { .. } | Command::Leave { .. }) => {}
        Err(trouble) => panic!("{command:?} asked again: {trouble:?}"),
    }
}

#[test]
fn a_run_that_dies_at_any_write_goes_on_from_what_it_had_told() {
    let undisturbed_disk = MemoryDisk::default();
    let undisturbed = run(&undisturbed_disk, None);
    assert_eq!(undisturbed.merges().len(), 3 * 2);
    assert_eq!(undisturbed.sample_counts().lost, 0);
    let writes = undisturbed_disk.writes();
    assert!(
        writes > 150,
        "a run of {writes} writes is no run to speak of"
    );

    for at_write in 0..writes {
        for kept in [false, true] {
            let disk = MemoryDisk::default();
            let last = run(&disk, Some(Crash { at_write, kept }));
            let counts = last.sample_counts();
            assert_eq!(
                (counts.completed, counts.lost),
                (12, 0),
                "{at_write} {kept}"
            );
            assert!(last.replicas_equal());
            assert!(
                last.merges()
                    .iter()
                    .all(|merge| merge.covered == merge.cells)
            );
            let checked = check(&disk.open()).unwrap();
            assert!(checked.snapshots > 0);
            // What was not kept was asked for again at once, so that it is as if nothing had happened.
            if !kept {
                assert_eq!(bytes(&last), bytes(&undisturbed), "at write {at_write}");
            }
        }
    }
}
