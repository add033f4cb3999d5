//! How the database is laid out, version by version.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::trouble;
use crate::{Error, Result};

/// Marks the file as ours: "iota" in ASCII. `file` and SQLite's own tools show it.
const APPLICATION_ID: u32 = 0x696f_7461;

/// Step `n` leads from format `n` to `n + 1`; the file's `user_version` counts those that were taken. A step that has been
/// released is never changed: add one.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE run (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        genesis TEXT NOT NULL
    ) STRICT;
    CREATE TABLE entries (
        sequence INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        events TEXT NOT NULL,
        hash BLOB NOT NULL
    ) STRICT;
    CREATE TABLE snapshots (
        sequence INTEGER PRIMARY KEY,
        entry_hash BLOB NOT NULL,
        state BLOB NOT NULL,
        digest BLOB NOT NULL
    ) STRICT;
"];

const NEWEST: u32 = MIGRATIONS.len() as u32;

/// How long to wait for a reader that holds the file: for the moment in which it looks at the log.
const BUSY: Duration = Duration::from_secs(5);

/// Opens a file that is there.
pub(super) fn connect(path: &Path) -> Result<Connection> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        // Every commit is on the disk when it returns; on a Mac that needs a word of its own.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "fullfsync", true)?;
        Ok(connection)
    };
    open().map_err(|error| trouble(path, error))
}

/// Lays out an empty file.
pub(super) fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    for (index, step) in MIGRATIONS.iter().enumerate() {
        connection.execute_batch(&taking(index, step))?;
    }
    Ok(())
}

/// Brings an older file to the newest format, one step after the other, each whole or not at all.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let found = version(connection, path)?;
    let mut steps = || {
        for (index, step) in MIGRATIONS.iter().enumerate().skip(found as usize) {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(&taking(index, step))?;
            transaction.commit()?;
        }
        // A backup is no WAL file until it is opened to be written.
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
    };
    steps().map_err(|error| trouble(path, error))
}

/// A file that is only read is not migrated.
pub(super) fn expect_current(connection: &Connection, path: &Path) -> Result<()> {
    let found = version(connection, path)?;
    if found < NEWEST {
        let source =
            format!("it has the older format {found}; resume its run to bring it up to date");
        return Err(Error::Database {
            path: path.to_owned(),
            source: source.into(),
        });
    }
    Ok(())
}

/// The file's format, if it is ours and not newer than this program.
fn version(connection: &Connection, path: &Path) -> Result<u32> {
    let ask = |pragma| -> Result<u32> {
        connection
            .pragma_query_value(None, pragma, |row| row.get(0))
            .map_err(|error| trouble(path, error))
    };
    let found = ask("user_version")?;
    let path = path.to_owned();
    if ask("application_id")? != APPLICATION_ID || found == 0 {
        return Err(Error::NotAJournal { path });
    }
    if found > NEWEST {
        let known = NEWEST;
        return Err(Error::Newer { path, found, known });
    }
    Ok(found)
}

fn taking(index: usize, step: &str) -> String {
    format!("{step}; PRAGMA user_version = {};", index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_of_released_files_stays_readable() {
        // A change of a step that somebody's file has taken already shows here. Add a step instead.
        let steps: Vec<String> = MIGRATIONS
            .iter()
            .map(|step| blake3::hash(step.as_bytes()).to_hex()[..8].to_owned())
            .collect();
        assert_eq!(steps, ["e73ce9cb"]);
    }
}
