//! What audits of a run may tolerate, measured: the run's own training, on a device and on this machine's CPU beside it.

use std::fmt::Write as _;

use iota_data::Shard;
use iota_model::Precision;
use iota_orchestrator::{AuditOptions, Participants, Setup};
use iota_peer::drift::{Course, Drift, Quantity};
use iota_peer::{Device, Distance, measure_drift, tolerances};
use iota_protocol::SampleId;
use iota_run::Tolerances;

use crate::{Error, TestnetSettings};

/// What is measured, beside the run's settings.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// On what the miner computes; the validator computes on the CPU, in the run's precision.
    pub device: Device,
    /// In what the miner computes.
    pub precision: Precision,
    /// Optimizer steps that an audit may have to redo.
    pub steps: u64,
    /// Epochs of so many steps that are measured, one after the other from the beginning of training: the worst counts.
    pub epochs: u64,
    /// How many times as far as was measured an honest miner may be off.
    pub margin: f64,
    /// Threads that one operation uses.
    pub threads: usize,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// For each epoch.
    pub courses: Vec<Vec<Drift>>,
    /// For the run's settings.
    pub tolerances: Vec<Tolerances>,
}

/// Nobody takes part: no run begins.
const ALONE: Participants = Participants {
    miners_to_start: 1,
    validators: Vec::new(),
};

/// Trains the run's model, without a network, as the settings say: a device beside the CPU.
///
/// # Errors
/// If the settings make no run, the device has no room, or training blows up.
pub fn measure(settings: &TestnetSettings, measurement: &Measurement) -> Result<Measured, Error> {
    let mut options = settings.run_options();
    // They are what is to be found out.
    options.audits = AuditOptions::default();
    let setup = Setup::new(&options, ALONE)?;
    let description = setup.description();
    let sampler = description.sampler().map_err(Error::Run)?;
    let entries = description.data.shards.iter().zip(setup.shards());
    let shards = entries
        .map(|(entry, (_, bytes))| entry.open(bytes))
        .collect::<Result<Vec<Shard>, _>>()?;
    let mut read = |sample| {
        let slice = sampler.slice(SampleId::new(sample));
        slice
            .read(&shards[slice.shard])
            .map(|batch| (batch.inputs, batch.targets))
            .expect("the sampler keeps within the shards that the description lists")
    };
    let training = &settings.training;
    let miners = u64::from(settings.miners_per_stage.max(1));
    // A miner takes one of so many samples of its stage, so for it the learning rate rises so much faster.
    let warmup_steps =
        training.warmup_samples / miners / u64::from(training.backwards_per_step.max(1));
    let courses = (0..measurement.epochs)
        .map(|epoch| {
            let course = Course {
                before: epoch * measurement.steps,
                steps: measurement.steps,
                backwards_per_step: training.backwards_per_step,
                learning_rate: training.learning_rate as f32,
                warmup_steps,
                cells: match settings.merging.cells {
                    0 => (miners * (miners - 1) / 2).max(1) as usize,
                    cells => cells as usize,
                },
            };
            let doer = (&measurement.device, measurement.precision);
            measure_drift(description, &mut read, doer, course, measurement.threads)
                .map_err(Error::Peer)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Measured {
        tolerances: tolerances(&courses, measurement.margin),
        courses,
    })
}

impl Measured {
    /// The worst of each quantity by steps, as a table of Markdown.
    pub fn table(&self) -> String {
        let mut table = String::from(
            "| steps | activation | gradient | loss | change | first moment | second moment |\n\
             |---|---|---|---|---|---|---|\n",
        );
        let all: Vec<&Drift> = self.courses.iter().flatten().collect();
        let last = all.iter().map(|drift| drift.steps).max().unwrap_or(0);
        let powers = std::iter::successors(Some(1_u64), |steps| Some(2 * steps));
        for steps in powers.take_while(|steps| *steps <= last) {
            write!(table, "| {steps} |").expect("a string takes everything");
            for quantity in Quantity::ALL {
                let seen = all.iter().filter(|drift| drift.quantity == quantity);
                let Distance {
                    relative,
                    row,
                    scale,
                } = seen
                    .filter(|drift| drift.steps <= steps)
                    .fold(Distance::default(), |worst, drift| {
                        worst.max(drift.distance)
                    });
                let cell = match quantity {
                    Quantity::Loss => format!(" {relative:.0e} |"),
                    _ => format!(" {relative:.0e}, {row:.0e}, {scale:.0e} |"),
                };
                table.push_str(&cell);
            }
            table.push('\n');
        }
        table
    }

    /// What an operator puts into a run's settings.
    ///
    /// # Errors
    /// Never in practice: every number can be written.
    pub fn settings(&self) -> Result<String, toml::ser::Error> {
        #[derive(serde::Serialize)]
        struct Audits<'a> {
            comparison: &'a str,
            tolerances: &'a [Tolerances],
        }
        #[derive(serde::Serialize)]
        struct Settings<'a> {
            audits: Audits<'a>,
        }
        let tolerances = &self.tolerances;
        let comparison = "close";
        toml::to_string(&Settings {
            audits: Audits {
                comparison,
                tolerances,
            },
        })
    }
}
