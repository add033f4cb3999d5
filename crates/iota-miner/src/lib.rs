//! The miner as a library: it takes leases, runs a stage, moves tensors.
//!
//! ```text
//!   orchestrator ◄── session (iota-peer) ──► one task per lease ──► stage thread ──► uploads
//!                                             downloads              one operation      │
//!                                                ▲                   at a time          ▼
//!                                                └──────────── object store ◄───────────┘
//! ```
//!
//! Downloads, compute and uploads of different samples overlap; everything that waits is bounded by the number of
//! leases that a miner holds. Whatever goes wrong with a lease goes back to the orchestrator as a reason.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use iota_identity::Keypair;
//! use iota_miner::Miner;
//! use iota_node::Shutdown;
//!
//! let why = Miner::builder("http://127.0.0.1:7400")
//!     .with_keypair(Keypair::generate())
//!     .with_threads(2)
//!     .run(Shutdown::on_signals()?)
//!     .await?;
//! println!("stopped: {why:?}");
//! # Ok(())
//! # }
//! ```
//!
//! It does *not* know who else is in the run, which sample comes next, or what its work is worth: it does what it is
//! leased. It holds no storage credentials.

mod behaviour;
mod ledger;
mod sealed;
mod stage_thread;
mod worker;

use std::sync::Arc;

use iota_identity::Keypair;
use iota_model::Precision;
use iota_node::{Clock, Shutdown, SystemClock};
use iota_peer::session::connect;
use iota_peer::{Gate, Participation, participate};
use iota_protocol::Role;
use iota_run::Description;
use tracing::warn;

pub use behaviour::Behaviour;
pub use iota_peer::{Device, DeviceName, Error, Network, Trust};
pub use iota_protocol::peer::Stop;

use stage_thread::StageThread;
use worker::MinerWorker;

/// Builds a [`Miner`].
#[derive(Debug)]
pub struct MinerBuilder {
    orchestrator: String,
    keypair: Option<Keypair>,
    capacity: u32,
    threads: usize,
    device: Device,
    precision: Option<Precision>,
    memory_limit_bytes: Option<u64>,
    gate: Option<Gate>,
    network: Option<Network>,
    behaviour: Behaviour,
    clock: Arc<dyn Clock>,
}

/// A miner.
#[derive(Debug)]
pub struct Miner;

impl Miner {
    /// A miner of the run at this URL.
    pub fn builder(orchestrator: impl Into<String>) -> MinerBuilder {
        MinerBuilder {
            orchestrator: orchestrator.into(),
            keypair: None,
            capacity: 4,
            threads: iota_node::threads::available(),
            device: Device::default(),
            precision: None,
            memory_limit_bytes: None,
            gate: None,
            network: None,
            behaviour: Behaviour::Honest,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl MinerBuilder {
    /// Who the miner is. Without one it makes a key that it forgets.
    #[must_use]
    pub fn with_keypair(mut self, keypair: Keypair) -> Self {
        self.keypair = Some(keypair);
        self
    }

    /// Leases held at a time: more hide the time that transfers take, fewer leave samples to others. 4 by default.
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

    /// What the stage is computed on: the CPU by default. Results on a card are not, bit for bit, those on a CPU.
    #[must_use]
    pub fn with_device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// What the stage is computed in, if not in what the run says: for hardware that does only one of them well. Results
    /// are then not, bit for bit, what others get, so only a run whose audits compare closely takes such a miner.
    #[must_use]
    pub const fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = Some(precision);
        self
    }

    /// Memory that the miner may take, as it is planned before a stage is started. By default what the machine, or the
    /// container, has available when the miner starts; without a limit where the system does not say. With little room
    /// fewer forward passes are kept, and their backward passes redo them.
    #[must_use]
    pub const fn with_memory_limit_bytes(mut self, limit_bytes: u64) -> Self {
        self.memory_limit_bytes = Some(limit_bytes);
        self
    }

    /// Shares the machine with others that compute through the same gate.
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Makes the miner dishonest, to see that it is found. Testnets only.
    #[must_use]
    pub const fn with_behaviour(mut self, behaviour: Behaviour) -> Self {
        self.behaviour = behaviour;
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

    /// Mines until the run is over, the orchestrator refuses the miner for good, or `shutdown` is requested; then the
    /// miner has left. A lost connection is tried again for as long as it takes.
    ///
    /// # Errors
    /// If the orchestrator's run cannot be taken part in: another version, or a model that this program cannot build.
    /// [`Error::Memory`] if the stage that the miner is given does not fit. [`Error::Precision`] if the run wants another.
    pub async fn run(self, shutdown: Shutdown) -> Result<Stop, Error> {
        // Before there is a stage, because later some of what is taken is the miner's own.
        let memory_limit_bytes = self
            .memory_limit_bytes
            .or_else(iota_node::memory::available_bytes);
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
        let description = Arc::new(in_precision(description, self.precision)?);
        if description.comparison.is_bits() && !matches!(self.device, Device::Cpu) {
            warn!(
                "audits of this run compare bits: if it has validators, they ban whoever computes on a card"
            );
        }
        let gate = self.gate.unwrap_or_else(|| Gate::new(1));
        let stage = StageThread::start(self.capacity as usize, gate.clone())
            .map_err(|_| Error::StageGone)?;
        let worker = Arc::new(MinerWorker::new(
            description,
            network.store,
            stage,
            gate,
            (self.device, self.threads),
            memory_limit_bytes,
            self.behaviour,
        )?);
        let participation = Participation {
            role: Role::Miner,
            capacity: self.capacity,
        };
        participate(client, worker, participation, self.clock, shutdown).await
    }
}

/// The run as a miner computes it that has a precision of its own.
fn in_precision(
    description: Description,
    precision: Option<Precision>,
) -> Result<Description, Error> {
    let precision = precision.unwrap_or(description.precision);
    if precision != description.precision && description.comparison.is_bits() {
        return Err(Error::Precision {
            run: description.precision,
        });
    }
    Ok(Description {
        precision,
        ..description
    })
}
