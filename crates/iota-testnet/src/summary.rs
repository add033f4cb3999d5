//! A report in words.

use std::fmt::Write as _;

use crate::report::Report;
use crate::view::thousands;

/// A report as a newcomer can read it.
pub fn summary(report: &Report) -> String {
    let mut text = String::new();
    let mut line =
        |words: String| writeln!(text, "{words}").expect("writing to a String cannot fail");
    let verdict = if report.trained {
        "The network trained."
    } else {
        "The network did NOT train."
    };
    line(format!("\n{verdict} ({})", report.run));
    let loss = &report.loss;
    line(format!(
        "  loss, training text   {:.3} -> {:.3} nats per token",
        loss.train_start, loss.train_end
    ));
    line(format!(
        "  loss, held-out text   {:.3} -> {:.3} nats per token",
        loss.held_out_start, loss.held_out_end
    ));
    line(format!(
        "  tokens                {} trained on, {:.0} per second",
        thousands(report.tokens.trained),
        report.tokens.per_second
    ));
    if let Some(baseline) = &report.baseline {
        line(format!(
            "  uncut, one process    {:.0} tokens per second, held-out loss {:.3}: the network runs at {:.2} of its speed",
            baseline.tokens_per_second,
            baseline.held_out_end,
            report.tokens.per_second / baseline.tokens_per_second
        ));
    }
    let samples = &report.samples;
    line(format!(
        "  samples               {} done, {} pieces leased again, {} lost",
        samples.completed, samples.re_leased, samples.lost
    ));
    let work = &report.work;
    line(format!(
        "  work                  {} passes finished, {:.1} % wasted ({} redone, {} superseded, {} refused, {} undone)",
        work.finished,
        100.0 * work.wasted_share,
        work.redone,
        work.superseded,
        work.refused,
        work.undone
    ));
    let sum = |of: fn(&crate::report::Merge) -> u64| report.merges.iter().map(of).sum::<u64>();
    let (cells, covered, agreed) = (
        sum(|merge| merge.cells),
        sum(|merge| merge.covered),
        sum(|merge| merge.agreed),
    );
    line(format!(
        "  merges                {} (of one stage each): {covered} of {cells} cells merged, {agreed} with two owners \
         agreeing, replicas {}",
        report.merges.len(),
        if report.replicas_equal {
            "equal"
        } else {
            "NOT equal"
        }
    ));
    line(format!(
        "  audits                {} passed, {} failed",
        report.audits.passed, report.audits.failed
    ));
    for cheater in &report.cheaters {
        line(format!("  cheater found         {}", short(cheater)));
    }
    line("  miner            stage  forwards  backwards  dropped    score".to_owned());
    for miner in &report.miners {
        line(format!(
            "  {:<16} {:>5} {:>9} {:>10} {:>8} {:>8.1}",
            short(&miner.id),
            miner.stage,
            miner.forwards,
            miner.backwards,
            miner.dropped,
            miner.score
        ));
    }
    text
}

/// Enough of an id to tell peers apart.
fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}
