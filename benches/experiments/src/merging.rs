//! What replicas of a model lose by training apart: rules, outer steps, codecs, what becomes of optimizer state, and one
//! replica that sends garbage, beside synchronous data-parallel training and a single replica at equal tokens.

mod report;
mod summary;
mod training;
mod variant;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use iota_compute::{AdamW, Muon, OptimizerSettings, UpdateRule};
use iota_data::BatchShape;
use serde::{Deserialize, Serialize};

use self::report::{cost_chart, curve_chart, markdown};
use self::summary::{Row, summarise};
use self::training::train;
use self::variant::{Variant, variants};
use crate::jobs::{is_asked_for, run_all};
use crate::model::small_model;
use crate::outcome::{Results, in_words, write_all};
use crate::text::Text;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Runs of each variant, with the seeds from 1 on.
    #[arg(long, default_value_t = 3, value_name = "N")]
    seeds: u64,
    /// Tokens that each run trains on, all replicas together.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    tokens: u64,
    /// Replicas.
    #[arg(long, default_value_t = 8, value_name = "N")]
    replicas: usize,
    /// Steps of a replica between merges.
    #[arg(long, default_value_t = 10, value_name = "N")]
    every: u64,
    /// Channels of the residual stream.
    #[arg(long, default_value_t = 128, value_name = "N")]
    width: usize,
    /// Transformer blocks.
    #[arg(long, default_value_t = 4, value_name = "N")]
    blocks: usize,
    /// Tokens in a sequence.
    #[arg(long, default_value_t = 128, value_name = "N")]
    context: usize,
    /// Sequences in the batch of a replica's step.
    #[arg(long, default_value_t = 2, value_name = "N")]
    sequences: u32,
    /// The optimizer of all replicas.
    #[arg(long, value_enum, default_value_t = Optimizer::Adamw)]
    optimizer: Optimizer,
    /// Learning rates after the warm-up: every variant is run with each, and its row is that of the best.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0.003,0.006,0.012",
        value_name = "RATE,.."
    )]
    learning_rates: Vec<f32>,
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

/// An optimizer by name, with the defaults of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Optimizer {
    Adamw,
    Muon,
}

impl Optimizer {
    fn settings(self) -> OptimizerSettings {
        let rule = match self {
            Self::Adamw => UpdateRule::AdamW(AdamW::default()),
            Self::Muon => UpdateRule::Muon(Muon::default()),
        };
        OptimizerSettings {
            rule,
            ..OptimizerSettings::default()
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Adamw => "AdamW",
            Self::Muon => "Muon",
        }
    }
}

/// What a run was: together with the seed and the variant it decides the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Setting {
    width: usize,
    blocks: usize,
    context: usize,
    sequences: u32,
    replicas: usize,
    every: u64,
    tokens: u64,
    optimizer: Optimizer,
    learning_rate: f32,
}

/// One run of one variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Outcome {
    variant: String,
    seed: u64,
    setting: Setting,
    /// Held-out loss at the end, in nats per token; absent if training broke down.
    held_out: Option<f64>,
    /// Tokens trained on, and the held-out loss then, over fewer batches than at the end.
    curve: Vec<(u64, f64)>,
    /// That each replica moves in a merge, up and down; absent without merges.
    bytes_per_merge: Option<f64>,
    /// Parameters of the model.
    elements: u64,
    seconds: f64,
}

/// Runs what is not there yet, then writes and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.jobs > 0, "--jobs: at least one run at a time");
    ensure!(
        options.replicas > 1,
        "--replicas: one has nothing to merge with"
    );
    ensure!(
        options.every > 0,
        "--every: at least one step between merges"
    );
    ensure!(
        !options.learning_rates.is_empty(),
        "--learning-rates: at least one"
    );
    let setting = |learning_rate| Setting {
        width: options.width,
        blocks: options.blocks,
        context: options.context,
        sequences: options.sequences,
        replicas: options.replicas,
        every: options.every,
        tokens: options.tokens,
        optimizer: options.optimizer,
        learning_rate,
    };
    let settings: Vec<Setting> = options
        .learning_rates
        .iter()
        .copied()
        .map(setting)
        .collect();
    let text = Text::bundled(BatchShape {
        sequences: options.sequences,
        context: u32::try_from(options.context)?,
    })?;
    let model = small_model(
        options.width,
        options.blocks,
        options.context,
        text.vocabulary(),
    );
    model.validate()?;
    let wanted: Vec<Variant> = variants(options.width)
        .into_iter()
        .filter(|variant| {
            variant.is_reference() || is_asked_for(&variant.to_string(), &options.only)
        })
        .collect();

    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("making {}", options.out.display()))?;
    let (results, mut outcomes) = Results::open::<Outcome>(&options.out.join("merging.jsonl"))?;
    outcomes.retain(|outcome| settings.contains(&outcome.setting));
    if !options.summarise {
        let of_seed = |seed| {
            let of_variant = move |variant: &Variant| (*variant, seed);
            wanted.iter().map(of_variant)
        };
        let open: VecDeque<(Variant, u64, &Setting)> = (1..=options.seeds)
            .flat_map(of_seed)
            .flat_map(|(variant, seed)| settings.iter().map(move |s| (variant, seed, s)))
            .filter(|(variant, seed, setting)| {
                let name = variant.to_string();
                let is_this = |outcome: &Outcome| {
                    (&outcome.variant, outcome.seed, &outcome.setting) == (&name, *seed, setting)
                };
                !outcomes.iter().any(is_this)
            })
            .collect();
        let run_one = |(variant, seed, setting): &(Variant, u64, &Setting)| {
            let optimizer = options.optimizer.settings();
            let outcome = train(&model, setting, variant, optimizer, *seed, &text)
                .with_context(|| format!("training {variant} with seed {seed}"))?;
            results.add(&outcome)?;
            let loss = in_words(outcome.held_out);
            let seconds = outcome.seconds;
            let rate = setting.learning_rate;
            let said = format!("{variant}, rate {rate}, seed {seed}: {loss}, {seconds:.0} s");
            Ok((outcome, said))
        };
        outcomes.extend(run_all(open, options.jobs, &run_one)?);
    }
    let rows = summarise(&wanted, &outcomes);
    write(&options.out, &settings, &rows)
}

fn write(out: &Path, settings: &[Setting], rows: &[Row]) -> Result<()> {
    let markdown = markdown(settings, rows);
    println!("\n{markdown}");
    let files = [
        ("merging.md", markdown),
        ("merging.svg", cost_chart(rows).to_svg()),
        ("merging-curves.svg", curve_chart(rows).to_svg()),
    ];
    write_all(out, files)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::summary::iota_bytes;
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn options(out: &Path, seeds: u64) -> Options {
        let (out, seeds) = (out.display().to_string(), seeds.to_string());
        let small = "test --tokens 1024 --width 32 --blocks 1 --context 32 --sequences 1 --replicas 4 --every 2 --jobs 2 --learning-rates 0.003";
        let rest = ["--seeds", &seeds, "--out", &out];
        Command::parse_from(small.split(' ').chain(rest)).options
    }

    fn outcomes(folder: &Path) -> Vec<Outcome> {
        Results::open(&folder.join("merging.jsonl")).unwrap().1
    }

    #[test]
    fn what_is_there_is_not_run_again_and_runs_can_be_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), 1);
        options.only = vec!["top-k".to_owned(), "nesterov".to_owned()];
        run(&options).unwrap();
        let first = outcomes(folder.path());
        assert!(first.len() > 5);
        assert!(first.iter().all(|outcome| outcome.held_out.is_some()));
        run(&options).unwrap();
        assert_eq!(outcomes(folder.path()), first);

        let other = tempfile::tempdir().unwrap();
        options.out = other.path().to_owned();
        run(&options).unwrap();
        for again in outcomes(other.path()) {
            let before = first
                .iter()
                .find(|outcome| outcome.variant == again.variant);
            assert_eq!(
                before.unwrap().held_out,
                again.held_out,
                "{}",
                again.variant
            );
        }
        for name in ["merging.md", "merging.svg", "merging-curves.svg"] {
            let length = std::fs::metadata(folder.path().join(name)).unwrap().len();
            assert!(length > 100, "{name}");
        }
    }

    #[test]
    fn bytes_are_those_of_the_encodings() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), 1);
        options.only = vec!["mean, f32".to_owned()];
        run(&options).unwrap();
        let outcomes = outcomes(folder.path());
        let of = |name: &str| {
            let outcome = outcomes
                .iter()
                .find(|outcome| outcome.variant == name)
                .unwrap();
            Some(outcome.bytes_per_merge? / outcome.elements as f64)
        };
        // 4W + W/k for four replicas: 4.25 times four bytes, and as much again with both moments in bf16. IOTA: 4W + 2W/k.
        assert_eq!(of("mean, f32"), Some(17.0));
        assert_eq!(of("mean, f32, moments merged"), Some(34.0));
        assert_eq!(of("synchronous"), None);
        assert_eq!(iota_bytes(4), 27.0);
    }

    #[test]
    fn a_row_is_that_of_the_best_learning_rate() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), 1);
        options.only = vec!["nothing".to_owned()];
        options.learning_rates = vec![1e-6, 3e-3];
        run(&options).unwrap();
        let mut outcomes = outcomes(folder.path());
        let rate = |outcomes: &[Outcome]| {
            let rows = summarise(&[Variant::Synchronous], outcomes);
            assert_eq!((rows.len(), rows[0].runs + rows[0].broken), (1, 1));
            rows[0].learning_rate
        };
        assert_eq!(rate(&outcomes), 3e-3);
        let best = outcomes
            .iter_mut()
            .find(|outcome| outcome.setting.learning_rate > 1e-3);
        best.unwrap().held_out = None;
        assert_eq!(
            rate(&outcomes),
            1e-6,
            "a run that broke down is not the best"
        );
    }

    #[test]
    fn a_median_is_not_moved_by_garbage_and_a_mean_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), 1);
        options.only = vec!["one sends garbage".to_owned()];
        run(&options).unwrap();
        let outcomes = outcomes(folder.path());
        let loss = |name: &str| {
            let outcome = outcomes.iter().find(|outcome| outcome.variant == name);
            outcome.unwrap().held_out.unwrap_or(f64::INFINITY)
        };
        let reference = loss("synchronous");
        assert!(loss("mean, f32, one sends garbage") > 1.1 * reference);
        assert!(loss("median, f32, one sends garbage") < 1.05 * reference);
    }
}
