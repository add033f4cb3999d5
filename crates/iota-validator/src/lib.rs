//! The validator as a library: it replays miners' work and compares.
//!
//! ```text
//!   audit drawn ──► lease: checkpoint, the miner's first operations in its order, what it said of each
//!                      │
//!                      ▼
//!            engine (iota-peer) redoes them from the store's objects ──► equal digests? ──► verdict
//! ```
//!
//! Replays on a CPU compare bits: an honest miner never fails one, a dishonest one fails at the first operation that
//! it did not do. A validator reads the store and the run's description, nothing else (V1).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use iota_identity::Keypair;
//! use iota_node::Shutdown;
//! use iota_validator::Validator;
//!
//! let keypair = Keypair::generate();
//! println!("the orchestrator has to list {}", keypair.peer_id());
//! Validator::builder("http://127.0.0.1:7400").with_keypair(keypair).run(Shutdown::on_signals()?).await?;
//! # Ok(())
//! # }
//! ```
//!
//! It does *not* know why somebody is audited, or what follows from a verdict: those are the protocol's decisions.

mod worker;

use std::sync::Arc;

use iota_identity::Keypair;
use iota_node::{Clock, Shutdown, SystemClock};
use iota_peer::session::connect;
use iota_peer::{Gate, Participation, participate};
use iota_protocol::Role;

pub use iota_peer::{Error, Network, Trust};
pub use iota_protocol::peer::Stop;

use worker::ValidatorWorker;

/// Builds a [`Validator`].
#[derive(Debug)]
pub struct ValidatorBuilder {
    orchestrator: String,
    keypair: Option<Keypair>,
    capacity: u32,
    threads: usize,
    gate: Option<Gate>,
    network: Option<Network>,
    clock: Arc<dyn Clock>,
}

/// A validator.
#[derive(Debug)]
pub struct Validator;

impl Validator {
    /// A validator of the run at this URL.
    pub fn builder(orchestrator: impl Into<String>) -> ValidatorBuilder {
        ValidatorBuilder {
            orchestrator: orchestrator.into(),
            keypair: None,
            capacity: 1,
            threads: iota_node::threads::available(),
            gate: None,
            network: None,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl ValidatorBuilder {
    /// Who the validator is; the run has to list it. Without one it makes a key that it forgets.
    #[must_use]
    pub fn with_keypair(mut self, keypair: Keypair) -> Self {
        self.keypair = Some(keypair);
        self
    }

    /// Audits at a time; each holds a stage in memory. 1 by default.
    #[must_use]
    pub const fn with_capacity(mut self, capacity: u32) -> Self {
        self.capacity = capacity;
        self
    }

    /// Threads that one operation uses. All cores by default. The bits do not depend on it.
    #[must_use]
    pub const fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Shares the machine with others that compute through the same gate.
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Reaches orchestrator and store in other ways: believing an authority of one's own ([`Network::trusting`]), or by other
    /// means than TCP and HTTP.
    #[must_use]
    pub fn with_network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// Another clock than the system's.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Validates until the run is over, the orchestrator refuses the validator, or `shutdown` is requested; then it has
    /// left. A lost connection is tried again for as long as it takes.
    ///
    /// # Errors
    /// If the orchestrator's run cannot be taken part in: another version, or a model that this program cannot build.
    pub async fn run(self, shutdown: Shutdown) -> Result<Stop, Error> {
        let keypair = Arc::new(self.keypair.unwrap_or_else(Keypair::generate));
        let network = self.network.unwrap_or_default();
        let connected = connect(
            &self.orchestrator,
            keypair,
            &network,
            Arc::clone(&self.clock),
            &shutdown,
        )
        .await?;
        let Some((client, description)) = connected else {
            return Ok(Stop::Shutdown);
        };
        let gate = self.gate.unwrap_or_else(|| Gate::new(1));
        let worker = Arc::new(ValidatorWorker::new(
            Arc::new(description),
            network.store,
            gate,
            self.threads,
        )?);
        let participation = Participation {
            role: Role::Validator,
            capacity: self.capacity,
        };
        participate(client, worker, participation, self.clock, shutdown).await
    }
}
