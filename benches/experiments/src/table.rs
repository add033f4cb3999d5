//! Rows as Markdown, curves as CSV.

use std::fmt::Write as _;

use crate::outcome::{Outcome, Setting};
use crate::summary::{Row, Spread};

const COLUMNS: [&str; 7] = [
    "variant",
    "channels",
    "bytes forward",
    "bytes backward",
    "times fewer than bf16",
    "held-out loss",
    "against f32",
];

/// A heading that says what was run, and the table.
pub(crate) fn markdown(setting: &Setting, rows: &[Row]) -> String {
    let Setting {
        width,
        blocks,
        context,
        sequences,
        stages,
        tokens,
        optimizer,
        learning_rate,
    } = setting;
    let text = format!(
        "Model: {blocks} blocks of {width} channels, {stages} stages. Training: {tokens} tokens (bytes of text) in batches \
         of {sequences} x {context},\n{optimizer}, learning rate {learning_rate}. Bytes: per token and hop. Loss: nats per \
         token on text that was never trained on,\nmean ± standard deviation over seeds; the last column compares with all \
         channels as f32, runs of the same seed.\n\n"
    );
    let columns = COLUMNS.map(str::to_owned);
    text + &aligned(&columns, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// A Markdown table with columns as wide as they need to be, so that it reads in a terminal too.
pub(crate) fn aligned<const N: usize>(columns: &[String; N], rows: &[[String; N]]) -> String {
    let lines = || std::iter::once(columns).chain(rows);
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            let lengths = lines().map(|line| line[column].chars().count());
            lengths.max().unwrap_or_default()
        })
        .collect();
    let render = |line: &[String]| {
        let mut text = String::from("|");
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, " {cell:<width$} |");
        }
        text + "\n"
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut text = render(columns);
    text += &render(&rule);
    rows.iter().for_each(|line| text += &render(line));
    text
}

fn cells(row: &Row) -> [String; 7] {
    let nothing = || "-".to_owned();
    let bytes = |bytes: Option<f64>| bytes.map_or_else(nothing, trimmed);
    let mut loss = row.loss.map_or_else(nothing, |loss| {
        format!("{} ({})", spread(loss, 4, ""), row.runs)
    });
    if row.broken > 0 {
        let _ = write!(loss, ", {} broke down", row.broken);
    }
    let difference = match row.difference_percent {
        Some(difference) if !row.variant.is_reference() => {
            let sign = if difference.mean < 0.0 { "" } else { "+" };
            sign.to_owned() + &spread(difference, 2, " %")
        }
        _ => nothing(),
    };
    [
        row.variant.to_string(),
        row.channels.to_string(),
        bytes(row.bytes.map(|(forward, _)| forward)),
        bytes(row.bytes.map(|(_, backward)| backward)),
        bytes(row.times_fewer_bytes),
        loss,
        difference,
    ]
}

pub(crate) fn spread(spread: Spread, digits: usize, unit: &str) -> String {
    let Spread { mean, deviation } = spread;
    match deviation {
        Some(deviation) => format!("{mean:.digits$} ± {deviation:.digits$}{unit}"),
        None => format!("{mean:.digits$}{unit}"),
    }
}

/// At most two digits behind the point, and no zeros at the end.
pub(crate) fn trimmed(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Every point of every run.
pub(crate) fn curves(outcomes: &[Outcome]) -> String {
    let mut sorted: Vec<&Outcome> = outcomes.iter().collect();
    sorted.sort_by(|a, b| (&a.variant, a.seed).cmp(&(&b.variant, b.seed)));
    let mut text = String::from("variant,seed,tokens,held_out_nats_per_token\n");
    for outcome in sorted {
        for (tokens, loss) in &outcome.curve {
            let _ = writeln!(
                text,
                "\"{}\",{},{tokens},{loss:.6}",
                outcome.variant, outcome.seed
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundaries::variants;
    use crate::outcome::tests::outcome;
    use crate::summary::summarise;

    #[test]
    fn a_table_has_a_line_for_each_row_and_all_are_equally_long() {
        let outcomes = [
            outcome("uncut", 1, 1.99),
            outcome("all channels, f32", 1, 2.0),
            outcome("resbm 2, bf16", 1, 2.2),
            outcome("resbm 2, bf16", 2, f64::INFINITY),
        ];
        let rows = summarise(&variants(256), &outcomes, 256);
        let text = markdown(&outcomes[0].setting, &rows);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(lines.len(), 2 + 3);
        let lengths = lines.iter().map(|line| line.chars().count());
        assert_eq!(lengths.clone().min(), lengths.max());
        assert!(lines[2].contains("| -0.50 %"), "{}", lines[2]);
        assert!(lines[3].contains("| 0.5 "), "{}", lines[3]);
        assert!(lines[4].contains("| +10.00 %"), "{}", lines[4]);
        assert!(
            lines[4].contains("2.2000 (1), 1 broke down"),
            "{}",
            lines[4]
        );
    }

    #[test]
    fn curves_are_in_order() {
        let csv = curves(&[outcome("b", 1, 2.0), outcome("a, c", 2, 3.0)]);
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[1], "\"a, c\",2,500,4.000000");
        assert_eq!(lines.len(), 5);
    }
}
