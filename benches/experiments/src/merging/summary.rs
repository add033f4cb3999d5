//! The runs of a variant as one row.

use std::collections::BTreeMap;

use super::Outcome;
use super::variant::Variant;
use crate::summary::{Spread, mean_curve};

/// What the runs of a variant came to.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) variant: Variant,
    /// With which it came out best.
    pub(super) learning_rate: f32,
    /// Per parameter and merge, for each replica.
    pub(super) bytes: Option<f64>,
    /// Than IOTA's merge.
    pub(super) times_fewer: Option<f64>,
    pub(super) loss: Option<Spread>,
    /// Against synchronous training with the same seed.
    pub(super) difference_percent: Option<Spread>,
    pub(super) runs: usize,
    pub(super) broken: usize,
    pub(super) curve: Vec<(u64, f64)>,
}

/// One row for each variant that has been run, in the order of the variants.
pub(super) fn summarise(variants: &[Variant], outcomes: &[Outcome]) -> Vec<Row> {
    let references = best(&Variant::Synchronous, outcomes);
    let reference = |seed| {
        let same = references.iter().find(|outcome| outcome.seed == seed)?;
        same.held_out
    };
    variants
        .iter()
        .filter_map(|variant| {
            let runs = best(variant, outcomes);
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
                learning_rate: first.setting.learning_rate,
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

/// The runs of a variant with the learning rate that is best for it: that of the lowest mean loss, where none broke down
/// if there is such a one.
fn best<'a>(variant: &Variant, outcomes: &'a [Outcome]) -> Vec<&'a Outcome> {
    let name = variant.to_string();
    let mut by_rate: BTreeMap<u32, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.variant == name) {
        // Positive numbers are ordered as their bits are.
        let rate = outcome.setting.learning_rate.to_bits();
        by_rate.entry(rate).or_default().push(outcome);
    }
    let loss = |runs: &[&Outcome]| -> f64 {
        let loss = |run: &&Outcome| run.held_out.unwrap_or(f64::INFINITY);
        runs.iter().map(loss).sum::<f64>() / runs.len() as f64
    };
    let lowest = by_rate
        .into_values()
        .min_by(|a, b| loss(a).total_cmp(&loss(b)));
    lowest.unwrap_or_default()
}

/// Bytes per parameter that each of so many miners moves in IOTA's merge: parameters and both moments as bf16, once up, all
/// uploads of an owner's cells down, those cells up, and everything down.
pub(super) fn iota_bytes(replicas: usize) -> f64 {
    const BYTES: f64 = 3.0 * 2.0;
    4.0 * BYTES + 2.0 * BYTES / replicas as f64
}
