//! Every sample's tokens are counted once: from the data, by leases and merges, to checkpoints in the store.

use std::collections::BTreeMap;
use std::fmt;

use iota_ledger::{Discrepancy, Ledger, Totals};
use iota_protocol::work::{Checkpoint, Seal, SegmentSource};
use iota_protocol::{RunId, SampleId, State, Timestamp};
use iota_store::{ObjectKey, Store};
use serde::{Deserialize, Serialize};

use super::History;
use crate::Error;

/// What an audit of a run's accounts has read and found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerAudit {
    /// The run.
    pub run: RunId,
    /// Entries of the journal, each as it was written.
    pub entries: u64,
    /// Events in them.
    pub events: u64,
    /// When the last of them happened.
    pub until: Timestamp,
    /// Whether the run is over; if not, this is how it stood.
    pub over: bool,
    /// What the events add up to.
    pub totals: Totals,
    /// Shards of token data that were read.
    pub shards: u64,
    /// Manifests of checkpoints that were read.
    pub manifests: u64,
    /// Manifests of the newest checkpoints of a run that goes on which were still to be written, or written anew.
    pub manifests_to_come: u64,
    /// Merged cells that were read.
    pub objects: u64,
    /// Bytes that were read of shards and cells, and had the digest that was committed to.
    pub object_bytes: u64,
    /// Merged cells that are not looked for: nobody could read them, and checkpoints were repaired.
    pub given_up: u64,
    /// What does not add up; nothing if the accounts hold.
    pub findings: Vec<Finding>,
}

/// Something that does not add up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "in")]
#[non_exhaustive]
pub enum Finding {
    /// In the journal.
    Journal {
        /// What.
        #[serde(flatten)]
        discrepancy: Discrepancy,
    },
    /// Between what peers are told of the run and what its rules were given.
    Description {
        /// What.
        what: String,
    },
    /// Two samples that count read the same tokens in the same pass over the data.
    Tokens {
        /// The later one.
        sample: SampleId,
        /// The earlier one.
        other: SampleId,
    },
    /// In the store.
    Store {
        /// The key.
        key: String,
        /// What is wrong with what is there.
        what: String,
    },
}

impl LedgerAudit {
    /// Whether everything adds up.
    pub const fn holds(&self) -> bool {
        self.findings.is_empty()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Journal { discrepancy } => discrepancy.fmt(f),
            Self::Description { what } => f.write_str(what),
            Self::Tokens { sample, other } => {
                write!(
                    f,
                    "{sample} reads tokens that {other} has read in the same pass"
                )
            }
            Self::Store { key, what } => write!(f, "{key}: {what}"),
        }
    }
}

impl History {
    /// Proves that every sample's tokens are counted once, or says where that fails: from the whole journal, event by
    /// event, which is read before this returns, and then from every shard, manifest and merged cell in the store.
    /// Writes nothing.
    ///
    /// # Errors
    /// [`Error::Journal`] if the journal is not as it was written; [`Error::Store`] if the store cannot be read at all.
    pub fn audit(&self) -> impl Future<Output = Result<LedgerAudit, Error>> + Send + use<> {
        let books = self.audit_journal();
        let shards = self.file.description.data.shards.clone();
        let store = self.store();
        async move {
            let (ledger, state, mut audit) = books?;
            let store = store?;
            for shard in &shards {
                let (digest, length) = (shard.digest, shard.length_bytes);
                let key = ObjectKey::shard(audit.run, digest);
                if audit.read(&store, &key, Seal { digest, length }).await? {
                    audit.shards += 1;
                }
            }
            audit_checkpoints(&store, &ledger, &state, &mut audit).await?;
            Ok(audit)
        }
    }

    /// What the journal and the description say, without the store.
    fn audit_journal(&self) -> Result<(Ledger, State, LedgerAudit), Error> {
        let mut ledger = Ledger::new(&self.genesis.settings);
        let (state, entries, events) = self.relive(&mut ledger)?;
        let mut audit = LedgerAudit {
            run: self.genesis.settings.run,
            entries,
            events,
            until: state.clock(),
            over: state.is_over(),
            totals: ledger.totals(),
            shards: 0,
            manifests: 0,
            manifests_to_come: 0,
            objects: 0,
            object_bytes: 0,
            given_up: 0,
            findings: Vec::new(),
        };
        let journal = ledger.check(&state).into_iter();
        audit
            .findings
            .extend(journal.map(|discrepancy| Finding::Journal { discrepancy }));
        self.audit_description(&mut audit);
        self.audit_tokens(&ledger, &mut audit)?;
        Ok((ledger, state, audit))
    }

    /// What peers are told must be what the rules count by.
    fn audit_description(&self, audit: &mut LedgerAudit) {
        let (told, settings) = (&self.file.description, &self.genesis.settings);
        let mut compare = |same: bool, what: &str| {
            if !same {
                let what = format!("peers are told another {what} than the journal has");
                audit.findings.push(Finding::Description { what });
            }
        };
        compare(told.run == settings.run, "run");
        compare(
            told.stages() == settings.stage_parameters.len(),
            "number of stages",
        );
        compare(
            told.sample_tokens() as u64 == settings.sample_tokens,
            "number of tokens in a sample",
        );
    }

    /// Samples that count read different tokens, within each pass over the data.
    fn audit_tokens(&self, ledger: &Ledger, audit: &mut LedgerAudit) -> Result<(), Error> {
        let sampler = self.file.description.sampler();
        let sampler = sampler.map_err(|error| self.unusable(error.to_string()))?;
        let mut pass = 0;
        // By shard and first token.
        let mut read: BTreeMap<(usize, u64), SampleId> = BTreeMap::new();
        for (sample, account) in ledger.samples() {
            let of_pass = sample.get() / sampler.samples_per_pass();
            if of_pass != pass {
                pass = of_pass;
                read.clear();
            }
            if !account.is_completed() {
                continue;
            }
            let slice = sampler.slice(sample);
            for start in slice.starts {
                // A window that begins less than a window's length before this one's end overlaps it.
                let context = u64::from(slice.context);
                let first = start.saturating_sub(context.saturating_sub(1));
                let window = (slice.shard, first)..(slice.shard, start + context);
                if let Some((_, other)) = read.range(window).next() {
                    let other = *other;
                    audit.findings.push(Finding::Tokens { sample, other });
                }
                read.insert((slice.shard, start), sample);
            }
        }
        Ok(())
    }
}

/// Every checkpoint has its manifest, and every object that one names is in the store, with the bytes that were
/// committed to.
async fn audit_checkpoints(
    store: &Store,
    ledger: &Ledger,
    state: &State,
    audit: &mut LedgerAudit,
) -> Result<(), Error> {
    let run = audit.run;
    let mut cells: BTreeMap<ObjectKey, Seal> = BTreeMap::new();
    for checkpoint in ledger.checkpoints() {
        let key = ObjectKey::checkpoint(run, checkpoint.epoch, checkpoint.stage);
        let wrong = match store.get_manifest::<Checkpoint>(&key).await {
            Ok(manifest) if manifest == *checkpoint => None,
            Ok(_) => Some("it is not the checkpoint that the journal has".to_owned()),
            Err(error) => Some(unless_unavailable(error)?),
        };
        match wrong {
            None => audit.manifests += 1,
            // Whoever writes them follows the journal. It may also be ahead of what was read here, with a repair.
            Some(_) if checkpoint.epoch == state.epoch() && !state.is_over() => {
                audit.manifests_to_come += 1;
            }
            Some(what) => {
                let key = key.to_string();
                audit.findings.push(Finding::Store { key, what });
            }
        }
        // A delta only saves bytes on the way, and is deleted like an upload: the whole cell is what lasts.
        for segment in &checkpoint.segments {
            if let SegmentSource::Merged { object, .. } = &segment.source {
                if ledger.is_given_up(object.name) {
                    audit.given_up += 1;
                } else {
                    cells.insert(ObjectKey::object(run, object.name), object.seal);
                }
            }
        }
    }
    for (key, seal) in cells {
        if audit.read(store, &key, seal).await? {
            audit.objects += 1;
        }
    }
    Ok(())
}

impl LedgerAudit {
    /// Reads an object. Notes if it is not there with the bytes that were committed to, and says whether it is.
    async fn read(&mut self, store: &Store, key: &ObjectKey, seal: Seal) -> Result<bool, Error> {
        match store.get(key, &seal).await {
            Ok(bytes) => {
                self.object_bytes += bytes.len() as u64;
                Ok(true)
            }
            Err(error) => {
                let what = unless_unavailable(error)?;
                let key = key.to_string();
                self.findings.push(Finding::Store { key, what });
                Ok(false)
            }
        }
    }
}

/// What is wrong with an object; an error if that cannot be known.
fn unless_unavailable(error: iota_store::Error) -> Result<String, Error> {
    use iota_store::Error as Store;
    match error {
        Store::Missing { .. } => Ok("it is not there".to_owned()),
        Store::Length { .. }
        | Store::Digest { .. }
        | Store::MalformedManifest { .. }
        | Store::ManifestVersion { .. } => Ok(error.to_string()),
        other => Err(other.into()),
    }
}
