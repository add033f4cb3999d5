//! The learning rate over a run.
//!
//! ```text
//! peak        ______________
//!            /              |\  |\
//!           /               | \ | \ |\  __
//!          /                |  \|  \| \|  \
//!         /                                 \___
//!
//!         warm-up   constant   decay       tail
//! ```
//!
//! The decay is half a cosine, or, as drawn, a saw of many under one.

use crate::settings::{Decay, LearningRate};

/// The learning rate once `samples_opened` of `samples_total` samples have been opened: warm-up, constant, decay and
/// tail, as [`LearningRate`] has them. If the run is too short for all, the decay goes first, then the tail.
///
/// Only additions, multiplications and divisions of f64 are used, so that every platform gives the same bits (P4).
pub fn learning_rate_at(schedule: &LearningRate, samples_opened: u64, samples_total: u64) -> f32 {
    let peak = f64::from(schedule.peak);
    if samples_opened < schedule.warmup_samples {
        return (peak * (samples_opened + 1) as f64 / schedule.warmup_samples as f64) as f32;
    }
    let decay_start = schedule
        .warmup_samples
        .saturating_add(schedule.constant_samples);
    if samples_opened < decay_start {
        return schedule.peak;
    }
    let tail_start = samples_total
        .saturating_sub(schedule.tail_samples)
        .max(decay_start);
    let floor = f64::from(schedule.final_fraction);
    if schedule.tail_samples > 0 && samples_opened >= tail_start {
        let length = samples_total.saturating_sub(tail_start);
        let progress = fraction(samples_opened - tail_start, length);
        // The cosine's last bit may fall below -1.
        return (peak * floor * half_cosine(progress).max(0.0)) as f32;
    }
    let into = samples_opened - decay_start;
    let large = fall_to(floor, fraction(into, tail_start - decay_start));
    let small = match schedule.decay {
        Decay::Cosine => 1.0,
        Decay::Saw {
            tooth_samples,
            tooth_fraction,
        } => {
            let tooth = tooth_samples.max(1);
            fall_to(f64::from(tooth_fraction), fraction(into % tooth, tooth))
        }
    };
    (peak * large * small) as f32
}

/// How far `part` of `whole` is, from 0 to 1.
fn fraction(part: u64, whole: u64) -> f64 {
    (part as f64 / whole.max(1) as f64).min(1.0)
}

/// From 1 to `floor` along half a cosine.
fn fall_to(floor: f64, progress: f64) -> f64 {
    floor + (1.0 - floor) * half_cosine(progress)
}

/// From 1 to 0.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + cosine_of_half_turns(progress))
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

    const COSINE: LearningRate = LearningRate::cosine(1.0, 10, 0.1);

    /// IOTA's settings: a run of 100,000 steps.
    const PUBLISHED: LearningRate = LearningRate {
        peak: 2e-4,
        warmup_samples: 1,
        constant_samples: 500,
        decay: Decay::Saw {
            tooth_samples: 1_000,
            tooth_fraction: 0.1,
        },
        final_fraction: 0.1,
        tail_samples: 2_000,
    };

    #[track_caller]
    fn check(schedule: &LearningRate, total: u64, expected: &[(u64, f32)]) {
        for &(opened, expected) in expected {
            let actual = learning_rate_at(schedule, opened, total);
            assert!(
                (actual - expected).abs() <= 5e-3 * expected.max(1e-3 * schedule.peak),
                "{actual} instead of {expected} at {opened} of {total}"
            );
        }
    }

    #[test]
    fn the_rate_warms_up_peaks_and_ends_at_its_final_fraction() {
        assert_eq!(learning_rate_at(&COSINE, 0, 110), 0.1);
        assert_eq!(learning_rate_at(&COSINE, 10, 110), 1.0);
        assert!((learning_rate_at(&COSINE, 60, 110) - 0.55).abs() < 1e-6);
        assert!((learning_rate_at(&COSINE, 110, 110) - 0.1).abs() < 1e-6);
        assert_eq!(
            learning_rate_at(&COSINE, 110, 110),
            learning_rate_at(&COSINE, 500, 110)
        );
    }

    #[test]
    fn a_run_without_further_phases_has_the_bits_of_the_plain_formula() {
        let (peak, floor) = (f64::from(1e-3_f32), f64::from(0.1_f32));
        let schedule = LearningRate::cosine(1e-3, 20, 0.1);
        for opened in 20..1_100 {
            let progress = ((opened - 20) as f64 / 980.0).min(1.0);
            let cosine = cosine_of_half_turns(progress);
            let expected = (peak * (floor + (1.0 - floor) * 0.5 * (1.0 + cosine))) as f32;
            assert_eq!(learning_rate_at(&schedule, opened, 1_000), expected);
        }
    }

    /// Values of the published schedulers, as executed.
    #[test]
    fn the_published_schedule_has_its_published_values() {
        check(
            &PUBLISHED,
            100_000,
            &[
                (0, 2e-4),
                (1, 2e-4),
                (250, 2e-4),
                (501, 2e-4),
                (1_000, 1.10e-4),
                (1_500, 2e-5),
                (1_501, 2e-4),
                (97_500, 2e-6),
                (98_000, 2e-5),
                (99_000, 1e-5),
                (100_000, 0.0),
            ],
        );
        let lowest = (0..98_000)
            .map(|opened| learning_rate_at(&PUBLISHED, opened, 100_000))
            .fold(f32::INFINITY, f32::min);
        assert!((lowest - 2e-6).abs() < 1e-8, "{lowest}");
    }

    #[test]
    fn every_tooth_begins_on_the_cosine_above_the_saw() {
        let cosine = LearningRate {
            decay: Decay::Cosine,
            ..PUBLISHED
        };
        for opened in 501..98_000 {
            let (saw, above) = (
                learning_rate_at(&PUBLISHED, opened, 100_000),
                learning_rate_at(&cosine, opened, 100_000),
            );
            assert!(saw <= above && saw >= 0.0999 * above, "at {opened}");
            assert_eq!((opened - 501) % 1_000 == 0, saw == above, "at {opened}");
        }
    }

    #[test]
    fn a_run_that_is_too_short_for_its_phases_never_divides_by_zero() {
        assert_eq!(learning_rate_at(&COSINE, 10, 10), 1.0);
        assert!(learning_rate_at(&COSINE, 3, 5) > 0.0);
        for total in [1, 400, 501, 502, 1_500, 2_501, 2_502] {
            for opened in 0..total + 600 {
                let rate = learning_rate_at(&PUBLISHED, opened, total);
                assert!(
                    (0.0..=2e-4).contains(&rate),
                    "{rate} at {opened} of {total}"
                );
            }
        }
        check(
            &PUBLISHED,
            1_501,
            &[(500, 2e-4), (501, 2e-5), (1_001, 1e-5), (1_501, 0.0)],
        );
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
