//! The iota-miner program: mines in a run.

mod costs;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use iota_identity::KeyLock;
use iota_miner::{Behaviour, Device, DeviceName, Miner, Network, Stop, Trust};
use iota_model::Precision;
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
    /// Measure what the pieces of a model cost this machine: settings for whoever cuts the model into stages.
    Costs(costs::Options),
}

/// [`Precision`] by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Factors {
    F32,
    Bf16,
}

impl From<Factors> for Precision {
    fn from(factors: Factors) -> Self {
        match factors {
            Factors::F32 => Self::F32,
            Factors::Bf16 => Self::Bf16,
        }
    }
}

#[derive(Debug, Args)]
struct Run {
    /// Where the orchestrator answers, such as `https://orchestrator.example:7400`.
    #[arg(long, value_name = "URL", env = "IOTA_ORCHESTRATOR")]
    orchestrator: String,
    /// A certificate authority of one's own, in PEM, that orchestrator and store may have their certificates from; beside
    /// those that the system trusts.
    #[arg(long, value_name = "FILE", env = "IOTA_CA")]
    ca: Option<PathBuf>,
    /// The miner's key; made on first use.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "iota-miner-key.json",
        env = "IOTA_KEY"
    )]
    key: PathBuf,
    /// Threads that one operation uses; the results do not depend on it.
    #[arg(
        long,
        value_name = "N",
        default_value_t = iota_node::threads::available(),
        value_parser = at_least_one(),
        env = "IOTA_THREADS"
    )]
    threads: usize,
    /// What the stage is computed on: cpu, or cuda:0 for the first of NVIDIA's cards.
    #[arg(long, value_name = "DEVICE", default_value_t, env = "IOTA_DEVICE")]
    device: DeviceName,
    /// What the stage is computed in, if not in what the run says; only for runs whose audits compare closely.
    #[arg(long, value_enum, env = "IOTA_PRECISION")]
    precision: Option<Factors>,
    /// Where the device cannot be used, compute on the CPU instead of ending.
    #[arg(long, env = "IOTA_DEVICE_FALLBACK")]
    device_fallback: bool,
    /// Kernels that were compiled for the card, for machines without NVRTC; see docs/CUDA.md.
    #[arg(long, value_name = "FOLDER", env = "IOTA_CUDA_KERNELS")]
    cuda_kernels: Option<PathBuf>,
    /// Pieces of work held at a time, at most 64: more hide slow transfers.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..=64),
        env = "IOTA_CAPACITY"
    )]
    capacity: u32,
    /// Memory that the miner may take, in MiB; by default all that is available when it starts.
    #[arg(
        long,
        value_name = "MIB",
        value_parser = clap::value_parser!(u64).range(1..=1 << 40),
        env = "IOTA_MEMORY_LIMIT_MIB"
    )]
    memory_limit_mib: Option<u64>,
    /// Submit wrong tensors, to see that validators find out.
    #[arg(long, hide = true)]
    cheat: bool,
}

fn main() -> Exit {
    let run = match Arguments::parse().command {
        Command::Run(run) => run,
        Command::Costs(options) => {
            return match costs::measure(&options) {
                Ok(settings) => {
                    println!("{settings}");
                    Exit::Done
                }
                Err(error) => {
                    eprintln!("iota-miner: {error:#}");
                    Exit::Unusable
                }
            };
        }
    };
    match start(run) {
        Ok(Stop::RunOver | Stop::Shutdown) => Exit::Done,
        Ok(Stop::Refused) => {
            eprintln!("iota-miner: the orchestrator does not take this miner");
            Exit::Failed
        }
        Err(error) => {
            eprintln!("iota-miner: {error:#}");
            exit_code(&error)
        }
    }
}

fn start(run: Run) -> anyhow::Result<Stop> {
    Telemetry::from_environment()?.init()?;
    // Before there is a key: whoever names a wrong file has not begun.
    let network = run.ca.as_deref().map(Trust::and_file).transpose()?;
    let network = network.map(Network::trusting).unwrap_or_default();
    let keypair = iota_identity::load_or_create(&run.key)
        .with_context(|| format!("the miner's key, {}", run.key.display()))?;
    let Some(_lock) = KeyLock::take(&run.key)? else {
        anyhow::bail!("another process is using the key {}", run.key.display());
    };
    let device = open_device(&run)?;
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
        let mut miner = Miner::builder(run.orchestrator)
            .with_keypair(keypair)
            .with_network(network)
            .with_threads(run.threads)
            .with_device(device)
            .with_capacity(run.capacity)
            .with_behaviour(behaviour);
        if let Some(precision) = run.precision {
            miner = miner.with_precision(precision.into());
        }
        if let Some(limit_mib) = run.memory_limit_mib {
            miner = miner.with_memory_limit_bytes(limit_mib << 20);
        }
        Ok(miner.run(shutdown).await?)
    })
}

/// Before anybody is told of the miner: one that cannot compute should not join.
fn open_device(run: &Run) -> anyhow::Result<Device> {
    match Device::open(run.device, run.cuda_kernels.as_deref()) {
        Err(error) if run.device_fallback => {
            let error = anyhow::Error::from(error);
            eprintln!("iota-miner: {error:#}; computing on the CPU instead");
            Ok(Device::Cpu)
        }
        opened => Ok(opened?),
    }
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

fn exit_code(error: &anyhow::Error) -> Exit {
    if error.is::<iota_tls::Error>() {
        return Exit::Unusable;
    }
    match error.downcast_ref::<iota_miner::Error>() {
        Some(error) if error.is_bad_url() => Exit::Unusable,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_work_are_refused_as_flags() {
        let parse = |arguments: &[&str]| {
            let always = [
                "iota-miner",
                "run",
                "--orchestrator",
                "http://127.0.0.1:7400",
            ];
            Arguments::try_parse_from(always.iter().chain(arguments))
        };
        assert!(parse(&["--threads", "1"]).is_ok());
        assert!(parse(&["--threads", "0"]).is_err());
        assert!(parse(&["--capacity", "64"]).is_ok());
        assert!(parse(&["--capacity", "0"]).is_err());
        assert!(parse(&["--capacity", "65"]).is_err());
        assert!(parse(&["--memory-limit-mib", "4096"]).is_ok());
        assert!(parse(&["--memory-limit-mib", "0"]).is_err());
        assert!(parse(&["--device", "cuda:1"]).is_ok());
        assert!(parse(&["--device", "gpu"]).is_err());
    }

    #[test]
    fn an_address_that_is_none_is_unusable_and_nothing_else_is() {
        let run = |orchestrator: &str, shutdown: Shutdown| {
            let peer = Miner::builder(orchestrator).run(shutdown);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(peer)
        };
        let shutdown = Shutdown::new();
        let error = run("not a url", shutdown).unwrap_err();
        assert_eq!(exit_code(&error.into()), Exit::Unusable);
        assert_eq!(
            exit_code(&anyhow::anyhow!("the disk is full")),
            Exit::Failed
        );
    }
}
