//! How far a device is from this machine's CPU in a run's work: what the run's tolerances are made of.

pub use iota_compute::drift::{Course, Drift, Quantity, Samples};
use iota_compute::{Backend, Cpu, Distance, Stage, drift};
#[cfg(feature = "cuda")]
use iota_cuda::Cuda;
use iota_model::Precision;
use iota_protocol::event::{Direction, Piece};
use iota_protocol::{SampleId, StageIndex};
use iota_run::{Comparison, Description, Tolerance, Tolerances};

use crate::engine::stage_options;
use crate::{Device, Error};

/// Trains all stages of a run on a device, as miners would, while this machine's CPU checks each pass, as a validator
/// would, and says how far they are apart, after each step, in everything that audits compare. The CPU computes in the
/// run's precision; `precision` is the device's.
///
/// `samples`: tokens and targets of a sample of the run, by its number. All stages are in memory, twice.
///
/// # Errors
/// If the description's model cannot be built, the device has no room for it, or training blows up.
pub fn measure_drift(
    description: &Description,
    samples: &mut Samples<'_>,
    (device, precision): (&Device, Precision),
    course: Course,
    threads: usize,
) -> Result<Vec<Drift>, Error> {
    let cpu = |precision| Ok(Cpu::new(threads)?.with_precision(precision));
    let mut checker = stages(description, cpu)?;
    let other = Description {
        precision,
        ..description.clone()
    };
    let mut wire = |quantity, stage: usize, sample, values: Vec<f32>| {
        let direction = match quantity {
            Quantity::Gradient => Direction::Backward,
            _ => Direction::Forward,
        };
        travelled(description, direction, stage, sample, values)
    };
    match device {
        Device::Cpu => {
            let mut doer = stages(&other, cpu)?;
            Ok(drift(&mut checker, &mut doer, course, samples, &mut wire)?)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(card) => {
            let mut doer = stages(&other, |precision| Ok(Cuda::on(card.clone(), precision)))?;
            Ok(drift(&mut checker, &mut doer, course, samples, &mut wire)?)
        }
    }
}

/// All stages of the run, with its initial weights, each on a device of its own.
fn stages<B: Backend>(
    description: &Description,
    device: impl Fn(Precision) -> iota_compute::Result<B>,
) -> Result<Vec<Stage<B>>, Error> {
    let plan = description.plan()?;
    let options = stage_options(description, 1);
    (0..description.stages())
        .map(|index| {
            let stage = Stage::on(
                device(description.precision)?,
                &plan,
                index,
                options.optimizer,
            )?;
            let mut stage = stage.with_recompute(options.recompute);
            stage.initialise(description.seed)?;
            Ok(stage)
        })
        .collect()
}

/// What arrives of a tensor that a stage sends. One that cannot be sent arrives as it is: whoever reads it says why.
fn travelled(
    description: &Description,
    direction: Direction,
    stage: usize,
    sample: u64,
    values: Vec<f32>,
) -> Vec<f32> {
    let stage = StageIndex::new(u16::try_from(stage).expect("a model has fewer stages"));
    let piece = Piece { stage, direction };
    let sent = description.encode_boundary(SampleId::new(sample), piece, &values);
    let arrived = sent.and_then(|object| description.decode_boundary(direction, &object));
    arrived.unwrap_or(values)
}

/// Whether a tensor that is so far from ours may be an honest miner's.
pub fn is_within(distance: Distance, tolerance: &Tolerance) -> bool {
    distance.relative <= tolerance.relative
        && distance.row <= tolerance.row
        && distance.scale <= tolerance.scale
}

/// What a run may tolerate where this was measured: `margin` times the worst that was seen with as many steps or fewer, up
/// to no step, one, 2, 4 and so on. Ends before so much would have to be tolerated that nobody could be found.
///
/// Rounding has no direction, so what was measured of `scale` is small by chance: at least a tenth of what is tolerated
/// in all is tolerated of it, too.
pub fn tolerances(courses: &[Vec<Drift>], margin: f64) -> Vec<Tolerances> {
    let ends = courses
        .iter()
        .filter_map(|course| course.iter().map(|drift| drift.steps).max());
    let mut table = Vec::new();
    let Some(measured_to) = ends.min() else {
        return table;
    };
    let powers = std::iter::successors(Some(1_u64), |steps| Some(2 * steps));
    let numbers = std::iter::once(0).chain(powers);
    for steps in numbers.take_while(|steps| *steps <= measured_to) {
        let worst = |quantity| {
            let seen = courses.iter().flatten();
            seen.filter(|drift| drift.quantity == quantity && drift.steps <= steps)
                .fold(Distance::default(), |worst, drift| {
                    worst.max(drift.distance)
                })
        };
        let tolerance = |quantity| {
            let Distance {
                relative,
                row,
                scale,
            } = worst(quantity);
            let relative = two_digits((margin * relative).max(ROUNDING));
            Tolerance {
                relative,
                row: two_digits((margin * row).max(ROUNDING)),
                scale: two_digits((margin * scale).max(0.1 * relative)),
            }
        };
        let row = Tolerances {
            steps,
            activation: tolerance(Quantity::Activation),
            gradient: tolerance(Quantity::Gradient),
            loss: tolerance(Quantity::Loss).relative,
            change: tolerance(Quantity::Change),
            first_moment: tolerance(Quantity::FirstMoment),
            second_moment: tolerance(Quantity::SecondMoment),
        };
        table.push(row);
        let is_of_use = |tolerances: &[Tolerances]| {
            let tolerances = tolerances.to_vec();
            Comparison::Close { tolerances }.validate().is_ok()
        };
        if !is_of_use(&table) {
            table.pop();
            break;
        }
    }
    table
}

/// A few roundings of an f32.
const ROUNDING: f64 = 1e-6;

/// Rounded up: nobody measures more.
fn two_digits(number: f64) -> f64 {
    let unit = 10_f64.powf(number.log10().floor() - 1.0);
    let rounded = (number / unit).ceil() * unit;
    // What is written as two digits is read as just that.
    format!("{rounded:.1e}").parse().unwrap_or(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(steps: u64, relative: impl Fn(u64) -> f64) -> Vec<Drift> {
        let at = |steps| {
            Quantity::ALL.map(|quantity| Drift {
                quantity,
                steps,
                distance: Distance {
                    relative: relative(steps),
                    row: 2.0 * relative(steps),
                    scale: 1e-9,
                },
            })
        };
        (0..=steps).flat_map(at).collect()
    }

    #[test]
    fn what_is_tolerated_is_a_multiple_of_the_worst_with_as_many_steps_or_fewer() {
        let courses = [
            course(9, |_| 0.001),
            course(9, |steps| 0.002 + 0.0111 * (steps / 3) as f64),
        ];
        let table = tolerances(&courses, 4.0);
        let steps: Vec<u64> = table.iter().map(|row| row.steps).collect();
        assert_eq!(steps, [0, 1, 2, 4, 8]);
        let relative: Vec<f64> = table.iter().map(|row| row.gradient.relative).collect();
        assert_eq!(relative, [0.008, 0.008, 0.008, 0.053, 0.097]);
        // What was measured of it is chance.
        assert_eq!(table[0].gradient.scale, 0.0008);
        assert_eq!(table[4].loss, 0.097);
    }

    #[test]
    fn the_table_ends_where_nobody_could_be_found_any_more() {
        let doubling = course(16, |steps| 0.01 * 1.5_f64.powi(steps as i32));
        let table = tolerances(&[doubling], 4.0);
        assert_eq!(table.last().map(|row| row.steps), Some(4));
        assert!(tolerances(&[course(16, |_| 0.2)], 4.0).is_empty());
        assert!(tolerances(&[], 4.0).is_empty());
    }

    #[test]
    fn each_of_the_three_numbers_has_to_hold() {
        let tolerance = Tolerance {
            relative: 0.1,
            row: 0.2,
            scale: 0.01,
        };
        let distance = |relative, row, scale| Distance {
            relative,
            row,
            scale,
        };
        assert!(is_within(distance(0.1, 0.2, 0.01), &tolerance));
        for far in [
            distance(0.11, 0.0, 0.0),
            distance(0.0, 0.21, 0.0),
            distance(0.0, 0.0, 0.011),
        ] {
            assert!(!is_within(far, &tolerance), "{far:?}");
        }
        assert!(!is_within(distance(f64::NAN, 0.0, 0.0), &tolerance));
    }
}
