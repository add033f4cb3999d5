//! The whole service: how long GetWork and CompleteWork take over loopback while a thousand miners train.
//!
//! ```text
//!   this process                                    a child process
//!   orchestrator: gRPC, signatures, rules,   ◄───   miners, each with a key and a connection of its own:
//!   grants, journal on disk                         GetWork ─► (computes for a while) ─► CompleteWork ─► ...
//! ```
//!
//! Everything is as in production but the work, which is waiting: a miner gets a lease, sleeps, and reports a made-up
//! digest. All calls are signed and checked, all decisions are in a journal on disk before they are told. Each miner does
//! one piece after the other, with two calls each; how long it sleeps makes the load, which does not depend on how fast the
//! answers are, as long as they are much faster than the work.
//!
//! GetWork is timed from when there was something to answer, which is the later of the request and the lease (by the
//! orchestrator's clock, in whole milliseconds, rounded down: times of leases that were given later are up to 1 ms too
//! long). CompleteWork is timed from call to answer. Both are timed by the miner, so they include its own signing and the
//! time until it gets a processor: the child competes with the orchestrator for the machine's cores.
//!
//! ```sh
//! cargo run --release -p iota-load -- --miners 1000 --work-ms 2000 --seconds 20
//! ```
//!
//! What it does *not* know: how a decision is made (`iota-benches` times those alone), and what a tensor is.

use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::Parser;
use iota_identity::Keypair;
use iota_model::{ModelConfig, preset};
use iota_node::Shutdown;
use iota_orchestrator::{
    Orchestrator, Participants, RegistrationOptions, RunOptions, Setup, TrainingOptions,
};
use iota_protocol::work::{Outcome, Seal, Work};
use iota_protocol::{Digest, Role, Session};
use iota_wire::{CallError, Client, ConnectOptions, GrantMethod, LeasedWork, WorkRequest};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As many as IOTA's largest runs have.
const STAGES: u16 = 20;
/// Time for which nothing is noted, once everybody has installed.
const WARM_UP: Duration = Duration::from_secs(3);
/// Connections that are made at a time.
const JOINING: usize = 64;
/// How long a poll may be held.
const HOLD: Duration = Duration::from_secs(10);

/// Has many miners train against an orchestrator on this machine, and says how long its answers take.
#[derive(Debug, Clone, Parser)]
#[command(name = "iota-load", version)]
struct Load {
    /// Miners, in 20 stages
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    miners: u32,
    /// Milliseconds that a piece of work takes a miner, on average; half as much to one and a half times as much
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    work_ms: u64,
    /// For how long calls are timed
    #[arg(long, value_name = "S", default_value_t = 20)]
    seconds: u64,
    /// Be the miners of the orchestrator at this address
    #[arg(long, value_name = "URL", hide = true)]
    url: Option<String>,
}

impl Load {
    const fn work(&self) -> Duration {
        Duration::from_millis(self.work_ms)
    }

    const fn lasts(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

fn main() -> anyhow::Result<()> {
    let load = Load::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match &load.url {
        Some(url) => runtime.block_on(miners(url, &load)),
        None => runtime.block_on(orchestrator(&load)),
    }
}

/// Serves the run, has a child make the load, and tells what it cost here.
async fn orchestrator(load: &Load) -> anyhow::Result<()> {
    let miners_per_stage = load.miners.div_ceil(STAGES.into());
    let options = RunOptions {
        stages: STAGES,
        training: TrainingOptions {
            sequences: 1,
            // The epoch does not end.
            samples_per_epoch: 1 << 40,
            samples_in_flight: 2 * load.miners,
            ..TrainingOptions::default()
        },
        registration: RegistrationOptions {
            miners_per_stage_max: miners_per_stage,
            ..RegistrationOptions::default()
        },
        ..RunOptions::default()
    };
    let model = ModelConfig {
        blocks: STAGES.into(),
        ..preset("tiny")?
    };
    let participants = Participants {
        miners_to_start: miners_per_stage,
        validators: Vec::new(),
    };
    let folder = tempfile::tempdir()?;
    let setup = Setup::with_model(model, &options, participants)?;
    let orchestrator = Orchestrator::builder(setup, folder.path())
        .start(&Shutdown::new())
        .await?;

    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--url", orchestrator.url()])
        .args(["--miners", &load.miners.to_string()])
        .args(["--work-ms", &load.work_ms.to_string()])
        .args(["--seconds", &load.seconds.to_string()])
        .stdout(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    let mut state = orchestrator.state();
    let training = |state: &Arc<iota_protocol::State>| state.samples_in_flight() > 0;
    state.wait_for(training).await?;
    tokio::time::sleep(WARM_UP).await;
    let (began, processor, pieces) = (
        Instant::now(),
        processor_seconds(),
        finished(&orchestrator.state()),
    );
    let memory = resident_mib();
    tokio::time::sleep(load.lasts()).await;
    let seconds = began.elapsed().as_secs_f64();
    let done = finished(&orchestrator.state()) - pieces;
    println!(
        "orchestrator: {:.0} pieces/s, {:.0} signed calls/s, {:.0} % of a core, {} MiB, {} MiB {seconds:.0} s before",
        done as f64 / seconds,
        2.0 * done as f64 / seconds,
        100.0 * (processor_seconds() - processor) / seconds,
        resident_mib(),
        memory,
    );
    child.wait().await?;
    orchestrator.stop().await;
    orchestrator.finish().await?;
    Ok(())
}

fn finished(state: &tokio::sync::watch::Receiver<Arc<iota_protocol::State>>) -> u64 {
    state.borrow().work_counts().finished
}

/// Memory of this process that is in use; 0 where the system does not tell.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// Time that processors spent on this process; 0 where the system does not tell.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in parentheses: user and system time are the 12th and 13th, in hundredths of a second.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let times = after.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|text| text.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// What the miners saw, in microseconds.
#[derive(Debug, Default)]
struct Seen {
    get_work: Vec<u64>,
    complete: Vec<u64>,
    refused: u64,
}

/// Everybody who trains. Says how long calls took, over all of them.
async fn miners(url: &str, load: &Load) -> anyhow::Result<()> {
    let gate = Arc::new(Semaphore::new(JOINING));
    // When the last one has installed, and so all go on to train.
    let (installed, began) = (Arc::new(AtomicU32::new(0)), Arc::new(OnceLock::new()));
    let mut miners = JoinSet::new();
    for number in 0..load.miners {
        let (url, load) = (url.to_owned(), load.clone());
        let (gate, installed, began) = (
            Arc::clone(&gate),
            Arc::clone(&installed),
            Arc::clone(&began),
        );
        miners.spawn(async move {
            let permit = gate.acquire_owned().await?;
            let mut miner = Miner::join(&url, number, &load).await?;
            while !miner.installed {
                miner.piece().await?;
            }
            drop(permit);
            if installed.fetch_add(1, Ordering::Relaxed) + 1 == load.miners {
                began.get_or_init(Instant::now);
            }
            let since = || began.get().map_or(Duration::ZERO, Instant::elapsed);
            while since() < WARM_UP {
                miner.piece().await?;
            }
            miner.seen = Seen::default();
            while since() < WARM_UP + load.lasts() {
                miner.piece().await?;
            }
            anyhow::Ok(miner.seen)
        });
    }
    let mut all = Seen::default();
    while let Some(miner) = miners.join_next().await {
        let seen = miner??;
        all.get_work.extend(seen.get_work);
        all.complete.extend(seen.complete);
        all.refused += seen.refused;
    }
    println!(
        "{} miners, {} ms of work a piece, {} calls refused",
        load.miners, load.work_ms, all.refused
    );
    println!("GetWork:      {}", percentiles(all.get_work));
    println!("CompleteWork: {}", percentiles(all.complete));
    Ok(())
}

fn percentiles(mut micros: Vec<u64>) -> String {
    micros.sort_unstable();
    let at = |per_thousand: usize| {
        let index = (micros.len() * per_thousand / 1_000).min(micros.len().saturating_sub(1));
        micros
            .get(index)
            .map_or(0.0, |micros| *micros as f64 / 1_000.0)
    };
    format!(
        "p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, longest {:.2} ms, of {}",
        at(500),
        at(900),
        at(990),
        at(999),
        at(1_000),
        micros.len()
    )
}

struct Miner {
    client: Client,
    session: Session,
    work: Duration,
    installed: bool,
    ordinal: u32,
    /// What says how long the next piece takes: spread evenly between half and one and a half times the mean.
    chance: Digest,
    seen: Seen,
}

impl Miner {
    async fn join(url: &str, number: u32, load: &Load) -> anyhow::Result<Self> {
        let chance = Digest::of(&number.to_le_bytes());
        let keypair = Arc::new(Keypair::from_seed(*chance.as_bytes()));
        let (client, _) = Client::connect_with(url, keypair, ConnectOptions::default()).await?;
        let joined = client.join(Role::Miner, 1).await?;
        Ok(Self {
            client,
            session: joined.session,
            work: load.work(),
            installed: false,
            ordinal: 0,
            chance,
            seen: Seen::default(),
        })
    }

    /// Asks for a piece of work, does it, reports it. Nothing if there is none for as long as a poll is held.
    async fn piece(&mut self) -> anyhow::Result<()> {
        let asked_at = self.client.server_time();
        let asked = Instant::now();
        let reply = self
            .client
            .get_work(WorkRequest {
                session: self.session,
                room: 1,
                held: Vec::new(),
                hold: HOLD,
            })
            .await?;
        let (took, answered_at) = (asked.elapsed(), self.client.server_time());
        let Some(leased) = reply.leases.first() else {
            return Ok(());
        };
        let issued_at = leased.lease.issued_at;
        let waited = if issued_at > asked_at {
            answered_at.since(issued_at)
        } else {
            took
        };
        self.seen.get_work.push(micros(waited));

        let outcome = self.outcome(leased);
        if self.installed {
            self.chance = Digest::of(self.chance.as_bytes());
            let spread = f64::from(self.chance.as_bytes()[0]) / 255.0;
            tokio::time::sleep(self.work.mul_f64(0.5 + spread)).await;
        }
        let done = Instant::now();
        let answer = self
            .client
            .complete(self.session, leased.lease.id, outcome)
            .await;
        match answer {
            Ok(_) => self.seen.complete.push(micros(done.elapsed())),
            Err(CallError::Rejected(_)) => self.seen.refused += 1,
            Err(error) => return Err(error.into()),
        }
        self.installed |= matches!(leased.lease.work, Work::Install { .. });
        Ok(())
    }

    /// What an honest miner says of its work. Nobody looks into the store.
    fn outcome(&mut self, leased: &LeasedWork) -> Outcome {
        let ordinal = self.ordinal;
        let mut written = leased.grants.iter();
        let written = written.find(|grant| grant.method == GrantMethod::Put);
        let seal = Seal {
            digest: Digest::of(b"an object"),
            length: written.map_or(0, |grant| grant.length_bytes),
        };
        match &leased.lease.work {
            Work::Forward { .. } => {
                self.ordinal += 1;
                Outcome::Forward {
                    ordinal,
                    output: seal,
                }
            }
            Work::Backward {
                output_gradient,
                gradient,
                ..
            } => {
                self.ordinal += 1;
                Outcome::Backward {
                    ordinal,
                    recomputed: output_gradient.is_none(),
                    gradient: gradient.map(|_| seal),
                    loss: output_gradient.is_none().then_some(2.5),
                }
            }
            Work::Install { .. } => Outcome::Install {
                state: Digest::of(b"weights"),
                operations: 0,
            },
            other => unreachable!("nothing but training is measured, and this is {other:?}"),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
