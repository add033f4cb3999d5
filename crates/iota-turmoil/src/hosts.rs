//! What runs on the machines of a world: the runtimes as the programs start them, with this world's network, store, journal
//! and clock in place of the machine's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iota_identity::Keypair;
use iota_journal::Error as JournalError;
use iota_miner::{Behaviour, Miner};
use iota_node::{Clock, Shutdown};
use iota_orchestrator::{Error, Orchestrator, Participants, RunOptions, Setup};
use iota_peer::Network;
use iota_protocol::State;
use iota_protocol::peer::Stop;
use iota_store::GrantClient;
use iota_validator::Validator;

use crate::chance::Chance;
use crate::journal::Disk;
use crate::network::{PORT, SimulatedClock, connector, listen};
use crate::plan::{Host, Plan, SAMPLES_PER_EPOCH, STAGES};
use crate::store::{Objects, WayToStore};
use crate::trace::Trace;

/// What outlives every process of a world.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) disk: Disk,
    pub(crate) objects: Arc<Objects>,
    pub(crate) trace: Arc<Trace>,
    /// The run folder of the orchestrator.
    pub(crate) folder: Arc<Path>,
    pub(crate) plan: Arc<Plan>,
    setup: Arc<Setup>,
    /// By which the process that a machine runs is told to end.
    shutdowns: Arc<Mutex<BTreeMap<Host, Shutdown>>>,
    /// The state that the orchestrator's last process ended with.
    ended: Arc<Mutex<Option<Arc<State>>>>,
}

type Ended = Result<(), Box<dyn std::error::Error>>;

impl Site {
    /// A world's beginning, with what the orchestrator keeps in `folder`.
    pub(crate) fn new(
        plan: Plan,
        folder: &Path,
        trace: Trace,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let corpus = folder.join("corpus.txt");
        std::fs::write(&corpus, text())?;
        let run = folder.join("run");
        std::fs::create_dir_all(&run)?;
        let options = options(&plan, &corpus);
        let participants = Participants {
            miners_to_start: plan.miners_to_start,
            validators: vec![keypair(&plan, Host::Validator).peer_id()],
        };
        let trace = Arc::new(trace);
        Ok(Self {
            disk: Disk::new(plan.death, Arc::clone(&trace)),
            objects: Arc::new(Objects::new(plan.seed, Arc::clone(&trace))),
            trace,
            folder: run.into(),
            setup: Arc::new(Setup::new(&options, participants)?),
            plan: Arc::new(plan),
            shutdowns: Arc::default(),
            ended: Arc::default(),
        })
    }

    /// The run's last state, if it is over.
    pub(crate) fn ended(&self) -> Option<Arc<State>> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.clone()
    }

    /// Tells a machine's process to end, in order.
    pub(crate) fn tell_to_end(&self, host: Host) {
        if let Some(shutdown) = self.shutdowns().get(&host) {
            shutdown.request();
        }
    }

    /// What tells a process that begins to end.
    fn shutdown(&self, host: Host) -> Shutdown {
        let shutdown = Shutdown::new();
        self.shutdowns().insert(host, shutdown.clone());
        shutdown
    }

    fn shutdowns(&self) -> MutexGuard<'_, BTreeMap<Host, Shutdown>> {
        self.shutdowns
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// One process of the orchestrator: it begins the run, or goes on with it.
    pub(crate) async fn orchestrator(self) -> Ended {
        let address = turmoil::lookup(Host::Orchestrator.name());
        let incoming = listen(address).await?;
        let builder = match Orchestrator::resume(&*self.folder) {
            Ok(builder) => {
                self.trace.note("orchestrator", "resumes the run");
                builder
            }
            // It died before there was a run to go on with.
            Err(Error::NoRun { .. }) => {
                self.trace.note("orchestrator", "begins the run");
                self.disk.format();
                let setup = Setup::clone(&self.setup);
                Orchestrator::builder(setup, &*self.folder)
            }
            Err(error) => return Err(error.into()),
        };
        let (store, signer) = (self.objects.store.clone(), self.objects.signer.clone());
        let shutdown = self.shutdown(Host::Orchestrator);
        let served = builder
            .with_incoming(incoming)
            .with_objects(store, signer)
            .with_journal(self.disk.open())
            .with_keypair(keypair(&self.plan, Host::Orchestrator))
            .with_clock(self.clock(Host::Orchestrator))
            .start(&shutdown);
        let finished = match served.await {
            Ok(orchestrator) => orchestrator.finish().await,
            Err(error) => Err(error),
        };
        match finished {
            Ok((state, _)) if !state.is_over() => {
                self.trace.note("orchestrator", "has suspended the run");
            }
            Ok((state, _)) => {
                self.trace.note("orchestrator", "has ended");
                *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
            }
            Err(Error::Journal(error @ JournalError::Crashed { .. })) => {
                self.trace.note("orchestrator", error);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// One process of a miner or validator.
    pub(crate) async fn peer(self, host: Host) -> Ended {
        let orchestrator = turmoil::lookup(Host::Orchestrator.name());
        let url = format!("http://{orchestrator}:{PORT}");
        let network = Network {
            calls: connector(),
            store: GrantClient::over(WayToStore {
                host,
                objects: Arc::clone(&self.objects),
            }),
        };
        self.trace.note(host.name(), "begins");
        let keypair = keypair(&self.plan, host);
        let clock = self.clock(host);
        let shutdown = self.shutdown(host);
        let stopped = if host == Host::Validator {
            Validator::builder(url)
                .with_keypair(keypair)
                .with_threads(1)
                .with_network(network)
                .with_clock(clock)
                .run(shutdown)
                .await?
        } else {
            let behaviour = if self.plan.cheater == Some(host) {
                Behaviour::WrongTensors
            } else {
                Behaviour::Honest
            };
            Miner::builder(url)
                .with_behaviour(behaviour)
                .with_keypair(keypair)
                .with_threads(1)
                .with_memory_limit_bytes(1 << 30)
                .with_network(network)
                .with_clock(clock)
                .run(shutdown)
                .await?
        };
        self.trace
            .note(host.name(), format_args!("stops: {stopped:?}"));
        match stopped {
            Stop::RunOver | Stop::Shutdown => Ok(()),
            Stop::Refused if self.plan.cheater == Some(host) => Ok(()),
            Stop::Refused => Err(format!("{} was refused", host.name()).into()),
        }
    }

    fn clock(&self, host: Host) -> Arc<dyn Clock> {
        let ahead_ms = self.plan.clock_ahead_ms.get(&host);
        Arc::new(SimulatedClock::new(ahead_ms.copied().unwrap_or(0)))
    }
}

/// The same in every process of a machine.
pub(crate) fn keypair(plan: &Plan, host: Host) -> Keypair {
    let mut seed = [0; 32];
    Chance::new(plan.seed, host.name()).fill(&mut seed);
    Keypair::from_seed(seed)
}

/// A run that is over soon: a tiny model, a short text, and the patience of a testnet.
fn options(plan: &Plan, corpus: &Path) -> RunOptions {
    let mut options = RunOptions {
        preset: "tiny".to_owned(),
        stages: STAGES,
        corpus: corpus.display().to_string(),
        merging: plan.merging,
        ..RunOptions::default()
    };
    options.training.epochs = plan.epochs;
    options.training.samples_per_epoch = SAMPLES_PER_EPOCH;
    options.training.sequences = 1;
    options.training.warmup_samples = 4;
    options.training.audit_every_epochs = 1;
    options.timing.lease_initial_ms = 20_000;
    options.timing.lease_min_ms = 3_000;
    options.timing.session_timeout_ms = 12_000;
    options.timing.affinity_ms = 2_000;
    options.timing.phase_max_ms = 60_000;
    options.timing.quorum_relaxes_after_ms = 10_000;
    options
}

fn text() -> String {
    (0..500)
        .map(|line| format!("line {line}: the quick brown fox jumps over the lazy dog.\n"))
        .collect()
}
