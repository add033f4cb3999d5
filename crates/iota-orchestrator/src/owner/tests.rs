use std::sync::mpsc;

use iota_journal::{Genesis, Journal, MemoryDisk, MemoryJournal, Result};
use iota_node::clock::ManualClock;
use iota_protocol::{PeerId, Role};

use super::*;
use crate::Orchestrator;
use crate::testing::setup;

/// A disk that takes as long as a test wants: every append says that it has begun, and waits for a permit.
#[derive(Debug)]
struct Slow {
    journal: MemoryJournal,
    begun: mpsc::Sender<usize>,
    permits: mpsc::Receiver<()>,
}

impl Journal for Slow {
    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        // Once the test has let go of its ends, everything may pass.
        let _ = self.begun.send(entries.len());
        let _ = self.permits.recv();
        self.journal.append(entries)
    }

    fn place(&self) -> String {
        self.journal.place()
    }

    fn begin(&mut self, genesis: &Genesis) -> Result<()> {
        self.journal.begin(genesis)
    }

    fn keep_snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.journal.keep_snapshot(snapshot)
    }

    fn genesis(&self) -> Result<Option<Genesis>> {
        self.journal.genesis()
    }

    fn entries_after(&self, sequence: u64, at_most: usize) -> Result<Vec<Entry>> {
        self.journal.entries_after(sequence, at_most)
    }

    fn snapshots(&self) -> Result<Vec<u64>> {
        self.journal.snapshots()
    }

    fn snapshot(&self, sequence: u64) -> Result<Snapshot> {
        self.journal.snapshot(sequence)
    }
}

/// J1: what has been decided is told to nobody while the disk is at it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_before_the_disk_has_it() {
    let (begun, has_begun) = mpsc::channel();
    let (permit, permits) = mpsc::channel();
    let journal = Slow {
        journal: MemoryDisk::default().open(),
        begun,
        permits,
    };
    let folder = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::builder(setup(9), folder.path())
        .with_journal(journal)
        .start(&Shutdown::new())
        .await
        .unwrap();
    let join = |name: u8| {
        let owner = orchestrator.owner.clone();
        let command = Command::Join {
            peer: PeerId::from_bytes([name; 32]),
            role: Role::Miner,
            capacity: 1,
        };
        tokio::spawn(async move { owner.command(command).await })
    };
    let mut state = orchestrator.state();

    let first = join(1);
    assert_eq!(has_begun.recv().unwrap(), 1);
    // It is decided and on its way to the disk.
    assert!(!first.is_finished());
    assert_eq!(state.borrow_and_update().peers().count(), 0);
    let others: Vec<_> = (2..=5).map(join).collect();
    permit.send(()).unwrap();
    first.await.unwrap().unwrap().unwrap();

    // The others are written together, or in a few writes if they were not all there in time. None is told before.
    let mut written = 1;
    while written < 5 {
        written += has_begun.recv().unwrap();
        let told = others.iter().filter(|other| other.is_finished()).count();
        assert!(1 + told < written, "{told} were told of {written}");
        permit.send(()).unwrap();
    }
    for other in others {
        other.await.unwrap().unwrap().unwrap();
    }
    state
        .wait_for(|state| state.peers().count() == 5)
        .await
        .unwrap();
    drop(permit);
    orchestrator.stop().await;
    orchestrator.finish().await.unwrap();
}

/// J4, of a machine that slept or a clock that leapt: the first who calls afterwards finds everybody where they were.
#[tokio::test(flavor = "multi_thread")]
async fn a_leap_of_the_clock_ends_nobodys_session() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_000_000_000)));
    let orchestrator = Orchestrator::builder(setup(9), folder.path())
        .with_clock(Arc::clone(&clock) as Arc<dyn Clock>)
        .start(&Shutdown::new())
        .await
        .unwrap();
    let peers = [1, 2].map(|name| PeerId::from_bytes([name; 32]));
    for peer in peers {
        let (role, capacity) = (Role::Miner, 1);
        let join = Command::Join {
            peer,
            role,
            capacity,
        };
        orchestrator.owner.command(join).await.unwrap().unwrap();
    }
    clock.advance(Duration::from_secs(8 * 3600));
    let session = Session {
        peer: peers[0],
        generation: 1,
    };
    let offer = Command::OfferRoom { session, room: 1 };
    orchestrator.owner.command(offer).await.unwrap().unwrap();
    orchestrator.suspend();
    let (state, _) = orchestrator.finish().await.unwrap();
    for peer in peers {
        let session = state.session_of(peer).map(|session| session.generation);
        assert_eq!(session, Some(1), "{peer}");
    }
}
