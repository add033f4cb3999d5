//! When a run stops to see how far it has come.

/// Points of a curve.
const CURVE_POINTS: u64 = 12;
/// Held-out batches behind a point of the curve, and behind the result.
pub(crate) const CURVE_BATCHES: usize = 16;
pub(crate) const RESULT_BATCHES: usize = 96;

/// Whether the curve has a point after so many steps: they are spread evenly, the last at the end.
pub(crate) const fn is_a_point(done: u64, steps: u64) -> bool {
    done * CURVE_POINTS / steps > (done - 1) * CURVE_POINTS / steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_ends_with_the_run() {
        for steps in [1, 11, 12, 13, 1000] {
            let points = (1..=steps).filter(|done| is_a_point(*done, steps)).count();
            assert_eq!(points as u64, CURVE_POINTS.min(steps), "{steps} steps");
            assert!(is_a_point(steps, steps));
        }
    }
}
