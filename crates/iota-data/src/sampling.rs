//! Which tokens a sample reads.
//!
//! ```text
//!   shard        ├───T───┼───T───┼───T───┼───T───┼───T───┼───T───┼───T───┤·    tokens; windows of T side by side
//!   window 2                     ╞═══════════════╡                              reads T + 1 tokens:
//!     inputs                     ├───T───┤                                      what the head reads
//!     targets                     ├───T───┤                                     what the tail compares with
//!
//!   pass 0       windows shuffled within their shard, B of them make a sample; samples shuffled over all shards
//!   pass 1       the same, shuffled anew
//! ```
//!
//! The slice of a sample is a pure function of the seed, the sample's number, the manifest and the shape. Nobody chooses
//! what to train on; head, tail and any auditor compute the same; nothing is stored but the number. A sample lies in
//! one shard, so that one object is read for it.
//!
//! A pass reads each window once. If a shard's windows are no multiple of B, fewer than B of them sit out, others in
//! every pass; [`BatchShape::tokens`] says how to cut shards so that this does not happen.

use iota_protocol::SampleId;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::manifest::DataManifest;
use crate::permutation::Permutation;
use crate::shard::Shard;

/// The shape of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchShape {
    /// Token sequences in it (B). At least 1.
    pub sequences: u32,
    /// Tokens in a sequence (T). At least 1.
    pub context: u32,
}

impl BatchShape {
    /// Tokens that a sample predicts. Shards that advance by a multiple of this many tokens leave no window over.
    #[must_use]
    pub fn tokens(self) -> u64 {
        u64::from(self.sequences) * u64::from(self.context)
    }
}

/// Which tokens a sample reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SampleSlice {
    /// Position of the shard in the manifest.
    pub shard: usize,
    /// The first token of each window, counted from the start of the shard. One per sequence.
    pub starts: Vec<u64>,
    /// Tokens that each window predicts; it reads one more.
    pub context: u32,
}

/// The tokens of one sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What the model reads, `sequences` rows of `context` tokens.
    pub inputs: Vec<u32>,
    /// What it should say at each of them: the token after it.
    pub targets: Vec<u32>,
    /// Number of rows.
    pub sequences: usize,
    /// Length of a row in tokens.
    pub context: usize,
}

impl SampleSlice {
    /// Reads the sample from its shard, the one that [`shard`](Self::shard) points at.
    ///
    /// # Errors
    /// [`Error::WindowOutOfBounds`] if the shard is too short: it is another one.
    pub fn read(&self, shard: &Shard) -> Result<Batch, Error> {
        let (sequences, context) = (self.starts.len(), self.context as usize);
        let mut inputs = Vec::with_capacity(sequences * context);
        let mut targets = Vec::with_capacity(sequences * context);
        for &start in &self.starts {
            let end = start
                .saturating_add(u64::from(self.context))
                .saturating_add(1);
            if end > shard.len() as u64 {
                return Err(Error::WindowOutOfBounds {
                    end,
                    tokens: shard.len() as u64,
                });
            }
            let (start, end) = (start as usize, end as usize);
            inputs.extend(shard.tokens(start..end - 1));
            targets.extend(shard.tokens(start + 1..end));
        }
        Ok(Batch {
            inputs,
            targets,
            sequences,
            context,
        })
    }
}

/// Says which tokens each sample of a run reads, pass after pass over the training data, without end.
#[derive(Debug, Clone)]
pub struct Sampler {
    layout: Layout,
    seed: u64,
}

impl Sampler {
    /// A sampler of these data.
    ///
    /// # Errors
    /// [`Error::TooShort`] if the data are shorter than one sample, [`Error::ShardTooShort`] if a shard is,
    /// [`Error::Shape`] if a sample has no tokens, and [`Error::Manifest`] if the manifest is not valid.
    pub fn new(manifest: &DataManifest, shape: BatchShape, seed: u64) -> Result<Self, Error> {
        Ok(Self {
            layout: Layout::new(manifest, shape)?,
            seed,
        })
    }

    /// Samples in one pass over the data. At least 1.
    #[must_use]
    pub fn samples_per_pass(&self) -> u64 {
        self.layout.samples
    }

    /// What `sample` reads.
    #[must_use]
    pub fn slice(&self, sample: SampleId) -> SampleSlice {
        let (pass, position) = (
            sample.get() / self.layout.samples,
            sample.get() % self.layout.samples,
        );
        let shuffled =
            Permutation::new(self.layout.samples, [self.seed, pass, SAMPLES]).get(position);
        let (shard, sample) = self.layout.locate(shuffled);
        let windows = Permutation::new(
            self.layout.shards[shard].windows,
            [self.seed, pass, shard as u64],
        );
        self.layout
            .slice(shard, sample, |window| windows.get(window))
    }
}

/// Cuts data that are held out into batches, in the order of the text, each window once.
///
/// Every batch has the full shape. Fewer windows than make a batch are left over at the end of each shard.
#[derive(Debug, Clone)]
pub struct Evaluation {
    layout: Layout,
}

impl Evaluation {
    /// The batches of these data.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn new(manifest: &DataManifest, shape: BatchShape) -> Result<Self, Error> {
        Ok(Self {
            layout: Layout::new(manifest, shape)?,
        })
    }

    /// The batches, in order. At least 1.
    pub fn batches(&self) -> impl Iterator<Item = SampleSlice> + '_ {
        (0..self.layout.samples).map(|batch| {
            let (shard, batch) = self.layout.locate(batch);
            self.layout.slice(shard, batch, |window| window)
        })
    }
}

/// Tells the order of samples from the orders of windows, which are told apart by their shard. No shard has this
/// number.
const SAMPLES: u64 = u64::MAX;

/// Where windows and samples lie in the shards.
#[derive(Debug, Clone)]
struct Layout {
    shape: BatchShape,
    shards: Vec<ShardLayout>,
    samples: u64,
}

#[derive(Debug, Clone)]
struct ShardLayout {
    windows: u64,
    samples_before: u64,
}

impl Layout {
    fn new(manifest: &DataManifest, shape: BatchShape) -> Result<Self, Error> {
        if shape.tokens() == 0 {
            return Err(Error::Shape { shape });
        }
        manifest.validate()?;
        let needed = shape.tokens() + 1;
        if manifest.tokens < needed {
            return Err(Error::TooShort {
                tokens: manifest.tokens,
                needed,
                shape,
            });
        }
        let mut samples = 0;
        let mut shards = Vec::with_capacity(manifest.shards.len());
        for (shard, entry) in manifest.shards.iter().enumerate() {
            if entry.tokens < needed {
                return Err(Error::ShardTooShort {
                    shard,
                    tokens: entry.tokens,
                    needed,
                    shape,
                });
            }
            let windows = (entry.tokens - 1) / u64::from(shape.context);
            shards.push(ShardLayout {
                windows,
                samples_before: samples,
            });
            samples += windows / u64::from(shape.sequences);
        }
        Ok(Self {
            shape,
            shards,
            samples,
        })
    }

    /// The shard of a sample, and the sample's position in it.
    fn locate(&self, sample: u64) -> (usize, u64) {
        let shard = self
            .shards
            .partition_point(|shard| shard.samples_before <= sample)
            - 1;
        (shard, sample - self.shards[shard].samples_before)
    }

    /// The slice of the sample at this position in its shard, whose windows come in this order.
    fn slice(&self, shard: usize, sample: u64, order: impl Fn(u64) -> u64) -> SampleSlice {
        let (sequences, context) = (
            u64::from(self.shape.sequences),
            u64::from(self.shape.context),
        );
        let windows = sample * sequences..(sample + 1) * sequences;
        SampleSlice {
            shard,
            starts: windows.map(|window| order(window) * context).collect(),
            context: self.shape.context,
        }
    }
}

#[cfg(test)]
mod tests;
