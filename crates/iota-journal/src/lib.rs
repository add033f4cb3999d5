//! A run's events and snapshots, kept so that nothing that was acknowledged is ever lost.
//!
//! ```text
//!   genesis ──► entry 1 ──► entry 2 ──► … ──► entry n ──► …        each holds the events of one command, its time, and
//!      │           hash ───────► hash ─────────► hash              the hash of all before it
//!      │                                          │
//!      │                                     snapshot n            the whole state after entry n
//!      ▼                                          ▼
//!   State::new ───── apply every event ────►    State    ──── apply the events after n ────►  the run as it was
//! ```
//!
//! An orchestrator appends what it decided and answers afterwards. When its process dies, whatever the way, the next one
//! [recovers](recover()) the very same state, byte for byte.
//!
//! ```
//! use iota_journal::{Entry, Genesis, Journal, MemoryDisk, recover};
//! use iota_protocol::{Command, State, Timestamp};
//! # use iota_protocol::settings::{LearningRate, Merging, Registration, Timing};
//! # use iota_protocol::{RunId, RunSettings};
//! # let settings = RunSettings {
//! #     run: RunId::from_bytes([1; 16]), secret: [2; 32], stage_parameters: vec![1_000], activation_bytes: 4_096,
//! #     gradient_bytes: 4_096, in_batches: false, cell_element_bytes: 12, cell_overhead_bytes: 0, sample_tokens: 128, epochs: 1, samples_per_epoch: 4,
//! #     samples_in_flight: 2, backwards_per_step: 1, miners_to_start: 1, miners_per_stage_max: 50, validators: vec![],
//! #     registration: Registration::default(),
//! #     audit_every_epochs: 1, timing: Timing::default(),
//! #     learning_rate: LearningRate::cosine(1e-3, 0, 0.1),
//! #     merging: Merging::default(),
//! # };
//!
//! let genesis = Genesis { settings, began: Timestamp::from_millis(5) };
//! let mut state: State = genesis.state()?;
//!
//! let disk = MemoryDisk::default(); // or SqliteJournal::create("my-run/journal.sqlite")?
//! let mut journal = disk.open();
//! journal.begin(&genesis)?;
//! let at = Timestamp::from_millis(7);
//! let events = state.handle(&Command::Stop, at)?;
//! journal.append(&[Entry { sequence: 1, at, events }])?; // only now may anybody be told
//!
//! let recovered = recover(&disk.open())?.expect("it has begun");
//! assert_eq!((recovered.sequence, &recovered.state), (1, &state));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | concern |
//! |---|---|
//! | this one | what a journal is: [`Journal`], and what is in it |
//! | `codec` | entries and snapshots as bytes |
//! | `chain` | the hash that ties each entry to all before it |
//! | `recover` | from a journal to the state it leads to; the check of a whole journal |
//! | `memory` | a journal in memory, which dies at any write that a test names |
//! | `pages` | a journal in pieces that are written once, for an object store |
//! | `sqlite` | a journal in a file that survives a power cut; migrations, backup, check |
//!
//! What it does *not* know: what an event means (`iota-protocol` applies them), who waits for an answer, when to take a
//! snapshot, threads, the network. It never drops an entry.

mod chain;
mod codec;
mod error;
mod memory;
mod pages;
mod recover;
mod sqlite;

use std::fmt;

use iota_protocol::settings::InvalidSetting;
use iota_protocol::{Event, RunSettings, State, Timestamp};
use serde::{Deserialize, Serialize};

pub use codec::{Malformed, Snapshot};
pub use error::{Error, Result};
pub use memory::{Crash, MemoryDisk, MemoryJournal};
pub use pages::{Head, Pager};
pub use recover::{Checked, Point, Recovered, check, recover, recover_at, replay};
pub use sqlite::SqliteJournal;

/// What a run begins with; everything else follows from it and the events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// What was fixed when the run was created, its secret among it: a journal is a private file.
    pub settings: RunSettings,
    /// When it began.
    pub began: Timestamp,
}

impl Genesis {
    /// The run before anything happened.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn state(&self) -> std::result::Result<State, InvalidSetting> {
        State::new(self.settings.clone(), self.began)
    }
}

/// What one command changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its place: 1 for the first, without gaps.
    pub sequence: u64,
    /// When, by the orchestrator's clock.
    pub at: Timestamp,
    /// What, in order. A command that changes nothing has no entry.
    pub events: Vec<Event>,
}

/// An append-only log of what happened in one run, with snapshots.
///
/// Calls block until they are done: an orchestrator gives its journal a thread of its own.
pub trait Journal: Send + fmt::Debug {
    /// Where it is, for messages.
    fn place(&self) -> String;

    /// Makes an empty journal that of a run.
    ///
    /// # Errors
    /// [`Error::Exists`] if it is one already; otherwise as [`append`](Self::append).
    fn begin(&mut self, genesis: &Genesis) -> Result<()>;

    /// Adds the events of some commands: all of them or, on an error, none. Whoever holds the `Ok` may tell of them.
    ///
    /// After an error nothing may be added any more: open the journal again, and see how far it goes. It may go further
    /// than the error says, when the answer was lost and not the write.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room; otherwise what the medium said.
    ///
    /// # Panics
    /// If the first entry does not follow the last one that is there, or they have gaps.
    fn append(&mut self, entries: &[Entry]) -> Result<()>;

    /// Adds a snapshot of the state after an entry that is in the journal. Older snapshots may be dropped.
    ///
    /// # Errors
    /// As [`append`](Self::append). Nothing is lost without it but time at the next start.
    ///
    /// # Panics
    /// If there is no such entry.
    fn keep_snapshot(&mut self, snapshot: &Snapshot) -> Result<()>;

    /// What the run began with; none if it has not begun.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not as it was written.
    fn genesis(&self) -> Result<Option<Genesis>>;

    /// The entries after `sequence`, at most so many, in order. Each has been compared with its hash and follows the one
    /// before.
    ///
    /// # Errors
    /// [`Error::Damaged`] at the first that is not as it was written.
    fn entries_after(&self, sequence: u64, at_most: usize) -> Result<Vec<Entry>>;

    /// The entries that snapshots have been taken after, from the oldest.
    ///
    /// # Errors
    /// [`Error::Damaged`] if they cannot be read.
    fn snapshots(&self) -> Result<Vec<u64>>;

    /// The snapshot after an entry, as it was written and of this very history.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not, or there is none.
    fn snapshot(&self, sequence: u64) -> Result<Snapshot>;
}
