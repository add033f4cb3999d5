//! Merging many copies of a flat tensor into one: rules that give the same bits everywhere.
//!
//! Several machines trained the same tensor for a while and now hold different copies of it. This crate makes one
//! out of them, so that **anybody who merges the same copies gets the same bits**: on any processor, with any number
//! of threads. That turns "did the other machine merge honestly?" into a comparison of two digests.
//!
//! ```text
//!   one machine                                            another
//!
//!   anchor ─ trained = delta                               delta
//!                        │ + what was left out last time     │
//!                     Codec::encode                       Codec::encode
//!                        │ ╲                                 │ ╲
//!                        │  residual, for the next time      │  residual
//!                        ▼                                   ▼
//!   ══════════════════ bytes ═════════════════════════════ bytes ═══════════   84 for 4096 elements, if need be
//!                        │                                   │
//!                     Codec::decode   ◄── typed errors,   Codec::decode
//!                        │                never a panic      │
//!                        ▼                                   ▼
//!   copy 0   ░░░░░░|▓▓▓▓▓▓▓▓▓|░░░    copy 1   ░░░░░░|▓▓▓NaN▓▓▓|░░░ ──► quarantined, named in the result
//!                   ╰───┬───╯ cut(range)
//!                       ▼
//!                  Rule::merge         mean, geometric mean, median, trimmed mean, centered clip, radial;
//!                       │              long copies shortened first (Clip), if so wished
//!                       ▼
//!   merged          ▓▓▓▓▓▓▓▓▓  ──► digest: equal for every honest merger
//!                       │
//!                  Outer::step         none, SGD, Nesterov: from the anchor to the new parameters
//!                       │
//!                    install(range)
//!                       ▼
//!   every copy  ░░░░░░|▓▓▓▓▓▓▓▓▓|░░░
//! ```
//!
//! Copies may as well be the tensors themselves, without anchor and outer step, and travel as f32.
//!
//! # Example
//!
//! ```
//! use iota_merge::{Clip, Codec, Feedback, Outer, Rule, WeightedCopy, digest, pseudo_gradient};
//!
//! // What two machines have learned since they were equal, and what a third claims.
//! let anchor = vec![1.0_f32; 4096];
//! let trained = [vec![0.75_f32; 4096], vec![0.5; 4096], vec![f32::NAN; 4096]];
//!
//! // The honest ones send an eighth of a byte for each element, and remember what that left out.
//! let mut uploads = Vec::new();
//! for trained in &trained[..2] {
//!     let delta = pseudo_gradient(&anchor, trained)?;
//!     let mut residual = vec![0.0; 4096];
//!     let feedback = Feedback { residual: &mut residual, decay: 0.95 };
//!     uploads.push(Codec::TopK { keep: 256 }.encode(&delta, Some(feedback))?);
//! }
//! let mut copies = Vec::new();
//! for upload in &uploads {
//!     copies.push(Codec::TopK { keep: 256 }.decode(upload, 4096)?);
//! }
//! copies.push(trained[2].clone());
//!
//! // Whoever merges them gets these bits.
//! let weighted: Vec<_> = copies.iter().map(|elements| WeightedCopy { elements, weight: 1 }).collect();
//! let merged = Rule::WeightedMean.merge(&weighted, Clip::MedianNorm)?;
//! assert_eq!(merged.left_out[0].copy, 2); // a NaN is never averaged in
//! let again = Rule::WeightedMean.merge(&weighted, Clip::MedianNorm)?;
//! assert_eq!(digest(&again.elements), digest(&merged.elements));
//!
//! // And everybody steps to the same parameters.
//! let parameters = Outer::Sgd { learning_rate: 1.0 }.step(&anchor, &merged.elements, &mut [], 0)?;
//! assert!(parameters[0] < 1.0 && parameters[4000] == 1.0);
//! # Ok::<(), iota_merge::Error>(())
//! ```
//!
//! # Conventions
//!
//! - A **copy** is a slice of [`Element`]s: `f32`, or the bytes of f32 or bf16 as they came. All copies of one merge have
//!   the same length. Positions count elements, never bytes.
//! - A **weight** is a whole number, how much its copy counts (IOTA: backward passes since the last merge). A copy of
//!   weight 0 takes no part. Median and trimmed mean count every copy once.
//! - The **order** of the copies is the caller's duty. Floating-point sums depend on their order, so all who merge must
//!   line the copies up alike, in IOTA by session.
//! - A copy that is not finite **within the range being merged** is left out of that range as a whole and named. So a
//!   copy may take part in one cell and be left out of the next; all who merge the same range agree on it.
//! - A **length** (of [`Clip`], [`Rule::CenteredClip`], [`Rule::Radial`]) is that of the range being merged. Rules that
//!   know lengths give other bits if a range is merged in pieces; the others do not ([`Rule::is_elementwise`]).
//! - A **delta** points back, from what was trained to the anchor, as a gradient does: stepping subtracts it.
//!
//! # Modules
//!
//! | | |
//! |---|---|
//! | [`rule`] | all rules by name, clipping, and what a merge is in general |
//! | [`mean`] | the weighted mean: of copies that are all at hand, or one after the other as they arrive |
//! | [`geometric`] | the geometric mean of numbers that have signs |
//! | [`order`] | median and trimmed mean, by sorting networks |
//! | [`centre`] | centered clip, radial-directional averaging |
//! | [`mod@norm`] | lengths in a defined order |
//! | [`outer`] | pseudo-gradients, and steps on them |
//! | [`codec`] | deltas and merged ranges in fewer bytes, error feedback |
//! | [`quarantine`] | finding copies that must not be averaged |
//! | [`range`] | cutting a range out of a flat buffer, installing one, comparing by digest |
//!
//! A further rule is one more module and a variant of [`Rule`]; a further codec one more module under [`codec`].
//!
//! # What it does *not* know
//!
//! Who merges what and when, networks, files, tensor libraries, threads. Who wants threads gives each its own ranges.
//!
//! Sources: the butterfly all-reduce of the IOTA primer ("Incentivised Orchestrated Training Architecture", arXiv
//! 2507.17766); weighting by backward passes as IOTA's published code does it; every module names its own.

pub mod centre;
pub mod codec;
mod element;
mod error;
pub mod geometric;
mod in_progress;
pub mod mean;
pub mod norm;
pub mod order;
pub mod outer;
pub mod quarantine;
pub mod range;
pub mod rule;
#[cfg(test)]
mod tests;
mod vector;

pub use codec::{Codec, Feedback};
pub use element::Element;
pub use error::Error;
pub use in_progress::InProgress;
pub use mean::{Accumulator, Merged, WeightedCopy, weighted_mean, weighted_mean_into};
pub use norm::norm;
pub use outer::{Outer, pseudo_gradient};
pub use quarantine::{Quarantined, first_non_finite};
pub use range::{cut, digest, install};
pub use rule::{Clip, Rule};
