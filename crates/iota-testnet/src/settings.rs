//! What can be set about a testnet.

use std::path::PathBuf;

use iota_orchestrator::{
    AuditOptions, CertificateFiles, CutOptions, MergingOptions, ModelOptions, RegistrationOptions,
    RunOptions, TimingOptions, TrainingOptions, Wire,
};
use serde::{Deserialize, Serialize};
use url::Url;

/// A testnet as a person describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TestnetSettings {
    /// Into how many stages the model is cut.
    pub stages: u16,
    /// Where it is cut.
    pub cut: CutOptions,
    /// Miners of each stage.
    pub miners_per_stage: u32,
    /// Validators.
    pub validators: u32,
    /// Miners that submit wrong tensors.
    pub cheaters: u32,
    /// Name of the model.
    pub preset: String,
    /// What of it is to be other than the preset says.
    pub model: ModelOptions,
    /// A UTF-8 file, or a folder of such; `bundled` is the text that comes with the program.
    pub corpus: String,
    /// The run folder.
    pub out: PathBuf,
    /// Initial weights, the order of the data and the miners' keys derive from it.
    pub seed: u64,
    /// Run every miner and validator as a process of its own.
    pub processes: bool,
    /// Also train the same model uncut in this process, for comparison.
    pub baseline: bool,
    /// Where peers call; port 0 takes a free one.
    pub listen: std::net::SocketAddr,
    /// Where the embedded store listens; port 0 takes a free one.
    pub store_listen: std::net::SocketAddr,
    /// Under which URL peers reach the store, if not at the address where it listens; empty: at that address.
    pub store_url: String,
    /// The certificate chain, in PEM, under which calls and the embedded store are encrypted; empty: they are not. For runs
    /// that are served.
    pub tls_certificate: PathBuf,
    /// The certificate's key, in PEM.
    pub tls_key: PathBuf,
    /// How it trains.
    pub training: TrainingOptions,
    /// How a stage's miners become of one mind again.
    pub merging: MergingOptions,
    /// How audits compare.
    pub audits: AuditOptions,
    /// How stages send tensors to each other.
    pub wire: Wire,
    /// Who may become a miner, and when.
    pub registration: RegistrationOptions,
    /// How long things may take.
    pub timing: TimingOptions,
}

impl Default for TestnetSettings {
    fn default() -> Self {
        let RunOptions {
            preset,
            model,
            stages,
            cut,
            corpus,
            seed,
            training,
            merging,
            audits,
            wire,
            registration,
            timing,
        } = RunOptions::default();
        let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            stages,
            cut,
            miners_per_stage: 2,
            validators: 1,
            cheaters: 0,
            preset,
            model,
            corpus,
            out: PathBuf::from("iota-run"),
            seed,
            processes: false,
            baseline: false,
            listen: loopback,
            store_listen: loopback,
            store_url: String::new(),
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
            training,
            merging,
            audits,
            wire,
            registration,
            timing: on_one_machine(timing),
        }
    }
}

/// On one machine a peer that is silent for long is dead, and a person is watching.
fn on_one_machine(timing: TimingOptions) -> TimingOptions {
    TimingOptions {
        lease_initial_ms: 20_000,
        lease_min_ms: 3_000,
        session_timeout_ms: 12_000,
        affinity_ms: 2_000,
        phase_max_ms: 60_000,
        quorum_relaxes_after_ms: 10_000,
        ..timing
    }
}

/// Processes or tasks that a testnet starts at most: what one machine can be asked to bear.
const PEERS_MAX: u32 = 256;

/// A setting that makes no testnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct InvalidTestnet {
    /// Which.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl TestnetSettings {
    /// Miners of all stages.
    pub const fn miners(&self) -> u32 {
        self.stages as u32 * self.miners_per_stage
    }

    /// Under which URL peers reach the store, if not at the address where it listens.
    ///
    /// # Errors
    /// If that is no URL.
    pub fn store_url(&self) -> Result<Option<Url>, InvalidTestnet> {
        let given = Some(self.store_url.as_str()).filter(|url| !url.is_empty());
        let url = given.map(str::parse).transpose();
        url.map_err(|error: url::ParseError| InvalidTestnet {
            setting: "store_url",
            problem: error.to_string(),
        })
    }

    /// The files under which calls and the embedded store are encrypted, if they are to be.
    ///
    /// # Errors
    /// If one is there without the other.
    pub fn certificate_files(&self) -> Result<Option<CertificateFiles>, InvalidTestnet> {
        let given = |path: &PathBuf| !path.as_os_str().is_empty();
        let lacks = |setting, problem: &str| {
            let problem = problem.to_owned();
            Err(InvalidTestnet { setting, problem })
        };
        match (given(&self.tls_certificate), given(&self.tls_key)) {
            (false, false) => Ok(None),
            (true, true) => Ok(Some(CertificateFiles {
                certificate: self.tls_certificate.clone(),
                key: self.tls_key.clone(),
            })),
            (true, false) => lacks("tls_key", "the certificate needs its key"),
            (false, true) => lacks("tls_certificate", "the key needs its certificate"),
        }
    }

    /// Checks what concerns the network; the run's own settings are checked when it is set up.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn validate(&self) -> Result<(), InvalidTestnet> {
        let invalid = |setting, problem: String| Err(InvalidTestnet { setting, problem });
        self.store_url()?;
        if self.certificate_files()?.is_some() {
            return invalid(
                "tls_certificate",
                "a testnet stays on its machine, where nothing is encrypted; `serve` takes a certificate".to_owned(),
            );
        }
        if self.stages == 0 {
            return invalid("stages", "a model has at least one stage".to_owned());
        }
        if self.miners_per_stage == 0 {
            return invalid("miners_per_stage", "every stage needs a miner".to_owned());
        }
        let peers =
            u64::from(self.stages) * u64::from(self.miners_per_stage) + u64::from(self.validators);
        if peers > u64::from(PEERS_MAX) {
            return invalid(
                "miners_per_stage",
                format!("{peers} peers are more than the {PEERS_MAX} of a testnet"),
            );
        }
        if self.cheaters >= self.miners() {
            return invalid(
                "cheaters",
                format!("of {} miners at least one has to be honest", self.miners()),
            );
        }
        Ok(())
    }

    /// The part that concerns the run.
    pub fn run_options(&self) -> RunOptions {
        RunOptions {
            preset: self.preset.clone(),
            model: self.model,
            stages: self.stages,
            cut: self.cut.clone(),
            corpus: self.corpus.clone(),
            seed: self.seed,
            training: self.training.clone(),
            merging: self.merging,
            audits: self.audits.clone(),
            wire: self.wire,
            registration: self.registration,
            timing: self.timing,
        }
    }
}
