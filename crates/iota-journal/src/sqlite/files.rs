//! The file around the database: private, durable by name, written by one process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The right to write a journal: a locked file beside it. The system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    /// Held for as long as it is open.
    _file: File,
}

impl Lock {
    /// Not on the database itself: SQLite has its own locks there, which on some systems are the same ones.
    pub(super) fn take(journal: &Path) -> Result<Self> {
        let path = beside(journal, ".lock");
        let file = private().create(true).truncate(false).open(&path);
        let file = file.map_err(|source| Error::File {
            path: path.clone(),
            source,
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse {
                path: journal.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(Error::File { path, source }),
        }
    }
}

/// Where a journal is made. What an earlier attempt left there is removed; the caller holds the lock, so nobody is at it.
pub(super) fn unfinished(journal: &Path) -> Result<PathBuf> {
    let path = beside(journal, ".new");
    for suffix in ["", "-wal", "-shm"] {
        let left = beside(&path, suffix);
        match std::fs::remove_file(&left) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(cannot_use(&left, source));
            }
            _ => {}
        }
    }
    Ok(path)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|source| cannot_use(to, source))
}

/// An empty file that nobody else can read. SQLite gives the files that it puts beside it the same permissions.
pub(super) fn create_private(path: &Path) -> Result<()> {
    match private().create_new(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(exists(path)),
        Err(source) => Err(cannot_use(path, source)),
    }
}

pub(super) fn must_exist(path: &Path) -> Result<()> {
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Missing {
            path: path.to_owned(),
        }),
        Err(source) => Err(cannot_use(path, source)),
    }
}

pub(super) fn must_not_exist(path: &Path) -> Result<()> {
    match path.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(exists(path)),
        Err(source) => Err(cannot_use(path, source)),
    }
}

pub(super) fn sync(path: &Path) -> Result<()> {
    // Windows syncs only what is open for writing.
    let synced = OpenOptions::new().write(true).open(path);
    synced
        .and_then(|file| file.sync_all())
        .map_err(|source| cannot_use(path, source))
}

/// Makes the names in a folder durable. Only Unix knows how.
pub(super) fn sync_folder_of(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| cannot_use(folder, source))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn exists(path: &Path) -> Error {
    Error::Exists {
        place: path.display().to_string(),
    }
}

fn cannot_use(path: &Path, source: std::io::Error) -> Error {
    Error::File {
        path: path.to_owned(),
        source,
    }
}
