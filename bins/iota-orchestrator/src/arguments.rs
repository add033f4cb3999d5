//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use iota_ledger::Moment;

/// Train one model on many machines: run a whole network here, or serve miners.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole network on this machine: orchestrator, store, miners, validators. Exit code 0 means that it trained.
    Testnet(Testnet),
    /// Serve a run and wait for miners to come.
    Serve(Serve),
    /// Go on with the run in a folder, whose process has ended: a testnet as a whole, a served run as it was served. If the
    /// folder is lost and only its store is left, the folder is made anew from the backups that are in there.
    Resume(Resume),
    /// Read a run's whole journal and say whether it is as it was written.
    Fsck {
        /// The run folder.
        #[arg(long, value_name = "DIR", default_value = "iota-run")]
        out: PathBuf,
    },
    /// Prove that every sample's tokens are counted once, from the journal and the store alone: data, leases, merges,
    /// checkpoints. Exit code 0 means that it holds.
    AuditLedger {
        /// The run folder.
        #[arg(long, value_name = "DIR", default_value = "iota-run")]
        out: PathBuf,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what happened to a miner, a sample or an epoch, and why.
    Explain {
        /// Of what.
        #[arg(value_enum)]
        what: Explained,
        /// Which: an identity (`peer_…`, the SS58 address, or enough of either to tell it from others), or a number.
        #[arg(value_name = "WHICH")]
        which: String,
        /// The run folder.
        #[arg(long, value_name = "DIR", default_value = "iota-run")]
        out: PathBuf,
    },
    /// Show how a run stood at some moment of its past.
    Replay {
        /// A time since the run began (`1h30m`, `90s`), a time in UTC (`2026-11-22T05:01:47Z`) or the number of a journal
        /// entry (`4711`).
        #[arg(long, value_name = "MOMENT")]
        at: Moment,
        /// The run folder.
        #[arg(long, value_name = "DIR", default_value = "iota-run")]
        out: PathBuf,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Copy a run's journal as it is now, while the run goes on.
    Backup {
        /// The run folder.
        #[arg(long, value_name = "DIR", default_value = "iota-run")]
        out: PathBuf,
        /// The copy, which must not be there yet.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Write the model that a run has trained as files for other programs: safetensors and config.json.
    Export {
        #[command(flatten)]
        model: Model,
        /// The folder to make.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// What numbers are written as.
        #[arg(long, value_enum, default_value_t = Factors::F32)]
        numbers: Factors,
    },
    /// Let the model that a run has trained go on from a text.
    Generate {
        #[command(flatten)]
        model: Model,
        /// The text.
        #[arg(long, value_name = "TEXT", default_value = "\n")]
        prompt: String,
        /// By how many tokens.
        #[arg(long, value_name = "N", default_value_t = 300)]
        tokens: usize,
        /// Below 1 what is likely becomes likelier; 0 takes the likeliest each time.
        #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = temperature)]
        temperature: f32,
        /// The same seed gives the same text.
        #[arg(long, value_name = "N", default_value_t = 0)]
        seed: u64,
        /// Threads that one operation uses.
        #[arg(long, value_name = "N", default_value_t = iota_node::threads::available())]
        threads: usize,
    },
    /// Measure what audits of a run may tolerate that is mined on another device than the validators' CPUs, or in another
    /// precision: prints settings.
    Tolerances(Tolerances),
    /// Look at settings.
    Config {
        #[command(subcommand)]
        command: Config,
    },
}

/// What can be explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Explained {
    /// A miner, in all its sessions.
    Miner,
    /// A validator, in all its sessions.
    Validator,
    /// A sample, by its number.
    Sample,
    /// An epoch, by its number.
    Epoch,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("a temperature is a number from 0 on".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print the settings of a testnet as they would be used, each with its origin; the output is a settings file.
    Show(Testnet),
}

/// Which model.
#[derive(Debug, Args)]
pub(crate) struct Model {
    /// The run folder. The run may go on meanwhile.
    #[arg(long, value_name = "DIR", default_value = "iota-run")]
    pub(crate) out: PathBuf,
    /// As this epoch began, if not as it is now.
    #[arg(long, value_name = "N")]
    pub(crate) epoch: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The run folder.
    #[arg(long, value_name = "DIR", default_value = "iota-run")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) tls: Tls,
    #[command(flatten)]
    pub(crate) restore: Restore,
}

/// How connections of a served run are encrypted. A resumed run is encrypted as it was, if nothing else is said.
#[derive(Debug, Args)]
pub(crate) struct Tls {
    /// A certificate chain in PEM: calls and the embedded store are encrypted, under URLs that begin with https. Has to name
    /// the host or address by which peers call.
    #[arg(long, value_name = "FILE", env = "IOTA_TLS_CERTIFICATE")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The certificate's key in PEM, without a passphrase.
    #[arg(long, value_name = "FILE", env = "IOTA_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// How to make a run folder anew.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The store that is left of the run: `store` in the run folder that it had, which is used where it is, or a copy of it
    /// in a bucket (`s3://BUCKET`, `https://HOST/BUCKET`; keys and region as `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_REGION`, `AWS_ENDPOINT_URL`), which is copied into the new folder. What happened after the last backup in it is
    /// lost. End every process of the run first, on whatever machine.
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) from_store: Option<String>,
    /// Which run, if the store has several.
    #[arg(long, value_name = "ID", requires = "from_store")]
    pub(crate) run: Option<iota_protocol::RunId>,
    /// The orchestrator's key, if it was named with --key and is somewhere else now.
    #[arg(long, value_name = "FILE", requires = "from_store")]
    pub(crate) key: Option<PathBuf>,
    /// Where peers call, if not where they did.
    #[arg(long, value_name = "ADDR", requires = "from_store")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where the embedded store listens, if not where it did.
    #[arg(long, value_name = "ADDR", requires = "from_store")]
    pub(crate) store_listen: Option<SocketAddr>,
    /// Under which URL peers reach the store, if not under the one that it had.
    #[arg(long, value_name = "URL", requires = "from_store")]
    pub(crate) store_url: Option<url::Url>,
}

/// Flags that are given override the environment (`IOTA_…`), which overrides the settings file.
#[derive(Debug, Args)]
pub(crate) struct Testnet {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Miners of each stage.
    #[arg(long, value_name = "N")]
    pub(crate) miners_per_stage: Option<u32>,
    /// Validators.
    #[arg(long, value_name = "N")]
    pub(crate) validators: Option<u32>,
    /// Miners that submit wrong tensors, to see them found.
    #[arg(long, value_name = "N")]
    pub(crate) cheaters: Option<u32>,
    /// Run every miner and validator as a process of its own.
    #[arg(long)]
    pub(crate) processes: bool,
    /// Afterwards train the same model uncut in one process, for comparison.
    #[arg(long)]
    pub(crate) baseline: bool,
}

/// What testnets and served runs have in common.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Into how many stages the model is cut.
    #[arg(long, value_name = "N")]
    pub(crate) stages: Option<u16>,
    /// Merges after which the run is complete.
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<u64>,
    /// Name of the model.
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// A UTF-8 text file, or a folder of such, instead of the bundled text.
    #[arg(long, value_name = "PATH")]
    pub(crate) corpus: Option<PathBuf>,
    /// The run folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Initial weights and the order of the data derive from it.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Where peers call; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where the embedded store listens; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    pub(crate) store_listen: Option<SocketAddr>,
    /// Under which URL peers reach the store, if not at the address where it listens.
    #[arg(long, value_name = "URL")]
    pub(crate) store_url: Option<String>,
    /// A TOML file with settings; `config show` prints one.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Miners that every stage needs before training starts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) miners_to_start: u32,
    /// Identity of a validator that may join; may be given several times.
    #[arg(long = "validator", value_name = "ID")]
    pub(crate) validators: Vec<iota_protocol::PeerId>,
    /// The orchestrator's key; made on first use.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "iota-orchestrator-key.json"
    )]
    pub(crate) key: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Tolerances {
    #[command(flatten)]
    pub(crate) testnet: Testnet,
    /// What miners compute on: cpu, or cuda:0 for the first of NVIDIA's cards. Validators compute on this machine's CPU.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(crate) device: iota_peer::DeviceName,
    /// What miners compute in; validators compute in what the run's settings say.
    #[arg(long, value_enum)]
    pub(crate) miner_precision: Factors,
    /// Optimizer steps that a miner may take in an epoch.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(4..))]
    pub(crate) steps: u64,
    /// How many epochs of so many steps are measured, from the beginning of training on.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) measured_epochs: u64,
    /// How many times as far as was measured an honest miner may be off.
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0)]
    pub(crate) margin: f64,
    /// Threads that one operation uses.
    #[arg(long, value_name = "N", default_value_t = iota_node::threads::available())]
    pub(crate) threads: usize,
    /// Print what was measured as a table, and no settings.
    #[arg(long)]
    pub(crate) table: bool,
}

/// A precision by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Factors {
    F32,
    Bf16,
}

impl From<Factors> for iota_model::Precision {
    fn from(factors: Factors) -> Self {
        match factors {
            Factors::F32 => Self::F32,
            Factors::Bf16 => Self::Bf16,
        }
    }
}

impl Testnet {
    /// The flags that were given, as settings.
    pub(crate) fn flags(&self) -> toml::Table {
        let mut flags = self.run.flags();
        let numbers = [
            ("miners_per_stage", self.miners_per_stage),
            ("validators", self.validators),
            ("cheaters", self.cheaters),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                flags.insert(name.to_owned(), i64::from(value).into());
            }
        }
        for (name, given) in [("processes", self.processes), ("baseline", self.baseline)] {
            if given {
                flags.insert(name.to_owned(), true.into());
            }
        }
        flags
    }
}

impl Serve {
    /// The flags that were given, as settings.
    pub(crate) fn flags(&self) -> toml::Table {
        let mut flags = self.run.flags();
        for (name, file) in [
            ("tls_certificate", &self.tls.tls_certificate),
            ("tls_key", &self.tls.tls_key),
        ] {
            if let Some(file) = file {
                flags.insert(name.to_owned(), file.display().to_string().into());
            }
        }
        flags
    }
}

impl Run {
    /// The flags that were given, as settings.
    pub(crate) fn flags(&self) -> toml::Table {
        let mut flags = toml::Table::new();
        let mut training = toml::Table::new();
        let mut set = |name: &str, value: Option<toml::Value>| {
            if let Some(value) = value {
                flags.insert(name.to_owned(), value);
            }
        };
        let path = |path: &PathBuf| path.display().to_string().into();
        // TOML has signed numbers only; what does not fit is refused when the setting is read.
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX).into();
        set("stages", self.stages.map(|stages| i64::from(stages).into()));
        set("preset", self.preset.clone().map(Into::into));
        set("corpus", self.corpus.as_ref().map(path));
        set("out", self.out.as_ref().map(path));
        set("seed", self.seed.map(number));
        set(
            "listen",
            self.listen.map(|address| address.to_string().into()),
        );
        set(
            "store_listen",
            self.store_listen.map(|address| address.to_string().into()),
        );
        set("store_url", self.store_url.clone().map(Into::into));
        if let Some(epochs) = self.epochs {
            training.insert("epochs".to_owned(), number(epochs));
            flags.insert("training".to_owned(), training.into());
        }
        flags
    }
}
