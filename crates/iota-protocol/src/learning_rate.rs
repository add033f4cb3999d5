//! The learning rate over a run.

use crate::settings::LearningRate;

/// The learning rate once `samples_opened` of `samples_total` samples have been opened: a linear warm-up that is above
/// zero from the first sample on, then half a cosine from the peak to `final_fraction` of it.
///
/// Only additions, multiplications and divisions of f64 are used, so that every platform gives the same bits (P4).
pub fn learning_rate_at(schedule: &LearningRate, samples_opened: u64, samples_total: u64) -> f32 {
    let peak = f64::from(schedule.peak);
    if samples_opened < schedule.warmup_samples {
        return (peak * (samples_opened + 1) as f64 / schedule.warmup_samples as f64) as f32;
    }
    let length = samples_total.saturating_sub(schedule.warmup_samples).max(1);
    let progress = ((samples_opened - schedule.warmup_samples) as f64 / length as f64).min(1.0);
    let floor = f64::from(schedule.final_fraction);
    (peak * (floor + (1.0 - floor) * 0.5 * (1.0 + cosine_of_half_turns(progress)))) as f32
}

/// cos(pi * x) for x in 0..=1, to about 1e-15: the Taylor series of the sine around the middle, where it converges fast.
fn cosine_of_half_turns(x: f64) -> f64 {
    let angle = std::f64::consts::PI * (0.5 - x);
    let mut term = angle;
    let mut sum = angle;
    for odd in (3..=23).step_by(2) {
        term *= -angle * angle / f64::from(odd * (odd - 1));
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: LearningRate = LearningRate {
        peak: 1.0,
        warmup_samples: 10,
        final_fraction: 0.1,
    };

    #[test]
    fn the_rate_warms_up_peaks_and_ends_at_its_final_fraction() {
        assert_eq!(learning_rate_at(&SCHEDULE, 0, 110), 0.1);
        assert_eq!(learning_rate_at(&SCHEDULE, 10, 110), 1.0);
        assert!((learning_rate_at(&SCHEDULE, 60, 110) - 0.55).abs() < 1e-6);
        assert!((learning_rate_at(&SCHEDULE, 110, 110) - 0.1).abs() < 1e-6);
        assert_eq!(
            learning_rate_at(&SCHEDULE, 110, 110),
            learning_rate_at(&SCHEDULE, 500, 110)
        );
    }

    #[test]
    fn a_run_that_is_all_warm_up_never_divides_by_zero() {
        assert_eq!(learning_rate_at(&SCHEDULE, 10, 10), 1.0);
        assert!(learning_rate_at(&SCHEDULE, 3, 5) > 0.0);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the platform's cosine is the oracle here"
    )]
    fn the_cosine_is_a_cosine() {
        for step in 0..=1000 {
            let x = f64::from(step) / 1000.0;
            assert!(
                (cosine_of_half_turns(x) - (std::f64::consts::PI * x).cos()).abs() < 1e-14,
                "{x}"
            );
        }
    }
}
