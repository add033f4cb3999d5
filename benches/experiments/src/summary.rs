//! Many seeds of a variant as one row.

use crate::boundaries::Variant;
use crate::outcome::Outcome;

/// A mean, and how far the values lie from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    /// Standard deviation of the sample; `None` for one value.
    pub(crate) deviation: Option<f64>,
}

impl Spread {
    /// `None` of no values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (!values.is_empty()).then(|| Self {
            mean,
            deviation: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()),
        })
    }
}

/// What the runs of a variant came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) variant: Variant,
    pub(crate) channels: usize,
    /// Per token and hop, forward and backward.
    pub(crate) bytes: Option<(f64, f64)>,
    /// Than all channels as bf16, both directions together.
    pub(crate) times_fewer_bytes: Option<f64>,
    /// Held-out, in nats per token.
    pub(crate) loss: Option<Spread>,
    /// Of the loss against that of the reference with the same seed.
    pub(crate) difference_percent: Option<Spread>,
    /// Runs with a result.
    pub(crate) runs: usize,
    /// Runs that broke down.
    pub(crate) broken: usize,
    /// Tokens, and the mean loss over the seeds that got there.
    pub(crate) curve: Vec<(u64, f64)>,
}

/// One row for each variant that has been run, in the order of the variants.
pub(crate) fn summarise(variants: &[Variant], outcomes: &[Outcome], width: usize) -> Vec<Row> {
    let of = |variant: &Variant| -> Vec<&Outcome> {
        let name = variant.to_string();
        outcomes
            .iter()
            .filter(|outcome| outcome.variant == name)
            .collect()
    };
    let references: Vec<&Outcome> = variants
        .iter()
        .filter(|variant| variant.is_reference())
        .flat_map(of)
        .collect();
    let reference = |seed| {
        let same = references.iter().find(|outcome| outcome.seed == seed)?;
        same.held_out
    };
    variants
        .iter()
        .filter_map(|variant| {
            let runs = of(variant);
            let losses: Vec<f64> = runs.iter().filter_map(|run| run.held_out).collect();
            let differences: Vec<f64> = runs
                .iter()
                .filter_map(|run| {
                    let (loss, reference) = (run.held_out?, reference(run.seed)?);
                    Some(100.0 * (loss / reference - 1.0))
                })
                .collect();
            let bytes = variant.bytes(width);
            let curves: Vec<&[(u64, f64)]> = runs.iter().map(|run| &run.curve[..]).collect();
            (!runs.is_empty()).then(|| Row {
                variant: *variant,
                channels: variant.channels(width),
                bytes,
                times_fewer_bytes: bytes
                    .map(|(forward, backward)| forward + backward)
                    .filter(|bytes| *bytes > 0.0)
                    .map(|bytes| 4.0 * width as f64 / bytes),
                loss: Spread::of(&losses),
                difference_percent: Spread::of(&differences),
                runs: losses.len(),
                broken: runs.len() - losses.len(),
                curve: mean_curve(&curves),
            })
        })
        .collect()
}

/// The points of several curves, each the mean of those that have it.
pub(crate) fn mean_curve(curves: &[&[(u64, f64)]]) -> Vec<(u64, f64)> {
    let mut tokens: Vec<u64> = curves
        .iter()
        .flat_map(|curve| curve.iter().map(|(tokens, _)| *tokens))
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
        .into_iter()
        .filter_map(|at| {
            let losses: Vec<f64> = curves
                .iter()
                .flat_map(|curve| curve.iter())
                .filter(|(tokens, _)| *tokens == at)
                .map(|(_, loss)| *loss)
                .collect();
            Some((at, Spread::of(&losses)?.mean))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundaries::variants;
    use crate::outcome::tests::outcome;

    #[test]
    fn a_spread_is_the_mean_and_the_deviation_of_the_sample() {
        assert_eq!(Spread::of(&[]), None);
        let one = Spread::of(&[2.0]).unwrap();
        assert_eq!((one.mean, one.deviation), (2.0, None));
        let three = Spread::of(&[1.0, 2.0, 6.0]).unwrap();
        assert_eq!((three.mean, three.deviation), (3.0, Some(7.0_f64.sqrt())));
    }

    #[test]
    fn a_variant_is_compared_with_the_reference_of_the_same_seed() {
        let variants = variants(256);
        let outcomes = [
            outcome("all channels, f32", 1, 2.0),
            outcome("all channels, f32", 2, 4.0),
            outcome("resbm 2, bf16", 1, 2.2),
            outcome("resbm 2, bf16", 2, 4.8),
            outcome("resbm 2, bf16", 3, 9.0),
            outcome("iota 2, bf16", 1, f64::NAN),
        ];
        let rows = summarise(&variants, &outcomes, 256);
        let names: Vec<String> = rows.iter().map(|row| row.variant.to_string()).collect();
        assert_eq!(
            names,
            ["all channels, f32", "iota 2, bf16", "resbm 2, bf16"]
        );

        assert_eq!(rows[0].times_fewer_bytes, Some(0.5));
        assert_eq!(rows[0].difference_percent.unwrap().mean, 0.0);
        assert_eq!((rows[1].runs, rows[1].broken), (0, 1));
        assert_eq!((rows[1].loss, rows[1].difference_percent), (None, None));
        let resbm = &rows[2];
        assert_eq!((resbm.runs, resbm.times_fewer_bytes), (3, Some(128.0)));
        let difference = resbm.difference_percent.unwrap();
        assert!((difference.mean - 15.0).abs() < 1e-9, "{difference:?}");
    }
}
