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
//! One task owns the state ([`owner`](crate)); everybody else sends it commands. What it has decided is written to the
//! [`Journal`] before anybody is told.
//!
//! It does not know what a tensor is: sizes come in with the [`Setup`]. It never links the compute engine.

mod api;
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
use iota_store::server::{Limits, S3Server};
use iota_store::{Credentials, Grants, Store};
use iota_wire::{AuthSettings, Authenticator, RunInfo, RunStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

pub use journal::{Journal, NoJournal, Record};
pub use options::{RunOptions, TimingOptions, TrainingOptions};
pub use setup::{Participants, Setup, SetupError};
pub use status::StatusTracker;

use api::Api;
use grants::Granter;
use keeper::Keeper;
use owner::{Owner, OwnerHandle};

/// Name of the bucket in the embedded store: its folder below the store's root.
const BUCKET: &str = "iota";
/// The embedded store has no regions; S3's signatures want one.
const REGION: &str = "local";
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
    keeping: JoinHandle<Result<(), Error>>,
    store_server: S3Server,
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

    /// Ends the run: nothing new begins, peers are told that it is over.
    pub async fn stop(&self) {
        // If the owner is gone the run has ended already.
        if let Ok(Err(rejection)) = self.owner.command(Command::Stop).await {
            info!(code = rejection.code(), "the run was over already");
        }
    }

    /// Waits until the run is over, then shuts down what serves it; returns the last state.
    ///
    /// # Errors
    /// If serving, the journal or the store failed; the run ended with it.
    pub async fn finish(mut self) -> Result<Arc<State>, Error> {
        let mut outcome = Ok(());
        tokio::select! {
            _ = self.state.wait_for(|state| state.is_over()) => {}
            result = &mut self.serving => outcome = flatten(result),
            result = &mut self.keeping => outcome = flatten(result),
        }
        // Peers learn from their next poll that the run is over; those that are gone cannot hold us up.
        if outcome.is_ok() {
            let mut state = self.state.clone();
            let all_gone = state.wait_for(|state| state.sessions().next().is_none());
            drop(tokio::time::timeout(FAREWELL, all_gone).await);
            tokio::time::sleep(LAST_ANSWERS).await;
        }
        self.shutdown.request();
        let last = Arc::clone(&self.state.borrow());
        if !self.serving.is_finished() {
            outcome = outcome.and(flatten((&mut self.serving).await));
        }
        drop(self.owner);
        outcome = outcome.and(flatten(self.owning.await));
        if !self.keeping.is_finished() {
            outcome = outcome.and(flatten(self.keeping.await));
        }
        self.store_server.shutdown().await;
        outcome.map(|()| last)
    }
}

/// How long the end of a run waits for its peers to notice.
const FAREWELL: Duration = Duration::from_secs(2);
/// Answers to calls that are being made when the run ends.
const LAST_ANSWERS: Duration = Duration::from_millis(300);

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
        let store_root = self.folder.join("store");
        let bucket = store_root.join(BUCKET);
        std::fs::create_dir_all(&bucket).map_err(|source| Error::Folder { path: bucket.clone(), source })?;
        let store = Store::in_folder(&bucket)?;
        let (settings, description) = self.setup.publish(&store).await?;
        let run = settings.run;

        let credentials = Credentials::new("iota", hex(&settings.secret));
        let store_server =
            S3Server::bind(self.store_listen, &store_root, credentials.clone(), Limits::default()).await?;
        let signer = Grants::new(&store_server.url(), BUCKET, REGION, &credentials)?;
        let granter = Granter::new(settings.clone(), &description, signer).map_err(SetupError::from)?;

        let state = State::new(settings, self.clock.now()).map_err(SetupError::from)?;
        let (followers, batches) = mpsc::channel(KEEPER_LAG);
        let keeper = Keeper::new(run, store.clone(), &self.folder)?;
        let (owner, handle, readers) =
            Owner::new(state, self.journal, granter, Arc::clone(&self.clock), followers);

        let listener = tokio::net::TcpListener::bind(self.listen)
            .await
            .map_err(|source| Error::Listen { address: self.listen, source })?;
        let address =
            listener.local_addr().map_err(|source| Error::Listen { address: self.listen, source })?;
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
        };
        let service = iota_wire::service(Arc::new(api), Arc::new(authenticator), clock).await;
        let ended = shutdown.wait();
        let serving = tokio::spawn(async move {
            iota_wire::serve(listener, service.routes, ended)
                .await
                .map_err(|error| Error::Serve(error.to_string()))
        });
        let owning = tokio::spawn(owner.run());
        let keeping = tokio::spawn(keeper.run(batches));
        info!(%run, %address, store = %store_server.url(), "serving");
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
        })
    }
}

/// Makes every new snapshot of the state into a status, until there are no more.
fn follow_status(mut state: watch::Receiver<Arc<State>>, clock: Arc<dyn Clock>) -> watch::Receiver<RunStatus> {
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

fn flatten(result: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
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
