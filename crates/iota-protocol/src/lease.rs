//! How long a lease runs: what the work took lately, and the edges that the settings give.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::Timing;
use crate::work::WorkKind;

/// Durations of the most recent work of one kind in one stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Durations {
    recent_ms: VecDeque<u64>,
}

/// Enough for a 95th percentile that two outliers do not move, few enough that a change of pace shows soon.
const REMEMBERED: usize = 64;

/// Below so many measurements a percentile says nothing.
const ENOUGH: usize = 8;

impl Durations {
    /// Adds a measurement, forgetting the oldest if there are many.
    pub(crate) fn record(&mut self, duration: Duration) {
        if self.recent_ms.len() == REMEMBERED {
            self.recent_ms.pop_front();
        }
        self.recent_ms
            .push_back(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    }

    /// The longest of those that are remembered.
    pub(crate) fn longest(&self) -> Option<Duration> {
        self.recent_ms
            .iter()
            .max()
            .copied()
            .map(Duration::from_millis)
    }

    /// The duration that 95 % of the measured ones do not exceed, once enough were measured.
    fn percentile_95(&self) -> Option<Duration> {
        if self.recent_ms.len() < ENOUGH {
            return None;
        }
        let mut sorted: Vec<u64> = self.recent_ms.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * 95).div_ceil(100);
        Some(Duration::from_millis(sorted[rank - 1]))
    }
}

/// How long a lease for work of this kind runs.
///
/// A miner whose results come late on purpose stretches the deadlines of its stage, so they are bounded from above by
/// the length of a phase. Uploads and installs cannot be done by anybody else and run for a phase at least; an audit
/// redoes up to an epoch's work and gets a generous start.
pub(crate) fn lease_duration(
    timing: &Timing,
    kind: WorkKind,
    durations: Option<&Durations>,
) -> Duration {
    let longest = timing.phase_max.max(timing.lease_initial);
    let measured = durations.and_then(Durations::percentile_95);
    let usual = measured.map_or(timing.lease_initial, |p95| {
        p95.saturating_mul(timing.lease_factor)
            .clamp(timing.lease_min.min(longest), longest)
    });
    match kind {
        WorkKind::Forward | WorkKind::Backward | WorkKind::Merge | WorkKind::Fetch => usual,
        WorkKind::Upload | WorkKind::HandOver | WorkKind::Install => usual.max(timing.phase_max),
        WorkKind::Replay | WorkKind::Inspect => usual
            .max(timing.lease_initial.saturating_mul(timing.lease_factor))
            .min(longest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(durations_ms: impl IntoIterator<Item = u64>) -> Durations {
        let mut durations = Durations::default();
        for duration in durations_ms {
            durations.record(Duration::from_millis(duration));
        }
        durations
    }

    fn timing() -> Timing {
        Timing::default()
    }

    #[test]
    fn a_lease_runs_for_its_initial_time_until_enough_is_measured() {
        let few = measured([100; 7]);
        assert_eq!(
            lease_duration(&timing(), WorkKind::Forward, None),
            timing().lease_initial
        );
        assert_eq!(
            lease_duration(&timing(), WorkKind::Forward, Some(&few)),
            timing().lease_initial
        );
        assert_eq!(
            lease_duration(&timing(), WorkKind::Forward, Some(&measured([100; 8]))),
            timing().lease_min
        );
    }

    #[test]
    fn a_lease_follows_the_95th_percentile_and_not_the_outlier() {
        let durations = measured((0..20).map(|n| if n == 13 { 1_000_000 } else { 3_000 }));
        assert_eq!(
            lease_duration(&timing(), WorkKind::Backward, Some(&durations)),
            Duration::from_secs(12)
        );
    }

    #[test]
    fn old_measurements_are_forgotten() {
        let durations =
            measured(std::iter::repeat_n(20_000, 100).chain(std::iter::repeat_n(2_000, 64)));
        assert_eq!(
            lease_duration(&timing(), WorkKind::Forward, Some(&durations)),
            Duration::from_secs(8)
        );
    }

    #[test]
    fn nobody_stretches_a_lease_beyond_a_phase() {
        let durations = measured([10_000_000; 64]);
        for kind in [
            WorkKind::Forward,
            WorkKind::Merge,
            WorkKind::Upload,
            WorkKind::Replay,
        ] {
            assert_eq!(
                lease_duration(&timing(), kind, Some(&durations)),
                timing().phase_max
            );
        }
    }
}
