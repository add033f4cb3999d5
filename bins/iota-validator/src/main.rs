//! The iota-validator program: audits the miners of a run.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use iota_node::{Exit, Shutdown, Telemetry};
use iota_validator::{Network, Stop, Trust, Validator};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Audit the miners of an iota run: replay what they did, compare bits.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take part in a run until it is over. The orchestrator has to list this validator's identity.
    Run(Run),
    /// Print this validator's identity; makes the key if there is none.
    Identity {
        /// The validator's key.
        #[arg(
            long,
            value_name = "FILE",
            default_value = "iota-validator-key.json",
            env = "IOTA_KEY"
        )]
        key: PathBuf,
    },
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
    /// The validator's key; made on first use.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "iota-validator-key.json",
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
}

fn main() -> Exit {
    let done = match Arguments::parse().command {
        Command::Identity { key } => identity(&key),
        Command::Run(run) => start(run),
    };
    done.unwrap_or_else(|error| {
        eprintln!("iota-validator: {error:#}");
        exit_code(&error)
    })
}

fn identity(key: &PathBuf) -> anyhow::Result<Exit> {
    let keypair = load(key)?;
    println!("{}", keypair.peer_id());
    Ok(Exit::Done)
}

fn start(run: Run) -> anyhow::Result<Exit> {
    Telemetry::from_environment()?.init()?;
    // Before there is a key: whoever names a wrong file has not begun.
    let network = run.ca.as_deref().map(Trust::and_file).transpose()?;
    let network = network.map(Network::trusting).unwrap_or_default();
    let keypair = load(&run.key)?;
    let Some(_lock) = iota_identity::KeyLock::take(&run.key)? else {
        anyhow::bail!("another process is using the key {}", run.key.display());
    };
    let peer = keypair.peer_id();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let stopped = runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        let validator = Validator::builder(run.orchestrator)
            .with_keypair(keypair)
            .with_network(network)
            .with_threads(run.threads);
        anyhow::Ok(validator.run(shutdown).await?)
    })?;
    if stopped == Stop::Refused {
        anyhow::bail!("the orchestrator does not take this validator; it has to list {peer}");
    }
    Ok(Exit::Done)
}

fn load(key: &PathBuf) -> anyhow::Result<iota_identity::Keypair> {
    iota_identity::load_or_create(key)
        .with_context(|| format!("the validator's key, {}", key.display()))
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

fn exit_code(error: &anyhow::Error) -> Exit {
    if error.is::<iota_tls::Error>() {
        return Exit::Unusable;
    }
    match error.downcast_ref::<iota_validator::Error>() {
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
                "iota-validator",
                "run",
                "--orchestrator",
                "http://127.0.0.1:7400",
            ];
            Arguments::try_parse_from(always.iter().chain(arguments))
        };
        assert!(parse(&["--threads", "1"]).is_ok());
        assert!(parse(&["--threads", "0"]).is_err());
    }

    #[test]
    fn an_address_that_is_none_is_unusable_and_nothing_else_is() {
        let run = |orchestrator: &str, shutdown: Shutdown| {
            let peer = Validator::builder(orchestrator).run(shutdown);
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
