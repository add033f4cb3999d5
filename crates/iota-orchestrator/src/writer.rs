//! The task that writes the journal: one call that may wait for the disk after the other, each in a thread for such calls.
//!
//! ```text
//!   owner ── entry, entry, entry, … ──► bounded queue ──► append(all that wait) ──► durable: the last of them
//! ```
//!
//! An entry that finds the writer idle is written at once. While a write waits for the disk more entries come in, and the
//! next write takes all of them: the busier the run, the more of them share an fsync, and nobody ever waits for company.

use std::sync::Arc;

use iota_journal::{Entry, Journal, Snapshot};
use iota_node::blocking;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::Error;

/// Entries that may wait to be written. When it is full the owner waits, and with it everybody who calls.
const QUEUE: usize = 4096;
/// Entries that one write takes at most, so that the first of them do not wait too long for the last.
const TOGETHER: usize = 1024;

pub(crate) enum Job {
    Entry(Arc<Entry>),
    Snapshot(Snapshot),
}

/// How the owner reaches the task.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) jobs: mpsc::Sender<Job>,
    /// The last entry that is durable.
    pub(crate) durable: watch::Receiver<u64>,
    task: JoinHandle<Result<(), iota_journal::Error>>,
}

impl Writer {
    /// Starts the task over a journal whose last entry is `sequence`.
    pub(crate) fn start(journal: Box<dyn Journal>, sequence: u64) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (told, durable) = watch::channel(sequence);
        let task = tokio::spawn(async move { write(journal, queue, &told).await });
        Self {
            jobs,
            durable,
            task,
        }
    }

    /// Lets the task write what waits, and ends it.
    ///
    /// # Errors
    /// What the journal said, if it ended because of that.
    pub(crate) async fn finish(self) -> Result<(), Error> {
        drop(self.jobs);
        match self.task.await {
            Ok(result) => Ok(result?),
            Err(error) => Err(Error::Panicked(error.to_string())),
        }
    }
}

async fn write(
    mut journal: Box<dyn Journal>,
    mut queue: mpsc::Receiver<Job>,
    durable: &watch::Sender<u64>,
) -> Result<(), iota_journal::Error> {
    let mut together: Vec<Entry> = Vec::new();
    while let Some(job) = queue.recv().await {
        let mut next = Some(job);
        let mut snapshot = None;
        while let Some(job) = next.take() {
            match job {
                Job::Entry(entry) => together.push(Arc::unwrap_or_clone(entry)),
                Job::Snapshot(taken) => snapshot = Some(taken),
            }
            if snapshot.is_none() && together.len() < TOGETHER {
                next = queue.try_recv().ok();
            }
        }
        if let Some(last) = together.last().map(|entry| entry.sequence) {
            let written;
            (journal, together, written) = off_thread(move || {
                let written = journal.append(&together);
                together.clear();
                (journal, together, written)
            })
            .await;
            written?;
            durable.send_replace(last);
        }
        if let Some(snapshot) = snapshot {
            journal = off_thread(move || {
                keep(journal.as_mut(), &snapshot);
                journal
            })
            .await;
        }
    }
    Ok(())
}

/// The entries say the same, only slower: a snapshot that cannot be kept is no reason to stop.
fn keep(journal: &mut dyn Journal, snapshot: &Snapshot) {
    let length_bytes = snapshot.length_bytes();
    match journal.keep_snapshot(snapshot) {
        Ok(()) => debug!(
            sequence = snapshot.sequence(),
            length_bytes, "snapshot kept"
        ),
        Err(error) => warn!(%error, "no snapshot could be kept"),
    }
}

/// Waits for the disk. A journal that panics takes the writer with it.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match blocking::spawn(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being taken apart, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use iota_journal::{Crash, Genesis, MemoryDisk, recover};
    use iota_protocol::{Event, SampleId, State, Timestamp};

    use super::*;
    use crate::testing::setup;

    fn entry(sequence: u64) -> Arc<Entry> {
        Arc::new(Entry {
            sequence,
            at: Timestamp::from_millis(sequence),
            events: vec![Event::SampleOpened {
                sample: SampleId::new(sequence),
            }],
        })
    }

    fn begun() -> (MemoryDisk, State) {
        let genesis = Genesis {
            settings: setup(1).settings().clone(),
            began: Timestamp::default(),
        };
        let disk = MemoryDisk::default();
        disk.open().begin(&genesis).unwrap();
        (disk, genesis.state().unwrap())
    }

    /// Has these jobs wait, then writes until there are no more.
    async fn written(
        journal: impl Journal + 'static,
        waiting: Vec<Job>,
    ) -> (Result<(), iota_journal::Error>, u64) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (told, durable) = watch::channel(0);
        for job in waiting {
            assert!(jobs.try_send(job).is_ok());
        }
        drop(jobs);
        let result = write(Box::new(journal), queue, &told).await;
        (result, *durable.borrow())
    }

    #[tokio::test]
    async fn whatever_waits_is_written_together() {
        let (disk, mut state) = begun();
        let before = disk.writes();
        let mut waiting: Vec<Job> = (1..=100).map(entry).map(Job::Entry).collect();
        for sequence in 1..=60 {
            for event in &entry(sequence).events {
                state.apply(Timestamp::from_millis(sequence), event);
            }
        }
        // A snapshot stands in line behind the entry that it was taken after.
        waiting.insert(60, Job::Snapshot(Snapshot::of(60, &state)));
        let (result, durable) = written(disk.open(), waiting).await;
        result.unwrap();
        assert_eq!(durable, 100);
        assert_eq!(
            disk.writes() - before,
            3,
            "60 entries, a snapshot, 40 entries"
        );
        assert_eq!(recover(&disk.open()).unwrap().unwrap().sequence, 100);
        assert_eq!(disk.open().snapshots().unwrap(), [60]);
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_never_called_durable() {
        let (disk, _) = begun();
        for kept in [false, true] {
            let crash = Crash {
                at_write: disk.writes(),
                kept,
            };
            let waiting = (1..=5).map(entry).map(Job::Entry).collect();
            let (result, durable) = written(disk.open_until(crash), waiting).await;
            assert!(matches!(result, Err(iota_journal::Error::Crashed { .. })));
            assert_eq!(durable, 0);
            let there = recover(&disk.open()).unwrap().unwrap().sequence;
            assert_eq!(there, if kept { 5 } else { 0 });
        }
    }
}
