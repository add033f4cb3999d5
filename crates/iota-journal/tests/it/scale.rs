//! A journal of a long run. Takes minutes and gigabytes, so it runs only when asked for:
//!
//! ```text
//! cargo test --release -p iota-journal --test it -- --ignored --nocapture ten_million
//! ```

use std::time::{Duration, Instant};

use iota_journal::{Entry, Journal, Snapshot, SqliteJournal, recover};
use iota_protocol::settings::Timing;
use iota_protocol::{Command, Role, State};

use crate::network::{bytes, genesis, honest, peer};

const EVENTS: u64 = 10_000_000;
/// Events after the newest snapshot, as many as an orchestrator lets come together.
const AFTER_SNAPSHOT: u64 = 20_000;

#[test]
#[ignore = "writes ten million events: minutes, gigabytes"]
fn a_journal_of_ten_million_events_reopens_from_its_snapshot_in_under_five_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let mut genesis = genesis(3);
    genesis.settings.epochs = 100_000;
    genesis.settings.samples_per_epoch = 600;
    genesis.settings.samples_in_flight = 12;
    genesis.settings.timing = Timing::default();
    let mut state = genesis.state().unwrap();
    let mut journal = SqliteJournal::create(&path).unwrap();
    journal.begin(&genesis).unwrap();

    let started = Instant::now();
    let (mut sequence, mut events, mut now) = (0, 0, genesis.began);
    let mut together: Vec<Entry> = Vec::new();
    let mut snapshot_due = true;
    let mut keep = |state: &mut State, command: &Command, now| {
        let happened = state.handle(command, now).unwrap();
        if happened.is_empty() {
            return events;
        }
        sequence += 1;
        events += happened.len() as u64;
        together.push(Entry {
            sequence,
            at: now,
            events: happened,
        });
        if together.len() == 1_000 {
            journal.append(&together).unwrap();
            together.clear();
            if snapshot_due && events >= EVENTS - AFTER_SNAPSHOT {
                let packing = Instant::now();
                let snapshot = Snapshot::of(sequence, state);
                println!(
                    "snapshot: {} bytes, packed in {:?}",
                    snapshot.length_bytes(),
                    packing.elapsed()
                );
                journal.keep_snapshot(&snapshot).unwrap();
                snapshot_due = false;
            }
        }
        events
    };
    for name in 0..12 {
        let join = Command::Join {
            peer: peer(name),
            role: Role::Miner,
            capacity: 4,
        };
        keep(&mut state, &join, now);
    }
    let mut so_far = 0;
    while so_far < EVENTS {
        now = now + Duration::from_millis(1);
        for name in 0..12 {
            let session = state.session_of(peer(name)).unwrap();
            let command = match state.leases_of(session).next() {
                Some(lease) => Command::Complete {
                    session,
                    lease: lease.id,
                    outcome: honest(&state, lease),
                },
                None => Command::OfferRoom { session, room: 4 },
            };
            so_far = keep(&mut state, &command, now);
        }
    }
    journal.append(&together).unwrap();
    let length = std::fs::metadata(&path).unwrap().len();
    println!(
        "{events} events in {sequence} entries, {length} bytes, written in {:?}",
        started.elapsed()
    );
    assert!(events >= EVENTS && !snapshot_due);
    drop(journal);

    let started = Instant::now();
    let journal = SqliteJournal::open(&path).unwrap();
    let recovered = recover(&journal).unwrap().unwrap();
    let took = started.elapsed();
    println!("reopened in {took:?}");
    assert_eq!(recovered.sequence, sequence);
    assert_eq!(bytes(&recovered.state), bytes(&state));
    assert!(took < Duration::from_secs(5), "{took:?}");
}
