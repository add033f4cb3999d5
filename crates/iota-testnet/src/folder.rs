//! The run folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, TestnetSettings};

/// Makes `path` an empty folder that can be written. An earlier run in it is moved aside, to `path.1`, `path.2` and so on.
/// Returns where it went, if there was one.
///
/// # Errors
/// If the folder holds something else than a run, or cannot be written; nothing has been changed then.
pub fn prepare(path: &Path) -> Result<Option<PathBuf>, Error> {
    let trouble = |source| Error::Folder {
        path: path.to_owned(),
        source,
    };
    let moved = match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(trouble(error)),
        Ok(mut entries) => {
            if entries.next().is_none() {
                None
            } else if RUN_FILES.iter().any(|name| path.join(name).exists()) {
                let aside = (1..)
                    .map(|number| PathBuf::from(format!("{}.{number}", path.display())))
                    .find(|candidate| !candidate.exists())
                    .expect("some number is free");
                std::fs::rename(path, &aside).map_err(trouble)?;
                Some(aside)
            } else {
                return Err(Error::NotARunFolder {
                    path: path.to_owned(),
                });
            }
        }
    };
    std::fs::create_dir_all(path).map_err(trouble)?;
    Ok(moved)
}

/// Writes the process ids of child processes, a line each, so that a person can look them up (and kill one, to see
/// that the run copes).
pub(crate) fn write_pids(folder: &Path, pids: &[(String, u32)]) -> Result<(), Error> {
    if pids.is_empty() {
        return Ok(());
    }
    let path = folder.join("processes.txt");
    let lines: String = pids
        .iter()
        .map(|(name, pid)| format!("{pid} {name}\n"))
        .collect();
    std::fs::write(&path, lines).map_err(|source| Error::Folder { path, source })
}

/// What [`write_pids`] wrote, if anything.
pub(crate) fn read_pids(folder: &Path) -> BTreeMap<String, u32> {
    let lines = std::fs::read_to_string(folder.join("processes.txt")).unwrap_or_default();
    let pid = |line: &str| {
        let (pid, name) = line.split_once(' ')?;
        Some((name.to_owned(), pid.parse().ok()?))
    };
    lines.lines().filter_map(pid).collect()
}

/// What a testnet needs to know of itself so that it can be resumed: `testnet.json`. Private, since the peers' keys derive
/// from its seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Memo {
    /// As it was started.
    pub(crate) settings: TestnetSettings,
    /// Held-out loss before the first step, in nats per token; none if the testnet died before it was known.
    pub(crate) held_out_start: Option<f64>,
}

/// Where it is in the run folder.
pub(crate) const MEMO: &str = "testnet.json";

impl Memo {
    /// # Errors
    /// [`Error::NotResumable`] if the folder holds no testnet.
    pub(crate) fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MEMO);
        let problem = |problem: String| Error::NotResumable {
            path: path.clone(),
            problem,
        };
        let bytes = std::fs::read(&path).map_err(|error| problem(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| problem(error.to_string()))
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(MEMO);
        let json = serde_json::to_vec_pretty(self).map_err(Error::Json)?;
        iota_node::files::write_private(&path, &json)
            .map_err(|source| Error::Folder { path, source })
    }
}

/// Whether a folder holds a testnet, which can be resumed as a whole; otherwise it may hold a run that was served.
pub fn holds_testnet(folder: &Path) -> bool {
    folder.join(MEMO).exists()
}

/// Any of these says that a folder holds a run.
const RUN_FILES: [&str; 5] = [
    "report.json",
    "metrics.jsonl",
    "store",
    "run.json",
    "journal.sqlite",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_run_is_moved_aside_and_never_lost() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        assert_eq!(prepare(&path).unwrap(), None);
        for number in 1..=2 {
            std::fs::write(path.join("report.json"), format!("run {number}")).unwrap();
            let aside = parent.path().join(format!("run.{number}"));
            assert_eq!(prepare(&path).unwrap(), Some(aside.clone()));
            assert_eq!(
                std::fs::read_to_string(aside.join("report.json")).unwrap(),
                format!("run {number}")
            );
        }
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_with_something_else_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "do not touch").unwrap();
        assert!(matches!(
            prepare(folder.path()),
            Err(Error::NotARunFolder { .. })
        ));
        assert!(folder.path().join("thesis.tex").exists());
    }

    #[test]
    fn a_file_in_the_way_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        std::fs::write(&path, "a file").unwrap();
        let error = prepare(&path).unwrap_err();
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
    }
}
