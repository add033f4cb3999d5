//! One transformer block, forward and backward.

use std::ops::Range;

use iota_model::{BlockTensor, StageLayout, TensorId};

use super::Recompute;
use super::bridge::{Bridge, SavedBridge};
use super::run::{Run, Weight};
use crate::backend::{Backend, Turn, Write};
use crate::error::Result;

/// Where a block's tensors lie in the stage's flat parameters.
///
/// Query, key and value lie one after the other, and so do gate and up: each group is one matrix here.
#[derive(Debug, Clone)]
pub(super) struct Block {
    receiver: Option<Bridge>,
    anchor: Option<Weight>,
    decoder: Option<Weight>,
    attention_norm: Range<usize>,
    packed: Weight,
    attention_output: Weight,
    feed_forward_norm: Range<usize>,
    gate_up: Weight,
    down: Weight,
    encoder: Option<Weight>,
    sender: Option<Bridge>,
}

/// What the backward pass of a block needs from its forward pass. Shapes are `[rows, ..]`.
#[derive(Debug)]
pub(super) struct SavedBlock<B: Backend> {
    receiver: Option<SavedBridge<B>>,
    /// What the block was given: `[width]`, or `[channels]` behind IOTA's boundary.
    given: B::Buffer,
    /// What came of it, unless it is to be computed again.
    inner: Option<Inner<B>>,
    sender: Option<SavedBridge<B>>,
}

/// What is between a block's input and its output. What is cheap to compute again from it is not in it: the input as the
/// boundary decodes it, both normalised inputs, and the feed-forward network's hidden channels.
#[derive(Debug)]
struct Inner<B: Backend> {
    packed: B::Buffer,
    attended: B::Buffer,
    log_sums: B::Buffer,
    /// Between attention and the feed-forward network: `[width]`.
    middle: B::Buffer,
    gate_up: B::Buffer,
    /// The feed-forward network's result, if it goes to the encoder: `[width]`.
    uncoded: Option<B::Buffer>,
}

impl Block {
    pub(super) fn new(layout: &StageLayout, block: usize) -> Self {
        let find = |tensor| layout.find(TensorId::Block { block, tensor });
        let range = |tensor| find(tensor).expect("every block has this tensor").range();
        let weight = |tensor| Weight::of(&[find(tensor).expect("every block has this tensor")]);
        let joined = |tensors: &[BlockTensor]| {
            let tensors: Vec<_> = tensors
                .iter()
                .map(|&tensor| find(tensor).expect("every block has it"))
                .collect();
            Weight::of(&tensors)
        };
        let optional = |tensor| find(tensor).map(|tensor| Weight::of(&[tensor]));
        Self {
            receiver: Bridge::receiver(layout, block),
            anchor: optional(BlockTensor::Anchor),
            decoder: optional(BlockTensor::Decoder),
            attention_norm: range(BlockTensor::AttentionNorm),
            packed: joined(&[BlockTensor::Query, BlockTensor::Key, BlockTensor::Value]),
            attention_output: weight(BlockTensor::AttentionOutput),
            feed_forward_norm: range(BlockTensor::FeedForwardNorm),
            gate_up: joined(&[BlockTensor::Gate, BlockTensor::Up]),
            down: weight(BlockTensor::Down),
            encoder: optional(BlockTensor::Encoder),
            sender: Bridge::sender(layout, block),
        }
    }

    /// Elements that [`SavedBlock`] holds per row, given the number of query heads.
    pub(super) fn saved_elements(&self, heads: usize, recompute: Recompute) -> usize {
        let width = self.attention_norm.len();
        let given = self
            .decoder
            .as_ref()
            .map_or(width, |decoder| decoder.inputs);
        let inner = match recompute {
            Recompute::Blocks => 0,
            Recompute::Nothing => {
                let uncoded = self.encoder.as_ref().map_or(0, |_| width);
                2 * width + self.packed.outputs + heads + self.gate_up.outputs + uncoded
            }
        };
        let bridges: usize = [&self.receiver, &self.sender]
            .into_iter()
            .flatten()
            .map(Bridge::saved_elements)
            .sum();
        given + inner + bridges
    }

    /// Takes `[rows, width]`, or `[rows, channels]` behind a boundary; returns the same, as the next block takes it.
    pub(super) fn forward<B: Backend>(
        &self,
        run: &mut Run<'_, B>,
        given: B::Buffer,
        recompute: Recompute,
    ) -> Result<(B::Buffer, SavedBlock<B>)> {
        let (mut given, receiver) = cross(self.receiver.as_ref(), run, given)?;
        if let Some(anchor) = &self.anchor {
            let embedded = run.embed(anchor)?;
            run.add_columns(&mut given, &embedded)?;
            run.give(embedded);
        }
        let mut inner = self.inner(run, &given)?;
        let hidden = self.hidden(run, &inner.gate_up)?;
        let output = match &self.encoder {
            None => {
                let mut output = run.copy(&inner.middle)?;
                run.linear_into(&self.down, &hidden, &mut output, Write::Add)?;
                run.give(hidden);
                output
            }
            Some(encoder) => {
                let uncoded = run.linear(&self.down, &hidden)?;
                run.give(hidden);
                let mut activated = run.take(self.down.outputs)?;
                run.backend.silu(
                    run.backend.all_mut(&mut activated),
                    run.backend.all(&uncoded),
                )?;
                let mut output = run.linear(encoder, &activated)?;
                run.add_columns(&mut output, &inner.middle)?;
                run.give(activated);
                inner.uncoded = Some(uncoded);
                output
            }
        };
        let inner = match recompute {
            Recompute::Nothing => Some(inner),
            Recompute::Blocks => {
                inner.discard(run);
                None
            }
        };
        let (output, sender) = cross(self.sender.as_ref(), run, output)?;
        let saved = SavedBlock {
            receiver,
            given,
            inner,
            sender,
        };
        Ok((output, saved))
    }

    /// From what the block is given up to gate and up, which is all that a backward pass needs but for `uncoded`.
    fn inner<B: Backend>(&self, run: &mut Run<'_, B>, given: &B::Buffer) -> Result<Inner<B>> {
        let backend = run.backend;
        let part = (&self.attention_norm, &self.packed);
        let mut packed = match &self.decoder {
            None => run.normed_linear(part, given)?,
            Some(decoder) => {
                let input = self.decode(run, decoder, given)?;
                let packed = run.normed_linear(part, &input)?;
                run.give(input);
                packed
            }
        };
        run.rotate(&mut packed, Turn::Forward)?;
        let mut attended = run.take(run.attention.width())?;
        let mut log_sums = run.take(run.attention.heads)?;
        backend.attention(
            backend.all_mut(&mut attended),
            backend.all_mut(&mut log_sums),
            backend.all(&packed),
            run.attention,
        )?;
        let middle = match &self.decoder {
            None => {
                let mut middle = run.copy(given)?;
                run.linear_into(&self.attention_output, &attended, &mut middle, Write::Add)?;
                middle
            }
            // The residual stream went through the boundary in the first channels only.
            Some(_) => {
                let mut middle = run.linear(&self.attention_output, &attended)?;
                run.add_columns(&mut middle, given)?;
                middle
            }
        };

        let gate_up = run.normed_linear((&self.feed_forward_norm, &self.gate_up), &middle)?;
        Ok(Inner {
            packed,
            attended,
            log_sums,
            middle,
            gate_up,
            uncoded: None,
        })
    }

    /// Takes the gradient of the output, adds to the parameters' gradients, and returns the gradient of the input. Every
    /// buffer goes back as soon as its last reader is done with it.
    pub(super) fn backward<B: Backend>(
        &self,
        run: &mut Run<'_, B>,
        gradients: &mut B::Buffer,
        saved: SavedBlock<B>,
        output_gradient: B::Buffer,
    ) -> Result<B::Buffer> {
        let SavedBlock {
            receiver,
            given,
            inner,
            sender,
        } = saved;
        let output_gradient = cross_back(
            self.sender.as_ref(),
            run,
            gradients,
            sender,
            output_gradient,
        )?;
        let backend = run.backend;
        let Inner {
            packed,
            attended,
            log_sums,
            middle,
            mut gate_up,
            uncoded,
        } = match inner {
            Some(inner) => inner,
            None => self.inner(run, &given)?,
        };

        // The feed-forward network. Its hidden channels are computed again on the way.
        let mut middle_gradient = match &self.encoder {
            None => {
                self.feed_forward_backward(run, gradients, &mut gate_up, &output_gradient)?;
                output_gradient
            }
            Some(encoder) => {
                let mut uncoded = match uncoded {
                    Some(uncoded) => uncoded,
                    None => {
                        let hidden = self.hidden(run, &gate_up)?;
                        let uncoded = run.linear(&self.down, &hidden)?;
                        run.give(hidden);
                        uncoded
                    }
                };
                let mut gradient = run.input_gradient(encoder, &output_gradient)?;
                backend.silu_backward(
                    backend.all_mut(&mut uncoded),
                    backend.all_mut(&mut gradient),
                )?;
                run.weight_gradient(encoder, gradients, &output_gradient, &uncoded)?;
                run.give(uncoded);
                self.feed_forward_backward(run, gradients, &mut gate_up, &gradient)?;
                backend.fill(backend.all_mut(&mut gradient), 0.0)?;
                run.add_columns(&mut gradient, &output_gradient)?;
                run.give(output_gradient);
                gradient
            }
        };
        run.normed_linear_backward(
            (&self.feed_forward_norm, &self.gate_up),
            gradients,
            (&mut middle_gradient, Write::Add),
            gate_up,
            &middle,
        )?;
        run.give(middle);

        // Attention.
        let attended_gradient = run.input_gradient(&self.attention_output, &middle_gradient)?;
        run.weight_gradient(
            &self.attention_output,
            gradients,
            &middle_gradient,
            &attended,
        )?;
        let mut packed_gradient = run.take(run.attention.packed_width())?;
        backend.attention_backward(
            backend.all_mut(&mut packed_gradient),
            backend.all(&attended_gradient),
            backend.all(&attended),
            backend.all(&log_sums),
            backend.all(&packed),
            run.attention,
        )?;
        for buffer in [attended_gradient, attended, log_sums, packed] {
            run.give(buffer);
        }
        run.rotate(&mut packed_gradient, Turn::Back)?;

        // The residual stream: past attention, or through the boundary.
        let part = (&self.attention_norm, &self.packed);
        let Some(decoder) = &self.decoder else {
            let out = (&mut middle_gradient, Write::Add);
            run.normed_linear_backward(part, gradients, out, packed_gradient, &given)?;
            run.give(given);
            if let Some(anchor) = &self.anchor {
                run.embed_gradient(anchor, gradients, &middle_gradient)?;
            }
            let receiving = self.receiver.as_ref();
            return cross_back(receiving, run, gradients, receiver, middle_gradient);
        };
        let input = self.decode(run, decoder, &given)?;
        let mut gradient = run.take(decoder.outputs)?;
        let out = (&mut gradient, Write::Replace);
        run.normed_linear_backward(part, gradients, out, packed_gradient, &input)?;
        backend.relu_backward(backend.all_mut(&mut gradient), backend.all(&input))?;
        run.give(input);
        run.weight_gradient(decoder, gradients, &gradient, &given)?;
        run.give(given);
        let mut given_gradient = run.input_gradient(decoder, &gradient)?;
        run.add_columns(&mut given_gradient, &middle_gradient)?;
        run.give(gradient);
        run.give(middle_gradient);
        Ok(given_gradient)
    }

    /// What came through the boundary, as channels of the block.
    fn decode<B: Backend>(
        &self,
        run: &mut Run<'_, B>,
        decoder: &Weight,
        given: &B::Buffer,
    ) -> Result<B::Buffer> {
        let mut decoded = run.linear(decoder, given)?;
        run.backend.relu(run.backend.all_mut(&mut decoded))?;
        Ok(decoded)
    }

    /// The feed-forward network's hidden channels.
    fn hidden<B: Backend>(&self, run: &mut Run<'_, B>, gate_up: &B::Buffer) -> Result<B::Buffer> {
        let mut hidden = run.take(self.down.inputs)?;
        run.backend.swiglu(
            run.backend.all_mut(&mut hidden),
            run.backend.all(gate_up),
            self.down.inputs,
        )?;
        Ok(hidden)
    }

    /// From the gradient of the network's result to that of gate and up, which replaces them.
    fn feed_forward_backward<B: Backend>(
        &self,
        run: &mut Run<'_, B>,
        gradients: &mut B::Buffer,
        gate_up: &mut B::Buffer,
        gradient: &B::Buffer,
    ) -> Result<()> {
        let backend = run.backend;
        let mut hidden = run.input_gradient(&self.down, gradient)?;
        backend.swiglu_backward(
            backend.all_mut(gate_up),
            backend.all_mut(&mut hidden),
            self.down.inputs,
        )?;
        run.weight_gradient(&self.down, gradients, gradient, &hidden)?;
        run.give(hidden);
        Ok(())
    }
}

/// Through a bridge, where there is one.
fn cross<B: Backend>(
    bridge: Option<&Bridge>,
    run: &mut Run<'_, B>,
    input: B::Buffer,
) -> Result<(B::Buffer, Option<SavedBridge<B>>)> {
    match bridge {
        None => Ok((input, None)),
        Some(bridge) => {
            let (output, saved) = bridge.forward(run, input)?;
            Ok((output, Some(saved)))
        }
    }
}

/// Back over a bridge, where there is one.
fn cross_back<B: Backend>(
    bridge: Option<&Bridge>,
    run: &mut Run<'_, B>,
    gradients: &mut B::Buffer,
    saved: Option<SavedBridge<B>>,
    gradient: B::Buffer,
) -> Result<B::Buffer> {
    match (bridge, saved) {
        (Some(bridge), Some(saved)) => bridge.backward(run, gradients, saved, gradient),
        _ => Ok(gradient),
    }
}

impl<B: Backend> SavedBlock<B> {
    /// What has to be computed again for the backward pass.
    pub(super) const fn recompute(&self) -> Recompute {
        match self.inner {
            Some(_) => Recompute::Nothing,
            None => Recompute::Blocks,
        }
    }

    /// Gives everything back unused.
    pub(super) fn discard(self, run: &mut Run<'_, B>) {
        run.give(self.given);
        let bridges = [self.receiver, self.sender].into_iter().flatten();
        for buffer in bridges.flat_map(SavedBridge::into_buffers) {
            run.give(buffer);
        }
        if let Some(inner) = self.inner {
            inner.discard(run);
        }
    }

    /// Elements held.
    pub(super) fn elements(&self, backend: &B) -> usize {
        let inner = self.inner.as_ref().map_or(0, |inner| {
            [
                &inner.packed,
                &inner.attended,
                &inner.log_sums,
                &inner.middle,
                &inner.gate_up,
            ]
            .into_iter()
            .chain(&inner.uncoded)
            .map(|buffer| backend.elements(buffer))
            .sum()
        });
        let bridges: usize = [&self.receiver, &self.sender]
            .into_iter()
            .flatten()
            .flat_map(SavedBridge::buffers)
            .map(|buffer| backend.elements(buffer))
            .sum();
        backend.elements(&self.given) + inner + bridges
    }
}

impl<B: Backend> Inner<B> {
    fn discard(self, run: &mut Run<'_, B>) {
        let always = [
            self.packed,
            self.attended,
            self.log_sums,
            self.middle,
            self.gate_up,
        ];
        for buffer in always.into_iter().chain(self.uncoded) {
            run.give(buffer);
        }
    }
}
