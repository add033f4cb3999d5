//! Seeded worlds in virtual time that drive the rules of a run through every kind of trouble.
//!
//! One seed makes one world: a small run, its miners and validators, a network and a store that lose, delay and spoil
//! things, clocks that are wrong, processes that die. The state machines in it are the ones in production:
//! [`iota_protocol::State`] behind a journal, and an [`iota_protocol::peer::Peer`] in every process.
//!
//! ```text
//!   seed ──► plan ──► world: happenings in the order of virtual time
//!                       │
//!                       ├─ orchestrator   State, journal, twin that only events made; checked after every command
//!                       ├─ nodes          Peer machines; worker: leases done on a replica without tensors
//!                       ├─ store          what a reader would find
//!                       └─ trouble        crashes, partitions, losses, leaps of clocks; stops at a time
//!                       ▼
//!                     accounts: every sample counted once, from the journal alone
//! ```
//!
//! After every command the invariants hold ([`iota_protocol::invariants`]), the events replay to the same state, and a
//! refused command has changed nothing. After every crash the journal (or a snapshot and the tail of it) leads to the state
//! that was lost. Once trouble stops the run ends in bounded time and everybody hears of it; nobody who did as asked is
//! banned; every sample's tokens were counted once.
//!
//! ```
//! let run = iota_sim::run(7, false)?;
//! assert_eq!(run, iota_sim::run(7, false)?, "the same seed makes the same world");
//! # Ok::<(), iota_sim::Failed>(())
//! ```
//!
//! # The modules
//!
//! | | |
//! |---|---|
//! | `plan`, `chance` | what a seed makes a world of |
//! | `world` | everything that happens, one thing after the other |
//! | `orchestrator` | the rules with a journal, crashes and recoveries, and the checks |
//! | `node`, `worker`, `replica` | a peer's process, what it does with a lease, and a stage without tensors |
//! | `store`, [`fault`] | objects that can be lost, and kinds of trouble, counted |
//! | `accounts` | the proof that every sample counts once |
//! | `waits` | the waiting list as those on it see it |
//!
//! # What it does not know
//!
//! Tensors: the result of an operation is a digest of all that it depends on. Sockets, gRPC, files, tokio: runtimes are
//! tested where they are. Which bytes a journal writes: here it is a list of events.

mod accounts;
mod chance;
pub mod fault;
mod node;
mod orchestrator;
mod plan;
mod replica;
mod store;
mod waits;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use iota_protocol::Digest;
use iota_protocol::state::SampleCounts;

pub use fault::{Counts, Fault};
pub use waits::Places;

/// Seeds of worlds that once showed a fault, one to a line, each with what it found. They are lived through first.
const KEPT: &str = include_str!("../seeds.txt");

/// A world that came to a good end.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What it was made from.
    pub seed: u64,
    /// What went wrong in it.
    pub faults: Counts,
    /// How long it took in its own time, in milliseconds.
    pub virtual_ms: u64,
    /// Commands that the rules were given.
    pub commands: u64,
    /// Events that they made of them.
    pub events: u64,
    /// Peers that were found cheating.
    pub banned: u64,
    /// Audits with a verdict.
    pub audits: u64,
    /// Replays of what somebody did while its stage merged.
    pub ahead: u64,
    /// Its samples.
    pub samples: SampleCounts,
    /// Who had to wait for a place in it.
    pub places: Places,
    /// Of everything that happened, in order.
    pub trace: Digest,
}

/// A world that showed a fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "seed {seed}, after {at} ms of its time: {what}\nreplay it with: cargo run --release -p iota-sim -- --seed {seed} --trace"
)]
pub struct Failed {
    /// What it was made from.
    pub seed: u64,
    /// When, in milliseconds of its own time.
    pub at: u64,
    /// What was found.
    pub what: String,
}

/// Makes the world of a seed and lives through it. `print`: every happening, on standard output.
///
/// # Errors
/// If an invariant does not hold, a state is lost, or the run does not come to its end. A panic in the rules is one too.
pub fn run(seed: u64, print: bool) -> Result<Run, Failed> {
    let lived = catch_unwind(AssertUnwindSafe(|| world::World::new(seed, print)?.run()));
    lived.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        let what = format!("panic: {}", text.unwrap_or("of no known kind"));
        Err(Failed { seed, at: 0, what })
    })
}

/// The seeds that are kept because they once found something.
///
/// # Panics
/// If a line of the file begins with anything but a number.
pub fn kept_seeds() -> impl Iterator<Item = u64> {
    let lines = KEPT.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let first = line.split_whitespace().next();
            let seed = first.and_then(|word| word.parse().ok());
            seed.expect("a line of seeds.txt begins with a seed")
        })
}
