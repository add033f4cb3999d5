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
    let measured_to = courses
        .iter()
        .filter_map(|course| course.iter().map(|drift| drift.steps).max())
        .min()
        .unwrap_or(0);
    let mut table = Vec::new();
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
