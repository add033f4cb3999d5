//! What the pieces of a model cost this machine.

use clap::Args;
use iota_compute::{StageOptions, measure_costs};
use iota_model::{Boundary, ModelConfig, StagePlan, preset};

use crate::{Factors, at_least_one};

/// A model's name, and how its stages would run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Name of the model.
    #[arg(long, value_name = "NAME", default_value = "testnet")]
    preset: String,
    /// Token sequences in a sample.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one())]
    sequences: usize,
    /// Threads that one operation uses.
    #[arg(
        long,
        value_name = "N",
        default_value_t = iota_node::threads::available(),
        value_parser = at_least_one(),
        env = "IOTA_THREADS"
    )]
    threads: usize,
    /// What stages compute in.
    #[arg(long, value_enum, default_value_t = Factors::Bf16)]
    precision: Factors,
}

/// Measures, and returns what an operator puts into a run's settings.
///
/// # Errors
/// If there is no such model, or no threads.
pub(crate) fn measure(options: &Options) -> anyhow::Result<String> {
    let config = ModelConfig {
        boundary: Boundary::None,
        ..preset(&options.preset)?
    };
    let plan = StagePlan::new(&config, 1)?;
    let stage = StageOptions {
        threads: options.threads,
        precision: options.precision.into(),
        ..StageOptions::default()
    };
    let costs = measure_costs(&plan, options.sequences, stage)?;
    Ok(format!(
        "# Seconds for {} sequences of {} tokens of `{}`, forward and backward, on {} threads.\n\
         [cut]\nblock_cost = {}\nhead_cost = {}\ntail_cost = {}",
        options.sequences,
        config.context,
        options.preset,
        options.threads,
        costs.block,
        costs.head,
        costs.tail,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_go_into_a_file_of_settings() {
        let options = Options {
            preset: "tiny".to_owned(),
            sequences: 1,
            threads: 1,
            precision: Factors::F32,
        };
        let printed = measure(&options).unwrap();
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines[1], "[cut]");
        for (line, key) in lines[2..].iter().zip(["block", "head", "tail"]) {
            let (name, cost) = line.split_once(" = ").unwrap();
            assert_eq!(name, format!("{key}_cost"));
            let cost: f64 = cost.parse().unwrap();
            assert!(cost >= 0.0 && (key != "block" || cost > 0.0), "{line}");
        }
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn a_model_that_nobody_knows_is_named() {
        let options = Options {
            preset: "gigantic".to_owned(),
            sequences: 1,
            threads: 1,
            precision: Factors::F32,
        };
        let error = measure(&options).unwrap_err();
        assert!(error.to_string().contains("gigantic"), "{error}");
    }
}
