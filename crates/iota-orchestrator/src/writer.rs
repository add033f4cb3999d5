//! The thread that writes the journal.
//!
//! ```text
//!   owner ── entry, entry, entry, … ──► bounded queue ──► append(all that wait) ──► durable: the last of them
//! ```
//!
//! An entry that finds the writer idle is written at once. While a write waits for the disk more entries come in, and the
//! next write takes all of them: the busier the run, the more of them share an fsync, and nobody ever waits for company.

use std::sync::Arc;

use iota_journal::{Entry, Journal, Snapshot};
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

/// How the owner reaches the thread.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) jobs: mpsc::Sender<Job>,
    /// The last entry that is durable.
    pub(crate) durable: watch::Receiver<u64>,
    thread: JoinHandle<Result<(), iota_journal::Error>>,
}

impl Writer {
    /// Starts the thread over a journal whose last entry is `sequence`.
    pub(crate) fn start(journal: Box<dyn Journal>, sequence: u64) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (told, durable) = watch::channel(sequence);
        let thread = tokio::task::spawn_blocking(move || write(journal, queue, &told));
        Self {
            jobs,
            durable,
            thread,
        }
    }

    /// Lets the thread write what waits, and ends it.
    ///
    /// # Errors
    /// What the journal said, if it ended because of that.
    pub(crate) async fn finish(self) -> Result<(), Error> {
        drop(self.jobs);
        match self.thread.await {
            Ok(result) => Ok(result?),
            Err(error) => Err(Error::Panicked(error.to_string())),
        }
    }
}

fn write(
    mut journal: Box<dyn Journal>,
    mut queue: mpsc::Receiver<Job>,
    durable: &watch::Sender<u64>,
) -> Result<(), iota_journal::Error> {
    let mut together: Vec<Entry> = Vec::new();
    while let Some(job) = queue.blocking_recv() {
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
            journal.append(&together)?;
            together.clear();
            durable.send_replace(last);
        }
        if let Some(snapshot) = snapshot {
            let length_bytes = snapshot.length_bytes();
            // The entries say the same, only slower.
            match journal.keep_snapshot(&snapshot) {
                Ok(()) => debug!(
                    sequence = snapshot.sequence(),
                    length_bytes, "snapshot kept"
                ),
                Err(error) => warn!(%error, "no snapshot could be kept"),
            }
        }
    }
    Ok(())
}
