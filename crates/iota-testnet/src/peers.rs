//! The miners and validators of a testnet: as tasks of this process, or as processes of their own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use iota_identity::{KeyLock, Keypair};
use iota_miner::{Behaviour, Miner};
use iota_node::shutdown::Shutdown;
use iota_peer::Gate;
use iota_validator::Validator;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::Error;
use crate::folder::read_pids;
use crate::settings::TestnetSettings;

/// One miner or validator to be.
pub(crate) struct Recruit {
    pub(crate) kind: Kind,
    /// A name for logs and files, such as `miner-3`.
    pub(crate) name: String,
    seed: [u8; 32],
}

impl Recruit {
    pub(crate) fn keypair(&self) -> Keypair {
        Keypair::from_seed(self.seed)
    }
}

impl std::fmt::Debug for Recruit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The seed is a secret even here.
        f.debug_struct("Recruit")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// As what it joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Miner(Behaviour),
    Validator,
}

/// Leases that a miner holds at a time: one in the works, one on its way in, one on its way out, one to spare.
const MINER_CAPACITY: u32 = 4;
/// How long processes have to leave after they were asked to.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// Everybody whom the settings ask for. Keys derive from the seed, so that two runs of one seed have the same peers.
pub(crate) fn recruits(settings: &TestnetSettings) -> Vec<Recruit> {
    let seed = |role: &str, number: u32| {
        let material = format!("iota testnet key {role} {number} of seed {}", settings.seed);
        *iota_protocol::Digest::of(material.as_bytes()).as_bytes()
    };
    let miners = (0..settings.miners()).map(|number| {
        // Cheaters are spread over the stages, from the last miner backwards: joining fills stages in turn.
        let honest = settings.miners() - settings.cheaters;
        let behaviour = if number < honest {
            Behaviour::Honest
        } else {
            Behaviour::WrongTensors
        };
        let name = format!("miner-{number}");
        Recruit {
            kind: Kind::Miner(behaviour),
            name,
            seed: seed("miner", number),
        }
    });
    let validators = (0..settings.validators).map(|number| {
        let name = format!("validator-{number}");
        Recruit {
            kind: Kind::Validator,
            name,
            seed: seed("validator", number),
        }
    });
    miners.chain(validators).collect()
}

/// Peers at work.
#[derive(Debug)]
pub(crate) enum Peers {
    Tasks(JoinSet<(String, Result<(), Error>)>),
    Processes(Vec<Process>),
}

/// A peer in a process of its own.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    /// None if the operating system does not say.
    pid: Option<u32>,
    held: Held,
}

/// How the end of a process is noticed.
#[derive(Debug)]
enum Held {
    Child(Child),
    /// It outlived the testnet that started it. Whoever gets the lock of its key knows that it has ended.
    ByKey(PathBuf),
}

impl Process {
    /// Whether it has ended; `Some(false)` if badly.
    fn ended(&mut self) -> Result<Option<bool>, Error> {
        match &mut self.held {
            Held::Child(child) => {
                let status = child.try_wait().map_err(|source| Error::Program {
                    path: PathBuf::from(&self.name),
                    source,
                })?;
                Ok(status.map(|status| status.success()))
            }
            // Why it ended, only its parent is told.
            Held::ByKey(key) => Ok(KeyLock::take(key)?.map(|_| true)),
        }
    }
}

impl Peers {
    /// Starts everybody in this process. As many stages compute at a time as the machine has cores, each with one
    /// thread: that wastes least.
    pub(crate) fn start_tasks(
        recruits: Vec<Recruit>,
        url: &str,
        cores: usize,
        shutdown: &Shutdown,
    ) -> Self {
        let gate = Gate::new(cores);
        let mut tasks = JoinSet::new();
        for recruit in recruits {
            let keypair = recruit.keypair();
            let Recruit { kind, name, .. } = recruit;
            let (gate, shutdown, url) = (gate.clone(), shutdown.child(), url.to_owned());
            tasks.spawn(async move {
                let stopped = match kind {
                    Kind::Miner(behaviour) => {
                        Miner::builder(url)
                            .with_keypair(keypair)
                            .with_capacity(MINER_CAPACITY)
                            .with_threads(1)
                            .with_gate(gate)
                            .with_behaviour(behaviour)
                            .run(shutdown)
                            .await
                    }
                    Kind::Validator => {
                        Validator::builder(url)
                            .with_keypair(keypair)
                            .with_threads(1)
                            .with_gate(gate)
                            .run(shutdown)
                            .await
                    }
                };
                let stopped = stopped
                    .map(|why| info!(%name, ?why, "peer stopped"))
                    .map_err(Error::Peer);
                (name, stopped)
            });
        }
        Self::Tasks(tasks)
    }

    /// Starts everybody as a process of the real programs, which lie beside this one. Their logs go to the run folder.
    ///
    /// Whoever still runs, since an earlier testnet in this folder died without them, is left as it is: it keeps calling
    /// the address that it knows.
    pub(crate) fn start_processes(
        recruits: Vec<Recruit>,
        url: &str,
        folder: &Path,
    ) -> Result<Self, Error> {
        let (keys, logs) = (folder.join("keys"), folder.join("logs"));
        for path in [&keys, &logs] {
            std::fs::create_dir_all(path).map_err(|source| Error::Folder {
                path: path.clone(),
                source,
            })?;
        }
        let earlier = read_pids(folder);
        let mut processes = Vec::new();
        for recruit in recruits {
            let key = keys.join(format!("{}.json", recruit.name));
            if !key.exists() {
                iota_identity::key_file::create_from_seed(&key, &recruit.seed)?;
            }
            let process = if KeyLock::take(&key)?.is_none() {
                info!(name = %recruit.name, "is still there");
                Process {
                    pid: earlier.get(&recruit.name).copied(),
                    name: recruit.name,
                    held: Held::ByKey(key),
                }
            } else {
                start_process(recruit, url, &key, &logs)?
            };
            processes.push(process);
        }
        Ok(Self::Processes(processes))
    }

    /// Process ids by name, if they are processes.
    pub(crate) fn pids(&self) -> Vec<(String, u32)> {
        match self {
            Self::Tasks(_) => Vec::new(),
            Self::Processes(processes) => processes
                .iter()
                .filter_map(|process| Some((process.name.clone(), process.pid?)))
                .collect(),
        }
    }

    /// Notices peers that ended by themselves while the run goes on. The run copes; a person may want to know.
    pub(crate) async fn watch(&mut self) -> Result<(), Error> {
        match self {
            Self::Tasks(tasks) => {
                while let Some(ended) = tasks.join_next().await {
                    let (name, result) = match ended {
                        Ok(ended) => ended,
                        Err(error) => {
                            // The network copes with the death of a peer, of whatever it was.
                            warn!(%error, "a peer panicked");
                            continue;
                        }
                    };
                    if let Err(error) = result {
                        warn!(%name, error = &error as &dyn std::error::Error, "peer failed");
                    }
                }
            }
            Self::Processes(processes) => {
                while !processes.is_empty() {
                    for index in (0..processes.len()).rev() {
                        let process = &mut processes[index];
                        let ended = process.ended();
                        let name = &process.name;
                        match ended {
                            Ok(None) => continue,
                            Ok(Some(true)) => info!(%name, "process ended"),
                            Ok(Some(false)) => warn!(%name, "process died"),
                            Err(error) => {
                                warn!(%name, %error, "cannot ask after a process");
                                continue;
                            }
                        }
                        processes.swap_remove(index);
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        Ok(())
    }

    /// Waits until everybody has left, which the end of the run or a shutdown tells them to.
    pub(crate) async fn join(mut self) -> Result<(), Error> {
        if tokio::time::timeout(LEAVE_WITHIN, self.watch())
            .await
            .is_err()
        {
            warn!("some peers did not leave in time");
        }
        Ok(())
    }
}

fn start_process(recruit: Recruit, url: &str, key: &Path, logs: &Path) -> Result<Process, Error> {
    let Recruit { kind, name, .. } = recruit;
    let program = match kind {
        Kind::Miner(_) => sibling("iota-miner")?,
        Kind::Validator => sibling("iota-validator")?,
    };
    let log_path = logs.join(format!("{name}.log"));
    // What an earlier process of this name said may explain why there is another.
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path);
    let log = log.map_err(|source| Error::Folder {
        path: log_path.clone(),
        source,
    })?;
    let mut command = Command::new(&program);
    command
        .args(["run", "--orchestrator", url, "--threads", "1", "--key"])
        .arg(key);
    if kind == Kind::Miner(Behaviour::WrongTensors) {
        command.arg("--cheat");
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| Error::Program {
            path: program,
            source,
        })?;
    info!(%name, pid = child.id(), log = %log_path.display(), "started");
    Ok(Process {
        name,
        pid: child.id(),
        held: Held::Child(child),
    })
}

/// A program in the folder of this one.
fn sibling(name: &str) -> Result<PathBuf, Error> {
    let this = std::env::current_exe().map_err(|source| Error::Program {
        path: PathBuf::from(name),
        source,
    })?;
    let path = this
        .with_file_name(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    if path.is_file() {
        Ok(path)
    } else {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        Err(Error::Program { path, source })
    }
}
