//! Rows as a table and as plots.

use iota_merge::{Codec, Outer, Rule};

use super::Setting;
use super::summary::Row;
use super::variant::{Merge, OptimizerState, Variant};
use crate::chart::{Chart, Point, Scale, Series};
use crate::table::{aligned, spread, trimmed};

/// A heading that says what was run, and the table. The settings differ in the learning rate only.
pub(super) fn markdown(settings: &[Setting], rows: &[Row]) -> String {
    let rates: Vec<String> = settings
        .iter()
        .map(|setting| setting.learning_rate.to_string())
        .collect();
    let rates = rates.join(", ");
    let Setting {
        width,
        blocks,
        context,
        sequences,
        replicas,
        every,
        tokens,
        optimizer,
        ..
    } = &settings[0];
    let optimizer = optimizer.name();
    let columns = [
        "variant",
        "rate",
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
            row.learning_rate.to_string(),
            row.bytes.map_or_else(nothing, trimmed),
            row.times_fewer.map_or_else(nothing, trimmed),
            loss,
            difference,
        ]
    };
    let cells: Vec<[String; 6]> = rows.iter().map(cells).collect();
    format!(
        "Model: {blocks} blocks of {width} channels. {replicas} replicas, merged every {every} steps. Training: {tokens} tokens \
         (bytes of text),\n{sequences} x {context} in the batch of a replica's step, {optimizer}. Each variant with the best for it of the learning \
         rates\n{rates}. Bytes: moved by each replica, per parameter and merge. Loss: nats per token on text that was \
         never\ntrained on, mean ± standard deviation over seeds; the last column compares with synchronous training, runs of \
         the same\nseed.\n\n{}",
        aligned(&columns.map(str::to_owned), &cells)
    )
}

/// How much worse than synchronous training, by how many times fewer bytes than IOTA's merge.
pub(super) fn cost_chart(rows: &[Row]) -> Chart {
    let points = rows.iter().filter_map(|row| {
        let name = row.variant.family()?;
        let (difference, fewer) = (row.difference_percent?, row.times_fewer?);
        let point = Point {
            x: fewer,
            y: difference.mean,
            error: difference.deviation,
        };
        // What broke down, or nearly, would squeeze everything else together.
        (difference.mean <= CHART_PERCENT_MAX).then_some((name, point))
    });
    Chart {
        title: format!("Loss that merging costs (up to {CHART_PERCENT_MAX} %)"),
        x_label: "times fewer bytes per merge than IOTA's".to_owned(),
        y_label: "held-out loss against synchronous training, %".to_owned(),
        x_scale: Scale::Logarithmic,
        series: Series::of_points(points),
    }
}

const CHART_PERCENT_MAX: f64 = 20.0;

/// Held-out loss on the way, of what is compared with and of what is as good and small as any.
pub(super) fn curve_chart(rows: &[Row]) -> Chart {
    let is_shown = |variant: &Variant| match variant {
        Variant::Synchronous | Variant::Single => true,
        Variant::Merged(merge) => merge.state == OptimizerState::Local && is_plain_or_small(merge),
    };
    let shown = rows
        .iter()
        .filter(|row| is_shown(&row.variant) && !row.curve.is_empty());
    Chart::of_curves(shown.map(|row| {
        let known = row.curve.iter().filter(|(_, loss)| *loss < CHART_LOSS_MAX);
        (row.variant.to_string(), known)
    }))
}

/// Bytes at random have 5.5.
const CHART_LOSS_MAX: f64 = 6.0;

fn is_plain_or_small(merge: &Merge) -> bool {
    merge.outer == Outer::None
        && merge.rule == Rule::WeightedMean
        && matches!(merge.upload, Codec::F32 | Codec::Int8 | Codec::TopK { .. })
}
