//! Tokenizers, corpora and digest-named token shards: what a run trains on, the same for all who take part.
//!
//! ```text
//!        once, by whoever starts the run                 for every sample, by whoever works on it or checks it
//!
//!   file, folder or bundled text                                      seed, sample number
//!              │                                                              │
//!           Corpus ──split──► held out ─┐                                     ▼
//!              │ training               │                 manifest ───►    Sampler
//!              ▼                        ▼                                     │
//!   Tokenizer ──►  Preparation   (the same again)                        SampleSlice: one shard, B windows
//!                   │       │                                                 │
//!       shards, one │       │ at last                     shard's bytes ──► read
//!       by one      ▼       ▼                             (digest checked)    │
//!                 bytes  DataManifest                                         ▼
//!                   ╰──store──╯                               Batch: inputs for the head, targets for the tail
//! ```
//!
//! No miner chooses its data: which tokens a sample reads follows from its number. So two miners that hold the two ends
//! of the model, and an auditor a week later, read the same ones without a word between them.
//!
//! # Example
//!
//! ```
//! use iota_data::{BatchShape, Corpus, HELD_OUT_FRACTION, Preparation, Sampler, Split, Tokenizer};
//! use iota_protocol::SampleId;
//!
//! let shape = BatchShape { sequences: 2, context: 8 };
//! let parts = Corpus::bundled().split(HELD_OUT_FRACTION)?;
//! let shard_tokens = 1024 * shape.tokens() as usize;
//! let mut preparation = Preparation::new(&parts.training, Tokenizer::default(), Split::Training, shard_tokens)?;
//! let stored: Vec<Vec<u8>> = preparation.by_ref().map(|shard| shard.bytes).collect();
//! let manifest = preparation.finish();
//!
//! let sampler = Sampler::new(&manifest, shape, 42)?;
//! let slice = sampler.slice(SampleId::new(7));
//! let shard = manifest.shards[slice.shard].open(&stored[slice.shard])?;
//! let batch = slice.read(&shard)?;
//! assert_eq!(batch.inputs.len(), 2 * 8);
//! assert_eq!(batch.inputs[1..8], batch.targets[..7]); // a target is the token after its input
//! # Ok::<(), iota_data::Error>(())
//! ```
//!
//! # Modules
//!
//! | | |
//! |---|---|
//! | [`tokenizer`] | text to tokens and back |
//! | [`corpus`] | text: the bundled one, a file, a folder; cutting off what is held out |
//! | [`prepare`] | a corpus to shards and their manifest |
//! | [`manifest`] | what the data are: the list of their shards, by digest |
//! | [`shard`] | the bytes of a stretch of tokens |
//! | [`sampling`] | which tokens a sample reads |
//! | `permutation` | a shuffled order of any length without a table |
//!
//! # What it does not know
//!
//! Where shards are stored and how they get there, tensors, models, leases, time. It reads a corpus from disk and
//! nothing else. A corpus is held in memory while it is prepared; shards and samples are handled one at a time.

pub mod corpus;
mod error;
pub mod manifest;
mod permutation;
pub mod prepare;
pub mod sampling;
pub mod shard;
pub mod tokenizer;

pub use corpus::{Corpus, Document, HELD_OUT_FRACTION, Parts};
pub use error::Error;
pub use manifest::{DataManifest, ShardEntry, Split};
pub use prepare::{Preparation, PreparedShard};
pub use sampling::{Batch, BatchShape, Evaluation, SampleSlice, Sampler};
pub use shard::Shard;
pub use tokenizer::{ByteTokenizer, Tokenizer};
