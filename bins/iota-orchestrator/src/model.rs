//! The commands that use what a run has trained: `export`, `generate`.

use std::io::Write as _;
use std::path::Path;

use iota_compute::{Stage, StageOptions};
use iota_ledger::Moment;
use iota_node::Exit;
use iota_orchestrator::History;
use iota_protocol::{Epoch, StageIndex};
use iota_run::Description;
use iota_store::Store;
use iota_trained::{Numbers, Sampling, Writer, stage_weights};

use crate::arguments::{Factors, Model};
use crate::commands::runtime;
use crate::history::NotInThisRun;

/// A run's model as some epoch began.
struct Trained {
    description: Description,
    store: Store,
    /// Of each stage.
    epochs: Vec<Epoch>,
}

impl Trained {
    fn open(model: Model) -> anyhow::Result<Self> {
        let history = History::open(model.out)?;
        let now = history.at(Moment::Entry(u64::MAX))?.state;
        let stages = (0..now.settings().stages()).map(StageIndex::new);
        let newest = stages.map(|stage| now.checkpoint(stage).epoch);
        let epochs = match model.epoch.map(Epoch::new) {
            None => newest.collect(),
            Some(asked) => {
                let mut epochs = Vec::new();
                for newest in newest {
                    if asked > newest {
                        let what = asked.to_string();
                        return Err(NotInThisRun::NotYet { what }.into());
                    }
                    epochs.push(asked);
                }
                epochs
            }
        };
        Ok(Self {
            description: history.description().clone(),
            store: history.store()?,
            epochs,
        })
    }

    /// In one piece.
    async fn whole(&self, threads: usize) -> anyhow::Result<Stage> {
        let plan = self.description.plan()?.regroup(1)?;
        let options = StageOptions {
            threads,
            precision: self.description.precision,
            ..StageOptions::default()
        };
        let mut whole = Stage::new(&plan, 0, options)?;
        // The stages' weights one after the other are the uncut model's.
        let mut start = 0;
        for (stage, epoch) in self.epochs.iter().enumerate() {
            let stage = StageIndex::new(stage as u16);
            let weights = stage_weights(&self.description, &self.store, stage, *epoch).await?;
            whole.state_mut().parameters[start..start + weights.len()].copy_from_slice(&weights);
            start += weights.len();
        }
        Ok(whole)
    }
}

pub(crate) fn export(model: Model, to: &Path, numbers: Factors) -> anyhow::Result<Exit> {
    let trained = Trained::open(model)?;
    let numbers = match numbers {
        Factors::F32 => Numbers::F32,
        Factors::Bf16 => Numbers::Bf16,
    };
    let written = runtime()?.block_on(iota_trained::export(
        &trained.description,
        &trained.store,
        &trained.epochs,
        numbers,
        to,
    ))?;
    println!(
        "{} tensors of {} parameters are in {}",
        written.tensors,
        written.parameters,
        to.display()
    );
    if !written.is_llama {
        println!(
            "The model has bottlenecks between its blocks, so programs that know Llama do not know it; config.json says where they are."
        );
    }
    Ok(Exit::Done)
}

pub(crate) fn generate(
    model: Model,
    prompt: &str,
    tokens: usize,
    sampling: Sampling,
    threads: usize,
) -> anyhow::Result<Exit> {
    let trained = Trained::open(model)?;
    let whole = runtime()?.block_on(trained.whole(threads))?;
    let tokenizer = trained.description.data.tokenizer;
    let mut out = std::io::stdout();
    let mut print = |text: &str| out.write_all(text.as_bytes()).and_then(|()| out.flush());
    let mut printed = print(prompt);
    Writer::new(whole, tokenizer).write(prompt, tokens, sampling, |piece| {
        if printed.is_ok() {
            printed = print(piece);
        }
    })?;
    printed.and_then(|()| print("\n"))?;
    Ok(Exit::Done)
}
