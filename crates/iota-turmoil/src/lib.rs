//! The runtimes of all roles under deterministic simulation.
//!
//! What runs here is what runs in production: the orchestrator's service, owner, journal writer and keeper, the session
//! loop, the miner with its transfers and its stage, the validator, and gRPC with signed calls between them; the tensors
//! are real, and tiny. Only what the machine would give them is given by a world: one seed makes its network, store, disk,
//! time, chance, and everything that goes wrong.
//!
//! ```text
//!   seed ──► plan: who, how fast, which trouble and when
//!              │
//!              ▼            turmoil: a machine is a runtime with a clock of its own, links are queues
//!   ┌─ orchestrator ─┐   ┌─ miner-0 … miner-3 ─┐   ┌─ validator ─┐
//!   │ service, owner │◄─►│ session, transfers, │   │ session,    │      crash and restart, partition,
//!   │ writer, keeper │   │ stage               │   │ replay      │      hold, wrong clock
//!   └──┬──────────┬──┘   └──────────┬──────────┘   └──────┬──────┘
//!    journal    folder              └────── grants ───────┤
//!    dies at a write                                    store             refusing, slow, lossy, out of reach
//!              │
//!              ▼
//!   account: the run came to its end; journal, books, store and metrics agree; nobody honest was banned
//! ```
//!
//! Everything happens in one thread, in an order that the seed decides: the same seed gives the same trace, to the last
//! byte. For that the program answers the C library's questions for randomness and time itself (`seeded`), so a process
//! lives through one world, and [`live`] may be called once.
//!
//! ```no_run
//! use iota_turmoil::{Which, live};
//!
//! let lived = live(Which::Troubled { seed: 7 }, false)?;
//! println!("{} faults, {} virtual ms, trace {}", lived.faults.total(), lived.virtual_ms, lived.trace);
//! # Ok::<(), iota_turmoil::Failed>(())
//! ```
//!
//! | module | concern |
//! |---|---|
//! | `plan`, `chance` | what a seed makes a world of |
//! | `world` | a world step by step, and the trouble in it |
//! | `hosts` | what runs on its machines |
//! | `network`, `store`, `journal` | what the runtimes have in place of sockets, S3 and a disk |
//! | `seeded` | chance and time in place of the operating system's |
//! | `account` | what has to be true at the end |
//! | `trace`, [`fault`], `panics` | what happened |
//!
//! It does *not* know how anything is decided (the rules have a simulation of their own, a thousand times as fast:
//! `iota-sim`), and it does not show what real sockets, S3, SQLite and a preemptive scheduler do: `iota-testnet` and the
//! tests of those crates have these.

mod account;
mod chance;
pub mod fault;
mod hosts;
mod journal;
mod network;
mod panics;
mod plan;
mod seeded;
mod store;
mod trace;
mod world;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use fault::{Counts, Fault};

/// Seeds of worlds that once showed a fault, one to a line, each with what it found. They are lived through first.
const KEPT: &str = include_str!("../seeds.txt");

/// Which world to live through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Full of the trouble that follows from a seed.
    Troubled {
        /// The seed.
        seed: u64,
    },
    /// Three epochs in which nothing goes wrong but that the orchestrator dies once, if that.
    Calm {
        /// When.
        death: Option<Death>,
    },
}

/// The orchestrator dies at a write of its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// At which one, counted from 0.
    pub write: u64,
    /// Whether the write is there afterwards.
    pub kept: bool,
}

impl fmt::Display for Which {
    /// As the program is told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Troubled { seed } => write!(f, "--seed {seed}"),
            Self::Calm { death: None } => f.write_str("--calm"),
            Self::Calm { death: Some(death) } => {
                let kept = if death.kept { " --kept" } else { "" };
                write!(f, "--calm --dies-at {}{kept}", death.write)
            }
        }
    }
}

/// A world that came to a good end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lived {
    /// What went wrong in it.
    pub faults: Counts,
    /// How long it took in its own time, in milliseconds.
    pub virtual_ms: u64,
    /// Writes to its journal that were tried.
    pub writes: u64,
    /// Entries of its journal: commands that changed something.
    pub entries: u64,
    /// Events in them.
    pub events: u64,
    /// Samples that every stage has learned from.
    pub completed: u64,
    /// Samples that were on their way when the run ended.
    pub lost: u64,
    /// Pieces of work that were leased again because a lease had ended in vain.
    pub re_leased: u64,
    /// How often somebody joined, all peers together, and was told so.
    pub joins: u64,
    /// Audits with a verdict.
    pub audits: u64,
    /// Cheaters that were found.
    pub banned: u64,
    /// A digest of everything that happened, in order.
    pub trace: String,
}

/// A world that showed a fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{which}, after {:.3} s of its time: {what}\nreplay it with: cargo run --release -p iota-turmoil -- {which} --trace",
    after.as_secs_f64()
)]
pub struct Failed {
    /// Which it was.
    pub which: Which,
    /// When, in its own time.
    pub after: Duration,
    /// What was found.
    pub what: String,
}

/// Makes a world and lives through it. `print`: everything that happens, on standard output.
///
/// # Errors
/// If a runtime fails or panics, the run does not come to its end, or the end is not as it has to be.
///
/// # Panics
/// If this process has lived through a world before.
pub fn live(which: Which, print: bool) -> Result<Lived, Failed> {
    panics::notice();
    // A thread of its own, that has not drawn anything yet.
    let thread = std::thread::Builder::new().name("world".to_owned());
    let lived = thread
        .spawn(move || world::live(which, print))
        .map(std::thread::JoinHandle::join);
    let failed = |after, what| Failed { which, after, what };
    match lived {
        Ok(Ok(lived)) => lived.map_err(|(after, what)| failed(after, what)),
        Ok(Err(_)) => {
            let what = panics::first().unwrap_or("of no known kind");
            Err(failed(Duration::ZERO, format!("panic: {what}")))
        }
        Err(error) => Err(failed(Duration::ZERO, error.to_string())),
    }
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
