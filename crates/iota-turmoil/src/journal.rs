//! The orchestrator's journal: in memory, on a disk that outlives its process, and with a death for it.

use std::sync::{Arc, Mutex, PoisonError};

use iota_journal::{Entry, Error, Genesis, Journal, MemoryDisk, MemoryJournal, Result, Snapshot};

use crate::trace::Trace;

/// What an orchestrator's process leaves, and what kills the next one.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    disk: Arc<Mutex<MemoryDisk>>,
    /// The process dies at the next write: whether that is there afterwards.
    dies: Arc<Mutex<Option<bool>>>,
    trace: Arc<Trace>,
}

impl Disk {
    pub(crate) fn new(trace: Arc<Trace>) -> Self {
        Self {
            disk: Arc::default(),
            dies: Arc::default(),
            trace,
        }
    }

    /// A process's hold on the journal. It writes everything down in the trace, too.
    pub(crate) fn open(&self) -> impl Journal + use<> {
        TracedJournal {
            journal: self.memory().open(),
            disk: self.clone(),
            dead: false,
        }
    }

    /// To look at what is there.
    pub(crate) fn read(&self) -> MemoryJournal {
        self.memory().open()
    }

    /// Begins with an empty one.
    pub(crate) fn format(&self) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = MemoryDisk::default();
    }

    /// Whoever writes next dies of it; `kept`: but the write is there.
    pub(crate) fn kill_at_next_write(&self, kept: bool) {
        *self.dies.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    }

    fn memory(&self) -> MemoryDisk {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.clone()
    }
}

#[derive(Debug)]
struct TracedJournal {
    journal: MemoryJournal,
    disk: Disk,
    dead: bool,
}

impl Journal for TracedJournal {
    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        let dies = self.disk.dies.lock().unwrap_or_else(PoisonError::into_inner).take();
        let died = Error::Crashed {
            write: self.disk.memory().writes(),
        };
        if self.dead || dies == Some(false) {
            self.dead = true;
            return Err(died);
        }
        self.journal.append(entries)?;
        for entry in entries {
            for event in &entry.events {
                let at_ms = entry.at.as_millis();
                let what = format_args!("[{} at {at_ms}] {event:?}", entry.sequence);
                self.disk.trace.note("journal", what);
            }
        }
        if dies == Some(true) {
            self.dead = true;
            return Err(died);
        }
        Ok(())
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
