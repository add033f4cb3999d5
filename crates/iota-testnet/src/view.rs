//! What a person sees while a run goes on: a live view on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use iota_protocol::event::Phase;
use iota_wire::RunStatus;
use tokio::sync::watch;

/// Plain lines come at least this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows a run until there are no more statuses.
pub async fn show(mut status: watch::Receiver<RunStatus>, samples_per_epoch: u64) {
    let mut view: Box<dyn View + Send> = if std::io::stderr().is_terminal() {
        Box::new(Live::new(samples_per_epoch))
    } else {
        Box::new(Lines::default())
    };
    loop {
        let current = status.borrow_and_update().clone();
        view.update(&current);
        if current.phase == Phase::Over || status.changed().await.is_err() {
            break;
        }
    }
    view.finish();
}

trait View {
    fn update(&mut self, status: &RunStatus);
    fn finish(&mut self);
}

/// One line per change of phase, and one every few seconds between.
#[derive(Debug, Default)]
struct Lines {
    last: Option<(Phase, u64, Instant)>,
}

impl View for Lines {
    fn update(&mut self, status: &RunStatus) {
        let (phase, epoch) = (status.phase, status.epoch.get());
        let due = self.last.is_none_or(|(last_phase, last_epoch, at)| {
            last_phase != phase || last_epoch != epoch || at.elapsed() >= LINE_EVERY
        });
        if due {
            self.last = Some((phase, epoch, Instant::now()));
            eprintln!("{}", line(status));
        }
    }

    fn finish(&mut self) {}
}

/// A bar for the epoch and lines that repaint themselves.
#[derive(Debug)]
struct Live {
    epoch: ProgressBar,
    training: ProgressBar,
    network: ProgressBar,
    samples_per_epoch: u64,
}

impl Live {
    fn new(samples_per_epoch: u64) -> Self {
        let bars = MultiProgress::new();
        let text = ProgressStyle::with_template("  {msg}").expect("the template is fixed");
        let bar =
            ProgressStyle::with_template("{spinner} {prefix:<28} {bar:32} {pos}/{len} samples")
                .expect("the template is fixed");
        let epoch = bars.add(ProgressBar::new(samples_per_epoch).with_style(bar));
        let training = bars.add(ProgressBar::new_spinner().with_style(text.clone()));
        let network = bars.add(ProgressBar::new_spinner().with_style(text));
        epoch.enable_steady_tick(Duration::from_millis(120));
        Self {
            epoch,
            training,
            network,
            samples_per_epoch,
        }
    }
}

impl View for Live {
    fn update(&mut self, status: &RunStatus) {
        self.epoch.set_prefix(format!(
            "{} · epoch {} of {}",
            status.phase.name(),
            ordinal(status),
            status.epochs
        ));
        let before = (ordinal(status) - 1) * self.samples_per_epoch;
        self.epoch.set_position(
            status
                .samples_completed
                .saturating_sub(before)
                .min(self.samples_per_epoch),
        );
        self.training.set_message(format!(
            "loss {} · {:.0} tokens/s · {} tokens · {:.0} s",
            loss(status),
            status.tokens_per_second,
            thousands(status.tokens_trained),
            status.elapsed.as_secs_f64(),
        ));
        self.network.set_message(format!(
            "miners per stage {}{} · validators {} · in flight {} · leased again {} · wasted {:.1} % · audits {} passed, {} failed{}",
            miners(status),
            waiting(status),
            status.validators,
            status.samples_in_flight,
            status.samples_re_leased,
            wasted_percent(status),
            status.audits_passed,
            status.audits_failed,
            if status.banned > 0 { format!(" · {} banned", status.banned) } else { String::new() },
        ));
    }

    fn finish(&mut self) {
        self.epoch.disable_steady_tick();
        // What stands on the screen stays there; the summary follows below.
        for bar in [&self.epoch, &self.training, &self.network] {
            bar.abandon();
        }
    }
}

fn line(status: &RunStatus) -> String {
    format!(
        "[{:>4.0} s] epoch {}/{} {:<10} loss {} · {:>6.0} tokens/s · {} samples done, {} in flight, {} leased again \
         · miners {} · audits {}/{}",
        status.elapsed.as_secs_f64(),
        ordinal(status),
        status.epochs,
        status.phase.name(),
        loss(status),
        status.tokens_per_second,
        status.samples_completed,
        status.samples_in_flight,
        status.samples_re_leased,
        miners(status),
        status.audits_passed,
        status.audits_passed + status.audits_failed,
    )
}

/// Of the work that was finished.
fn wasted_percent(status: &RunStatus) -> f64 {
    100.0 * status.work_wasted as f64 / status.work_finished.max(1) as f64
}

/// Who would be a miner and has to wait, if somebody does.
fn waiting(status: &RunStatus) -> String {
    match (status.waiting, status.registration_is_open) {
        (0, _) => String::new(),
        (waiting, true) => format!(" ({waiting} wait)"),
        (waiting, false) => format!(" ({waiting} wait, registration is closed)"),
    }
}

/// Epochs are counted from 1 for people.
fn ordinal(status: &RunStatus) -> u64 {
    (status.epoch.get() + 1).min(status.epochs)
}

fn loss(status: &RunStatus) -> String {
    status
        .loss
        .map_or_else(|| "-----".to_owned(), |loss| format!("{loss:.3}"))
}

fn miners(status: &RunStatus) -> String {
    let counts: Vec<String> = status.miners_per_stage.iter().map(u32::to_string).collect();
    counts.join("+")
}

/// `1234567` as `1 234 567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1 000"),
            (1_234_567, "1 234 567"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }
}
