//! Merging many copies of a flat tensor into one: rules that give the same bits everywhere.
//!
//! Several machines trained the same tensor for a while and now hold different copies of it. This crate makes one
//! out of them, so that **anybody who merges the same copies gets the same bits**: on any processor, with any number
//! of threads, the range whole or in pieces. That turns "did the other machine merge honestly?" into a comparison of
//! two digests.
//!
//! ```text
//!   flat f32 buffers of one length, one per machine        weight
//!
//!   copy 0   ░░░░░░░░░|▓▓▓▓▓▓▓▓▓|░░░░░░░░░                    12
//!   copy 1   ░░░░░░░░░|▓▓▓▓▓▓▓▓▓|░░░░░░░░░                     9
//!   copy 2   ░░░░░░░░░|▓▓▓NaN▓▓▓|░░░░░░░░░                    11    ──► quarantined, named in the result
//!                      ╰───┬───╯
//!                     cut(range)
//!                          │
//!                          ▼      per element, in order, in f64:
//!                    weighted_mean        sum(w_i · x_i) / sum(w_i)
//!                          │
//!                          ▼
//!   merged              ▓▓▓▓▓▓▓▓▓  ──► digest: equal for every honest merger
//!                          │
//!                       install(range)
//!                          ▼
//!   every copy  ░░░░░░░░░|▓▓▓▓▓▓▓▓▓|░░░░░░░░░
//! ```
//!
//! # Example
//!
//! ```
//! use iota_merge::{WeightedCopy, cut, install, weighted_mean};
//!
//! let mine = vec![1.0_f32, 2.0, 3.0, 4.0];
//! let theirs = vec![1.0_f32, 6.0, 7.0, 4.0];
//! let broken = vec![1.0_f32, f32::NAN, 0.0, 4.0];
//!
//! let merged = weighted_mean(&[
//!     WeightedCopy { elements: cut(&mine, 1..3)?, weight: 3 },
//!     WeightedCopy { elements: cut(&theirs, 1..3)?, weight: 1 },
//!     WeightedCopy { elements: cut(&broken, 1..3)?, weight: 5 },
//! ])?;
//! assert_eq!(merged.elements, [3.0, 4.0]);
//! assert_eq!(merged.left_out[0].copy, 2); // a NaN is never averaged in
//!
//! let mut installed = mine;
//! install(&mut installed, 1..3, &merged.elements)?;
//! assert_eq!(installed, [1.0, 3.0, 4.0, 4.0]);
//! # Ok::<(), iota_merge::Error>(())
//! ```
//!
//! # Conventions
//!
//! - A **copy** is a `&[f32]`; all copies of one merge have the same length. Positions count elements, never bytes.
//! - A **weight** is a whole number, how much its copy counts (IOTA: backward passes since the last merge). A copy of
//!   weight 0 takes no part.
//! - The **order** of the copies is the caller's duty. Floating-point sums depend on their order, so all who merge must
//!   line the copies up alike, in IOTA by session.
//! - A copy that is not finite **within the range being merged** is left out of that range as a whole and named. So a
//!   copy may take part in one cell and be left out of the next; all who merge the same range agree on it.
//!
//! # Modules
//!
//! | | |
//! |---|---|
//! | [`mean`] | the weighted mean: of copies that are all at hand, or one after the other as they arrive |
//! | [`quarantine`] | finding copies that must not be averaged |
//! | [`range`] | cutting a range out of a flat buffer, installing one, comparing by digest |
//!
//! A further rule (median, trimmed mean, ...) is one more module beside [`mean`], over the same [`WeightedCopy`] and
//! returning the same [`Merged`].
//!
//! # What it does not know
//!
//! Who merges what and when, networks, files, tensor libraries, wire formats, threads. Who wants threads gives each its
//! own ranges: the bits do not depend on the cut.
//!
//! Source: the butterfly all-reduce of the IOTA primer ("Incentivised Orchestrated Training Architecture", arXiv
//! 2507.17766); weighting by backward passes as IOTA's published code does it.

mod error;
pub mod mean;
pub mod quarantine;
pub mod range;

pub use error::Error;
pub use mean::{Accumulator, Merged, WeightedCopy, weighted_mean, weighted_mean_into};
pub use quarantine::{Quarantined, first_non_finite};
pub use range::{cut, digest, install};
