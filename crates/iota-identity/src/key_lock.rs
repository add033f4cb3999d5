//! One process per key. Two that joined a run with the same key would throw each other out for as long as both live.

use std::fs::{OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use crate::key_file::KeyFileError;

/// The use of a key by this process, among the processes of this machine. The system lets go of it when the process ends,
/// however it ends.
#[derive(Debug)]
pub struct KeyLock {
    /// Locked for as long as it is open.
    _file: std::fs::File,
}

impl KeyLock {
    /// Takes the lock of the key file at `path`; none if another process uses the key. The lock is an empty file beside it,
    /// since on some systems nobody could read a locked key.
    ///
    /// # Errors
    /// [`KeyFileError::Io`].
    pub fn take(path: impl AsRef<Path>) -> Result<Option<Self>, KeyFileError> {
        let mut name = path.as_ref().as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let failed = |source| KeyFileError::Io {
            action: "lock",
            path: path.clone(),
            source,
        };
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_free_again_when_its_holder_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("miner-0.json");
        let first = KeyLock::take(&key).unwrap();
        assert!(first.is_some());
        assert!(KeyLock::take(&key).unwrap().is_none());
        drop(first);
        assert!(KeyLock::take(&key).unwrap().is_some());
    }
}
