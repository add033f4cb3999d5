//! `report.json`: what a run came to. `docs/REPORT.md` describes it field by field; fields are only ever added.

use std::path::Path;
use std::time::Duration;

use iota_protocol::{Role, State};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Version of the report's format.
pub const VERSION: u32 = 1;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The run's name.
    pub run: String,
    /// Whether the network trained: every epoch merged, nothing lost, replicas equal, the loss
    /// on held-out text fell.
    pub trained: bool,
    /// Mean losses in nats per token.
    pub loss: Loss,
    /// What was trained on.
    pub tokens: Tokens,
    /// Where samples went.
    pub samples: Samples,
    /// Work that was finished, and how much of it was wasted.
    #[serde(default)]
    pub work: Work,
    /// One entry per merge of a stage.
    pub merges: Vec<Merge>,
    /// Whether the miners of each stage held equal bits after every merge.
    pub replicas_equal: bool,
    /// Replays and inspections by validators.
    pub audits: Audits,
    /// Peers that were found cheating.
    pub cheaters: Vec<String>,
    /// Every miner that took part.
    pub miners: Vec<Miner>,
    /// The same model trained uncut in one process; with `--baseline` only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub baseline: Option<Baseline>,
}

/// Mean losses in nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Over the first 8 samples of the run.
    pub train_start: f64,
    /// Over the last 64 samples of the run.
    pub train_end: f64,
    /// On text that is never trained on, before the first step.
    pub held_out_start: f64,
    /// On the same text, with the last checkpoint.
    pub held_out_end: f64,
}

/// What was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tokens {
    /// Tokens of completed samples, each counted once.
    pub trained: u64,
    /// Of those per second, from the first sample to the last merge.
    pub per_second: f64,
}

/// Where samples went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// Trained on by every stage.
    pub completed: u64,
    /// Pieces of work that were given to another miner after a lease ended in vain.
    pub re_leased: u64,
    /// Samples that were begun and neither completed nor carried on.
    pub lost: u64,
}

/// How much work was finished, and what became of it, in passes of one stage over one sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Passes that miners reported as done.
    pub finished: u64,
    /// Of those, forward passes that were done a second time for a backward pass.
    pub redone: u64,
    /// Of those, done when somebody else had done the same or training had closed.
    pub superseded: u64,
    /// Of those, refused as too late even to be logged.
    pub refused: u64,
    /// Of those, thrown away afterwards.
    pub undone: u64,
    /// The last four as a share of the first.
    pub wasted_share: f64,
}

/// A merge of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// The epoch that starts from it; 1 for the first.
    pub epoch: u64,
    /// The stage.
    pub stage: u16,
    /// Into how many cells the stage was cut.
    pub cells: u64,
    /// Of those, merged from uploads.
    pub covered: u64,
    /// Of those, with two owners that came to the same bits.
    pub agreed: u64,
    /// Bytes that miners uploaded for it.
    pub bytes_up: u64,
    /// Bytes that miners downloaded for it.
    pub bytes_down: u64,
}

/// Replays and inspections by validators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audits {
    /// Found everything as claimed.
    pub passed: u64,
    /// Found a difference.
    pub failed: u64,
}

/// What a miner did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Miner {
    /// Its identity.
    pub id: String,
    /// The stage that it held last.
    pub stage: u16,
    /// Credited forward passes.
    pub forwards: u64,
    /// Credited backward passes.
    pub backwards: u64,
    /// Pieces of work that it was leased and did not deliver.
    pub dropped: u64,
    /// What its work is worth.
    pub score: f64,
}

/// The same model trained uncut in one process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Tokens trained per second.
    pub tokens_per_second: f64,
    /// Loss on the held-out text at the end, in nats per token.
    pub held_out_end: f64,
}

impl Report {
    /// The part of a report that the run's last state tells.
    pub(crate) fn of(
        state: &State,
        loss: Loss,
        elapsed: Duration,
        baseline: Option<Baseline>,
    ) -> Self {
        let (counts, work) = (state.sample_counts(), state.work_counts());
        let settings = state.settings();
        let merges: Vec<Merge> = state
            .merges()
            .iter()
            .map(|merge| Merge {
                epoch: merge.epoch.get(),
                stage: merge.stage.get(),
                cells: merge.cells,
                covered: merge.covered,
                agreed: merge.agreed,
                bytes_up: merge.bytes_up,
                bytes_down: merge.bytes_down,
            })
            .collect();
        let (passed, failed) = state.audits_settled();
        let miners = state
            .peers()
            .filter(|(_, record)| record.role == Role::Miner)
            .map(|(peer, record)| Miner {
                id: peer.to_string(),
                stage: record.stage.map_or(0, iota_protocol::StageIndex::get),
                forwards: record.ledger.forwards,
                backwards: record.ledger.backwards,
                dropped: record.ledger.dropped,
                score: state.score(peer),
            })
            .collect();
        let tokens = counts.completed * settings.sample_tokens;
        let merged_epochs = merges.len() as u64 / u64::from(settings.stages());
        let trained = merged_epochs == settings.epochs
            && counts.lost == 0
            && state.replicas_equal()
            && loss.held_out_end < loss.held_out_start;
        Self {
            version: VERSION,
            run: settings.run.to_string(),
            trained,
            loss,
            tokens: Tokens {
                trained: tokens,
                per_second: tokens as f64 / elapsed.as_secs_f64(),
            },
            samples: Samples {
                completed: counts.completed,
                re_leased: counts.re_leased,
                lost: counts.lost,
            },
            work: Work {
                finished: work.finished,
                redone: work.redone,
                superseded: work.superseded,
                refused: work.refused,
                undone: work.undone,
                wasted_share: work.wasted_share(),
            },
            merges,
            replicas_equal: state.replicas_equal(),
            audits: Audits { passed, failed },
            cheaters: state.cheaters().map(|(peer, _)| peer.to_string()).collect(),
            miners,
            baseline,
        }
    }

    /// Writes `report.json` into a run folder, whole or not at all.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join("report.json");
        let temporary = folder.join(".report.json.new");
        let mut json = serde_json::to_vec_pretty(self).map_err(Error::Json)?;
        json.push(b'\n');
        std::fs::write(&temporary, json)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|source| Error::Folder { path, source })
    }
}
