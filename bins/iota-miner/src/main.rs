//! The iota-miner program: mines in a run.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use iota_miner::{Behaviour, Miner, Stop};
use iota_node::{Exit, Shutdown, Telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Mine in an iota run: hold a stage of the model, train it, merge it.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take part in a run until it is over.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// Where the orchestrator answers, such as `http://127.0.0.1:7400`.
    #[arg(long, value_name = "URL", env = "IOTA_ORCHESTRATOR")]
    orchestrator: String,
    /// The miner's key; made on first use.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "iota-miner-key.json",
        env = "IOTA_KEY"
    )]
    key: PathBuf,
    /// Threads that one operation uses; the results do not depend on it.
    #[arg(long, value_name = "N", default_value_t = default_threads(), env = "IOTA_THREADS")]
    threads: usize,
    /// Pieces of work held at a time: more hide slow transfers.
    #[arg(long, value_name = "N", default_value_t = 4, env = "IOTA_CAPACITY")]
    capacity: u32,
    /// Submit wrong tensors, to see that validators find out.
    #[arg(long, hide = true)]
    cheat: bool,
}

fn main() -> Exit {
    let Command::Run(run) = Arguments::parse().command;
    match start(run) {
        Ok(Stop::RunOver | Stop::Shutdown) => Exit::Done,
        Ok(Stop::Refused) => {
            eprintln!("iota-miner: the orchestrator does not take this miner");
            Exit::Failed
        }
        Err(error) => {
            eprintln!("iota-miner: {error:#}");
            Exit::Failed
        }
    }
}

fn start(run: Run) -> anyhow::Result<Stop> {
    Telemetry::from_environment()?.init()?;
    let keypair = iota_identity::load_or_create(&run.key)
        .with_context(|| format!("the miner's key, {}", run.key.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        let behaviour = if run.cheat {
            Behaviour::WrongTensors
        } else {
            Behaviour::Honest
        };
        let stopped = Miner::builder(run.orchestrator)
            .with_keypair(keypair)
            .with_threads(run.threads)
            .with_capacity(run.capacity)
            .with_behaviour(behaviour)
            .run(shutdown)
            .await?;
        Ok(stopped)
    })
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
