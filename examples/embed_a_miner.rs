//! Runs miners as tasks of a program that has other things to do; here, printing how the run is doing.
//!
//! ```text
//!                        ┌─ this process ───────────────────────────────────────────┐
//!                        │  miner 0 ─┐                                              │
//!                        │  miner 1 ─┤ calls over loopback   ┌──────────────┐       │
//!                        │  miner 2 ─┼─────────────────────► │ orchestrator │       │
//!                        │  miner 3 ─┘                       └──────┬───────┘       │
//!                        │     └ one gate: as many compute          │ statuses      │
//!                        │       at a time as there are cores       ▼               │
//!                        │                                  whatever the host does  │
//!                        └──────────────────────────────────────────────────────────┘
//! ```
//!
//! Without arguments it starts a small run of its own in a temporary folder and ends with it. With `--orchestrator URL` it
//! lends one miner to a run elsewhere, until that is over or Ctrl-C is pressed.
//!
//! ```sh
//! cargo run --release -p iota-examples --example embed_a_miner
//! cargo run --release -p iota-examples --example embed_a_miner -- --orchestrator http://127.0.0.1:7400
//! ```

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use iota_data::Corpus;
use iota_identity::Keypair;
use iota_miner::{Miner, Stop};
use iota_node::Shutdown;
use iota_orchestrator::{Orchestrator, Participants, RunOptions, Setup, TrainingOptions};
use iota_peer::Gate;
use tokio::task::JoinSet;

const STAGES: u16 = 2;
const MINERS_PER_STAGE: u32 = 2;
const EPOCHS: u64 = 3;
const SAMPLES_PER_EPOCH: u64 = 80;
/// Of the bundled text: enough that no sample comes twice in so short a run.
const CORPUS_BYTES: usize = 200_000;
/// Statuses come several times a second; a line for every so many samples is enough.
const SAMPLES_PER_LINE: u64 = 40;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let shutdown = Shutdown::on_signals()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run_of_our_own(&shutdown).await,
        ["--orchestrator", url] => {
            let why = lend_a_miner(url, shutdown).await?;
            println!("stopped: {why:?}");
            Ok(())
        }
        _ => bail!("usage: embed_a_miner [--orchestrator URL]"),
    }
}

/// All that it takes to lend this machine to a run.
async fn lend_a_miner(url: &str, shutdown: Shutdown) -> anyhow::Result<Stop> {
    // A key made here is forgotten here; keep one with iota_identity::key_file to keep what the miner has earned.
    let keypair = Keypair::generate();
    println!("mining as {} for {url}", keypair.peer_id());
    let miner = Miner::builder(url).with_keypair(keypair);
    Ok(miner.run(shutdown).await?)
}

/// Starts an orchestrator, has miners join it, and tells how it goes until the run is over.
async fn run_of_our_own(shutdown: &Shutdown) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let setup = set_up(folder.path())?;
    let orchestrator = Orchestrator::builder(setup, folder.path().join("run"))
        // Not the caller's: when that one is asked to stop, miners leave first.
        .start(&Shutdown::new())
        .await?;
    println!(
        "serving {} in {}",
        orchestrator.url(),
        folder.path().display()
    );

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let gate = Gate::new(cores);
    let mut miners = JoinSet::new();
    for _ in 0..u32::from(STAGES) * MINERS_PER_STAGE {
        let miner = Miner::builder(orchestrator.url())
            .with_threads(1)
            .with_gate(gate.clone());
        miners.spawn(miner.run(shutdown.child()));
    }

    let mut statuses = orchestrator.status();
    let telling = tokio::spawn(async move {
        let mut next_line = 0;
        // An error means that the orchestrator is gone, and with it whatever there is to tell.
        while statuses.changed().await.is_ok() {
            let status = statuses.borrow_and_update().clone();
            if status.samples_completed >= next_line {
                next_line = status.samples_completed + SAMPLES_PER_LINE;
                println!(
                    "{:>6.1} s  {:<11}  epoch {}  {:>4} samples  {:>5.0} tokens/s  loss {}",
                    status.elapsed.as_secs_f64(),
                    format!("{:?}", status.phase),
                    status.epoch.get(),
                    status.samples_completed,
                    status.tokens_per_second,
                    status
                        .loss
                        .map_or_else(|| "-".to_owned(), |loss| format!("{loss:.3}")),
                );
            }
        }
    });

    // The program's own work would be here. A miner ends with the run, on Ctrl-C, or because it cannot take part.
    while let Some(ended) = miners.join_next().await {
        let why = ended.context("a miner panicked")??;
        println!("a miner stopped: {why:?}");
    }
    orchestrator.stop().await; // over already, unless somebody pressed Ctrl-C
    let (state, course) = orchestrator.finish().await?;
    telling.await?;

    let counts = state.sample_counts();
    println!(
        "{} samples, {} merges, replicas equal: {}",
        counts.completed,
        state.merges().len(),
        state.replicas_equal(),
    );
    ensure!(
        state.replicas_equal(),
        "after a merge all miners of a stage hold the same bits"
    );
    if !shutdown.is_requested() {
        let (start, end) = (course.loss_at_start(), course.loss_at_end());
        println!("training loss {start:.3} -> {end:.3} nats per token");
        ensure!(
            counts.completed == EPOCHS * SAMPLES_PER_EPOCH,
            "every sample is trained on once"
        );
        ensure!(end < start - 1.0, "the model learned");
    }
    Ok(())
}

/// A run of a tiny model on the beginning of the bundled text, which stands for a file of the reader's own.
fn set_up(folder: &Path) -> anyhow::Result<Setup> {
    let bundled = Corpus::bundled();
    let text = &bundled.documents()[0].text;
    let corpus = folder.join("corpus.txt");
    let beginning = text.get(..CORPUS_BYTES).context("the text is ASCII")?;
    std::fs::write(&corpus, beginning)?;
    let options = RunOptions {
        preset: "tiny".to_owned(),
        stages: STAGES,
        corpus: corpus.display().to_string(),
        training: TrainingOptions {
            epochs: EPOCHS,
            samples_per_epoch: SAMPLES_PER_EPOCH,
            learning_rate: 1e-2,
            warmup_samples: 10,
            ..TrainingOptions::default()
        },
        ..RunOptions::default()
    };
    let participants = Participants {
        miners_to_start: MINERS_PER_STAGE,
        validators: Vec::new(),
    };
    Ok(Setup::new(&options, participants)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_run_in_one_process_trains_every_sample_and_ends() {
        run_of_our_own(&Shutdown::new()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_asks_it_to_stop_gets_an_orderly_end() {
        let shutdown = Shutdown::new();
        shutdown.request();
        run_of_our_own(&shutdown).await.unwrap();
    }
}
