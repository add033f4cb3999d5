//! A whole network in one process or in child processes: for people, examples and tests.
//!
//! ```text
//!   TestnetSettings ──► run folder ──► orchestrator + embedded store (this process, loopback)
//!                                         ▲     ▲                       │
//!                        miners, validators (tasks, or child processes) │ statuses
//!                                                                       ▼
//!   report.json, summary ◄── evaluation on held-out text ◄── last checkpoint   view on the terminal
//! ```
//!
//! Everything that takes part is the real thing: the same crates, calls, signatures and grants as between machines.
//!
//! ```no_run
//! # async fn example() -> Result<(), iota_testnet::Error> {
//! use iota_node::Shutdown;
//! use iota_testnet::{Testnet, TestnetSettings, summary};
//!
//! let settings = TestnetSettings { out: "my-run".into(), ..TestnetSettings::default() };
//! let report = Testnet::new(settings)?.run(&Shutdown::new()).await?;
//! print!("{}", summary(&report));
//! # Ok(())
//! # }
//! ```
//!
//! It does *not* know how anything is decided, moved or computed; it starts those who do, and sums up.

pub mod folder;
mod peers;
pub mod report;
mod settings;
mod summary;
mod tolerances;
mod view;
mod whole;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use iota_node::Shutdown;
use iota_orchestrator::{
    Orchestrator, OrchestratorBuilder, Participants, Setup, SetupError, check_addresses,
};
use iota_protocol::State;
use tokio::sync::watch;
use tracing::info;

pub use report::Report;
pub use settings::{InvalidTestnet, TestnetSettings};
pub use summary::summary;
pub use tolerances::{Measured, Measurement, measure};
pub use view::show;

use folder::Memo;
use peers::{Kind, Peers, Recruit, recruits};
use report::Loss;
use whole::{HeldOut, Whole, last_checkpoints, train_baseline};

/// Why a testnet could not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings make no testnet.
    #[error(transparent)]
    Settings(#[from] InvalidTestnet),
    /// The run cannot be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The run folder, or something in it, cannot be written.
    #[error("cannot use {path}")]
    Folder {
        /// What cannot be used.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The folder holds something that is no run.
    #[error("{path} is not empty and holds no earlier run; name another folder with --out")]
    NotARunFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds no testnet that could be resumed.
    #[error("cannot resume from {path}: {problem}")]
    NotResumable {
        /// What was looked for.
        path: PathBuf,
        /// Why it does not do.
        problem: String,
    },
    /// A program that should lie beside this one cannot be started.
    #[error("cannot start {path}; build all programs first: cargo build --release --bins")]
    Program {
        /// The program.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The orchestrator failed.
    #[error(transparent)]
    Orchestrator(#[from] iota_orchestrator::Error),
    /// A miner or validator failed.
    #[error(transparent)]
    Peer(#[from] iota_miner::Error),
    /// A key cannot be written.
    #[error(transparent)]
    Key(#[from] iota_identity::KeyFileError),
    /// A checkpoint cannot be read back.
    #[error(transparent)]
    Trained(#[from] iota_trained::Error),
    /// A shard cannot be read back.
    #[error(transparent)]
    Store(#[from] iota_store::Error),
    /// The data cannot be read as it should.
    #[error(transparent)]
    Data(#[from] iota_data::Error),
    /// The run's description does not fit together.
    #[error(transparent)]
    Run(#[from] iota_run::Error),
    /// The model cannot be computed.
    #[error(transparent)]
    Compute(#[from] iota_compute::Error),
    /// Something that should be JSON is not.
    #[error("writing JSON")]
    Json(#[source] serde_json::Error),
    /// A task died; the message says of what.
    #[error("a task panicked: {0}")]
    Panicked(String),
    /// A model without stages.
    #[error("the model has no stages")]
    NoStages,
    /// Every miner and validator has ended, and the run is not over.
    #[error(
        "every miner and validator has ended before the run was over; `iota-orchestrator resume` starts them again"
    )]
    AllGone,
    /// Somebody asked it to stop before the run was over.
    #[error("interrupted before the run was over; `iota-orchestrator resume` goes on with it")]
    Interrupted,
}

/// A network that is about to run.
#[derive(Debug)]
pub struct Testnet {
    settings: TestnetSettings,
    origin: Origin,
    recruits: Vec<Recruit>,
    cores: usize,
}

/// Where its run comes from.
#[derive(Debug)]
enum Origin {
    New(Box<Setup>),
    Resumed { held_out_start: Option<f64> },
}

impl Testnet {
    /// Checks the settings and reads the corpus. Nothing has been written yet.
    ///
    /// # Errors
    /// [`Error::Settings`] and [`Error::Setup`] say which setting cannot be used and why.
    pub fn new(settings: TestnetSettings) -> Result<Self, Error> {
        settings.validate()?;
        let recruits = recruits(&settings);
        let validators = recruits
            .iter()
            .filter(|recruit| recruit.kind == Kind::Validator)
            .map(|recruit| recruit.keypair().peer_id())
            .collect();
        let participants = Participants {
            miners_to_start: settings.miners_per_stage,
            validators,
        };
        let setup = Setup::new(&settings.run_options(), participants)?;
        Ok(Self {
            settings,
            origin: Origin::New(Box::new(setup)),
            recruits,
            cores: iota_node::threads::available(),
        })
    }

    /// The testnet in a folder, whose process has ended before its run was over. The orchestrator goes on where it was, and
    /// so do the miners and validators that are processes and still there; the others are started again.
    ///
    /// # Errors
    /// [`Error::NotResumable`] if there is none.
    pub fn resume(folder: impl Into<PathBuf>) -> Result<Self, Error> {
        let out = folder.into();
        let Memo {
            settings,
            held_out_start,
        } = Memo::read(&out)?;
        let settings = TestnetSettings { out, ..settings };
        settings.validate()?;
        Ok(Self {
            recruits: recruits(&settings),
            origin: Origin::Resumed { held_out_start },
            settings,
            cores: iota_node::threads::available(),
        })
    }

    /// Runs the network until the run is over, and sums up. `report.json` is in the run folder then.
    ///
    /// # Errors
    /// Whatever keeps the run from its end; [`Error::Interrupted`] if `shutdown` was requested, after everybody has
    /// left in order.
    pub async fn run(self, shutdown: &Shutdown) -> Result<Report, Error> {
        let Self {
            settings,
            origin,
            recruits,
            cores,
        } = self;
        let (builder, held_out_start) = match origin {
            Origin::New(setup) => (prepare(*setup, &settings)?, None),
            Origin::Resumed { held_out_start } => {
                (Orchestrator::resume(&settings.out)?, held_out_start)
            }
        };
        let builder = builder.with_companion(folder::MEMO);
        let description = builder.description().clone();
        let held_out = builder.held_out().clone();
        // Not the caller's shutdown: when that one is asked to stop, peers leave first.
        let orchestrator = builder.start(&Shutdown::new()).await?;
        let held_out = HeldOut::load(&description, held_out, orchestrator.store()).await?;
        let (held_out, held_out_start) = match held_out_start {
            Some(loss) => (held_out, loss),
            None => evaluate(Whole::new(&description, 1, cores)?, held_out).await?,
        };
        let memo = Memo {
            settings: settings.clone(),
            held_out_start: Some(held_out_start),
        };
        memo.write(&settings.out)?;

        let mut peers = if settings.processes {
            Peers::start_processes(recruits, orchestrator.url(), &settings.out)?
        } else {
            Peers::start_tasks(recruits, orchestrator.url(), cores, shutdown)
        };
        folder::write_pids(&settings.out, &peers.pids())?;
        let viewing = tokio::spawn(show(
            orchestrator.status(),
            settings.training.samples_per_epoch,
        ));
        let ended = tokio::select! {
            () = run_over(orchestrator.state()) => Ok(()),
            // What failed is said by finish().
            () = orchestrator.broken() => Ok(()),
            () = shutdown.wait() => Err(Error::Interrupted),
            watched = peers.watch() => match watched {
                Ok(()) => over_or_deserted(orchestrator.state()).await,
                Err(error) => Err(error),
            },
        };
        let store = orchestrator.store().clone();
        let (finished, left) = if ended.is_err() {
            // Whoever can leaves in order; then the run waits to be resumed.
            let left = peers.join().await;
            orchestrator.suspend();
            (orchestrator.finish().await, left)
        } else {
            tokio::join!(orchestrator.finish(), peers.join())
        };
        let (state, course) = finished?;
        left?;
        viewing
            .await
            .map_err(|error| Error::Panicked(error.to_string()))?;
        ended?;

        info!("evaluating the last checkpoint");
        let checkpoints = last_checkpoints(&state);
        let whole = Whole::load(&description, &store, &checkpoints, cores).await?;
        let (held_out, held_out_end) = evaluate(whole, held_out).await?;
        let baseline = if settings.baseline {
            eprintln!("training the same model uncut in one process, for comparison");
            let samples = state.sample_counts().completed;
            let settings_of_run = state.settings().clone();
            let per_stage = settings.miners_per_stage;
            let trained = train_baseline(
                description,
                settings_of_run,
                per_stage,
                samples,
                cores,
                &store,
                held_out,
            )
            .await?;
            Some(trained)
        } else {
            None
        };
        let loss = Loss {
            train_start: course.loss_at_start(),
            train_end: course.loss_at_end(),
            held_out_start,
            held_out_end,
        };
        let report = Report::of(&state, loss, course.elapsed(), baseline);
        report.write(&settings.out)?;
        Ok(report)
    }
}

/// Makes room for a new run, and writes down what it takes to resume it.
fn prepare(setup: Setup, settings: &TestnetSettings) -> Result<OrchestratorBuilder, Error> {
    check_addresses(&[settings.listen, settings.store_listen])?;
    if let Some(earlier) = folder::prepare(&settings.out)? {
        eprintln!(
            "the earlier run in {} is now in {}",
            settings.out.display(),
            earlier.display()
        );
    }
    eprintln!(
        "{} parameters in {} stages, {} miners each, {} validator(s); {} training tokens; run folder {}",
        view::thousands(setup.settings().stage_parameters.iter().sum()),
        settings.stages,
        settings.miners_per_stage,
        settings.validators,
        view::thousands(setup.description().data.tokens),
        settings.out.display(),
    );
    let memo = Memo {
        settings: settings.clone(),
        held_out_start: None,
    };
    memo.write(&settings.out)?;
    let builder = Orchestrator::builder(setup, &settings.out)
        .with_listen(settings.listen)
        .with_store_listen(settings.store_listen);
    Ok(match settings.store_url()? {
        Some(url) => builder.with_store_url(url),
        None => builder,
    })
}

async fn evaluate(mut whole: Whole, held_out: HeldOut) -> Result<(HeldOut, f64), Error> {
    tokio::task::spawn_blocking(move || {
        let loss = whole.evaluate(&held_out)?;
        Ok((held_out, loss))
    })
    .await
    .map_err(|error| Error::Panicked(error.to_string()))?
}

/// Everybody has ended, perhaps because the run is over: peers hear of that before the next copy of the state is made.
async fn over_or_deserted(state: watch::Receiver<Arc<State>>) -> Result<(), Error> {
    let over = tokio::time::timeout(NEXT_COPY, run_over(state)).await;
    over.map_err(|_| Error::AllGone)
}

/// Longer than it takes until there is a copy of the state of now.
const NEXT_COPY: Duration = Duration::from_secs(2);

async fn run_over(mut state: watch::Receiver<Arc<State>>) {
    // An error means that the orchestrator is gone, and the run with it.
    drop(state.wait_for(|state| state.is_over()).await);
}
