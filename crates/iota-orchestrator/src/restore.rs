//! From a store to the folder of a run that can be resumed.
//!
//! ```text
//!   backups, newest first ──► all digests right? ──► journal: genesis, pages, Restored ──► files ──► run.json
//!                                  │ no                                                               │
//!                                  └──► the one before                              now the folder is that of a run
//! ```
//!
//! What happened after the backup is lost. The rules are told so ([`Command::Restore`]): they leap over numbers that may
//! have been given out since, end every session, and go back to what the last checkpoint has learned.

mod left;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use iota_journal::{Entry, Head, Journal as _, Recovered, Snapshot, SqliteJournal, recover};
use iota_protocol::{Command, Epoch, RunId, State, Timestamp};
use iota_store::{ErrorKind, KeyPrefix, ObjectKey, Store};
use tracing::{info, warn};
use url::Url;

pub use left::LeftStore;

use crate::backup::{self, Backup};
use crate::keeper::Keeper;
use crate::run_file::{self, JOURNAL, RunFile};
use crate::setup::random;
use crate::start::KEY;
use crate::{Error, Orchestrator};

/// Which run to restore, and what is to be different from before.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// The store that is left.
    pub store: LeftStore,
    /// Which run; none if the store has only one.
    pub run: Option<RunId>,
    /// The file of the orchestrator's key, if it is not where it was. A key that was made for the run is in the store.
    pub key_file: Option<PathBuf>,
    /// Where to listen for calls, if not where peers knew the orchestrator.
    pub listen: Option<SocketAddr>,
    /// Where the embedded store listens, if not where it did.
    pub store_listen: Option<SocketAddr>,
    /// Under which URL peers reach the store, if not under the one that it had.
    pub store_url: Option<Url>,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// The run.
    pub run: RunId,
    /// The number of the backup.
    pub backup: u64,
    /// Newer backups that could not be used, and why.
    pub passed_over: Vec<(u64, String)>,
    /// Entries of the journal that are there again.
    pub entries: u64,
    /// When the last of them was made: what happened since is lost.
    pub until: Timestamp,
    /// The epoch that the run goes on with.
    pub epoch: Epoch,
    /// The last epoch that the store has manifests of, if it is a later one: nobody knows what led to them any more.
    pub lost_epoch: Option<Epoch>,
}

impl Orchestrator {
    /// Makes `folder` the folder of the run whose objects are in a store, as its newest sound backup has it at `now`; then
    /// it can be [resumed](Self::resume). Whoever still serves the run has to be stopped before.
    ///
    /// # Errors
    /// [`Error::Occupied`] if the folder holds a run, [`Error::NothingToRestore`] if the store has none that can be
    /// restored; the store is left as it is in any case.
    pub async fn restore(
        options: &RestoreOptions,
        folder: &Path,
        now: Timestamp,
    ) -> Result<Restored, Error> {
        if holds_run(folder) {
            let folder = folder.to_owned();
            return Err(Error::Occupied { folder });
        }
        let store = options.store.open()?;
        let run = choose(&store, options).await?;
        let mut passed_over = Vec::new();
        for number in backup::numbers(&store, run).await?.into_iter().rev() {
            match rebuild(&store, run, number, folder).await {
                Ok((found, recovered)) => {
                    let store_folder = options.store.adopt(&store, run, folder).await?;
                    let standing = finish(options, folder, store_folder, &found, recovered, now)?;
                    let lost_epoch = last_checkpoint(&store, run).await?;
                    return Ok(Restored {
                        run,
                        backup: number,
                        passed_over,
                        entries: found.journal.head.sequence,
                        until: standing.until,
                        epoch: standing.epoch,
                        lost_epoch: lost_epoch.filter(|epoch| *epoch > standing.epoch),
                    });
                }
                Err(Unusable::Damaged(problem)) => {
                    warn!(number, problem, "a backup cannot be used");
                    passed_over.push((number, problem));
                }
                Err(Unusable::Failed(error)) => return Err(error),
            }
        }
        let problem = match passed_over.first() {
            Some((number, problem)) => format!(
                "none of its {} backups can be used; of the newest, {number}: {problem}",
                passed_over.len()
            ),
            None => format!("{run} has no backup in it"),
        };
        Err(nothing(&options.store, problem))
    }
}

/// Whether a folder holds a run. What a restoration left that did not come to its end is none.
fn holds_run(folder: &Path) -> bool {
    let is_run = folder.join(run_file::NAME).exists();
    is_run || folder.join(JOURNAL).exists() && !folder.join(UNFINISHED).exists()
}

fn nothing(store: &LeftStore, problem: impl Into<String>) -> Error {
    Error::NothingToRestore {
        store: store.to_string(),
        problem: problem.into(),
    }
}

async fn choose(store: &Store, options: &RestoreOptions) -> Result<RunId, Error> {
    if let Some(run) = options.run {
        return if options.store.has(store, run).await? {
            Ok(run)
        } else {
            Err(nothing(&options.store, format!("it has nothing of {run}")))
        };
    }
    match &store.runs().await?[..] {
        [run] => Ok(*run),
        [] => Err(nothing(&options.store, "it has no run's objects")),
        several => {
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            let problem = format!(
                "it has several runs, name one of them: {}",
                names.join(", ")
            );
            Err(nothing(&options.store, problem))
        }
    }
}

/// Why a backup is not restored.
enum Unusable {
    /// Something is wrong with it; the one before may do.
    Damaged(String),
    /// Something is wrong with this machine, or the store cannot be read now: the one before would not help.
    Failed(Error),
}

impl From<iota_store::Error> for Unusable {
    fn from(error: iota_store::Error) -> Self {
        match error.kind() {
            ErrorKind::GiveUp => Self::Damaged(error.to_string()),
            ErrorKind::Retry | ErrorKind::Fix => Self::Failed(error.into()),
        }
    }
}

impl From<iota_journal::Error> for Unusable {
    fn from(error: iota_journal::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Where a journal is put together before it is known to be whole.
const UNFINISHED: &str = "restoring";

/// Puts the journal together that a backup speaks of.
async fn rebuild(
    store: &Store,
    run: RunId,
    number: u64,
    folder: &Path,
) -> Result<(Backup, Recovered), Unusable> {
    let backup: Backup = store
        .get_manifest(&ObjectKey::Backup { run, number })
        .await?;
    backup.validate().map_err(Unusable::Damaged)?;
    let unfinished = folder.join(UNFINISHED);
    let trouble = |source| {
        Unusable::Failed(Error::Folder {
            path: unfinished.clone(),
            source,
        })
    };
    match std::fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(trouble(error)),
        _ => std::fs::create_dir_all(&unfinished).map_err(trouble)?,
    }
    let path = unfinished.join(JOURNAL);
    let mut journal = SqliteJournal::create(&path)?;
    journal.begin(&backup.genesis)?;
    let mut head = Head::of(&backup.genesis);
    for seal in &backup.journal.pages {
        let digest = seal.digest;
        let page = store
            .get(&ObjectKey::JournalPage { run, digest }, seal)
            .await?;
        let entries = head.read(&page).map_err(Unusable::Damaged)?;
        journal.append(&entries)?;
    }
    if head != backup.journal.head {
        return Err(Unusable::Damaged(format!(
            "its pages lead to entry {}, and it says {}",
            head.sequence, backup.journal.head.sequence
        )));
    }
    let recovered = recover(&journal)?.expect("it has just been begun");
    Ok((backup, recovered))
}

/// How the run stands.
struct Standing {
    until: Timestamp,
    epoch: Epoch,
}

/// Tells the rules what has happened, and makes the folder that of a run.
fn finish(
    options: &RestoreOptions,
    folder: &Path,
    store_folder: Option<PathBuf>,
    backup: &Backup,
    recovered: Recovered,
    now: Timestamp,
) -> Result<Standing, Error> {
    let Recovered {
        mut state,
        sequence,
        ..
    } = recovered;
    let until = state.clock();
    append_restored(folder, &mut state, sequence, now)?;
    Keeper::begin_with(backup.journal.clone(), folder)?;
    let mut run_file = None;
    for (name, text) in &backup.files {
        let path = folder.join(name);
        if name == run_file::NAME {
            run_file = Some(RunFile::parse(text.as_bytes(), &path)?);
            continue;
        }
        let written = std::fs::create_dir_all(path.parent().unwrap_or(folder))
            .and_then(|()| iota_node::files::write_private(&path, text.as_bytes()));
        written.map_err(|source| Error::Folder { path, source })?;
    }
    let mut run_file = run_file.ok_or_else(|| {
        let problem = format!("the backup has no {}", run_file::NAME);
        nothing(&options.store, problem)
    })?;
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|source| Error::Folder {
            path: path.to_owned(),
            source,
        })
    };
    run_file.store_folder = store_folder;
    if let Some(key_file) = &options.key_file {
        run_file.key_file = Some(absolute(key_file)?);
    } else if backup.files.contains_key(KEY) {
        // It was in the folder that is gone, and is in this one now.
        run_file.key_file = None;
    }
    run_file.listen = options.listen.unwrap_or(run_file.listen);
    run_file.store_listen = options.store_listen.unwrap_or(run_file.store_listen);
    run_file.store_url = options.store_url.clone().or(run_file.store_url);
    // Only now can the run be resumed from here.
    run_file.write(folder)?;
    let unfinished = folder.join(UNFINISHED);
    std::fs::remove_dir_all(&unfinished).map_err(|source| Error::Folder {
        path: unfinished.clone(),
        source,
    })?;
    info!(run = %run_file.run, sequence, epoch = %state.epoch(), "restored");
    Ok(Standing {
        until,
        epoch: state.epoch(),
    })
}

/// Before anybody can resume the run, its journal says that it was restored.
fn append_restored(
    folder: &Path,
    state: &mut State,
    sequence: u64,
    now: Timestamp,
) -> Result<(), Error> {
    let unfinished = folder.join(UNFINISHED);
    let mut journal = SqliteJournal::open(unfinished.join(JOURNAL))?;
    let at = now.max(state.clock());
    let chance = u32::from_le_bytes(random().map_err(Error::Setup)?);
    let events = state
        .handle(&Command::Restore { chance }, at)
        .expect("a run that comes back is not refused");
    // A run that is over changes no more.
    if !events.is_empty() {
        let sequence = sequence + 1;
        journal.append(&[Entry {
            sequence,
            at,
            events,
        }])?;
        journal.keep_snapshot(&Snapshot::of(sequence, state))?;
    }
    // Its write-ahead log goes into it when it is closed.
    drop(journal);
    let path = folder.join(JOURNAL);
    std::fs::rename(unfinished.join(JOURNAL), &path)
        .map_err(|source| Error::Folder { path, source })
}

/// The last epoch that the store has a checkpoint's manifest of.
async fn last_checkpoint(store: &Store, run: RunId) -> Result<Option<Epoch>, Error> {
    let listed = store.list(&KeyPrefix::Checkpoints(run)).await?;
    let epochs = listed.iter().filter_map(|listed| match listed.key {
        ObjectKey::Checkpoint { epoch, .. } => Some(epoch),
        _ => None,
    });
    Ok(epochs.max())
}

#[cfg(test)]
mod tests;
