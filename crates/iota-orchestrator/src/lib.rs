//! The orchestrator as a library: the rules of a run behind a gRPC service, a journal and a store.
//!
//! ```text
//!                         signed calls                 presigned requests
//!   miners, validators ────────────────┐        ┌──────────────────────── miners, validators
//!                                      ▼        ▼
//!                                 iota-wire   iota-store::server (or any S3)
//!                                      │        │
//!                                     api       │ folder
//!                                      ▼        │
//!                   timer ──────►   owner ──────┼──► journal
//!                              (iota-protocol)  │
//!                                      │        ▼
//!                                      └──► keeper: metrics, manifests, backups, retention
//! ```
//!
//! One task owns the state; everybody else sends it commands. What it has decided is written to the
//! [`Journal`](iota_journal::Journal) before anybody is told, so that a run whose process died
//! [goes on](Orchestrator::resume) as if it had only been slow.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use iota_node::Shutdown;
//! use iota_orchestrator::{Orchestrator, Participants, RunOptions, Setup};
//!
//! let participants = Participants { miners_to_start: 1, validators: vec![] };
//! let setup = Setup::new(&RunOptions::default(), participants)?;
//! let orchestrator = Orchestrator::builder(setup, "my-run").start(&Shutdown::new()).await?;
//! println!("miners may call {}", orchestrator.url());
//! let (state, course) = orchestrator.finish().await?;
//! println!("{} samples, loss {:.3}", state.sample_counts().completed, course.loss_at_end());
//! # Ok(())
//! # }
//! ```
//!
//! | module | concern |
//! |---|---|
//! | `options`, `setup` | from what an operator wants to what the rules, the peers and the store are given |
//! | `start` | from a setup, or from the folder of a run that goes on, to a run that is served |
//! | `sockets` | what a run is reached by |
//! | `run_file` | what a run folder holds so that the run can be resumed |
//! | `owner`, `parked` | the task that owns the state, and polls that wait for work |
//! | `api` | what peers can call, as commands |
//! | `grants` | the presigned requests that go with a lease |
//! | `writer` | the task that writes the journal |
//! | `keeper`, `course` | metrics, manifests, retention; the run in a few numbers |
//! | `backup`, `restore` | what it takes to go on with the run, in the store; and back into a folder |
//! | `status` | how the run is doing, for people who watch |
//! | `history` | a run's past from its folder: whether its accounts add up, what happened and why |
//!
//! It does *not* know what a tensor is: sizes come in with the [`Setup`]. It takes no decision of a run (those are
//! `iota-protocol`'s) and never links the compute engine.

mod api;
mod backup;
mod course;
mod error;
mod grants;
mod history;
mod keeper;
mod options;
mod owner;
mod parked;
mod restore;
mod run_file;
mod setup;
mod sockets;
mod start;
mod status;
#[cfg(test)]
mod testing;
mod writer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iota_node::shutdown::Shutdown;
use iota_protocol::{Command, State};
use iota_store::Store;
use iota_store::server::S3Server;
use iota_wire::RunStatus;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

pub use course::Course;
pub use error::Error;
pub use history::{Finding, History, LedgerAudit, Story};
pub use iota_run::{Codec, OptimizerState, Wire};
pub use iota_tls::{CertificateFiles, Error as TlsError, ServerCertificate};
pub use options::{
    AuditOptions, BoundaryChoice, CodecName, ComparisonName, CutError, CutOptions, CutRule, Cuts,
    DeltaChoice, MergingOptions, ModelOptions, MuonOptions, NAdamOptions, OpensChoice,
    OptimizerName, OuterName, RegistrationOptions, RuleName, RunOptions, TimingOptions,
    TrainingOptions,
};
pub use restore::{LeftStore, RestoreOptions, Restored};
pub use run_file::JOURNAL;
pub use setup::{Participants, Setup, SetupError};
pub use start::OrchestratorBuilder;
pub use status::StatusTracker;

use owner::OwnerHandle;

/// A run that is being served.
#[derive(Debug)]
pub struct Orchestrator {
    url: String,
    run: iota_protocol::RunId,
    owner: OwnerHandle,
    state: watch::Receiver<Arc<State>>,
    status: watch::Receiver<RunStatus>,
    store: Store,
    shutdown: Shutdown,
    serving: JoinHandle<Result<(), Error>>,
    owning: JoinHandle<Result<(), Error>>,
    keeping: JoinHandle<Result<Course, Error>>,
    store_server: Option<S3Server>,
    broken: Shutdown,
}

impl Orchestrator {
    /// Where peers call.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The run.
    pub const fn run(&self) -> iota_protocol::RunId {
        self.run
    }

    /// The run's state, copied a few times a second.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// How the run is doing, several times a second.
    pub fn status(&self) -> watch::Receiver<RunStatus> {
        self.status.clone()
    }

    /// All objects of the run.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Waits until something that the run cannot do without has failed; [`finish`](Self::finish) then says what.
    pub fn broken(&self) -> impl Future<Output = ()> + Send + use<> {
        self.broken.wait()
    }

    /// Ends the run: nothing new begins, peers are told that it is over.
    pub async fn stop(&self) {
        // If the owner is gone the run has ended already.
        if let Ok(Err(rejection)) = self.owner.command(Command::Stop).await {
            info!(code = rejection.code(), "the run was over already");
        }
    }

    /// Stops serving, and leaves the run as it is: [`finish`](Self::finish) returns soon, and whoever
    /// [resumes](Self::resume) the run goes on with it.
    pub fn suspend(&self) {
        self.shutdown.request();
    }

    /// Waits until the run is over or suspended, then shuts down what serves it; returns the last state and how the run
    /// went.
    ///
    /// # Errors
    /// If serving, the journal, the store or the metrics failed; the run ended with it.
    pub async fn finish(mut self) -> Result<(Arc<State>, Course), Error> {
        let (mut failed, mut kept) = (Ok(()), None);
        let suspended = self.shutdown.wait();
        tokio::select! {
            // First: once it is suspended, the others end too.
            biased;
            () = suspended => {}
            () = run_over(self.state.clone()) => {
                // Peers learn from their next poll that the run is over; those that are gone cannot hold us up.
                tokio::time::sleep(FAREWELL).await;
            }
            result = &mut self.serving => failed = flatten(result),
            result = &mut self.keeping => kept = Some(flatten(result)),
        }
        let last = Arc::clone(&self.state.borrow());
        self.shutdown.request();
        if failed.is_ok() && kept.is_none() {
            // Strangers may hold connections open; they cannot hold us up.
            match tokio::time::timeout(LAST_ANSWERS, &mut self.serving).await {
                Ok(served) => failed = flatten(served),
                Err(_) => self.serving.abort(),
            }
        }
        drop(self.owner);
        failed = failed.and(flatten(self.owning.await));
        let course = match kept {
            Some(course) => course,
            None => flatten(self.keeping.await),
        };
        if let Some(server) = self.store_server {
            server.shutdown(FAREWELL).await;
        }
        failed?;
        Ok((last, course?))
    }
}

/// How long the end of a run waits for its peers to hear of it.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long calls under way may take after that.
const LAST_ANSWERS: Duration = Duration::from_secs(3);

/// Waits until the run is over, or its owner gone: that one's own result says why.
async fn run_over(mut state: watch::Receiver<Arc<State>>) {
    drop(state.wait_for(|state| state.is_over()).await);
}

/// Finds out whether addresses can be listened on, before anything is written.
///
/// # Errors
/// [`Error::Listen`] names the first that is taken or not ours.
pub fn check_addresses(addresses: &[SocketAddr]) -> Result<(), Error> {
    for &address in addresses {
        std::net::TcpListener::bind(address).map_err(|source| Error::Listen { address, source })?;
    }
    Ok(())
}

fn flatten<T>(result: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    result.unwrap_or_else(|error| {
        warn!(%error, "a task ended early");
        Err(Error::Panicked(error.to_string()))
    })
}
