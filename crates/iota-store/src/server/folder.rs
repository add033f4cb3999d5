//! The folder behind the server: one plain file per object, complete or not there.
//!
//! An upload grows under a number in a second folder on the same file system. When all of it is there it gets its
//! name by `link`, which fails if the name is taken: of any number of writers exactly one wins, and no reader sees half
//! an object. Whatever else happens to an upload, its file goes with the value that stands for it.
//!
//! Everything here blocks; the service calls it on threads that may.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ServerSettings;

/// Why the folder does not do something.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the key is not plain")]
    Key,
    #[error("there is no such object")]
    Missing,
    #[error("the key is taken")]
    Exists,
    #[error("there is no room")]
    Full,
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A key below another object's, or beside a folder's name, names nothing.
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
                Self::Missing
            }
            ErrorKind::AlreadyExists => Self::Exists,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::Full
            }
            _ => Self::Io(error),
        }
    }
}

/// Whether an upload may replace what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Create,
    Replace,
}

/// One object of a listing.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) metadata: Metadata,
}

pub(super) struct Folder {
    root: PathBuf,
    partial: PathBuf,
    next_partial: AtomicU64,
    usage: Mutex<Usage>,
    total_bytes_max: u64,
    sync_writes: bool,
}

/// What is taken of the folder's room. Never less than what uploads take; more after a replacement or a deletion that
/// went past the server, until the folder is measured again.
struct Usage {
    stored_bytes: u64,
    reserved_bytes: u64,
    measured_at: Instant,
    measuring_took: Duration,
}

/// Measuring goes through the whole folder, so it may take at most this part of the time.
const MEASURING_PART: u32 = 10;

impl Folder {
    pub(super) fn open(root: &Path, settings: &ServerSettings) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        let partial = partial_folder(&root)?;
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&partial)?,
        }
        if fs::metadata(&root)?.dev() != fs::metadata(&partial)?.dev() {
            return Err(io::Error::new(
                ErrorKind::CrossesDevices,
                "objects are linked in from a folder beside theirs, so theirs cannot be a mount point",
            ));
        }
        let measured_at = Instant::now();
        let stored_bytes = measure(&root)?;
        Ok(Self {
            root,
            partial,
            next_partial: AtomicU64::new(0),
            usage: Mutex::new(Usage {
                stored_bytes,
                reserved_bytes: 0,
                measured_at,
                measuring_took: measured_at.elapsed(),
            }),
            total_bytes_max: settings.total_bytes_max,
            sync_writes: settings.sync_writes,
        })
    }

    /// Starts an upload of `length_bytes` bytes; its room is taken from now on.
    pub(super) fn begin(self: &Arc<Self>, key: &str, length_bytes: u64) -> Result<Upload, Fault> {
        let target = self.path(key)?;
        let room = self.reserve(length_bytes)?;
        let number = self.next_partial.fetch_add(1, Ordering::Relaxed);
        let path = self.partial.join(number.to_string());
        let file = File::create_new(&path)?;
        Ok(Upload {
            file,
            partial: PartialFile(path),
            target,
            room,
        })
    }

    /// Opens an object for reading.
    pub(super) fn object(&self, key: &str) -> Result<(File, Metadata), Fault> {
        let file = File::open(self.path(key)?)?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            Ok((file, metadata))
        } else {
            Err(Fault::Missing)
        }
    }

    /// Deletes an object; one that is not there is no error, as S3 has it.
    pub(super) fn delete(&self, key: &str) -> Result<(), Fault> {
        let path = self.path(key)?;
        let length_bytes = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => return Ok(()),
            Err(error) => return Ok(missing_is_fine(error)?),
        };
        match fs::remove_file(&path) {
            Ok(()) => {
                let mut usage = self.usage();
                usage.stored_bytes = usage.stored_bytes.saturating_sub(length_bytes);
                Ok(())
            }
            Err(error) => Ok(missing_is_fine(error)?),
        }
    }

    /// The objects whose keys start with `prefix` and come after `after`, in the order of their keys; at most `limit`,
    /// and whether there are more.
    pub(super) fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<(Vec<Entry>, bool), Fault> {
        // Only the folder that the prefix's whole segments name can hold such keys.
        let folder = match prefix.rsplit_once('/') {
            Some((folder, _)) => match self.path(folder) {
                Ok(folder) => folder,
                Err(_) => return Ok((Vec::new(), false)),
            },
            None => self.root.clone(),
        };
        let mut entries = Vec::new();
        walk(&folder, &mut |path, metadata| {
            let key = path.strip_prefix(&self.root).ok().and_then(Path::to_str);
            if let Some(key) = key
                && key.starts_with(prefix)
                && key > after
                && is_plain(key)
            {
                let key = key.to_owned();
                entries.push(Entry { key, metadata });
            }
        })?;
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok((entries, more))
    }

    fn path(&self, key: &str) -> Result<PathBuf, Fault> {
        if is_plain(key) {
            Ok(self.root.join(key))
        } else {
            Err(Fault::Key)
        }
    }

    fn reserve(self: &Arc<Self>, length_bytes: u64) -> Result<Room, Fault> {
        let mut usage = self.usage();
        if !usage.fits(length_bytes, self.total_bytes_max) {
            // The orchestrator deletes past epochs directly in the folder, so there may be room after all.
            if usage.measured_at.elapsed() < usage.measuring_took * MEASURING_PART {
                return Err(Fault::Full);
            }
            usage.measured_at = Instant::now();
            usage.stored_bytes = measure(&self.root)?;
            usage.measuring_took = usage.measured_at.elapsed();
            if !usage.fits(length_bytes, self.total_bytes_max) {
                return Err(Fault::Full);
            }
        }
        usage.reserved_bytes += length_bytes;
        Ok(Room {
            folder: Arc::clone(self),
            length_bytes,
        })
    }

    fn usage(&self) -> std::sync::MutexGuard<'_, Usage> {
        // Every change of it is a single assignment, so it is whole even if a thread died with it.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Usage {
    const fn fits(&self, length_bytes: u64, total_bytes_max: u64) -> bool {
        self.stored_bytes
            .saturating_add(self.reserved_bytes)
            .saturating_add(length_bytes)
            <= total_bytes_max
    }
}

/// An upload under way. Dropping it leaves nothing behind.
pub(super) struct Upload {
    file: File,
    partial: PartialFile,
    target: PathBuf,
    room: Room,
}

impl Upload {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        Ok(self.file.write_all(bytes)?)
    }

    /// Gives it its name.
    pub(super) fn commit(self, mode: Mode) -> Result<Metadata, Fault> {
        let folder = &self.room.folder;
        if folder.sync_writes {
            self.file.sync_all()?;
        }
        let name = || match mode {
            Mode::Create => fs::hard_link(&self.partial.0, &self.target),
            Mode::Replace => fs::rename(&self.partial.0, &self.target),
        };
        let parent = self.target.parent().expect("a key is below the root");
        match name() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(parent)?;
                name()?;
            }
            other => other?,
        }
        if folder.sync_writes {
            File::open(parent)?.sync_all()?;
        }
        let metadata = self.file.metadata()?;
        folder.usage().stored_bytes += self.room.length_bytes;
        Ok(metadata)
    }
}

struct PartialFile(PathBuf);

impl Drop for PartialFile {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; what cannot be removed now goes at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// Room that an upload has taken.
struct Room {
    folder: Arc<Folder>,
    length_bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.folder.usage().reserved_bytes -= self.length_bytes;
    }
}

/// Whether a key is made of plain names. Keys are paths here, so nothing else may come near the file system: no `..`,
/// no hidden files, no characters that mean something to it or to `object_store` (which marks its own files by `#`).
fn is_plain(key: &str) -> bool {
    let plain_segment = |segment: &str| {
        (1..=255).contains(&segment.len())
            && !segment.starts_with('.')
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    key.len() <= 1024 && key.split('/').all(plain_segment)
}

fn partial_folder(root: &Path) -> io::Result<PathBuf> {
    let mut name = root
        .file_name()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the root of a file system"))?
        .to_owned();
    name.push(".partial");
    Ok(root.with_file_name(name))
}

fn measure(root: &Path) -> io::Result<u64> {
    let mut total_bytes = 0;
    walk(root, &mut |_, metadata| total_bytes += metadata.len())?;
    Ok(total_bytes)
}

/// Visits every file below `folder`. What disappears meanwhile is left out.
fn walk(folder: &Path, visit: &mut dyn FnMut(&Path, Metadata)) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return missing_is_fine(error),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        // Of the entry itself: a link leads nowhere from here.
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => walk(&path, visit)?,
            Ok(metadata) if metadata.is_file() => visit(&path, metadata),
            Ok(_) => {}
            Err(error) => missing_is_fine(error)?,
        }
    }
    Ok(())
}

fn missing_is_fine(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Barrier;

    fn open(total_bytes_max: u64) -> (tempfile::TempDir, Arc<Folder>) {
        let outer = tempfile::tempdir().unwrap();
        let settings = ServerSettings {
            total_bytes_max,
            ..ServerSettings::default()
        };
        let folder = Folder::open(&outer.path().join("objects"), &settings).unwrap();
        (outer, Arc::new(folder))
    }

    fn put(folder: &Arc<Folder>, key: &str, bytes: &[u8]) -> Result<Metadata, Fault> {
        let mut upload = folder.begin(key, bytes.len() as u64)?;
        upload.write(bytes)?;
        upload.commit(Mode::Create)
    }

    #[test]
    fn a_key_that_is_not_plain_never_reaches_the_file_system() {
        let (_outer, folder) = open(1000);
        for key in [
            "", "/", "a/", "/a", "a//b", ".", "..", "../a", "a/..", "a/./b", ".hidden", "a b",
            "a\\b", "a\0", "a#1", "é", "%2e%2e/a",
        ] {
            assert!(
                matches!(put(&folder, key, b"x"), Err(Fault::Key)),
                "{key:?}"
            );
            assert!(matches!(folder.object(key), Err(Fault::Key)), "{key:?}");
            assert!(matches!(folder.delete(key), Err(Fault::Key)), "{key:?}");
        }
        let long = "a".repeat(256);
        assert!(matches!(put(&folder, &long, b"x"), Err(Fault::Key)));
    }

    proptest! {
        #[test]
        fn a_plain_key_stays_below_the_root(key in "[./a-c_\\\\]{1,12}") {
            let path = Path::new("/srv/objects").join(&key);
            if is_plain(&key) {
                prop_assert!(path.components().all(|part| part != std::path::Component::ParentDir));
                prop_assert_eq!(path.strip_prefix("/srv/objects").unwrap(), Path::new(&key));
            }
        }
    }

    #[test]
    fn an_upload_that_is_given_up_leaves_nothing_and_takes_no_room() {
        let (_outer, folder) = open(10);
        let mut upload = folder.begin("a/b", 10).unwrap();
        upload.write(b"12345").unwrap();
        assert!(matches!(folder.begin("c", 1), Err(Fault::Full)));
        assert!(matches!(folder.object("a/b"), Err(Fault::Missing)));
        drop(upload);
        assert_eq!(fs::read_dir(&folder.partial).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&folder.root).unwrap().count(), 0);
        put(&folder, "c", b"0123456789").unwrap();
    }

    #[test]
    fn the_loser_of_a_race_changes_nothing() {
        let (_outer, folder) = open(1000);
        let mut first = folder.begin("a", 5).unwrap();
        let mut second = folder.begin("a", 6).unwrap();
        first.write(b"first").unwrap();
        second.write(b"second").unwrap();
        second.commit(Mode::Create).unwrap();
        assert!(matches!(first.commit(Mode::Create), Err(Fault::Exists)));
        assert_eq!(fs::read(folder.root.join("a")).unwrap(), b"second");
        assert_eq!(fs::read_dir(&folder.partial).unwrap().count(), 0);
        assert_eq!(folder.usage().stored_bytes, 6);
    }

    #[test]
    fn of_uploads_that_end_at_the_same_moment_one_wins() {
        let (_outer, folder) = open(1000);
        let barrier = Barrier::new(4);
        for round in 0..500 {
            let key = format!("round-{round}");
            let race = &|racer: usize| {
                let mut upload = folder.begin(&key, 1).unwrap();
                upload.write(&[racer as u8]).unwrap();
                barrier.wait();
                upload.commit(Mode::Create).is_ok()
            };
            let won: Vec<bool> = std::thread::scope(|scope| {
                let threads = [0, 1, 2, 3].map(|racer| scope.spawn(move || race(racer)));
                threads.map(|thread| thread.join().unwrap()).to_vec()
            });
            assert_eq!(won.iter().filter(|won| **won).count(), 1, "round {round}");
            let stored = fs::read(folder.root.join(&key)).unwrap();
            assert!(
                won[usize::from(stored[0])],
                "round {round}: a loser's bytes"
            );
        }
    }

    #[test]
    fn what_a_crash_left_of_uploads_is_cleared_away_and_objects_are_counted() {
        let (outer, folder) = open(1000);
        put(&folder, "a/b", b"12345").unwrap();
        let abandoned = folder.begin("c", 10).unwrap();
        std::mem::forget(abandoned);
        drop(folder);
        let root = outer.path().join("objects");
        let folder = Folder::open(&root, &ServerSettings::default()).unwrap();
        assert_eq!(fs::read_dir(&folder.partial).unwrap().count(), 0);
        assert_eq!(folder.usage().stored_bytes, 5);
    }

    #[test]
    fn an_object_and_a_folder_cannot_have_one_name() {
        let (_outer, folder) = open(1000);
        put(&folder, "a", b"x").unwrap();
        assert!(put(&folder, "a/b", b"x").is_err());
        assert!(matches!(folder.object("a/b"), Err(Fault::Missing)));
        put(&folder, "d/e", b"x").unwrap();
        assert!(matches!(put(&folder, "d", b"x"), Err(Fault::Exists)));
        assert!(matches!(folder.object("d"), Err(Fault::Missing)));
        folder.delete("d").unwrap();
        assert!(
            folder.object("d/e").is_ok(),
            "a folder is not an object to delete"
        );
    }

    #[test]
    fn a_listing_goes_by_prefix_in_pages() {
        let (_outer, folder) = open(1000);
        for key in ["a/b/1", "a/b/2", "a/c", "a-d", "e"] {
            put(&folder, key, b"x").unwrap();
        }
        fs::write(folder.root.join("a/b/3#1"), b"staged by object_store").unwrap();
        let keys = |prefix: &str, after: &str, limit: usize| {
            let (entries, more) = folder.list(prefix, after, limit).unwrap();
            let keys: Vec<String> = entries.into_iter().map(|entry| entry.key).collect();
            (keys.join(" "), more)
        };
        assert_eq!(keys("", "", 9), ("a-d a/b/1 a/b/2 a/c e".to_owned(), false));
        assert_eq!(keys("a/", "", 2), ("a/b/1 a/b/2".to_owned(), true));
        assert_eq!(keys("a/", "a/b/2", 2), ("a/c".to_owned(), false));
        assert_eq!(keys("a/b/", "", 2), ("a/b/1 a/b/2".to_owned(), false));
        assert_eq!(keys("../", "", 2), (String::new(), false));
        assert_eq!(keys("zz/", "", 2), (String::new(), false));
    }
}
