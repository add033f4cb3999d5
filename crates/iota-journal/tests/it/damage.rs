//! Files that something else has written into, or cut off.

use std::path::{Path, PathBuf};

use iota_journal::{Checked, Error, Recovered, SqliteJournal, recover};

use crate::files::network_at;
use crate::network::bytes;

/// A run's file, closed in order so that there is no log beside it, and the state that it leads to.
fn closed_journal(folder: &Path) -> (PathBuf, String) {
    let path = folder.join("journal.sqlite");
    let mut network = network_at(&path, 90);
    network.keep_snapshot().unwrap();
    for turn in 90..120 {
        let command = crate::network::next_command(&network.state, turn);
        network.command(&command).unwrap();
    }
    let told = bytes(&network.state);
    drop(network);
    let log = folder.join("journal.sqlite-wal");
    assert!(!log.exists(), "closing moves the log into the file");
    (path, told)
}

fn open_and_recover(path: &Path) -> Result<Option<Recovered>, Error> {
    recover(&SqliteJournal::open(path)?)
}

fn open_and_check(path: &Path) -> Result<Checked, Error> {
    SqliteJournal::open(path)?.check()
}

#[test]
fn a_file_that_was_cut_off_is_refused_wherever_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = closed_journal(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let page = 4096;
    assert!(whole.len() > 20 * page);
    for length in (page..whole.len()).step_by(3 * page + 777) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = open_and_recover(&path).unwrap_err();
        assert!(
            matches!(error, Error::Damaged { .. }),
            "{length}: {error:?}"
        );
        let message = error.to_string();
        assert!(
            message.contains("backup") && message.contains("fsck"),
            "{message}"
        );
    }
    std::fs::write(&path, &whole).unwrap();
    open_and_check(&path).unwrap();
}

#[test]
fn no_byte_that_was_changed_leads_to_another_state() {
    let folder = tempfile::tempdir().unwrap();
    let (path, told) = closed_journal(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let (mut refused, mut found_by_check) = (0, 0);
    for place in (100..whole.len()).step_by(1_009) {
        let mut changed = whole.clone();
        changed[place] ^= 0x55;
        std::fs::write(&path, &changed).unwrap();
        match open_and_recover(&path) {
            Err(error) => {
                assert!(matches!(error, Error::Damaged { .. }), "{place}: {error:?}");
                refused += 1;
            }
            // It lies before the newest snapshot or where nothing is; then it does no harm, and a check may find it.
            Ok(recovered) => {
                assert_eq!(bytes(&recovered.unwrap().state), told, "byte {place}");
                found_by_check += u32::from(open_and_check(&path).is_err());
            }
        }
    }
    assert!(refused > 10, "{refused} were refused");
    assert!(found_by_check > 5, "{found_by_check} were found");
}

/// What the database itself cannot notice: a row that is well-formed and not what was written.
#[test]
fn rows_that_were_rewritten_are_found_by_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = closed_journal(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let tampering = [
        "UPDATE entries SET at_ms = at_ms + 1 WHERE sequence = 20",
        "UPDATE entries SET events = '[]' WHERE sequence = 20",
        "UPDATE entries SET hash = zeroblob(32) WHERE sequence = 20",
        "UPDATE entries SET hash = zeroblob(3) WHERE sequence = 20",
        "DELETE FROM entries WHERE sequence = 20",
        "DELETE FROM entries WHERE sequence = 1",
        "UPDATE run SET genesis = replace(genesis, '\"epochs\":3', '\"epochs\":4')",
        "UPDATE snapshots SET state = zeroblob(10)",
        "UPDATE snapshots SET sequence = sequence - 1",
        "UPDATE snapshots SET sequence = 100000",
    ];
    for statement in tampering {
        std::fs::write(&path, &whole).unwrap();
        let database = rusqlite::Connection::open(&path).unwrap();
        assert!(database.execute(statement, []).unwrap() > 0, "{statement}");
        drop(database);
        let error = open_and_check(&path).unwrap_err();
        assert!(
            matches!(error, Error::Damaged { .. }),
            "{statement}: {error:?}"
        );
    }
}
