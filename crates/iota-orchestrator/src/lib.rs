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
//!                                      └──► keeper: metrics, manifests, retention
//! ```
//!
//! One task owns the state; everybody else sends it commands. What it has decided is written to the [`Journal`] before
//! anybody is told.
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
//! | `owner` | the task that owns the state, and polls that wait for work |
//! | `api` | what peers can call, as commands |
//! | `grants` | the presigned requests that go with a lease |
//! | `journal` | where events go before anybody is told |
//! | `keeper`, `course` | metrics, manifests, retention; the run in a few numbers |
//! | `status` | how the run is doing, for people who watch |
//!
//! It does *not* know what a tensor is: sizes come in with the [`Setup`]. It takes no decision of a run (those are
//! `iota-protocol`'s) and never links the compute engine.

mod api;
mod course;
mod grants;
mod journal;
mod keeper;
mod options;
mod owner;
mod setup;
mod status;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use iota_identity::Keypair;
use iota_node::clock::{Clock, SystemClock};
use iota_node::shutdown::Shutdown;
use iota_protocol::{Command, State, Timestamp};
use iota_store::server::{S3Server, ServerSettings};
use iota_store::{Credentials, Store};
use iota_wire::{AuthSettings, Authenticator, RunInfo, RunStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};
use url::Url;

pub use course::Course;
pub use iota_run::{Codec, Wire};
pub use journal::{Journal, NoJournal, Record};
pub use options::{
    BoundaryChoice, ModelOptions, MuonOptions, NAdamOptions, OptimizerName, RunOptions,
    TimingOptions, TrainingOptions,
};
pub use setup::{Participants, Setup, SetupError};
pub use status::StatusTracker;

use api::Api;
use grants::Granter;
use keeper::Keeper;
use owner::{Owner, OwnerHandle};

/// Batches of events that the keeper may lag behind. When it is full the owner waits: what cannot be kept in time slows
/// the run down rather than filling memory.
const KEEPER_LAG: usize = 4096;

/// Trouble of the orchestrator's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run folder cannot be used.
    #[error("cannot write {path}")]
    Folder {
        /// What could not be written.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The address for calls cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] iota_store::Error),
    /// The run cannot be set up like this.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Something that should be JSON is not.
    #[error("writing JSON")]
    Json(#[source] serde_json::Error),
    /// The service for calls failed.
    #[error("serving calls: {0}")]
    Serve(String),
    /// A task died; the message says of what.
    #[error("a task of the orchestrator panicked: {0}")]
    Panicked(String),
}

/// Builds an [`Orchestrator`].
#[derive(Debug)]
pub struct OrchestratorBuilder {
    setup: Setup,
    folder: PathBuf,
    listen: SocketAddr,
    store_listen: SocketAddr,
    store_url: Option<Url>,
    keypair: Option<Keypair>,
    journal: Box<dyn Journal>,
    clock: Arc<dyn Clock>,
}

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
    store_server: S3Server,
    broken: Shutdown,
}

impl Orchestrator {
    /// An orchestrator of this run that keeps everything in `folder`. It listens on loopback, on ports that are free.
    pub fn builder(setup: Setup, folder: impl Into<PathBuf>) -> OrchestratorBuilder {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        OrchestratorBuilder {
            setup,
            folder: folder.into(),
            listen: loopback,
            store_listen: loopback,
            store_url: None,
            keypair: None,
            journal: Box::new(NoJournal),
            clock: Arc::new(SystemClock::new()),
        }
    }

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

    /// Waits until the run is over, then shuts down what serves it; returns the last state and how the run went.
    ///
    /// # Errors
    /// If serving, the journal, the store or the metrics failed; the run ended with it.
    pub async fn finish(mut self) -> Result<(Arc<State>, Course), Error> {
        let (mut failed, mut kept) = (Ok(()), None);
        tokio::select! {
            // An error means that the owner is gone; its own result says why.
            _ = self.state.wait_for(|state| state.is_over()) => {
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
        self.store_server.shutdown(FAREWELL).await;
        failed?;
        Ok((last, course?))
    }
}

/// How long the end of a run waits for its peers to hear of it.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long calls under way may take after that.
const LAST_ANSWERS: Duration = Duration::from_secs(3);

impl OrchestratorBuilder {
    /// Where to listen for calls; port 0 takes a free one.
    #[must_use]
    pub const fn with_listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Where the embedded store listens; port 0 takes a free one.
    #[must_use]
    pub const fn with_store_listen(mut self, address: SocketAddr) -> Self {
        self.store_listen = address;
        self
    }

    /// Under which URL peers reach the embedded store, if not at the address where it listens: by the machine's name, or
    /// through a proxy.
    #[must_use]
    pub fn with_store_url(mut self, url: Url) -> Self {
        self.store_url = Some(url);
        self
    }

    /// Who the orchestrator is: the audience of signed calls. Without one it makes a key that it forgets.
    #[must_use]
    pub fn with_keypair(mut self, keypair: Keypair) -> Self {
        self.keypair = Some(keypair);
        self
    }

    /// Where events go before anybody is told of them.
    #[must_use]
    pub fn with_journal(mut self, journal: impl Journal + 'static) -> Self {
        self.journal = Box::new(journal);
        self
    }

    /// Another clock than the system's.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Writes the data to the store, starts the store, the rules and the service.
    ///
    /// # Errors
    /// If the folder, an address or the setup cannot be used; nothing is left running then.
    pub async fn start(self, shutdown: &Shutdown) -> Result<Orchestrator, Error> {
        let shutdown = shutdown.child();
        let settings = self.setup.settings().clone();
        let run = settings.run;
        // The run's own secret: whoever reads the folder can do without the store's credentials anyway.
        let credentials = Credentials::new("iota", hex(&settings.secret));
        let store_root = self.folder.join("store");
        let store_server = S3Server::bind(
            self.store_listen,
            store_root,
            credentials,
            ServerSettings::default(),
        )
        .await?;
        let store = store_server.store()?;
        let description = self.setup.publish(&store).await?;
        let signer = match &self.store_url {
            Some(url) => store_server.grants_at(url)?,
            None => store_server.grants(),
        };
        let granter =
            Granter::new(settings.clone(), &description, signer).map_err(SetupError::from)?;

        let hold_max = settings.timing.session_timeout / 3;
        let state = State::new(settings, self.clock.now()).map_err(SetupError::from)?;
        let (followers, batches) = mpsc::channel(KEEPER_LAG);
        let keeper = Keeper::new(run, store.clone(), &self.folder)?;
        let (owner, handle, readers) = Owner::new(
            state,
            self.journal,
            granter,
            Arc::clone(&self.clock),
            followers,
        );

        let listener = tokio::net::TcpListener::bind(self.listen)
            .await
            .map_err(|source| Error::Listen {
                address: self.listen,
                source,
            })?;
        let address = listener.local_addr().map_err(|source| Error::Listen {
            address: self.listen,
            source,
        })?;
        let keypair = self.keypair.unwrap_or_else(Keypair::generate);
        let info = RunInfo {
            run,
            orchestrator: keypair.peer_id(),
            server_time: self.clock.now(),
            protocol_version: iota_wire::PROTOCOL_VERSION,
            config: description.to_json().map_err(SetupError::from)?,
        };
        let floor = Timestamp::default(); // a new run: there are no earlier requests to it
        let authenticator = Authenticator::new(AuthSettings::new(run, keypair.peer_id()), floor);
        let now = Arc::clone(&self.clock);
        let clock = iota_wire::Clock::new(move || now.now());
        let status = follow_status(readers.clone(), Arc::clone(&self.clock));
        let api = Api {
            owner: handle.clone(),
            state: readers.clone(),
            status: status.clone(),
            info,
            clock: Arc::clone(&self.clock),
            store: store.clone(),
            hold_max,
        };
        let service = iota_wire::service(Arc::new(api), Arc::new(authenticator), clock).await;
        let ended = shutdown.wait();
        let broken = Shutdown::new();
        let serve = async move {
            iota_wire::serve(listener, service, ended)
                .await
                .map_err(|error| Error::Serve(error.to_string()))
        };
        let serving = tokio::spawn(reporting(serve, broken.clone()));
        let owning = tokio::spawn(reporting(owner.run(shutdown.clone()), broken.clone()));
        let keeping = tokio::spawn(reporting(keeper.run(batches), broken.clone()));
        info!(%run, %address, store = %store_server.local_address(), "serving");
        Ok(Orchestrator {
            url: format!("http://{address}"),
            run,
            owner: handle,
            state: readers,
            status,
            store,
            shutdown,
            serving,
            owning,
            keeping,
            store_server,
            broken,
        })
    }
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

/// Runs a task and tells if it fails, at once.
async fn reporting<T>(
    task: impl Future<Output = Result<T, Error>>,
    broken: Shutdown,
) -> Result<T, Error> {
    let result = task.await;
    if let Err(error) = &result {
        error!(
            error = error as &dyn std::error::Error,
            "the orchestrator cannot go on"
        );
        broken.request();
    }
    result
}

/// Makes every new snapshot of the state into a status, until there are no more.
fn follow_status(
    mut state: watch::Receiver<Arc<State>>,
    clock: Arc<dyn Clock>,
) -> watch::Receiver<RunStatus> {
    let mut tracker = StatusTracker::new(clock.now());
    let first = tracker.status(&state.borrow_and_update(), clock.now());
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        while state.changed().await.is_ok() {
            let snapshot = Arc::clone(&state.borrow_and_update());
            sender.send_replace(tracker.status(&snapshot, clock.now()));
        }
    });
    receiver
}

fn flatten<T>(result: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    result.unwrap_or_else(|error| {
        warn!(%error, "a task ended early");
        Err(Error::Panicked(error.to_string()))
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
