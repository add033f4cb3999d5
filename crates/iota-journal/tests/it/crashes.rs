//! The process dies at every write to its journal, once before the write and once after it, and the next one goes on.

use std::time::Duration;

use iota_journal::{Crash, Error, Journal, MemoryDisk, MemoryJournal, check, recover};
use iota_protocol::{Command, Rejection, State, Timestamp};

use crate::network::{Loop, Unanswered, bytes, genesis, next_command};

/// Commands between snapshots: an odd number, so that they come after every kind of command.
const SNAPSHOT_EVERY: u64 = 23;

/// When processes die.
#[derive(Debug, Clone, Copy)]
enum Death {
    Never,
    /// One does.
    At(Crash),
    /// Every process dies at its second write: the first is what the one before it died of.
    EverySecondWrite {
        kept: bool,
    },
}

impl Death {
    fn next(self, disk: &MemoryDisk) -> MemoryJournal {
        match self {
            Self::At(crash) if crash.at_write >= disk.writes() => disk.open_until(crash),
            Self::EverySecondWrite { kept } => disk.open_until(Crash {
                at_write: disk.writes() + u64::from(disk.writes() > 0),
                kept,
            }),
            Self::At(_) | Self::Never => disk.open(),
        }
    }

    const fn kept(self) -> bool {
        match self {
            Self::Never => true,
            Self::At(Crash { kept, .. }) | Self::EverySecondWrite { kept } => kept,
        }
    }
}

/// A run to its end; returns its last state. After each death, what is found is compared with what was told before, and
/// whoever got no answer asks again.
fn run(disk: &MemoryDisk, death: Death) -> State {
    let mut network = match Loop::begin(death.next(disk), &genesis(2)) {
        Ok(network) => network,
        Err(Error::Crashed { .. }) => {
            if recover(&disk.open()).unwrap().is_none() {
                disk.open().begin(&genesis(2)).unwrap();
            }
            let recovered = recover(&disk.open()).unwrap().unwrap();
            assert_eq!(recovered.state, genesis(2).state().unwrap());
            Loop::resume(death.next(disk), recovered, genesis(2).began)
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
                let expected = if death.kept() {
                    network.state.clone()
                } else {
                    before
                };
                network = reopened(disk, death, network.now);
                assert_eq!(bytes(&network.state), bytes(&expected), "after {command:?}");
                ask_again(&mut network, &command);
            }
        }
        if turn % SNAPSHOT_EVERY == 0
            && let Err(error) = network.keep_snapshot()
        {
            assert!(matches!(error, Error::Crashed { .. }), "{error}");
            let told = bytes(&network.state);
            network = reopened(disk, death, network.now);
            assert_eq!(bytes(&network.state), told, "after a snapshot");
            network.keep_snapshot().unwrap();
        }
    }
    panic!("the run does not end: {:?}", network.state);
}

fn reopened(disk: &MemoryDisk, death: Death, now: Timestamp) -> Loop<MemoryJournal> {
    let journal = death.next(disk);
    let recovered = recover(&journal).unwrap().unwrap();
    Loop::resume(journal, recovered, now)
}

/// A repeated call is answered as the first would have been, whether that one was carried out or not. Only who left, gave
/// back or ended the run with the call that was carried out may be told so.
fn ask_again(network: &mut Loop<MemoryJournal>, command: &Command) {
    let is_over = network.state.is_over();
    match network.command(command) {
        Ok(_) => {}
        Err(Unanswered::Refused(_))
            if matches!(command, Command::Fail { .. } | Command::Leave { .. }) => {}
        Err(Unanswered::Refused(Rejection::RunOver)) if is_over => {}
        Err(trouble) => panic!("{command:?} asked again: {trouble:?}"),
    }
}

fn all_is_well(disk: &MemoryDisk, last: &State) {
    let counts = last.sample_counts();
    assert_eq!((counts.completed, counts.lost), (12, 0));
    assert!(last.replicas_equal());
    assert_eq!(last.merges().len(), 3 * 2);
    let merges = last.merges();
    assert!(merges.iter().all(|merge| merge.covered == merge.cells));
    assert_eq!(last.audits_settled().1, 0, "nobody lied");
    let checked = check(&disk.open()).unwrap();
    assert!(checked.snapshots > 0);
}

fn undisturbed() -> (State, u64) {
    let disk = MemoryDisk::default();
    let last = run(&disk, Death::Never);
    all_is_well(&disk, &last);
    (last, disk.writes())
}

#[test]
fn a_run_whose_orchestrator_dies_at_every_write_loses_nothing() {
    let (undisturbed, writes) = undisturbed();
    assert!(
        writes > 150,
        "a run of {writes} writes is no run to speak of"
    );
    for kept in [false, true] {
        let disk = MemoryDisk::default();
        let last = run(&disk, Death::EverySecondWrite { kept });
        all_is_well(&disk, &last);
        if !kept {
            // What was lost was asked for again at once, so that it is as if nothing had happened.
            assert_eq!(bytes(&last), bytes(&undisturbed));
            // Each write was tried twice.
            assert!(disk.writes() >= 2 * writes - 20, "{}", disk.writes());
        }
    }
}

#[test]
fn a_run_whose_orchestrator_dies_once_loses_nothing_whenever_that_was() {
    let (undisturbed, writes) = undisturbed();
    // The other test dies at every write of one run; this one follows a single death to the end, at one write in 17.
    for at_write in (0..writes).step_by(17) {
        for kept in [false, true] {
            let disk = MemoryDisk::default();
            let last = run(&disk, Death::At(Crash { at_write, kept }));
            all_is_well(&disk, &last);
            if !kept {
                assert_eq!(bytes(&last), bytes(&undisturbed), "at write {at_write}");
            }
        }
    }
}
