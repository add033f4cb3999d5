//! A journal in memory: the twin of the durable one for simulations, which dies where a test tells it to.
//!
//! A [`MemoryDisk`] is what survives; a [`MemoryJournal`] is a process's hold on it. Everything is kept as bytes, through
//! the same encoding and the same chain as in a file.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iota_protocol::Timestamp;

use crate::chain::Link;
use crate::codec::{decode_events, decode_genesis, encode_events, encode_genesis};
use crate::{Entry, Error, Genesis, Journal, Result, Snapshot};

/// What survives the death of a process. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    contents: Arc<Mutex<Contents>>,
}

#[derive(Debug, Default)]
struct Contents {
    genesis: Option<String>,
    entries: Vec<Stored>,
    snapshots: Vec<Snapshot>,
    writes: u64,
}

#[derive(Debug)]
struct Stored {
    at: Timestamp,
    events: String,
    hash: [u8; 32],
}

/// When a journal dies, and what it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// At which write of the disk, counting from 0: a call of `begin`, `append` or `keep_snapshot`.
    pub at_write: u64,
    /// Whether that write is there afterwards. Either way nobody is told.
    pub kept: bool,
}

/// A process's hold on a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryJournal {
    disk: MemoryDisk,
    crash: Option<Crash>,
    dead: bool,
}

const PLACE: &str = "in memory";

impl MemoryDisk {
    /// A journal on this disk.
    pub fn open(&self) -> MemoryJournal {
        MemoryJournal {
            disk: self.clone(),
            crash: None,
            dead: false,
        }
    }

    /// A journal on this disk that dies.
    pub fn open_until(&self, crash: Crash) -> MemoryJournal {
        MemoryJournal {
            crash: Some(crash),
            ..self.open()
        }
    }

    /// Writes so far: the points at which a process can die.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn link(&self, sequence: u64) -> Option<Link> {
        let hash = match sequence.checked_sub(1) {
            None => return Some(Link::first(self.genesis.as_ref()?.as_bytes())),
            Some(index) => self.entries.get(usize::try_from(index).ok()?)?.hash,
        };
        Some(Link { sequence, hash })
    }

    fn last(&self) -> Link {
        self.link(self.entries.len() as u64)
            .expect("a journal begins before anything is added to it")
    }
}

impl MemoryJournal {
    fn write(&mut self, change: impl FnOnce(&mut Contents) -> Result<()>) -> Result<()> {
        let mut contents = self.disk.lock();
        let write = contents.writes;
        if self.dead {
            return Err(Error::Crashed { write });
        }
        contents.writes += 1;
        match self.crash {
            Some(crash) if crash.at_write == write => {
                self.dead = true;
                if crash.kept {
                    change(&mut contents)?;
                }
                Err(Error::Crashed { write })
            }
            _ => change(&mut contents),
        }
    }
}

impl Journal for MemoryJournal {
    fn place(&self) -> String {
        PLACE.to_owned()
    }

    fn begin(&mut self, genesis: &Genesis) -> Result<()> {
        self.write(|contents| {
            if contents.genesis.is_some() {
                let place = PLACE.to_owned();
                return Err(Error::Exists { place });
            }
            contents.genesis = Some(encode_genesis(genesis));
            Ok(())
        })
    }

    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        self.write(|contents| {
            let mut link = contents.last();
            for entry in entries {
                let events = encode_events(&entry.events);
                link = link.next(entry.at.as_millis(), events.as_bytes());
                assert_eq!(link.sequence, entry.sequence, "entries have no gaps");
                contents.entries.push(Stored {
                    at: entry.at,
                    events,
                    hash: link.hash,
                });
            }
            Ok(())
        })
    }

    fn keep_snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.write(|contents| {
            let entries = contents.entries.len() as u64;
            assert!(snapshot.sequence <= entries, "a snapshot of the future");
            contents
                .snapshots
                .retain(|kept| kept.sequence != snapshot.sequence);
            contents.snapshots.push(snapshot.clone());
            contents.snapshots.sort_by_key(Snapshot::sequence);
            Ok(())
        })
    }

    fn genesis(&self) -> Result<Option<Genesis>> {
        let contents = self.disk.lock();
        let text = contents.genesis.as_deref();
        text.map(decode_genesis).transpose().map_err(damaged)
    }

    fn entries_after(&self, sequence: u64, at_most: usize) -> Result<Vec<Entry>> {
        let contents = self.disk.lock();
        let Some(mut link) = contents.link(sequence) else {
            return Ok(Vec::new());
        };
        let skipped = usize::try_from(sequence).unwrap_or(usize::MAX);
        let stored = contents.entries.iter().skip(skipped).take(at_most);
        stored
            .map(|stored| {
                link = link.next(stored.at.as_millis(), stored.events.as_bytes());
                if link.hash != stored.hash {
                    let what = format!("entry {} does not follow the one before", link.sequence);
                    return Err(damaged(what));
                }
                Ok(Entry {
                    sequence: link.sequence,
                    at: stored.at,
                    events: decode_events(&stored.events).map_err(damaged)?,
                })
            })
            .collect()
    }

    fn snapshots(&self) -> Result<Vec<u64>> {
        let contents = self.disk.lock();
        Ok(contents.snapshots.iter().map(Snapshot::sequence).collect())
    }

    fn snapshot(&self, sequence: u64) -> Result<Snapshot> {
        let contents = self.disk.lock();
        let found = contents
            .snapshots
            .iter()
            .find(|snapshot| snapshot.sequence == sequence);
        found
            .cloned()
            .ok_or_else(|| damaged(format!("there is no snapshot after entry {sequence}")))
    }
}

fn damaged(what: String) -> Error {
    Error::Damaged {
        place: PLACE.to_owned(),
        what,
    }
}
