//! What replicas of a model lose by training apart: rules, outer steps, codecs, what becomes of optimizer state, and one
//! replica that sends garbage, beside synchronous data-parallel training and a single replica at equal tokens.

mod training;
mod variant;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use iota_data::BatchShape;
use serde::{Deserialize, Serialize};

use self::training::train;
use self::variant::{Merge, OptimizerState, Variant, variants};
use crate::chart::{Chart, Point, Scale, Series};
use crate::jobs::run_all;
use crate::model::small_model;
use crate::outcome::Results;
use crate::summary::{Spread, mean_curve};
use crate::table::{aligned, spread, trimmed};
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
    /// The learning rate of all variants after the warm-up.
    #[arg(long, default_value_t = 3e-3, value_name = "RATE")]
    learning_rate: f32,
    /// Runs at a time, each on one thread.
    #[arg(long, default_value_t = 1, value_name = "N")]
    jobs: usize,
    /// Only variants whose names contain this, and what they are compared with; may be given several times.
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
    /// Run nothing: make table and plots of the results that are there.
    #[arg(long)]
    summarise: bool,
    /// Where results, table and plots go.
    #[arg(long, default_value = "docs/experiments", value_name = "FOLDER")]
    out: PathBuf,
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

/// What the runs of a variant came to.
#[derive(Debug)]
struct Row {
    variant: Variant,
    /// Per parameter and merge, for each replica.
    bytes: Option<f64>,
    /// Than IOTA's merge.
    times_fewer: Option<f64>,
    loss: Option<Spread>,
    /// Against synchronous training with the same seed.
    difference_percent: Option<Spread>,
    runs: usize,
    broken: usize,
    curve: Vec<(u64, f64)>,
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
    let setting = Setting {
        width: options.width,
        blocks: options.blocks,
        context: options.context,
        sequences: options.sequences,
        replicas: options.replicas,
        every: options.every,
        tokens: options.tokens,
        learning_rate: options.learning_rate,
    };
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
            let name = variant.to_string();
            let asked = |word: &String| name.contains(word.as_str());
            variant.is_reference() || options.only.is_empty() || options.only.iter().any(asked)
        })
        .collect();

    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("making {}", options.out.display()))?;
    let (results, mut outcomes) = Results::open::<Outcome>(&options.out.join("merging.jsonl"))?;
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
            let outcome = train(&model, &setting, variant, *seed, &text)
                .with_context(|| format!("training {variant} with seed {seed}"))?;
            results.add(&outcome)?;
            let loss = outcome.held_out.map_or_else(
                || "broke down".to_owned(),
                |loss| format!("{loss:.4} nats per token"),
            );
            let seconds = outcome.seconds;
            let said = format!("{variant}, seed {seed}: {loss}, {seconds:.0} s");
            Ok((outcome, said))
        };
        outcomes.extend(run_all(open, options.jobs, &run_one)?);
    }
    let rows = summarise(&wanted, &outcomes);
    write(&options.out, &setting, &rows)
}

/// One row for each variant that has been run, in the order of the variants.
fn summarise(variants: &[Variant], outcomes: &[Outcome]) -> Vec<Row> {
    let of = |variant: &Variant| -> Vec<&Outcome> {
        let name = variant.to_string();
        outcomes
            .iter()
            .filter(|outcome| outcome.variant == name)
            .collect()
    };
    let references = of(&Variant::Synchronous);
    let reference = |seed| {
        let same = references.iter().find(|outcome| outcome.seed == seed)?;
        same.held_out
    };
    variants
        .iter()
        .filter_map(|variant| {
            let runs = of(variant);
            let first = runs.first()?;
            let losses: Vec<f64> = runs.iter().filter_map(|run| run.held_out).collect();
            let differences: Vec<f64> = runs
                .iter()
                .filter_map(|run| Some(100.0 * (run.held_out? / reference(run.seed)? - 1.0)))
                .collect();
            let per_element: Vec<f64> = runs
                .iter()
                .filter_map(|run| Some(run.bytes_per_merge? / run.elements as f64))
                .collect();
            let bytes = Spread::of(&per_element).map(|spread| spread.mean);
            let curves: Vec<&[(u64, f64)]> = runs.iter().map(|run| &run.curve[..]).collect();
            Some(Row {
                variant: *variant,
                bytes,
                times_fewer: bytes.map(|bytes| iota_bytes(first.setting.replicas) / bytes),
                loss: Spread::of(&losses),
                difference_percent: Spread::of(&differences),
                runs: losses.len(),
                broken: runs.len() - losses.len(),
                curve: mean_curve(&curves),
            })
        })
        .collect()
}

/// Bytes per parameter that each of so many miners moves in IOTA's merge: parameters and both moments as bf16, once up, all
/// uploads of an owner's cells down, those cells up, and everything down.
fn iota_bytes(replicas: usize) -> f64 {
    const BYTES: f64 = 3.0 * 2.0;
    4.0 * BYTES + 2.0 * BYTES / replicas as f64
}

fn write(out: &Path, setting: &Setting, rows: &[Row]) -> Result<()> {
    let markdown = markdown(setting, rows);
    println!("\n{markdown}");
    let files = [
        ("merging.md", markdown),
        ("merging.svg", cost_chart(rows).to_svg()),
        ("merging-curves.svg", curve_chart(rows).to_svg()),
    ];
    for (name, content) in files {
        let path = out.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn markdown(setting: &Setting, rows: &[Row]) -> String {
    let Setting {
        width,
        blocks,
        context,
        sequences,
        replicas,
        every,
        tokens,
        learning_rate,
    } = setting;
    let columns = [
        "variant",
        "bytes",
        "times fewer than IOTA",
        "held-out loss",
        "against synchronous",
    ];
    let nothing = || "-".to_owned();
    let cells = |row: &Row| {
        let loss = match row.loss {
            None => format!("{} broke down", row.broken),
            Some(loss) if row.broken > 0 => {
                format!(
                    "{} ({}), {} broke down",
                    spread(loss, 4, ""),
                    row.runs,
                    row.broken
                )
            }
            Some(loss) => format!("{} ({})", spread(loss, 4, ""), row.runs),
        };
        let difference = match row.difference_percent {
            Some(difference) if !row.variant.is_reference() => {
                let sign = if difference.mean < 0.0 { "" } else { "+" };
                sign.to_owned() + &spread(difference, 2, " %")
            }
            _ => nothing(),
        };
        [
            row.variant.to_string(),
            row.bytes.map_or_else(nothing, trimmed),
            row.times_fewer.map_or_else(nothing, trimmed),
            loss,
            difference,
        ]
    };
    let cells: Vec<[String; 5]> = rows.iter().map(cells).collect();
    format!(
        "Model: {blocks} blocks of {width} channels. {replicas} replicas, merged every {every} steps. Training: {tokens} tokens \
         (bytes of text),\n{sequences} x {context} in the batch of a replica's step, AdamW, learning rate {learning_rate}. Bytes: \
         moved by each replica, per parameter and\nmerge. Loss: nats per token on text that was never trained on, mean ± standard \
         deviation over seeds; the last column\ncompares with synchronous training, runs of the same seed.\n\n{}",
        aligned(&columns.map(str::to_owned), &cells)
    )
}

/// How much worse than synchronous training, by how many times fewer bytes than IOTA's merge.
fn cost_chart(rows: &[Row]) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for row in rows {
        let (Some(name), Some(difference), Some(fewer)) = (
            row.variant.family(),
            row.difference_percent,
            row.times_fewer,
        ) else {
            continue;
        };
        // What broke down, or nearly, would squeeze everything else together.
        if difference.mean > CHART_PERCENT_MAX {
            continue;
        }
        let point = Point {
            x: fewer,
            y: difference.mean,
            error: difference.deviation,
        };
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    Chart {
        title: format!("Loss that merging costs (up to {CHART_PERCENT_MAX} %)"),
        x_label: "times fewer bytes per merge than IOTA's".to_owned(),
        y_label: "held-out loss against synchronous training, %".to_owned(),
        x_scale: Scale::Logarithmic,
        series,
    }
}

const CHART_PERCENT_MAX: f64 = 20.0;

/// Held-out loss on the way, of what is compared with and of what is as good and small as any.
fn curve_chart(rows: &[Row]) -> Chart {
    let is_shown = |variant: &Variant| match variant {
        Variant::Synchronous | Variant::Single => true,
        Variant::Merged(merge) => merge.state == OptimizerState::Local && is_plain_or_small(merge),
    };
    let series = rows
        .iter()
        .filter(|row| is_shown(&row.variant) && !row.curve.is_empty())
        .map(|row| Series {
            name: row.variant.to_string(),
            points: row
                .curve
                .iter()
                .filter(|(_, loss)| *loss < CHART_LOSS_MAX)
                .map(|(tokens, loss)| Point {
                    x: *tokens as f64 / 1000.0,
                    y: *loss,
                    error: None,
                })
                .collect(),
        })
        .collect();
    Chart {
        title: "Held-out loss on the way".to_owned(),
        x_label: "thousand tokens".to_owned(),
        y_label: "nats per token, mean over seeds".to_owned(),
        x_scale: Scale::Linear,
        series,
    }
}

/// Bytes at random have 5.5.
const CHART_LOSS_MAX: f64 = 6.0;

fn is_plain_or_small(merge: &Merge) -> bool {
    use iota_merge::{Codec, Outer, Rule};
    merge.outer == Outer::None
        && merge.rule == Rule::WeightedMean
        && matches!(merge.upload, Codec::F32 | Codec::Int8 | Codec::TopK { .. })
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
        let small = "test --tokens 1024 --width 32 --blocks 1 --context 32 --sequences 1 --replicas 4 --every 2 --jobs 2";
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
        // 4W + 2W/k for four replicas: 4.5 times four bytes, and as much again with both moments in bf16.
        assert_eq!(of("mean, f32"), Some(18.0));
        assert_eq!(of("mean, f32, moments merged"), Some(36.0));
        assert_eq!(of("synchronous"), None);
        assert_eq!(iota_bytes(4), 27.0);
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
