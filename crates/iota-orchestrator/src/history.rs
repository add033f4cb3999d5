//! A run's past, read from its folder: whether its accounts add up, what happened and why, how it stood at some time.
//!
//! The journal is opened for reading only, so all of it works while the run goes on.

mod audit;

use std::path::PathBuf;

use iota_journal::{Genesis, Journal as _, Point, Recovered, SqliteJournal, recover_at, replay};
use iota_ledger::{Explanation, Ledger, Line, Moment, Subject};
use iota_protocol::work::Checkpoint;
use iota_protocol::{Epoch, SampleId, StageIndex, State, Timestamp};
use iota_run::Description;
use iota_store::Store;

pub use audit::{Finding, LedgerAudit};

use crate::Error;
use crate::run_file::{JOURNAL, RunFile};

/// The past of the run in a folder.
#[derive(Debug)]
pub struct History {
    folder: PathBuf,
    file: RunFile,
    journal: SqliteJournal,
    genesis: Genesis,
}

/// What happened to a subject.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    /// When the run began.
    pub began: Timestamp,
    /// What happened, in order.
    pub lines: Vec<Line>,
    /// Of a sample: which tokens it reads, and what became of what was learned from it.
    pub whereabouts: Vec<String>,
}

impl History {
    /// Opens a run's past.
    ///
    /// # Errors
    /// [`Error::NoRun`] if the folder holds none; [`Error::RunFile`], [`Error::Journal`] if it cannot be read.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, Error> {
        let folder = folder.into();
        let file = RunFile::read(&folder)?;
        let journal = SqliteJournal::open_for_reading(folder.join(JOURNAL))?;
        let Some(genesis) = journal.genesis()? else {
            return Err(Error::NoRun { folder });
        };
        Ok(Self {
            folder,
            file,
            journal,
            genesis,
        })
    }

    /// When the run began.
    pub const fn began(&self) -> Timestamp {
        self.genesis.began
    }

    /// The run as it was at some moment: after the last entry of then.
    ///
    /// # Errors
    /// [`Error::Journal`] if what is read of the journal is damaged.
    pub fn at(&self, moment: Moment) -> Result<Recovered, Error> {
        let point = match moment {
            Moment::Entry(sequence) => Point::Entry(sequence),
            Moment::After(since) => Point::Time(self.genesis.began + since),
            Moment::At(at) => Point::Time(at),
        };
        recover_at(&self.journal, point)?.ok_or_else(|| Error::NoRun {
            folder: self.folder.clone(),
        })
    }

    /// What everybody who takes part in the run is told of it.
    pub const fn description(&self) -> &Description {
        &self.file.description
    }

    /// The run's store, to read. One that is not there has nothing in it, and is not made.
    ///
    /// # Errors
    /// [`Error::Store`] if it cannot be read.
    pub fn store(&self) -> Result<Store, Error> {
        let folder = self.file.store_folder(&self.folder);
        Ok(if folder.is_dir() {
            Store::in_folder(folder)?
        } else {
            Store::in_memory()
        })
    }

    /// What the stages, from head to tail, start an epoch from, as repaired last: the present epoch unless another is asked
    /// for. None if the run has not come to it yet.
    ///
    /// # Errors
    /// [`Error::Journal`] if what is read of the journal is damaged.
    pub fn checkpoints(&self, epoch: Option<Epoch>) -> Result<Option<Vec<Checkpoint>>, Error> {
        let Some(epoch) = epoch else {
            let now = self.at(Moment::Entry(u64::MAX))?.state;
            return Ok(Some(checkpoints(&now)));
        };
        let first = checkpoints(&self.at(Moment::Entry(0))?.state);
        if epoch == Epoch::new(0) {
            // They follow from the seed, so that no event has them.
            return Ok(Some(first));
        }
        let mut ledger = Ledger::new(&self.genesis.settings);
        replay(&self.journal, 0, |entry| {
            entry.events.iter().for_each(|event| ledger.follow(event));
            Ok(())
        })?;
        let of_epoch = ledger.checkpoints().filter(|it| it.epoch == epoch);
        let mut found: Vec<Checkpoint> = of_epoch.cloned().collect();
        found.sort_by_key(|it| it.stage);
        Ok((found.len() == first.len()).then_some(found))
    }

    /// What happened to a peer, a sample or an epoch. No lines if the run knows of no such thing.
    ///
    /// # Errors
    /// [`Error::Journal`] if the journal is damaged anywhere.
    pub fn explain(&self, subject: Subject) -> Result<Story, Error> {
        let mut explanation = Explanation::new(subject);
        let mut ledger = Ledger::new(&self.genesis.settings);
        replay(&self.journal, 0, |entry| {
            for event in &entry.events {
                explanation.follow(entry.sequence, entry.at, event);
                ledger.follow(event);
            }
            Ok(())
        })?;
        let whereabouts = match subject {
            Subject::Sample(sample) if ledger.sample(sample).is_some() => {
                let mut lines = self.tokens_of(sample)?;
                lines.extend(ledger.whereabouts(sample));
                lines
            }
            _ => Vec::new(),
        };
        Ok(Story {
            began: self.genesis.began,
            lines: explanation.into_lines(),
            whereabouts,
        })
    }

    /// Which tokens a sample reads.
    fn tokens_of(&self, sample: SampleId) -> Result<Vec<String>, Error> {
        let description = &self.file.description;
        let sampler = description
            .sampler()
            .map_err(|error| self.unusable(error.to_string()))?;
        let slice = sampler.slice(sample);
        let shard = description.data.shards.get(slice.shard);
        let shard = shard.map_or_else(String::new, |shard| format!(" ({})", shard.digest));
        let windows: Vec<String> = slice
            .starts
            .iter()
            .map(|start| format!("{start}..{}", start + u64::from(slice.context)))
            .collect();
        Ok(vec![format!(
            "{sample} reads tokens {} of shard {}{shard}",
            windows.join(", "),
            slice.shard
        )])
    }

    /// The run by its whole journal: each event shown to the books, and applied to the rules' own state.
    fn relive(&self, ledger: &mut Ledger) -> Result<(State, u64, u64), Error> {
        let mut state = self
            .genesis
            .state()
            .map_err(|error| Error::Setup(error.into()))?;
        let (mut sequence, mut events) = (0, 0);
        replay(&self.journal, 0, |entry| {
            for event in &entry.events {
                ledger.follow(event);
                state.apply(entry.at, event);
            }
            sequence = entry.sequence;
            events += entry.events.len() as u64;
            Ok(())
        })?;
        Ok((state, sequence, events))
    }

    fn unusable(&self, problem: String) -> Error {
        Error::RunFile {
            path: RunFile::path(&self.folder),
            problem,
        }
    }
}

/// What the stages start the present epoch from.
fn checkpoints(state: &State) -> Vec<Checkpoint> {
    let stages = (0..state.settings().stages()).map(StageIndex::new);
    stages.map(|it| state.checkpoint(it).clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use iota_node::Shutdown;

    use super::*;
    use crate::Orchestrator;
    use crate::testing::setup;

    /// Every file of a folder, and its bytes.
    fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.insert(path.clone(), Vec::new());
                found.extend(contents(&path));
            } else {
                found.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
        found
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_audit_finds_what_is_gone_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let orchestrator = Orchestrator::builder(setup(1), folder.path())
            .start(&Shutdown::new())
            .await
            .unwrap();
        orchestrator.suspend();
        orchestrator.finish().await.unwrap();
        std::fs::remove_dir_all(folder.path().join("store")).unwrap();
        let before = contents(folder.path());

        let history = History::open(folder.path()).unwrap();
        // It may go to another thread meanwhile.
        let audit = tokio::spawn(history.audit()).await.unwrap().unwrap();
        drop(history);
        assert_eq!((audit.shards, audit.holds()), (0, false));
        let gone = |finding: &Finding| matches!(finding, Finding::Store { .. });
        assert!(audit.findings.iter().all(gone), "{audit:?}");
        assert_eq!(contents(folder.path()), before);
    }
}
