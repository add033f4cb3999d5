//! The commands that use what a run has trained: `export`, `generate`.

use std::io::{ErrorKind, Write as _};
use std::ops::ControlFlow;
use std::path::Path;

use iota_compute::{Stage, StageOptions};
use iota_node::Exit;
use iota_orchestrator::History;
use iota_protocol::Epoch;
use iota_protocol::work::Checkpoint;
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
    /// Of each stage, from head to tail.
    checkpoints: Vec<Checkpoint>,
}

impl Trained {
    fn open(model: Model) -> anyhow::Result<Self> {
        let history = History::open(model.out)?;
        let epoch = model.epoch.map(Epoch::new);
        let Some(checkpoints) = history.checkpoints(epoch)? else {
            let what = epoch.unwrap_or_default().to_string();
            return Err(NotInThisRun::NotYet { what }.into());
        };
        Ok(Self {
            description: history.description().clone(),
            store: history.store()?,
            checkpoints,
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
        for checkpoint in &self.checkpoints {
            let weights = stage_weights(&self.description, &self.store, checkpoint).await?;
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
        &trained.checkpoints,
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
    if printed.is_ok() {
        Writer::new(whole, tokenizer).write(prompt, tokens, sampling, |piece| {
            printed = print(piece);
            match printed {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
    }
    match printed.and_then(|()| print("\n")) {
        // Whoever reads it, such as `head`, has enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Done),
        printed => Ok(printed.map(|()| Exit::Done)?),
    }
}
