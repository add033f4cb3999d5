//! What a boundary costs in loss: every encoding, IOTA's bottleneck and ResBM's, on the same text with the same optimizer.

pub(crate) mod training;
mod variant;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use iota_compute::OptimizerSettings;
use iota_data::BatchShape;

use self::training::{model, train};
pub(crate) use self::variant::{Variant, variants};
use crate::chart::{Chart, Point, Scale, Series};
use crate::jobs::{is_asked_for, run_all};
use crate::outcome::{Outcome, Results, Setting, in_words, write_all};
use crate::summary::{Row, summarise};
use crate::table;
use crate::text::Text;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Runs of each variant, with the seeds from 1 on.
    #[arg(long, default_value_t = 3, value_name = "N")]
    seeds: u64,
    /// Tokens that each run trains on.
    #[arg(long, default_value_t = 500_000, value_name = "N")]
    tokens: u64,
    /// Channels of the residual stream.
    #[arg(long, default_value_t = 256, value_name = "N")]
    width: usize,
    /// Transformer blocks.
    #[arg(long, default_value_t = 6, value_name = "N")]
    blocks: usize,
    /// Tokens in a sequence.
    #[arg(long, default_value_t = 128, value_name = "N")]
    context: usize,
    /// Sequences in a batch.
    #[arg(long, default_value_t = 4, value_name = "N")]
    sequences: u32,
    /// Stages.
    #[arg(long, default_value_t = 3, value_name = "N")]
    stages: usize,
    /// The optimizer of all variants.
    #[arg(long, value_enum, default_value_t = Optimizer::Adamw)]
    optimizer: Optimizer,
    /// Its learning rate after the warm-up.
    #[arg(long, default_value_t = 2e-3, value_name = "RATE")]
    learning_rate: f32,
    /// Runs at a time, each on one thread.
    #[arg(long, default_value_t = 1, value_name = "N")]
    jobs: usize,
    /// Only variants whose names contain this, or with = in front are this, and what they are compared with; may be given
    /// several times.
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
    /// Run nothing: make table and plots of the results that are there.
    #[arg(long)]
    summarise: bool,
    /// Where results, table and plots go.
    #[arg(long, default_value = "docs/experiments", value_name = "FOLDER")]
    out: PathBuf,
}

/// An optimizer by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Optimizer {
    /// AdamW with the defaults of a stage.
    Adamw,
}

impl Optimizer {
    const fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
        }
    }

    fn settings(self) -> OptimizerSettings {
        match self {
            Self::Adamw => OptimizerSettings::default(),
        }
    }
}

/// Runs what is not there yet, then writes and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.jobs > 0, "--jobs: at least one run at a time");
    let setting = Setting {
        width: options.width,
        blocks: options.blocks,
        context: options.context,
        sequences: options.sequences,
        stages: options.stages,
        tokens: options.tokens,
        optimizer: options.optimizer.name().to_owned(),
        learning_rate: options.learning_rate,
    };
    let text = Text::bundled(BatchShape {
        sequences: options.sequences,
        context: u32::try_from(options.context)?,
    })?;
    let model = model(&setting, text.vocabulary());
    model.validate()?;
    let wanted: Vec<Variant> = variants(options.width)
        .into_iter()
        .filter(|variant| {
            variant.is_reference() || is_asked_for(&variant.to_string(), &options.only)
        })
        .collect();

    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("making {}", options.out.display()))?;
    let (results, mut outcomes) = Results::open::<Outcome>(&options.out.join("boundaries.jsonl"))?;
    outcomes.retain(|outcome| outcome.setting == setting);
    if !options.summarise {
        let open: VecDeque<(Variant, u64)> = (1..=options.seeds)
            .flat_map(|seed| wanted.iter().map(move |variant| (*variant, seed)))
            .filter(|(variant, seed)| {
                let name = variant.to_string();
                !outcomes
                    .iter()
                    .any(|outcome| outcome.variant == name && outcome.seed == *seed)
            })
            .collect();
        let run_one = |(variant, seed): &(Variant, u64)| {
            let optimizer = options.optimizer.settings();
            let outcome = train(&model, &setting, variant, optimizer, *seed, &text)
                .with_context(|| format!("training {variant} with seed {seed}"))?;
            results.add(&outcome)?;
            let loss = in_words(outcome.held_out);
            let seconds = outcome.seconds;
            let said = format!("{variant}, seed {seed}: {loss}, {seconds:.0} s");
            Ok((outcome, said))
        };
        outcomes.extend(run_all(open, options.jobs, &run_one)?);
    }
    let rows = summarise(&wanted, &outcomes, options.width);
    write(&options.out, &setting, &rows, &outcomes)
}

fn write(out: &Path, setting: &Setting, rows: &[Row], outcomes: &[Outcome]) -> Result<()> {
    let markdown = table::markdown(setting, rows);
    println!("\n{markdown}");
    let files = [
        ("boundaries.md", markdown),
        ("boundaries.csv", table::curves(outcomes)),
        ("boundaries.svg", cost_chart(rows).to_svg()),
        ("boundaries-curves.svg", curve_chart(rows).to_svg()),
    ];
    write_all(out, files)
}

/// How much worse than the reference, by how many times fewer bytes.
fn cost_chart(rows: &[Row]) -> Chart {
    let points = rows.iter().filter_map(|row| {
        let (difference, fewer) = (row.difference_percent?, row.times_fewer_bytes?);
        let point = Point {
            x: fewer,
            y: difference.mean,
            error: difference.deviation,
        };
        Some((row.variant.family(), point))
    });
    Chart {
        title: "Loss that a boundary costs".to_owned(),
        x_label: "times fewer bytes per token and hop than all channels as bf16".to_owned(),
        y_label: "held-out loss against all channels as f32, %".to_owned(),
        x_scale: Scale::Logarithmic,
        series: Series::of_points(points),
    }
}

/// Held-out loss on the way.
fn curve_chart(rows: &[Row]) -> Chart {
    let shown = rows.iter().filter(|row| !row.curve.is_empty());
    Chart::of_curves(shown.map(|row| (row.variant.to_string(), &row.curve)))
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

    fn options(out: &Path, seeds: u64) -> Options {
        let (out, seeds) = (out.display().to_string(), seeds.to_string());
        let small = "test --tokens 256 --width 32 --blocks 3 --context 32 --sequences 2 --jobs 2";
        let rest = ["--only", "resbm", "--seeds", &seeds, "--out", &out];
        Command::parse_from(small.split(' ').chain(rest)).options
    }

    #[test]
    fn what_is_there_is_not_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let lines = || {
            let path = folder.path().join("boundaries.jsonl");
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        run(&options(folder.path(), 1)).unwrap();
        let first = lines();
        let variants = variants(32)
            .iter()
            .filter(|v| v.to_string().contains("resbm"))
            .count()
            + 1;
        assert_eq!(first.len(), variants);

        run(&options(folder.path(), 2)).unwrap();
        let second = lines();
        assert_eq!(second.len(), 2 * variants);
        assert_eq!(second[..variants], first, "the first seed's results stay");

        run(&options(folder.path(), 2)).unwrap();
        assert_eq!(lines(), second);
        for name in [
            "boundaries.md",
            "boundaries.csv",
            "boundaries.svg",
            "boundaries-curves.svg",
        ] {
            let length = std::fs::metadata(folder.path().join(name)).unwrap().len();
            assert!(length > 100, "{name}");
        }
    }
}
