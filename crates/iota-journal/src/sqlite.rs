//! A journal in a file: an SQLite database that one process writes.
//!
//! In WAL mode with `synchronous=FULL` a commit is one append to the log file and one fsync, and a reader (a backup, a check)
//! never holds the writer up. Whatever happens to the process or the machine, the file opens with all commits that returned
//! and none that were cut off. Entries that are given to one `append` share a commit, and so its fsync.

mod files;
mod schema;

use std::path::{Path, PathBuf};

use iota_protocol::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::chain::Link;
use crate::codec::{decode_events, decode_genesis, encode_events, encode_genesis};
use crate::{Checked, Entry, Error, Genesis, Journal, Result, Snapshot, check};
use files::Lock;

/// Snapshots that are kept: the newest, and the one before it for whoever asks what led to the newest.
const SNAPSHOTS_KEPT: i64 = 2;

/// A journal in an SQLite file.
#[derive(Debug)]
pub struct SqliteJournal {
    connection: Connection,
    path: PathBuf,
    /// The last entry that is durable; none before the run has begun.
    last: Option<Link>,
    /// Held by the one who may write; a journal that is only read has none.
    lock: Option<Lock>,
}

impl SqliteJournal {
    /// A new journal that only its owner may read: it holds the run's secret.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is a file at `path`; [`Error::InUse`], [`Error::File`], [`Error::Database`].
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let lock = Lock::take(&path)?;
        files::must_not_exist(&path)?;
        // It gets its name when it is whole: whoever looks for it, or comes back after a power cut, finds a journal or none.
        let unfinished = files::unfinished(&path)?;
        files::create_private(&unfinished)?;
        let connection = schema::connect(&unfinished)?;
        schema::create(&connection).map_err(|error| trouble(&unfinished, error))?;
        connection
            .close()
            .map_err(|(_, error)| trouble(&unfinished, error))?;
        files::rename(&unfinished, &path)?;
        files::sync_folder_of(&path)?;
        let connection = schema::connect(&path)?;
        Ok(Self {
            connection,
            path,
            last: None,
            lock: Some(lock),
        })
    }

    /// The journal of an earlier process, to be continued.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::InUse`], [`Error::NotAJournal`], [`Error::Newer`]; [`Error::Damaged`] as far as that
    /// can be seen at a glance: [`recover`](crate::recover()) and [`check`](Self::check) look closer.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        files::must_exist(&path)?;
        let lock = Lock::take(&path)?;
        let mut connection = schema::connect(&path)?;
        schema::migrate(&mut connection, &path)?;
        Self::opened(connection, path, Some(lock))
    }

    /// A journal to be read only, while another process may be writing it.
    ///
    /// # Errors
    /// As [`open`](Self::open), but never [`Error::InUse`].
    pub fn open_for_reading(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        files::must_exist(&path)?;
        let connection = schema::connect(&path)?;
        schema::expect_current(&connection, &path)?;
        Self::opened(connection, path, None)
    }

    fn opened(connection: Connection, path: PathBuf, lock: Option<Lock>) -> Result<Self> {
        let mut journal = Self {
            connection,
            path,
            last: None,
            lock,
        };
        journal.last = journal.newest()?;
        Ok(journal)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses to let the file grow beyond so many bytes (to a page): [`Error::Full`] comes then. The write-ahead log beside
    /// it takes a few MiB more.
    ///
    /// # Errors
    /// [`Error::Database`] if the file cannot be asked for the size of its pages.
    pub fn limit_bytes(&self, bytes: u64) -> Result<()> {
        let set = || {
            let page: i64 = self
                .connection
                .pragma_query_value(None, "page_size", |row| row.get(0))?;
            let pages = i64::try_from(bytes).unwrap_or(i64::MAX) / page.max(1);
            self.connection
                .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
        };
        set().map_err(|error| self.trouble(error))
    }

    /// Copies the journal as it is now into a new file, while it may be written to. The copy is a journal: rename it to
    /// resume from it.
    ///
    /// # Errors
    /// [`Error::Exists`] if `to` is there already; [`Error::Full`], [`Error::File`], [`Error::Database`].
    pub fn backup(&self, to: &Path) -> Result<()> {
        files::create_private(to)?;
        let copy = || {
            let mut target = Connection::open(to)?;
            let backup = rusqlite::backup::Backup::new(&self.connection, &mut target)?;
            // All pages in one step: one moment of the journal, however much is added meanwhile.
            backup.step(-1).map(drop)
        };
        copy().map_err(|error| trouble(to, error))?;
        files::sync(to)?;
        files::sync_folder_of(to)
    }

    /// Reads everything: the database's own structure, every hash, every snapshot against the events before it.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the first thing that is not as it should be.
    pub fn check(&self) -> Result<Checked> {
        let verdict: String = self
            .connection
            .pragma_query_value(None, "integrity_check", |row| row.get(0))
            .map_err(|error| self.trouble(error))?;
        if verdict != "ok" {
            return Err(self.damaged(verdict));
        }
        check(self)
    }

    /// The last entry with its hash as it is written; the genesis if there is none.
    fn newest(&self) -> Result<Option<Link>> {
        let newest: Option<i64> = self
            .connection
            .query_row("SELECT max(sequence) FROM entries", [], |row| row.get(0))
            .map_err(|error| self.trouble(error))?;
        match newest {
            Some(sequence) => self.link(unsigned(sequence)),
            None => self.link(0),
        }
    }

    /// The hash after an entry as it is written; none if there is no such entry, or nothing was begun.
    fn link(&self, sequence: u64) -> Result<Option<Link>> {
        if sequence == 0 {
            let genesis = self.genesis_text()?;
            return Ok(genesis.map(|text| Link::first(text.as_bytes())));
        }
        let hash = self
            .connection
            .query_row(
                "SELECT hash FROM entries WHERE sequence = ?1",
                [signed(sequence)],
                |row| row.get(0),
            )
            .optional();
        let hash: Option<[u8; 32]> = hash.map_err(|error| self.trouble(error))?;
        Ok(hash.map(|hash| Link { sequence, hash }))
    }

    fn genesis_text(&self) -> Result<Option<String>> {
        self.connection
            .query_row("SELECT genesis FROM run", [], |row| row.get(0))
            .optional()
            .map_err(|error| self.trouble(error))
    }

    fn insert(&mut self, entries: &[Entry], mut link: Link) -> rusqlite::Result<Link> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut insert = transaction.prepare(
                "INSERT INTO entries (sequence, at_ms, events, hash) VALUES (?1, ?2, ?3, ?4)",
            )?;
            for entry in entries {
                let events = encode_events(&entry.events);
                let at_ms = entry.at.as_millis();
                link = link.next(at_ms, events.as_bytes());
                assert_eq!(link.sequence, entry.sequence, "entries have no gaps");
                insert.execute(params![
                    signed(link.sequence),
                    signed(at_ms),
                    events,
                    link.hash
                ])?;
            }
        }
        transaction.commit()?;
        Ok(link)
    }

    fn insert_snapshot(&mut self, snapshot: &Snapshot, link: Link) -> rusqlite::Result<()> {
        let digest = blake3::hash(&snapshot.bytes);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute(
            "INSERT OR REPLACE INTO snapshots (sequence, entry_hash, state, digest) VALUES (?1, ?2, ?3, ?4)",
            params![
                signed(snapshot.sequence),
                link.hash,
                snapshot.bytes,
                digest.as_bytes()
            ],
        )?;
        transaction.execute(
            "DELETE FROM snapshots WHERE sequence NOT IN \
             (SELECT sequence FROM snapshots ORDER BY sequence DESC LIMIT ?1)",
            [SNAPSHOTS_KEPT],
        )?;
        transaction.commit()
    }

    fn must_be_writer(&self) {
        assert!(
            self.lock.is_some(),
            "a journal that was opened for reading is not written to"
        );
    }

    fn trouble(&self, error: rusqlite::Error) -> Error {
        trouble(&self.path, error)
    }

    fn damaged(&self, what: String) -> Error {
        Error::Damaged {
            place: self.place(),
            what,
        }
    }
}

impl Journal for SqliteJournal {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn begin(&mut self, genesis: &Genesis) -> Result<()> {
        self.must_be_writer();
        if self.last.is_some() {
            let place = self.place();
            return Err(Error::Exists { place });
        }
        let text = encode_genesis(genesis);
        self.connection
            .execute("INSERT INTO run (one, genesis) VALUES (1, ?1)", [&text])
            .map_err(|error| self.trouble(error))?;
        self.last = Some(Link::first(text.as_bytes()));
        Ok(())
    }

    fn append(&mut self, entries: &[Entry]) -> Result<()> {
        self.must_be_writer();
        let last = self
            .last
            .expect("a journal begins before anything is added to it");
        let last = self
            .insert(entries, last)
            .map_err(|error| self.trouble(error))?;
        self.last = Some(last);
        Ok(())
    }

    fn keep_snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.must_be_writer();
        let link = self
            .link(snapshot.sequence)?
            .expect("a snapshot is of an entry that is in the journal");
        self.insert_snapshot(snapshot, link)
            .map_err(|error| self.trouble(error))
    }

    fn genesis(&self) -> Result<Option<Genesis>> {
        let decode = |text: String| {
            decode_genesis(&text).map_err(|what| self.damaged(format!("its beginning: {what}")))
        };
        self.genesis_text()?.map(decode).transpose()
    }

    fn entries_after(&self, sequence: u64, at_most: usize) -> Result<Vec<Entry>> {
        let Some(mut link) = self.link(sequence)? else {
            return Ok(Vec::new());
        };
        let read = || {
            let mut query = self.connection.prepare(
                "SELECT sequence, at_ms, events, hash FROM entries WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
            )?;
            let limit = i64::try_from(at_most).unwrap_or(i64::MAX);
            let rows = query.query_map([signed(sequence), limit], |row| {
                let (sequence, at_ms): (i64, i64) = (row.get(0)?, row.get(1)?);
                let events: String = row.get(2)?;
                let hash: [u8; 32] = row.get(3)?;
                Ok((unsigned(sequence), unsigned(at_ms), events, hash))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = read().map_err(|error| self.trouble(error))?;
        rows.into_iter()
            .map(|(sequence, at_ms, events, hash)| {
                link = link.next(at_ms, events.as_bytes());
                if (link.sequence, link.hash) != (sequence, hash) {
                    let before = link.sequence - 1;
                    return Err(self.damaged(format!(
                        "what follows entry {before} is not what was written after it"
                    )));
                }
                let events = decode_events(&events)
                    .map_err(|what| self.damaged(format!("entry {sequence}: {what}")))?;
                let at = Timestamp::from_millis(at_ms);
                Ok(Entry {
                    sequence,
                    at,
                    events,
                })
            })
            .collect()
    }

    fn snapshots(&self) -> Result<Vec<u64>> {
        let read = || {
            let mut query = self
                .connection
                .prepare("SELECT sequence FROM snapshots ORDER BY sequence")?;
            let rows = query.query_map([], |row| row.get(0).map(unsigned))?;
            rows.collect::<rusqlite::Result<Vec<u64>>>()
        };
        read().map_err(|error| self.trouble(error))
    }

    fn snapshot(&self, sequence: u64) -> Result<Snapshot> {
        let found = self
            .connection
            .query_row(
                "SELECT entry_hash, state, digest FROM snapshots WHERE sequence = ?1",
                [signed(sequence)],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()
            .map_err(|error| self.trouble(error))?;
        let Some((hash, bytes, digest)): Option<([u8; 32], Vec<u8>, [u8; 32])> = found else {
            return Err(self.damaged(format!("there is no snapshot after entry {sequence}")));
        };
        if *blake3::hash(&bytes).as_bytes() != digest {
            let what = format!("the snapshot after entry {sequence} is not as it was written");
            return Err(self.damaged(what));
        }
        if self.link(sequence)? != Some(Link { sequence, hash }) {
            let what = format!(
                "the snapshot after entry {sequence} is of another history than that entry"
            );
            return Err(self.damaged(what));
        }
        Ok(Snapshot { sequence, bytes })
    }
}

/// What the database says, in terms of what can be done about it.
fn trouble(path: &Path, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode;
    let place = || path.display().to_string();
    let code = error.sqlite_error_code();
    match (code, &error) {
        (Some(ErrorCode::DiskFull), _) => Error::Full {
            place: place(),
            source: error.into(),
        },
        // Columns are of the types and lengths that they were written with.
        (Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase), _)
        | (
            None,
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..),
        ) => Error::Damaged {
            place: place(),
            what: error.to_string(),
        },
        _ => Error::Database {
            path: path.to_owned(),
            source: error.into(),
        },
    }
}

/// SQLite's integers have a sign. Sequences and times of a run never need the last bit; one that had it would not be read
/// back as another, since the cast is its own inverse.
const fn signed(number: u64) -> i64 {
    number.cast_signed()
}

const fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}
