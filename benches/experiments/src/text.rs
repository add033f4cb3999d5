//! The bundled text as batches: the same for every variant, in an order that the seed decides.

use anyhow::Result;
use iota_data::{
    Batch, BatchShape, Corpus, DataManifest, Evaluation, HELD_OUT_FRACTION, Preparation, Sampler,
    Shard, Split, Tokenizer,
};
use iota_protocol::SampleId;

/// Tokens in a shard, about.
const SHARD_TOKENS: usize = 1 << 20;

/// What is trained on, and what never is.
#[derive(Debug)]
pub(crate) struct Text {
    shape: BatchShape,
    training: DataManifest,
    shards: Vec<Shard>,
    held_out: Vec<Batch>,
}

impl Text {
    /// The text that comes with `iota-data`, as bytes.
    pub(crate) fn bundled(shape: BatchShape) -> Result<Self> {
        let parts = Corpus::bundled().split(HELD_OUT_FRACTION)?;
        let (training, shards) = prepare(&parts.training, Split::Training, shape)?;
        let (manifest, held_out_shards) = prepare(&parts.held_out, Split::HeldOut, shape)?;
        let held_out = Evaluation::new(&manifest, shape)?
            .batches()
            .map(|slice| Ok(slice.read(&held_out_shards[slice.shard])?))
            .collect::<Result<_>>()?;
        Ok(Self {
            shape,
            training,
            shards,
            held_out,
        })
    }

    /// Distinct tokens.
    pub(crate) const fn vocabulary(&self) -> usize {
        self.training.vocabulary as usize
    }

    /// The batches of one run, without end.
    pub(crate) fn batches(&self, seed: u64) -> Result<impl Iterator<Item = Result<Batch>> + '_> {
        let sampler = Sampler::new(&self.training, self.shape, seed)?;
        Ok((0..).map(move |sample| {
            let slice = sampler.slice(SampleId::new(sample));
            Ok(slice.read(&self.shards[slice.shard])?)
        }))
    }

    /// So many batches that are never trained on, spread evenly over the held-out text, or all of them.
    pub(crate) fn held_out(&self, count: usize) -> impl Iterator<Item = &Batch> {
        let every = self.held_out.len().div_ceil(count.max(1)).max(1);
        self.held_out.iter().step_by(every)
    }
}

fn prepare(corpus: &Corpus, split: Split, shape: BatchShape) -> Result<(DataManifest, Vec<Shard>)> {
    let shard_tokens = SHARD_TOKENS.next_multiple_of(usize::try_from(shape.tokens())?.max(1));
    let mut preparation = Preparation::new(corpus, Tokenizer::default(), split, shard_tokens)?;
    let shards = (&mut preparation)
        .map(|shard| Ok(shard.entry.open(&shard.bytes)?))
        .collect::<Result<_>>()?;
    Ok((preparation.finish(), shards))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: BatchShape = BatchShape {
        sequences: 2,
        context: 64,
    };

    #[test]
    fn a_seed_decides_the_order_of_the_batches() {
        let text = Text::bundled(SHAPE).unwrap();
        let first = |seed| text.batches(seed).unwrap().next().unwrap().unwrap();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn held_out_batches_are_as_many_as_asked_for_or_all() {
        let text = Text::bundled(SHAPE).unwrap();
        let all = text.held_out(usize::MAX).count();
        assert!(all > 100);
        let some = text.held_out(10).count();
        assert!((9..=10).contains(&some), "{some} of {all}");
    }
}
