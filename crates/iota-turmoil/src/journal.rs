//! The orchestrator's journal: in memory, on a disk that outlives its process, and with a death for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iota_journal::{Entry, Error, Genesis, Journal, MemoryDisk, MemoryJournal, Result, Snapshot};
use iota_protocol::State;
use iota_protocol::event::Event;
use iota_protocol::invariants::check_all;

use crate::Death;
use crate::fault::Fault;
use crate::plan::Host;
use crate::trace::Trace;

/// What an orchestrator's process leaves, and what kills the next one.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    inner: Arc<Mutex<Inner>>,
    trace: Arc<Trace>,
}

#[derive(Debug, Default)]
struct Inner {
    disk: MemoryDisk,
    /// What the entries lead to.
    state: Option<State>,
    /// The first invariant that did not hold after an entry.
    violated: Option<String>,
    /// The process dies at the next write: whether that is there afterwards.
    dies: Option<bool>,
    /// The process that makes this write dies of it.
    death: Option<Death>,
    /// Writes that were tried so far, by all processes.
    tried: u64,
    /// Joins in writes that are there although their process died of them: their peers were never told.
    joins_untold: u64,
}

impl Disk {
    pub(crate) fn new(death: Option<Death>, trace: Arc<Trace>) -> Self {
        let inner = Inner {
            death,
            ..Inner::default()
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            trace,
        }
    }

    /// A process's hold on the journal. It writes everything down in the trace, too, and looks at the invariants.
    pub(crate) fn open(&self) -> impl Journal + use<> {
        TracedJournal {
            journal: self.read(),
            disk: self.clone(),
            dead: false,
        }
    }

    /// To look at what is there.
    pub(crate) fn read(&self) -> MemoryJournal {
        self.lock().disk.open()
    }

    /// Begins with an empty one.
    pub(crate) fn format(&self) {
        let mut inner = self.lock();
        *inner = Inner {
            death: inner.death,
            tried: inner.tried,
            joins_untold: inner.joins_untold,
            ..Inner::default()
        };
    }

    /// Whoever writes next dies of it; `kept`: but the write is there.
    pub(crate) fn kill_at_next_write(&self, kept: bool) {
        self.lock().dies = Some(kept);
    }

    /// Writes that were tried so far.
    pub(crate) fn tried(&self) -> u64 {
        self.lock().tried
    }

    /// Joins that are written down and were never answered.
    pub(crate) fn joins_untold(&self) -> u64 {
        self.lock().joins_untold
    }

    /// The first invariant of the rules that did not hold after an entry.
    pub(crate) fn violated(&self) -> Option<String> {
        self.lock().violated.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether the process that tries a write dies of it, and if so whether the write is there.
    fn fate(&mut self, trace: &Trace) -> Option<bool> {
        let write = self.tried;
        self.tried += 1;
        let death = self.death.filter(|death| death.write == write);
        let death = death.map(|death| {
            trace.fault(Fault::JournalDied, Host::Orchestrator.name(), None);
            death.kept
        });
        death.or_else(|| self.dies.take())
    }

    fn follow(&mut self, entry: &Entry) {
        let Some(state) = &mut self.state else { return };
        for event in &entry.events {
            state.apply(entry.at, event);
        }
        if let Err(violation) = check_all(state) {
            let what = format!("after entry {}, {violation}", entry.sequence);
            self.violated.get_or_insert(what);
        }
    }
}

/// Whether a session begins.
pub(crate) const fn is_join(event: &Event) -> bool {
    matches!(event, Event::SessionJoined { .. })
}

#[derive(Debug)]
struct TracedJournal {
    journal: MemoryJournal,
    disk: Disk,
    dead: bool,
}

impl Journal for TracedJournal {
    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        let mut inner = self.disk.lock();
        let dies = inner.fate(&self.disk.trace);
        let died = Error::Crashed {
            write: inner.disk.writes(),
        };
        if self.dead || dies == Some(false) {
            self.dead = true;
            return Err(died);
        }
        self.journal.append(entries)?;
        for entry in entries {
            inner.follow(entry);
            for event in &entry.events {
                let at_ms = entry.at.as_millis();
                let what = format_args!("[{} at {at_ms}] {event:?}", entry.sequence);
                self.disk.trace.note("journal", what);
            }
        }
        if dies == Some(true) {
            self.dead = true;
            let events = entries.iter().flat_map(|entry| &entry.events);
            inner.joins_untold += events.filter(|event| is_join(event)).count() as u64;
            return Err(died);
        }
        Ok(())
    }

    fn place(&self) -> String {
        self.journal.place()
    }

    fn begin(&mut self, genesis: &Genesis) -> Result<()> {
        self.disk.lock().state = genesis.state().ok();
        self.journal.begin(genesis)
    }

    fn keep_snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
        let fate = self.disk.lock().fate(&self.disk.trace);
        let write = self.disk.lock().disk.writes();
        if !self.dead && fate != Some(false) {
            self.journal.keep_snapshot(snapshot)?;
        }
        self.dead |= fate.is_some();
        if self.dead {
            return Err(Error::Crashed { write });
        }
        Ok(())
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
