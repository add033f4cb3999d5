//! Every decision of an iota run, as a pure event-sourced state machine.
//!
//! A run trains one model on machines that nobody trusts. Who joins which stage, which sample goes where, when an epoch
//! ends, which upload counts, whom to audit and whom to ban: all of it is decided here, and nothing else is done here.
//!
//! ```text
//!              Command, now                                     journal
//!   runtime ------------------> State::handle                      ^
//!      ^                          |  decide        (command -> events, or a Rejection and no change)
//!      |                          |  apply         (each event changes the state; nothing else does)
//!      |     Ok(events) or        |  consequences  (overdue? quorum? room for work? -> more events)
//!      +---- Err(Rejection) <-----+  ... until none is left
//!
//!   Gathering -> Training -> Uploading -> Merging -> Installing -+-> Settling -> Over
//!                   ^                                            |
//!                   +---------------- next epoch ----------------+
//! ```
//!
//! The contract: append the events to a journal, then answer; then show each parked session its
//! [`leases_of`](State::leases_of), and arm one timer for [`next_deadline`](State::next_deadline), which sends
//! [`Command::Tick`]. A session is only ever given work while it has offered room ([`Command::OfferRoom`]). Applying a
//! journal to a fresh state gives the run's state.
//!
//! # A run of one stage and one miner
//!
//! ```
//! use std::time::Duration;
//! use iota_protocol::settings::{LearningRate, Merging, Registration, Timing};
//! use iota_protocol::work::{Outcome, Seal, Work};
//! use iota_protocol::{Command, Digest, PeerId, Phase, Role, RunId, RunSettings, State, Timestamp};
//!
//! let settings = RunSettings {
//!     run: RunId::from_bytes([1; 16]),
//!     secret: [2; 32],
//!     stage_parameters: vec![1_000],
//!     activation_bytes: 4_096,
//!     gradient_bytes: 8_192,
//!     cell_element_bytes: 12,
//!     cell_overhead_bytes: 0,
//!     sample_tokens: 128,
//!     epochs: 1,
//!     samples_per_epoch: 4,
//!     samples_in_flight: 2,
//!     in_batches: false,
//!     backwards_per_step: 1,
//!     miners_to_start: 1,
//!     miners_per_stage_max: 50,
//!     registration: Registration::default(),
//!     validators: vec![],
//!     audit_every_epochs: 1,
//!     learning_rate: LearningRate::cosine(1e-3, 0, 0.1),
//!     merging: Merging::default(),
//!     timing: Timing::default(),
//! };
//! let mut now = Timestamp::from_millis(0);
//! let mut state = State::new(settings, now)?;
//!
//! let peer = PeerId::from_bytes([3; 32]);
//! state.handle(&Command::Join { peer, role: Role::Miner, capacity: 1 }, now)?;
//! let session = state.session_of(peer).expect("it has just joined");
//!
//! let mut ordinal = 0;
//! while !state.is_over() {
//!     now = now + Duration::from_millis(10);
//!     state.handle(&Command::OfferRoom { session, room: 1 }, now)?;
//!     let Some(lease) = state.leases_of(session).next().cloned() else { continue };
//!     let cell = |elements: u64| Seal { digest: Digest::of(b"a cell"), length: 12 * elements };
//!     let outcome = match &lease.work {
//!         Work::Install { .. } => Outcome::Install { state: Digest::of(b"weights"), operations: 0 },
//!         // The only stage is head and tail: its backward pass is all there is.
//!         Work::Backward { .. } => {
//!             ordinal += 1;
//!             Outcome::Backward { ordinal: ordinal - 1, recomputed: true, gradient: None, loss: Some(2.0) }
//!         }
//!         Work::Upload { cells, .. } => Outcome::Upload {
//!             cells: cells.iter().map(|upload| cell(upload.range.end - upload.range.start)).collect(),
//!             optimizer_steps: ordinal.into(),
//!             kept: None,
//!         },
//!         Work::Merge { range, .. } => {
//!             Outcome::Merge { merged: cell(range.end - range.start), quarantined: vec![], delta: None }
//!         }
//!         other => unreachable!("a miner alone is not leased {other:?}"),
//!     };
//!     state.handle(&Command::Complete { session, lease: lease.id, outcome }, now)?;
//! }
//! assert_eq!(state.phase(), Phase::Over);
//! assert_eq!(state.sample_counts().completed, 4);
//! assert_eq!(state.merges()[0].covered, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The modules
//!
//! | | |
//! |---|---|
//! | [`id`], [`time`], [`settings`] | names, points in time, what is fixed when a run is created |
//! | [`work`] | pieces of work, the objects they read and write, what is said when one is done |
//! | [`command`], [`rejection`], [`event`] | what can be asked, why it is refused, what happened and why |
//! | [`state`] | everything known of a run, and what it tells; [`summary`]: the same at a glance |
//! | `decide` | what a command does: joining, results, failures |
//! | `apply` | how each event changes the state |
//! | `ahead` | training that goes on while a stage merges |
//! | [`registration`] | who may become a miner and when: places in the run, and the waiting list |
//! | `consequences` | what follows: `phase` (when phases end), `merge` (cells), `routing` (who gets what) |
//! | `index` | who could be next, kept at hand so that a command costs the same in a network of any size |
//! | [`cells`], [`checkpoint`] | how a stage is cut, and what an epoch starts from |
//! | `repair` | what becomes of a checkpoint that nobody can install |
//! | `audit`, `handing_over`, [`score`] | what is replayed, what a replay needs of its subject, what work is worth |
//! | `lease`, `draw` | how long a lease runs, chance that nobody foresees |
//! | [`invariants`] | what is always true |
//!
//! # What it does not know
//!
//! Tensors, models, tokens: sizes come in as numbers, a sample is an id. Sockets, files, clocks, randomness, threads:
//! `clippy.toml` bans them. Whether an object that a peer says it wrote exists: a reader's failure report says so.
//! How values are averaged: `iota-merge` does, and this crate compares digests.

mod ahead;
mod apply;
mod audit;
pub mod cells;
pub mod checkpoint;
pub mod command;
mod consequences;
mod decide;
mod draw;
pub mod event;
mod handing_over;
pub mod id;
mod index;
pub mod invariants;
mod learning_rate;
mod lease;
mod merge;
mod pairs;
pub mod peer;
mod phase;
pub mod registration;
pub mod rejection;
mod repair;
mod routing;
pub mod score;
pub mod settings;
pub mod state;
pub mod summary;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod time;
pub mod work;

pub use command::{Command, Role};
pub use event::{Event, Phase};
pub use id::{
    AuditId, CellIndex, Digest, Epoch, LeaseId, ObjectId, PeerId, RunId, SampleId, Session,
    StageIndex, Ticket,
};
pub use learning_rate::learning_rate_at;
pub use rejection::Rejection;
pub use settings::RunSettings;
pub use state::{SessionState, State};
pub use time::Timestamp;
