//! What a network costs in loss: whole testnets beside the same model uncut, at equal tokens, batches and optimizer.
//!
//! Without a bottleneck the stages compute what the uncut model does. What is left to differ: gradients are clipped by
//! stage; several miners of a stage each step on their own share of a batch, and are averaged once an epoch; and, unless
//! samples set out in batches, forward passes meet weights that the batch has changed already.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use iota_node::Shutdown;
use iota_orchestrator::{BoundaryChoice, ModelOptions, TrainingOptions, Wire};
use iota_testnet::{Report, Testnet, TestnetSettings};

use crate::summary::Spread;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Runs of each network, with the seeds from 1 on.
    #[arg(long, default_value_t = 3, value_name = "N")]
    seeds: u64,
    /// Miners of each stage: a network for each of these numbers.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,2,4",
        value_name = "N,.."
    )]
    miners: Vec<u32>,
    /// Epochs of 600 samples of 4 x 128 tokens.
    #[arg(long, default_value_t = 2, value_name = "N")]
    epochs: u64,
    /// Samples in a batch; each miner of a stage steps on its share.
    #[arg(long, default_value_t = 4, value_name = "N")]
    batch: u32,
    /// Let samples overlap: a new one sets out as soon as another is back.
    #[arg(long)]
    overlapping: bool,
    /// Where the table goes.
    #[arg(long, default_value = "docs/experiments", value_name = "FOLDER")]
    out: PathBuf,
}

/// Runs every network, then writes and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let mut table = String::from(
        "| miners of a stage | samples | seeds | held-out loss, network | uncut | difference |\n|---:|---|---:|---:|---:|---:|\n",
    );
    for &miners in &options.miners {
        ensure!(
            miners > 0 && options.batch.is_multiple_of(miners),
            "{miners} miners cannot share a batch of {} evenly",
            options.batch
        );
        let mut pairs = Vec::new();
        for seed in 1..=options.seeds {
            let folder = tempfile::tempdir().context("making a run folder")?;
            let settings = settings(options, miners, seed, folder.path().join("run"));
            let network = Testnet::new(settings)?;
            let report = runtime.block_on(network.run(&Shutdown::new()))?;
            let pair = losses(&report)?;
            let difference = 100.0 * (pair.0 / pair.1 - 1.0);
            println!(
                "{miners} miners, seed {seed}: {:.4} and uncut {:.4} nats per token, {difference:+.2} %",
                pair.0, pair.1
            );
            pairs.push(pair);
        }
        table += &row(options, miners, &pairs);
    }
    println!("\n{table}");
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("making {}", options.out.display()))?;
    let path = options.out.join(if options.overlapping {
        "parity-overlapping.md"
    } else {
        "parity.md"
    });
    std::fs::write(&path, table).with_context(|| format!("writing {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

fn settings(options: &Options, miners: u32, seed: u64, out: PathBuf) -> TestnetSettings {
    TestnetSettings {
        miners_per_stage: miners,
        // Audits take time and change nothing.
        validators: 0,
        model: ModelOptions {
            boundary: BoundaryChoice::None,
            ..ModelOptions::default()
        },
        // As they are: encodings have an experiment of their own.
        wire: Wire::default(),
        out,
        seed,
        baseline: true,
        training: TrainingOptions {
            epochs: options.epochs,
            samples_in_flight: options.batch,
            in_batches: !options.overlapping,
            backwards_per_step: options.batch / miners,
            ..TrainingOptions::default()
        },
        ..TestnetSettings::default()
    }
}

/// Held-out losses of the network and of the uncut model.
fn losses(report: &Report) -> Result<(f64, f64)> {
    ensure!(report.samples.lost == 0, "the network lost samples");
    let baseline = report.baseline.as_ref().context("it was asked for")?;
    Ok((report.loss.held_out_end, baseline.held_out_end))
}

fn row(options: &Options, miners: u32, pairs: &[(f64, f64)]) -> String {
    let spread = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let values: Vec<f64> = pairs.iter().map(of).collect();
        match Spread::of(&values) {
            None => String::new(),
            Some(Spread {
                mean,
                deviation: None,
            }) => format!("{mean:.3}"),
            Some(Spread {
                mean,
                deviation: Some(deviation),
            }) => format!("{mean:.3} ± {deviation:.3}"),
        }
    };
    let samples = if options.overlapping {
        "overlapping"
    } else {
        "in batches"
    };
    format!(
        "| {miners} | {samples} | {} | {} | {} | {} % |\n",
        pairs.len(),
        spread(&|pair| pair.0),
        spread(&|pair| pair.1),
        spread(&|pair| 100.0 * (pair.0 / pair.1 - 1.0)),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn options(arguments: &str) -> Options {
        Command::parse_from(["test"].into_iter().chain(arguments.split(' '))).options
    }

    #[test]
    fn miners_step_on_equal_shares_of_a_batch() {
        let options = options("--batch 4 --epochs 3");
        for (miners, share) in [(1, 4), (2, 2), (4, 1)] {
            let settings = settings(&options, miners, 1, "run".into());
            assert_eq!(settings.training.backwards_per_step, share);
            assert_eq!(settings.training.samples_in_flight, 4);
            assert!(settings.training.in_batches && settings.baseline);
        }
        let uneven = Options {
            miners: vec![3],
            ..options
        };
        let refused = run(&uneven).unwrap_err().to_string();
        assert!(refused.contains("3 miners cannot share"), "{refused}");
    }

    #[test]
    fn a_row_compares_seed_by_seed() {
        let options = options("--overlapping");
        let row = row(&options, 2, &[(2.02, 2.0), (1.01, 1.0)]);
        assert_eq!(
            row,
            "| 2 | overlapping | 2 | 1.515 ± 0.714 | 1.500 ± 0.707 | 1.000 ± 0.000 % |\n"
        );
    }
}
