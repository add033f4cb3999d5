//! What an operator meets: files that are there already, in use, newer, or on a disk that is full.

use std::path::Path;
use std::time::Duration;

use iota_journal::{Error, Journal, SqliteJournal, recover};

use crate::network::{Loop, Unanswered, bytes, genesis, next_command};

/// A network over a new file, after so many turns.
pub(crate) fn network_at(path: &Path, turns: u64) -> Loop<SqliteJournal> {
    let mut network = Loop::begin(SqliteJournal::create(path).unwrap(), &genesis(2)).unwrap();
    for turn in 0..turns {
        network.now = network.now + Duration::from_millis(50);
        let command = next_command(&network.state, turn);
        network.command(&command).unwrap();
    }
    network
}

#[test]
fn a_journal_is_continued_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let first = network_at(&path, 60);
    let (told, sequence, now) = (bytes(&first.state), first.sequence, first.now);
    drop(first);

    let journal = SqliteJournal::open(&path).unwrap();
    let recovered = recover(&journal).unwrap().unwrap();
    assert_eq!(
        (bytes(&recovered.state), recovered.sequence),
        (told, sequence)
    );
    let mut second = Loop::resume(journal, recovered, now);
    for turn in 60..90 {
        second.now = second.now + Duration::from_millis(50);
        second.command(&next_command(&second.state, turn)).unwrap();
    }
    second.keep_snapshot().unwrap();
    assert!(second.sequence > sequence);
    assert_eq!(second.journal.check().unwrap().entries, second.sequence);
}

#[test]
fn only_one_process_writes_and_others_may_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    assert!(matches!(
        SqliteJournal::open(&path),
        Err(Error::Missing { .. })
    ));
    let mut network = network_at(&path, 30);
    assert!(matches!(
        SqliteJournal::open(&path),
        Err(Error::InUse { .. })
    ));
    assert!(matches!(
        SqliteJournal::create(&path),
        Err(Error::InUse { .. })
    ));
    let reader = SqliteJournal::open_for_reading(&path).unwrap();
    network.command(&next_command(&network.state, 30)).unwrap();
    let read = recover(&reader).unwrap().unwrap();
    assert_eq!(bytes(&read.state), bytes(&network.state));
    drop(network);
    assert!(matches!(
        SqliteJournal::create(&path),
        Err(Error::Exists { .. })
    ));
    let mut journal = SqliteJournal::open(&path).unwrap();
    assert!(matches!(
        journal.begin(&genesis(2)),
        Err(Error::Exists { .. })
    ));
}

#[cfg(unix)]
#[test]
fn nobody_else_can_read_the_secret_in_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let _network = network_at(&path, 30);
    let mut files = 0;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.path());
        files += 1;
    }
    assert_eq!(files, 4, "the database, its log, its index, the lock");
}

#[test]
fn what_a_newer_program_wrote_is_left_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    drop(network_at(&path, 10));
    let database = rusqlite::Connection::open(&path).unwrap();
    database.pragma_update(None, "user_version", 77).unwrap();
    drop(database);
    let before = std::fs::read(&path).unwrap();
    for error in [
        SqliteJournal::open(&path).unwrap_err(),
        SqliteJournal::open_for_reading(&path).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Newer { found: 77, .. }), "{error:?}");
        let message = error.to_string();
        assert!(
            message.contains("77") && message.contains("newer one"),
            "{message}"
        );
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_database_of_something_else_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("thesis.sqlite");
    let database = rusqlite::Connection::open(&path).unwrap();
    database
        .execute_batch("CREATE TABLE chapters (text)")
        .unwrap();
    drop(database);
    assert!(matches!(
        SqliteJournal::open(&path),
        Err(Error::NotAJournal { .. })
    ));
    let text = folder.path().join("thesis.tex");
    std::fs::write(&text, "A thesis. ".repeat(1_000)).unwrap();
    assert!(matches!(
        SqliteJournal::open(&text),
        Err(Error::Damaged { .. })
    ));
}

#[test]
fn a_full_disk_is_an_error_and_loses_nothing_that_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let mut network = network_at(&path, 30);
    network.journal.limit_bytes(96 << 10).unwrap();
    let mut told = bytes(&network.state);
    let mut turn = 30;
    let error = loop {
        network.now = network.now + Duration::from_millis(50);
        let command = next_command(&network.state, turn);
        turn += 1;
        match network.command(&command) {
            Ok(_) => told = bytes(&network.state),
            Err(Unanswered::Dead(error)) => break error,
            Err(Unanswered::Refused(rejection)) => panic!("{rejection}"),
        }
    };
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("make some"), "{error}");
    drop(network);

    let journal = SqliteJournal::open(&path).unwrap();
    let recovered = recover(&journal).unwrap().unwrap();
    assert_eq!(bytes(&recovered.state), told);
    journal.check().unwrap();
}

#[test]
fn a_backup_is_a_journal_of_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    let copy = folder.path().join("copy.sqlite");
    let mut network = network_at(&path, 50);
    let then = bytes(&network.state);
    // By a connection of its own, as a backup is made while the run goes on.
    let reader = SqliteJournal::open_for_reading(&path).unwrap();
    reader.backup(&copy).unwrap();
    assert!(matches!(reader.backup(&copy), Err(Error::Exists { .. })));
    network.command(&next_command(&network.state, 50)).unwrap();

    let mut restored = SqliteJournal::open(&copy).unwrap();
    restored.check().unwrap();
    let recovered = recover(&restored).unwrap().unwrap();
    assert_eq!(bytes(&recovered.state), then);
    // It can be added to: it is a journal and not a picture of one.
    let next = network
        .journal
        .entries_after(recovered.sequence, 1)
        .unwrap();
    restored.append(&next).unwrap();
    let restored = recover(&restored).unwrap().unwrap();
    assert_eq!(bytes(&restored.state), bytes(&network.state));
}

#[test]
fn a_snapshot_is_a_fraction_of_the_state_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let network = network_at(&folder.path().join("journal.sqlite"), 120);
    let snapshot = iota_journal::Snapshot::of(network.sequence, &network.state);
    let json = bytes(&network.state).len();
    println!("{json} bytes of JSON, {} packed", snapshot.length_bytes());
    assert!(3 * snapshot.length_bytes() < json);
}

#[test]
fn whoever_looks_for_a_journal_finds_a_whole_one_or_none_and_hinders_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..40)
        .map(|number| folder.path().join(format!("{number}.sqlite")))
        .collect();
    let looking = std::thread::spawn({
        let paths = paths.clone();
        move || {
            for path in paths {
                while let Err(error) = SqliteJournal::open_for_reading(&path) {
                    assert!(matches!(error, Error::Missing { .. }), "{error}");
                }
            }
        }
    });
    for path in paths {
        SqliteJournal::create(path).unwrap();
    }
    looking.join().unwrap();
}

#[test]
fn what_was_left_of_a_journal_that_was_never_finished_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    std::fs::write(folder.path().join("journal.sqlite.new"), b"half").unwrap();
    std::fs::write(folder.path().join("journal.sqlite.new-wal"), b"a word").unwrap();
    SqliteJournal::create(&path).unwrap().check().unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("new"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
