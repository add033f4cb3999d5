//! A stage without tensors: what an operation gives is a digest of everything that it depends on.
//!
//! So whoever does the same operations on the same inputs in the same order gets the same results, and whoever does
//! anything else gets others: that is all that the rules, and those who audit by them, rely on.

use std::collections::BTreeMap;
use std::ops::Range;

use iota_protocol::work::{Checkpoint, MergeInput, SegmentSource};
use iota_protocol::{Digest, SampleId};

/// A stage's weights, gradients and kept activations.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    /// As the checkpoint says.
    state: Digest,
    weights: Digest,
    gradients: Option<Digest>,
    backwards: u32,
    backwards_per_step: u32,
    steps: u64,
    next_ordinal: u32,
    /// By sample: the weights that its forward pass used.
    kept: BTreeMap<SampleId, Digest>,
}

/// What a backward pass gives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backward {
    pub(crate) gradient: Digest,
    pub(crate) loss: f32,
}

impl Replica {
    /// The stage as a checkpoint says, with what its holder kept for itself.
    pub(crate) fn install(
        checkpoint: &Checkpoint,
        kept: Option<Digest>,
        backwards_per_step: u32,
    ) -> Self {
        let weights = merged(checkpoint);
        Self {
            state: weights,
            // Work depends on both; what is compared with others' does not.
            weights: match kept {
                Some(kept) => Mix::new("kept").digest(weights).digest(kept).end(),
                None => weights,
            },
            gradients: None,
            backwards: 0,
            backwards_per_step,
            steps: checkpoint.optimizer_steps,
            next_ordinal: 0,
            kept: BTreeMap::new(),
        }
    }

    /// The stage of whoever kept this when it uploaded, and trains on from there.
    pub(crate) fn went_ahead(kept: Digest, backwards_per_step: u32) -> Self {
        Self {
            state: kept,
            weights: Mix::new("ahead").digest(kept).end(),
            gradients: None,
            backwards: 0,
            backwards_per_step,
            steps: 0,
            next_ordinal: 0,
            kept: BTreeMap::new(),
        }
    }

    /// Trains on from what was uploaded.
    pub(crate) fn go_ahead(&mut self) {
        *self = Self::went_ahead(self.kept(), self.backwards_per_step);
    }

    /// Puts what was learned since then on top of what a checkpoint holds.
    pub(crate) fn go_on(&mut self, checkpoint: &Checkpoint) {
        self.state = merged(checkpoint);
        let learned = Mix::new("on top").digest(self.state).digest(self.weights);
        self.weights = learned.end();
        self.steps += checkpoint.optimizer_steps;
    }

    /// Operations so far.
    pub(crate) const fn operations(&self) -> u32 {
        self.next_ordinal
    }

    /// What is reported of an installation.
    pub(crate) const fn state(&self) -> Digest {
        self.state
    }

    /// What its holder keeps for itself.
    pub(crate) fn kept(&self) -> Digest {
        Mix::new("keeps").digest(self.weights).end()
    }

    pub(crate) const fn steps(&self) -> u64 {
        self.steps
    }

    /// The next operation's ordinal, used up.
    pub(crate) const fn ordinal(&mut self) -> u32 {
        self.next_ordinal += 1;
        self.next_ordinal - 1
    }

    pub(crate) fn forward(&mut self, sample: SampleId, input: Option<Digest>) -> Digest {
        self.kept.insert(sample, self.weights);
        Mix::new("forward")
            .digest(self.weights)
            .number(sample.get())
            .maybe(input)
            .end()
    }

    pub(crate) fn backward(
        &mut self,
        sample: SampleId,
        input: Option<Digest>,
        output_gradient: Option<Digest>,
        learning_rate: f32,
        recompute: bool,
    ) -> Backward {
        let kept = self.kept.remove(&sample).filter(|_| !recompute);
        let gradient = Mix::new("backward")
            .digest(kept.unwrap_or(self.weights))
            .digest(self.weights)
            .number(sample.get())
            .maybe(input)
            .maybe(output_gradient)
            .end();
        let sum = Mix::new("gradients").maybe(self.gradients).digest(gradient);
        self.gradients = Some(sum.end());
        self.backwards += 1;
        if self.backwards == self.backwards_per_step {
            self.finish(learning_rate);
        }
        let loss = 1.0 + f32::from(gradient.as_bytes()[0]) / 64.0;
        Backward { gradient, loss }
    }

    /// Takes the pending step, if there is one.
    pub(crate) fn finish(&mut self, learning_rate: f32) {
        if let Some(gradients) = self.gradients.take() {
            self.weights = Mix::new("step")
                .digest(self.weights)
                .digest(gradients)
                .number(learning_rate.to_bits().into())
                .end();
            self.backwards = 0;
            self.steps += 1;
        }
    }

    /// A range of the weights, as it is uploaded.
    pub(crate) fn cell(&self, range: &Range<u64>) -> Digest {
        Mix::new("cell").digest(self.weights).range(range).end()
    }
}

/// What a checkpoint holds.
fn merged(checkpoint: &Checkpoint) -> Digest {
    let mut mix = Mix::new("checkpoint").number(checkpoint.stage.get().into());
    for segment in &checkpoint.segments {
        mix = mix.range(&segment.range);
        if let SegmentSource::Merged { object, offset, .. } = &segment.source {
            mix = mix.digest(object.seal.digest).number(*offset);
        }
    }
    mix.end()
}

/// The mean of copies of a cell.
pub(crate) fn merge(range: &Range<u64>, inputs: &[MergeInput]) -> Digest {
    let inputs = inputs.iter().fold(Mix::new("merge"), |mix, input| {
        mix.digest(input.object.seal.digest).number(input.weight)
    });
    inputs.range(range).end()
}

/// Everything that a result depends on.
struct Mix(Vec<u8>);

impl Mix {
    fn new(what: &str) -> Self {
        Self(what.as_bytes().to_vec())
    }

    fn digest(mut self, digest: Digest) -> Self {
        self.0.extend_from_slice(digest.as_bytes());
        self
    }

    fn maybe(mut self, digest: Option<Digest>) -> Self {
        self.0.push(u8::from(digest.is_some()));
        digest.into_iter().fold(self, Self::digest)
    }

    fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn range(self, range: &Range<u64>) -> Self {
        self.number(range.start).number(range.end)
    }

    fn end(self) -> Digest {
        Digest::of(&self.0)
    }
}
