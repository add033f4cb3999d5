//! From a setup, or from the folder of a run that goes on, to a run that is served.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use iota_data::DataManifest;
use iota_identity::Keypair;
use iota_journal::{Entry, Genesis, Journal, Recovered, SqliteJournal, recover};
use iota_node::clock::{Clock, SystemClock};
use iota_node::shutdown::Shutdown;
use iota_protocol::{RunSettings, State, Timestamp};
use iota_run::Description;
use iota_store::server::S3Server;
use iota_store::{Grants, Store};
use iota_tls::ServerCertificate;
use iota_wire::{AuthSettings, Authenticator, Incoming, RunInfo, RunStatus};
use tokio::sync::{mpsc, watch};
use tracing::{error, info};
use url::Url;

use crate::api::Api;
use crate::backup::Sources;
use crate::grants::Granter;
use crate::keeper::Keeper;
use crate::owner::{Owner, Start};
use crate::run_file::{self, Addresses, JOURNAL, RunFile, STORE, Tls};
use crate::sockets::{Brought, Sockets};
use crate::writer::Writer;
use crate::{Error, Orchestrator, Setup, SetupError, StatusTracker};

/// Entries that the keeper may lag behind. When it is full the owner waits: what cannot be kept in time slows the run down
/// rather than filling memory.
const KEEPER_LAG: usize = 4096;

/// Where the orchestrator's key is in the run folder, if nobody says otherwise.
pub(crate) const KEY: &str = "keys/orchestrator.json";

/// Builds an [`Orchestrator`].
#[derive(Debug)]
pub struct OrchestratorBuilder {
    origin: Origin,
    folder: PathBuf,
    listen: SocketAddr,
    store_listen: SocketAddr,
    store_url: Option<Url>,
    key: Key,
    certificate: Option<ServerCertificate>,
    companions: Vec<String>,
    journal: Option<Box<dyn Journal>>,
    brought: Brought,
    clock: Arc<dyn Clock>,
}

/// Where a run comes from.
#[derive(Debug)]
enum Origin {
    New(Box<Setup>),
    Resumed(Box<RunFile>),
}

#[derive(Debug)]
enum Key {
    File(PathBuf),
    Given(Box<Keypair>),
}

impl Orchestrator {
    /// An orchestrator of a new run that keeps everything in `folder`. It listens on loopback, on ports that are free.
    pub fn builder(setup: Setup, folder: impl Into<PathBuf>) -> OrchestratorBuilder {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let folder = folder.into();
        OrchestratorBuilder {
            origin: Origin::New(Box::new(setup)),
            key: Key::File(folder.join(KEY)),
            folder,
            listen: loopback,
            store_listen: loopback,
            store_url: None,
            certificate: None,
            companions: Vec::new(),
            journal: None,
            brought: Brought::default(),
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// An orchestrator of the run in `folder`, which goes on where the last process left it: in the same phase, with the
    /// same sessions, leases, samples and scores, under the same addresses and the same key, and by TLS if it was. Peers
    /// notice calls that have to be made again. The time in between counts against nobody.
    ///
    /// # Errors
    /// [`Error::NoRun`] and [`Error::RunFile`] if there is nothing to go on with.
    pub fn resume(folder: impl Into<PathBuf>) -> Result<OrchestratorBuilder, Error> {
        let folder = folder.into();
        let file = RunFile::read(&folder)?;
        let key = file.key_file.clone().unwrap_or_else(|| folder.join(KEY));
        Ok(OrchestratorBuilder {
            listen: file.listen,
            store_listen: file.store_listen,
            store_url: file.store_url.clone(),
            origin: Origin::Resumed(Box::new(file)),
            key: Key::File(key),
            folder,
            certificate: None,
            companions: Vec::new(),
            journal: None,
            brought: Brought::default(),
            clock: Arc::new(SystemClock::new()),
        })
    }
}

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

    /// Encrypts calls and what the embedded store serves: both speak TLS only, and URLs of grants begin with `https` unless
    /// [another URL](Self::with_store_url) is given. Peers have to find in the certificate the names or addresses by which
    /// they call, and to trust whoever signed it. It says nothing to connections and stores that a program brings. Whoever
    /// resumes the run finds it in the same files, gives another one in its place, or has to give it again if it was not
    /// in files.
    #[must_use]
    pub fn with_certificate(mut self, certificate: ServerCertificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    /// Who the orchestrator is: the audience of signed calls. Whoever resumes the run has to give the same key again.
    /// Without one it is [in a file](Self::with_key_file).
    #[must_use]
    pub fn with_keypair(mut self, keypair: Keypair) -> Self {
        self.key = Key::Given(Box::new(keypair));
        self
    }

    /// The file of the orchestrator's key, made if it is not there; `keys/orchestrator.json` in the run folder unless
    /// something else is said.
    #[must_use]
    pub fn with_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key = Key::File(path.into());
        self
    }

    /// A small text file in the run folder, named from there, which backups in the store have beside the run's own: whoever
    /// [restores](Orchestrator::restore) the run finds it in the new folder.
    #[must_use]
    pub fn with_companion(mut self, name: impl Into<String>) -> Self {
        self.companions.push(name.into());
        self
    }

    /// Where events go before anybody is told of them; `journal.sqlite` in the run folder unless something else is said.
    /// To a resumed run it has to be the journal that the run had.
    #[must_use]
    pub fn with_journal(mut self, journal: impl Journal + 'static) -> Self {
        self.journal = Some(Box::new(journal));
        self
    }

    /// Serves these connections, instead of listening. Peers of the run know their address: whoever resumes it brings
    /// connections to the same one.
    #[must_use]
    pub fn with_incoming(mut self, incoming: Incoming) -> Self {
        self.brought.incoming = Some(incoming);
        self
    }

    /// Keeps the run's objects in `store`, instead of serving them itself; `signer` makes the grants with which peers reach
    /// it. Whoever resumes the run brings both again.
    #[must_use]
    pub fn with_objects(mut self, store: Store, signer: Grants) -> Self {
        self.brought.objects = Some((store, signer));
        self
    }

    /// Another clock than the system's.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// What everybody is told of the run.
    pub const fn description(&self) -> &Description {
        match &self.origin {
            Origin::New(setup) => setup.description(),
            Origin::Resumed(file) => &file.description,
        }
    }

    /// The text that is never trained on.
    pub const fn held_out(&self) -> &DataManifest {
        match &self.origin {
            Origin::New(setup) => setup.held_out(),
            Origin::Resumed(file) => &file.held_out,
        }
    }

    /// Starts the store, the rules and the service; before that, writes the data of a new run to the store, or reads the
    /// journal of one that goes on.
    ///
    /// # Errors
    /// If the folder, the journal, an address or the setup cannot be used; nothing is left running then.
    pub async fn start(mut self, shutdown: &Shutdown) -> Result<Orchestrator, Error> {
        let certificate = match (self.certificate, &self.origin) {
            (None, Origin::Resumed(file)) => file.tls.load()?,
            (certificate, _) => certificate,
        };
        let (keypair, key_file) = match &self.origin {
            Origin::New(_) => self.key.load_or_create()?,
            Origin::Resumed(_) => self.key.load()?,
        };
        let mut files = self.companions;
        files.push(run_file::NAME.to_owned());
        let own = std::path::absolute(self.folder.join(KEY)).ok();
        let is_own = key_file.is_some() && key_file == own;
        // A key that lies elsewhere is its owner's, who may use it for more than this run: it does not leave its place.
        if is_own {
            files.push(KEY.to_owned());
        }
        let addresses = Addresses {
            orchestrator: keypair.peer_id(),
            key_file: key_file.filter(|_| !is_own),
            listen: self.listen,
            store_listen: self.store_listen,
            store_url: self.store_url.take(),
            tls: Tls::of(certificate.as_ref())?,
        };
        let place = Place {
            journal: self.journal.take(),
            folder: self.folder,
            files,
            addresses,
            certificate,
            brought: self.brought,
        };
        let run = match self.origin {
            Origin::New(setup) => begin(*setup, place, self.clock.now()).await?,
            Origin::Resumed(file) => go_on(*file, place, &self.clock, shutdown).await?,
        };
        run.serve(keypair, self.clock, shutdown.child()).await
    }
}

impl Key {
    /// The key, made if there is none, and the file that it can be found in again.
    fn load_or_create(self) -> Result<(Keypair, Option<PathBuf>), Error> {
        if let Self::File(path) = &self {
            iota_identity::load_or_create(path)?;
        }
        self.load()
    }

    /// The key, and the file that it can be found in again.
    fn load(self) -> Result<(Keypair, Option<PathBuf>), Error> {
        match self {
            Self::Given(keypair) => Ok((*keypair, None)),
            Self::File(path) => {
                let keypair = iota_identity::key_file::load(&path)?;
                // Whoever resumes the run may do so from another folder.
                let path =
                    std::path::absolute(&path).map_err(|source| Error::Folder { path, source })?;
                Ok((keypair, Some(path)))
            }
        }
    }
}

/// Where a run is kept, and how it is reached.
struct Place {
    journal: Option<Box<dyn Journal>>,
    folder: PathBuf,
    files: Vec<String>,
    addresses: Addresses,
    certificate: Option<ServerCertificate>,
    brought: Brought,
}

/// A run that is about to be served.
struct Run {
    description: Description,
    began: Timestamp,
    start: Start,
    journal: Box<dyn Journal>,
    keeper: Keeper,
    store: Store,
    store_server: Option<S3Server>,
    signer: Grants,
    incoming: Incoming,
    url: String,
    /// Requests that were made up to this time are refused.
    floor: Timestamp,
}

async fn begin(setup: Setup, place: Place, began: Timestamp) -> Result<Run, Error> {
    let Place {
        journal,
        folder,
        files,
        addresses,
        certificate,
        brought,
    } = place;
    let secret = &setup.settings().secret;
    let Sockets {
        incoming,
        url,
        store,
        store_server,
        signer,
        addresses,
    } = Sockets::open(
        &addresses,
        &folder.join(STORE),
        secret,
        brought,
        certificate.as_ref(),
    )
    .await?;
    let (settings, description, held_out) = setup.publish(&store).await?;
    let genesis = Genesis { settings, began };
    let state = genesis.state().map_err(SetupError::from)?;
    let path = folder.join(JOURNAL);
    let sources = Sources {
        genesis: genesis.clone(),
        files,
    };
    let journal = blocking(move || {
        let mut journal = match journal {
            Some(journal) => journal,
            None => Box::new(SqliteJournal::create(path)?),
        };
        journal.begin(&genesis)?;
        Ok(journal)
    })
    .await?;
    let keeper = Keeper::new(description.run, store.clone(), &folder, sources)?;
    // Last: a folder without it holds a run that had not begun.
    RunFile::new(addresses, description.clone(), held_out).write(&folder)?;
    Ok(Run {
        description,
        began,
        start: Start {
            state,
            sequence: 0,
            resumed_at: None,
        },
        journal,
        keeper,
        store,
        store_server,
        signer,
        incoming,
        url,
        // There are no earlier requests to a run whose name has just been drawn.
        floor: Timestamp::default(),
    })
}

async fn go_on(
    mut file: RunFile,
    place: Place,
    clock: &Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> Result<Run, Error> {
    let Place {
        journal,
        folder,
        files,
        addresses,
        certificate,
        brought,
    } = place;
    let resumed_at = clock.now();
    if addresses.orchestrator != file.orchestrator {
        return Err(Error::AnotherKey {
            expected: file.orchestrator,
            found: addresses.orchestrator,
        });
    }
    // Before anything is listened on: if the run is being served already, the journal says so and not a port.
    let path = folder.join(JOURNAL);
    let time = Arc::clone(clock);
    let (journal, alone_at, recovered) = blocking(move || {
        let journal = match journal {
            Some(journal) => journal,
            None => Box::new(SqliteJournal::open(path)?),
        };
        // Whoever has the journal is the only one: the process before has ended.
        let alone_at = time.now();
        let recovered = recover(journal.as_ref())?;
        Ok((journal, alone_at, recovered))
    })
    .await?;
    let Some(Recovered {
        genesis,
        state,
        sequence,
    }) = recovered
    else {
        return Err(Error::NoRun { folder });
    };
    let Sockets {
        incoming,
        url,
        store,
        store_server,
        signer,
        addresses: _,
    } = Sockets::open_again(
        &addresses,
        &file.store_folder(&folder),
        &genesis.settings.secret,
        brought,
        certificate.as_ref(),
        (clock.as_ref(), shutdown),
    )
    .await?;
    if file.tls != addresses.tls {
        // Whoever resumes it next need not say it again, and cannot fall back to no encryption by forgetting to.
        file.tls = addresses.tls;
        file.write(&folder)?;
    }
    let began = genesis.began;
    let sources = Sources { genesis, files };
    let keeper = Keeper::resume(file.run, store.clone(), &folder, sources)?;
    if keeper.sequence() > sequence {
        let what = format!(
            "it ends with entry {sequence}, and the run had come to entry {}",
            keeper.sequence()
        );
        let place = journal.place();
        return Err(iota_journal::Error::Damaged { place, what }.into());
    }
    // The process before this one knew which requests it had seen, and took that knowledge with it. Peers sign again what
    // is refused for its age, and set their clocks by the refusal.
    let auth = AuthSettings::new(file.run, file.orchestrator);
    // Should the last process have been ahead of this one's time, what it wrote down has happened all the same.
    clock.not_before(state.clock());
    let alone_at = alone_at.max(state.clock());
    let floor = Authenticator::floor_after(&auth, alone_at);
    if floor.since(alone_at) <= auth.ahead {
        clock.sleep_until(floor).await;
    }
    let elapsed_ms = resumed_at.since(state.clock()).as_millis();
    info!(run = %file.run, sequence, epoch = %state.epoch(), phase = ?state.phase(), elapsed_ms, "the run goes on");
    Ok(Run {
        description: file.description,
        began,
        floor,
        start: Start {
            state,
            sequence,
            resumed_at: Some(resumed_at),
        },
        journal,
        keeper,
        store,
        store_server,
        signer,
        incoming,
        url,
    })
}

impl Run {
    async fn serve(
        self,
        keypair: Keypair,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
    ) -> Result<Orchestrator, Error> {
        let settings: RunSettings = self.start.state.settings().clone();
        let run = settings.run;
        let hold_max = settings.timing.session_timeout / 3;
        let granter =
            Granter::new(settings, &self.description, self.signer).map_err(SetupError::from)?;
        let broken = Shutdown::new();

        // The keeper catches up before there is anything new to follow.
        let (followers, entries) = mpsc::channel(KEEPER_LAG);
        let followed = self.keeper.reads_from();
        let keeping = tokio::spawn(reporting(self.keeper.run(entries), broken.clone()));
        let journal = show_again(self.journal, followed, &followers).await?;

        let writer = Writer::start(journal, self.start.sequence);
        let (owner, handle, readers) =
            Owner::new(self.start, writer, granter, Arc::clone(&clock), followers);
        let info = RunInfo {
            run,
            orchestrator: keypair.peer_id(),
            server_time: clock.now(),
            protocol_version: iota_wire::PROTOCOL_VERSION,
            config: self.description.to_json().map_err(SetupError::from)?,
        };
        let authenticator =
            Authenticator::new(AuthSettings::new(run, keypair.peer_id()), self.floor);
        let status = follow_status(readers.clone(), self.began, Arc::clone(&clock));
        let api = Api {
            owner: handle.clone(),
            state: readers.clone(),
            status: status.clone(),
            info,
            clock: Arc::clone(&clock),
            store: self.store.clone(),
            hold_max,
        };
        let clock = iota_wire::Clock::new(move || clock.now());
        let service = iota_wire::service(Arc::new(api), Arc::new(authenticator), clock).await;
        let address = self.incoming.address();
        let ended = shutdown.wait();
        let incoming = self.incoming;
        let serve = async move {
            iota_wire::serve(incoming, service, ended)
                .await
                .map_err(|error| Error::Serve(error.to_string()))
        };
        let serving = tokio::spawn(reporting(serve, broken.clone()));
        let owning = tokio::spawn(reporting(owner.run(shutdown.clone()), broken.clone()));
        let store_address = self.store_server.as_ref().map(S3Server::local_address);
        info!(%run, %address, store = ?store_address, "serving");
        Ok(Orchestrator {
            url: self.url,
            run,
            owner: handle,
            state: readers,
            status,
            store: self.store,
            shutdown,
            serving,
            owning,
            keeping,
            store_server: self.store_server,
            broken,
        })
    }
}

/// Works on a journal in a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> iota_journal::Result<T> + Send + 'static,
) -> Result<T, Error> {
    match iota_node::blocking::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Error::Panicked(error.to_string())),
    }
}

/// Shows a follower every entry of a journal after `sequence`, and gives the journal back.
async fn show_again(
    mut journal: Box<dyn Journal>,
    mut sequence: u64,
    follower: &mpsc::Sender<Arc<Entry>>,
) -> Result<Box<dyn Journal>, Error> {
    loop {
        let page;
        (journal, page) = blocking(move || {
            let page = journal.entries_after(sequence, KEEPER_LAG)?;
            Ok((journal, page))
        })
        .await?;
        let Some(last) = page.last() else {
            return Ok(journal);
        };
        sequence = last.sequence;
        for entry in page {
            // A keeper that is gone has said why.
            drop(follower.send(Arc::new(entry)).await);
        }
    }
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
    began: Timestamp,
    clock: Arc<dyn Clock>,
) -> watch::Receiver<RunStatus> {
    let mut tracker = StatusTracker::new(began);
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

#[cfg(test)]
mod tests;
