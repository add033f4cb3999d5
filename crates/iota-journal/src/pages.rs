//! A journal in pages, for a place where things can be put but nothing can be added to what is there: an object store.
//!
//! ```text
//!   genesis ──► entries 1 … 80 ──► entries 81 … 95 ──► …        each page follows from the head of the one before:
//!      │           page │               page │                  whoever reads them in order, from the genesis on,
//!      ▼                ▼                    ▼                  comes to the head that was noted, or knows better
//!     head             head                 head
//! ```

use iota_protocol::{Digest, Timestamp};
use serde::{Deserialize, Serialize};

use crate::chain::Link;
use crate::codec::{Malformed, decode_events, encode_events, encode_genesis, pack, unpack};
use crate::{Entry, Genesis};

/// How far a journal goes, and the hash of everything up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The last entry; 0 for none.
    pub sequence: u64,
    /// What the journal has beside that entry: BLAKE3 over the genesis and all entries.
    pub hash: Digest,
}

impl Head {
    /// Of a journal that has just begun.
    pub fn of(genesis: &Genesis) -> Self {
        Link::first(encode_genesis(genesis).as_bytes()).into()
    }

    /// Reads the page that follows; afterwards this is the head of its last entry.
    ///
    /// # Errors
    /// What is wrong with the bytes, if they are no page. That they are the page which was written here is known when
    /// the last head is.
    pub fn read(&mut self, page: &[u8]) -> Result<Vec<Entry>, Malformed> {
        let text = String::from_utf8(unpack(page)?).map_err(|error| error.to_string())?;
        let mut link = Link::from(*self);
        let mut entries = Vec::new();
        for line in text.lines() {
            let (at_ms, events) = line.split_once(' ').ok_or("a line without a time")?;
            let at_ms: u64 = at_ms
                .parse()
                .map_err(|_| format!("{at_ms:?} is no time in milliseconds"))?;
            link = link.next(at_ms, events.as_bytes());
            entries.push(Entry {
                sequence: link.sequence,
                at: Timestamp::from_millis(at_ms),
                events: decode_events(events)?,
            });
        }
        *self = link.into();
        Ok(entries)
    }
}

impl From<Link> for Head {
    fn from(link: Link) -> Self {
        Self {
            sequence: link.sequence,
            hash: Digest::from_bytes(link.hash),
        }
    }
}

impl From<Head> for Link {
    fn from(head: Head) -> Self {
        Self {
            sequence: head.sequence,
            hash: *head.hash.as_bytes(),
        }
    }
}

/// Fills pages with entries.
#[derive(Debug, Clone)]
pub struct Pager {
    link: Link,
    lines: Vec<u8>,
}

impl Pager {
    /// Begins a page that follows what ends with `head`.
    pub fn new(head: Head) -> Self {
        Self {
            link: head.into(),
            lines: Vec::new(),
        }
    }

    /// The last entry that it was given, and the hash of everything up to there.
    pub fn head(&self) -> Head {
        self.link.into()
    }

    /// How full the page is, before it is packed.
    pub const fn length_bytes(&self) -> usize {
        self.lines.len()
    }

    /// Writes the next entry.
    ///
    /// # Panics
    /// If another one is the next.
    pub fn add(&mut self, entry: &Entry) {
        let events = encode_events(&entry.events);
        let at_ms = entry.at.as_millis();
        self.link = self.link.next(at_ms, events.as_bytes());
        assert_eq!(self.link.sequence, entry.sequence, "entries have no gaps");
        self.lines.extend(at_ms.to_string().bytes());
        self.lines.push(b' ');
        self.lines.extend(events.bytes());
        self.lines.push(b'\n');
    }

    /// Packs what was written as one page, which [`Head::read`] reads. Takes a moment if that is much: any thread will do.
    pub fn page(&self) -> Vec<u8> {
        pack(&self.lines)
    }

    /// Begins the next page.
    pub fn turn(&mut self) {
        self.lines.clear();
    }
}
