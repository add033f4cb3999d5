//! What a run's events add up to, and what they say happened.
//!
//! ```text
//!   events, in order ──┬──► Ledger       every sample: who learned from it at each stage, which upload and which merge
//!                      │       │         took that in, which checkpoint holds it
//!                      │       └─► check ◄── the rules' own State: whatever differs is a Discrepancy
//!                      │
//!                      └──► Explanation  of a peer, a sample or an epoch: a line for whatever happened, when and why
//! ```
//!
//! The ledger is the run's second set of books. It shares no code with `State::apply`: an error of the rules in crediting,
//! merging or counting shows as a difference, and so does an event that was added, lost or changed.
//!
//! ```
//! use iota_ledger::Ledger;
//! use iota_protocol::{Command, Role, PeerId, State, Timestamp};
//! # use iota_protocol::settings::{LearningRate, Merging, Registration, Timing};
//! # use iota_protocol::{RunId, RunSettings};
//! # let settings = RunSettings {
//! #     run: RunId::from_bytes([1; 16]), secret: [2; 32], stage_parameters: vec![1_000], activation_bytes: 4_096,
//! #     gradient_bytes: 4_096, in_batches: false, cell_element_bytes: 12, cell_overhead_bytes: 0, sample_tokens: 128, epochs: 1, samples_per_epoch: 4,
//! #     samples_in_flight: 2, backwards_per_step: 1, miners_to_start: 1, miners_per_stage_max: 50, validators: vec![],
//! #     audit_every_epochs: 1, timing: Timing::default(), registration: Registration::default(),
//! #     merging: Merging::default(),
//! #     learning_rate: LearningRate::cosine(1e-3, 0, 0.1),
//! # };
//!
//! let mut state = State::new(settings.clone(), Timestamp::from_millis(0))?;
//! let mut ledger = Ledger::new(&settings);
//! let join = Command::Join { peer: PeerId::from_bytes([3; 32]), role: Role::Miner, capacity: 1 };
//! for event in state.handle(&join, Timestamp::from_millis(5))? {
//!     ledger.follow(&event);
//! }
//! assert_eq!(ledger.check(&state), []);
//! assert_eq!(ledger.totals().tokens, 0); // nobody has trained yet
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | concern |
//! |---|---|
//! | `ledger`, `passes` | [`Ledger`]: each event, added to the books; the way of a sample through the stages |
//! | `account` | what is kept of a sample, and of a stretch of a session's work |
//! | `stages` | what happens to a stage: installations, rosters, checkpoints |
//! | `merging` | a stage's merge: uploads, cells, and how much of whose work a checkpoint holds |
//! | `settling` | whether a cell was settled as the results of its owners say |
//! | `holdings` | where each element of a checkpoint comes from |
//! | `check`, `discrepancy` | the balance, and what does not add up |
//! | `explain`, `words` | [`Explanation`]: events as lines for people, with their reasons |
//! | `moment` | points in time as people write them |
//!
//! What it does *not* know: journals and their files (whoever has one shows its events), the store, tokens, sockets, clocks.
//! Whether the objects exist that a checkpoint names is for whoever can read the store.

mod account;
mod check;
mod discrepancy;
mod explain;
mod holdings;
mod ledger;
mod merging;
mod moment;
mod passes;
mod settling;
mod stages;
mod words;

pub use account::{Contribution, Inclusion, Loss, SampleAccount, SampleEnd};
pub use check::{Passes, Totals};
pub use discrepancy::{Discrepancy, Objection};
pub use explain::{Explanation, Line, Subject};
pub use ledger::{Ledger, PeerAccount};
pub use moment::{InvalidMoment, Moment, elapsed, utc};
