//! Backups in the store: what it takes to go on with a run when nothing is left of it but its objects.
//!
//! ```text
//!   entries ──► page, page, page, …      each is written once, under its digest
//!                 ▲     ▲     ▲
//!   backup 7 ─────┴─────┤     │          a manifest: the genesis, the pages so far, the head that they lead to,
//!   backup 8 ───────────┴─────┘          and the small files that a run folder has beside its journal
//! ```
//!
//! A backup costs what has happened since the one before, however long the run is. The genesis has the run's secret, and
//! the files have the orchestrator's key if that was made for this run: whoever reads the store can do what the
//! orchestrator can. No grant ever names a backup or a page.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use iota_journal::{Entry, Genesis, Head, Pager};
use iota_protocol::RunId;
use iota_protocol::work::Seal;
use iota_store::{KeyPrefix, ObjectKey, Store};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::Error;

/// Backups that are kept: should the newest be damaged, there are older ones, and all their pages.
const KEPT: u64 = 3;
/// What has happened is in the store after this at the latest.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// After a backup that could not be made, the next try is not before this.
const AGAIN_AFTER: Duration = Duration::from_secs(20);
/// A page that is as full as this is written at once, so that it never takes much memory. Packed it is a few hundred KiB.
const PAGE_BYTES: usize = 4 << 20;
/// While the store cannot be written, entries wait for it; not more than this.
const WAITING_BYTES_MAX: usize = 64 << 20;

const VERSION: u32 = 1;

/// What lies in the store under [`ObjectKey::Backup`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Backup {
    pub(crate) version: u32,
    pub(crate) genesis: Genesis,
    pub(crate) journal: Shipped,
    /// What the run folder had beside the journal, by name below it.
    pub(crate) files: BTreeMap<String, String>,
}

/// The part of a journal that is in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shipped {
    /// How far it goes.
    pub(crate) head: Head,
    /// Its pages, in order.
    pub(crate) pages: Vec<Seal>,
}

impl Backup {
    /// # Errors
    /// What is wrong with it, if this program cannot use it.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!(
                "it has version {}, this program knows version {VERSION}",
                self.version
            ));
        }
        match self.files.keys().find(|name| !is_below(Path::new(name))) {
            Some(name) => Err(format!(
                "it names a file outside of the run folder: {name:?}"
            )),
            None => Ok(()),
        }
    }
}

fn is_below(path: &Path) -> bool {
    path.components().count() > 0
        && path
            .components()
            .all(|component| matches!(component, Component::Normal(_)))
}

/// What backups are made of, beside what happens.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    pub(crate) genesis: Genesis,
    /// Small text files below the run folder that whoever goes on with the run needs.
    pub(crate) files: Vec<String>,
}

/// Makes backups of one run.
#[derive(Debug)]
pub(crate) struct Backups {
    run: RunId,
    store: Store,
    folder: PathBuf,
    sources: Sources,
    shipped: Shipped,
    pager: Pager,
    /// How far the newest backup goes; none if there is none.
    backed_up: Option<Head>,
    due_at: Instant,
    /// The last one could not be made.
    has_failed: bool,
}

impl Backups {
    /// `shipped`: what an earlier process had put into the store, if one had.
    pub(crate) fn new(
        run: RunId,
        store: Store,
        folder: &Path,
        sources: Sources,
        shipped: Option<Shipped>,
    ) -> Self {
        let backed_up = shipped.as_ref().map(|shipped| shipped.head);
        let wait = backed_up.map_or(Duration::ZERO, |_| EVERY);
        let shipped = shipped.unwrap_or_else(|| Shipped {
            head: Head::of(&sources.genesis),
            pages: Vec::new(),
        });
        Self {
            run,
            store,
            folder: folder.to_owned(),
            pager: Pager::new(shipped.head),
            sources,
            shipped,
            backed_up,
            due_at: Instant::now() + wait,
            has_failed: false,
        }
    }

    /// What is in the store.
    pub(crate) const fn shipped(&self) -> &Shipped {
        &self.shipped
    }

    /// Takes an entry down; one that it has already, it passes over.
    pub(crate) fn follow(&mut self, entry: &Entry) {
        if entry.sequence > self.pager.head().sequence {
            self.pager.add(entry);
        }
    }

    /// When the next backup is to be made; none if there is nothing new. A run's first is made at once.
    pub(crate) fn due(&self) -> Option<Instant> {
        (self.backed_up != Some(self.pager.head())).then_some(self.due_at)
    }

    /// Whether to make one now, though it is not due.
    pub(crate) const fn is_full(&self) -> bool {
        self.pager.length_bytes() >= PAGE_BYTES && !self.has_failed
    }

    /// Makes a backup of everything that it was shown, if there is anything new. Returns whether it is in the store.
    ///
    /// # Errors
    /// If it could not be made and too much waits for it. Before that it is tried again: the journal in the run folder
    /// has everything.
    pub(crate) async fn make(&mut self) -> Result<bool, Error> {
        if self.backed_up == Some(self.pager.head()) {
            return Ok(false);
        }
        let written = self.write().await;
        self.has_failed = written.is_err();
        let wait = if self.has_failed { AGAIN_AFTER } else { EVERY };
        self.due_at = Instant::now() + wait;
        match written {
            Ok(()) => Ok(true),
            Err(error) if self.pager.length_bytes() < WAITING_BYTES_MAX => {
                warn!(%error, "could not make a backup; it is tried again");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn write(&mut self) -> Result<(), Error> {
        if self.pager.length_bytes() > 0 {
            let pager = self.pager.clone();
            let page = iota_node::blocking::spawn(move || pager.page())
                .await
                .map_err(|error| Error::Panicked(error.to_string()))?;
            let seal = iota_store::seal(&page);
            let key = self.page_key(seal);
            self.store.put(&key, page.into()).await?;
            self.shipped.pages.push(seal);
            self.shipped.head = self.pager.head();
            self.pager.turn();
        }
        let numbers = numbers(&self.store, self.run).await?;
        let number = numbers.last().map_or(1, |last| last.saturating_add(1));
        let backup = Backup {
            version: VERSION,
            genesis: self.sources.genesis.clone(),
            journal: self.shipped.clone(),
            files: self.read_files()?,
        };
        // The pages before were there when the backups before this one were written.
        let last = self.shipped.pages.last();
        let last: Vec<_> = last
            .map(|seal| (self.page_key(*seal), *seal))
            .into_iter()
            .collect();
        let run = self.run;
        self.store
            .put_manifest(&ObjectKey::Backup { run, number }, &backup, &last)
            .await?;
        self.backed_up = Some(self.shipped.head);
        debug!(number, sequence = self.shipped.head.sequence, "backup made");
        let superseded = numbers
            .into_iter()
            .filter(|earlier| earlier.saturating_add(KEPT) <= number);
        for number in superseded {
            self.store
                .delete(&ObjectKey::Backup { run, number })
                .await?;
        }
        Ok(())
    }

    const fn page_key(&self, seal: Seal) -> ObjectKey {
        ObjectKey::JournalPage {
            run: self.run,
            digest: seal.digest,
        }
    }

    fn read_files(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut files = BTreeMap::new();
        for name in &self.sources.files {
            let path = self.folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    files.insert(name.clone(), text);
                }
                // It is not written yet; the next backup has it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::Folder { path, source }),
            }
        }
        Ok(files)
    }
}

/// The numbers of a run's backups, from the oldest.
pub(crate) async fn numbers(store: &Store, run: RunId) -> Result<Vec<u64>, Error> {
    let listed = store.list(&KeyPrefix::Backups(run)).await?;
    let mut numbers: Vec<u64> = listed
        .iter()
        .filter_map(|listed| match listed.key {
            ObjectKey::Backup { number, .. } => Some(number),
            _ => None,
        })
        .collect();
    // They are listed in the order of their texts.
    numbers.sort_unstable();
    Ok(numbers)
}
