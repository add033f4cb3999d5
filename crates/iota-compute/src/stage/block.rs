//! One transformer block, forward and backward.

use std::ops::Range;

use iota_model::{BlockTensor, StageLayout, TensorId};

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
    /// What came through IOTA's boundary: `[channels]`.
    received: Option<B::Buffer>,
    /// The block's input, decoded if it came through a boundary: `[width]`.
    input: B::Buffer,
    attention_inverse: B::Buffer,
    attention_normed: B::Buffer,
    packed: B::Buffer,
    attended: B::Buffer,
    log_sums: B::Buffer,
    /// Between attention and the feed-forward network: `[width]`.
    middle: B::Buffer,
    feed_forward_inverse: B::Buffer,
    feed_forward_normed: B::Buffer,
    gate_up: B::Buffer,
    /// The feed-forward network's result, if it goes to the encoder: `[width]`.
    uncoded: Option<B::Buffer>,
    sender: Option<SavedBridge<B>>,
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
    pub(super) fn saved_elements(&self, heads: usize) -> usize {
        let width = self.attention_norm.len();
        let received = self.decoder.as_ref().map_or(0, |decoder| decoder.inputs);
        let uncoded = self.encoder.as_ref().map_or(0, |_| width);
        let bridges: usize = [&self.receiver, &self.sender]
            .into_iter()
            .flatten()
            .map(Bridge::saved_elements)
            .sum();
        received
            + 5 * width
            + 2
            + self.packed.outputs
            + heads
            + self.gate_up.outputs
            + uncoded
            + bridges
    }

    /// Takes `[rows, width]`, or `[rows, channels]` behind a boundary; returns the same, as the next block takes it.
    pub(super) fn forward<B: Backend>(
        &self,
        run: &mut Run<'_, B>,
        input: B::Buffer,
    ) -> Result<(B::Buffer, SavedBlock<B>)> {
        let backend = run.backend;
        let (input, receiver) = cross(self.receiver.as_ref(), run, input)?;
        let (received, input) = match &self.decoder {
            None => (None, input),
            Some(decoder) => {
                let mut decoded = run.linear(decoder, &input)?;
                backend.relu(backend.all_mut(&mut decoded))?;
                (Some(input), decoded)
            }
        };

        let (attention_normed, attention_inverse) = run.norm(&self.attention_norm, &input)?;
        let mut packed = run.linear(&self.packed, &attention_normed)?;
        run.rotate(&mut packed, Turn::Forward)?;
        let mut attended = run.take(run.attention.width())?;
        let mut log_sums = run.take(run.attention.heads)?;
        backend.attention(
            backend.all_mut(&mut attended),
            backend.all_mut(&mut log_sums),
            backend.all(&packed),
            run.attention,
        )?;
        let middle = match &received {
            None => {
                let mut middle = run.copy(&input)?;
                run.linear_into(&self.attention_output, &attended, &mut middle, Write::Add)?;
                middle
            }
            // The residual stream went through the boundary in the first channels only.
            Some(received) => {
                let mut middle = run.linear(&self.attention_output, &attended)?;
                run.add_columns(&mut middle, received)?;
                middle
            }
        };

        let (feed_forward_normed, feed_forward_inverse) =
            run.norm(&self.feed_forward_norm, &middle)?;
        let gate_up = run.linear(&self.gate_up, &feed_forward_normed)?;
        let mut hidden = run.take(self.down.inputs)?;
        backend.swiglu(
            backend.all_mut(&mut hidden),
            backend.all(&gate_up),
            self.down.inputs,
        )?;
        let (output, uncoded) = match &self.encoder {
            None => {
                let mut output = run.copy(&middle)?;
                run.linear_into(&self.down, &hidden, &mut output, Write::Add)?;
                (output, None)
            }
            Some(encoder) => {
                let uncoded = run.linear(&self.down, &hidden)?;
                let mut activated = run.take(self.down.outputs)?;
                backend.silu(backend.all_mut(&mut activated), backend.all(&uncoded))?;
                let mut output = run.linear(encoder, &activated)?;
                run.add_columns(&mut output, &middle)?;
                run.give(activated);
                (output, Some(uncoded))
            }
        };
        run.give(hidden);
        let (output, sender) = cross(self.sender.as_ref(), run, output)?;

        let saved = SavedBlock {
            receiver,
            received,
            input,
            attention_inverse,
            attention_normed,
            packed,
            attended,
            log_sums,
            middle,
            feed_forward_inverse,
            feed_forward_normed,
            gate_up,
            uncoded,
            sender,
        };
        Ok((output, saved))
    }

    /// Takes the gradient of the output, adds to the parameters' gradients, and returns the gradient of the input.
    pub(super) fn backward<B: Backend>(
        &self,
        run: &mut Run<'_, B>,
        gradients: &mut B::Buffer,
        saved: SavedBlock<B>,
        output_gradient: B::Buffer,
    ) -> Result<B::Buffer> {
        let (backend, middle) = (run.backend, saved.middle);
        let mut gate_up = saved.gate_up;
        let output_gradient = cross_back(
            self.sender.as_ref(),
            run,
            gradients,
            saved.sender,
            output_gradient,
        )?;

        // The feed-forward network. Its hidden channels are computed again on the way.
        let mut middle_gradient = match (&self.encoder, saved.uncoded) {
            (Some(encoder), Some(mut uncoded)) => {
                let mut gradient = run.input_gradient(encoder, &output_gradient)?;
                backend.silu_backward(
                    backend.all_mut(&mut uncoded),
                    backend.all_mut(&mut gradient),
                )?;
                run.weight_gradient(encoder, gradients, &output_gradient, &uncoded)?;
                self.feed_forward_backward(run, gradients, &mut gate_up, &gradient)?;
                run.give(uncoded);
                backend.fill(backend.all_mut(&mut gradient), 0.0)?;
                run.add_columns(&mut gradient, &output_gradient)?;
                run.give(output_gradient);
                gradient
            }
            _ => {
                self.feed_forward_backward(run, gradients, &mut gate_up, &output_gradient)?;
                output_gradient
            }
        };
        let normed_gradient = run.input_gradient(&self.gate_up, &gate_up)?;
        run.weight_gradient(
            &self.gate_up,
            gradients,
            &gate_up,
            &saved.feed_forward_normed,
        )?;
        let norm = (&self.feed_forward_norm, &saved.feed_forward_inverse);
        run.norm_gradient(
            norm,
            gradients,
            (&mut middle_gradient, Write::Add),
            &normed_gradient,
            &middle,
        )?;
        for buffer in [
            normed_gradient,
            gate_up,
            saved.feed_forward_normed,
            saved.feed_forward_inverse,
            middle,
        ] {
            run.give(buffer);
        }

        // Attention.
        let attended_gradient = run.input_gradient(&self.attention_output, &middle_gradient)?;
        run.weight_gradient(
            &self.attention_output,
            gradients,
            &middle_gradient,
            &saved.attended,
        )?;
        let mut packed_gradient = run.take(run.attention.packed_width())?;
        backend.attention_backward(
            backend.all_mut(&mut packed_gradient),
            backend.all(&attended_gradient),
            backend.all(&saved.attended),
            backend.all(&saved.log_sums),
            backend.all(&saved.packed),
            run.attention,
        )?;
        run.rotate(&mut packed_gradient, Turn::Back)?;
        run.weight_gradient(
            &self.packed,
            gradients,
            &packed_gradient,
            &saved.attention_normed,
        )?;
        let normed_gradient = run.input_gradient(&self.packed, &packed_gradient)?;
        for buffer in [
            attended_gradient,
            packed_gradient,
            saved.attended,
            saved.log_sums,
            saved.packed,
        ] {
            run.give(buffer);
        }

        // The residual stream: past attention, or through the boundary.
        let norm = (&self.attention_norm, &saved.attention_inverse);
        let input_gradient = match (&self.decoder, saved.received) {
            (Some(decoder), Some(received)) => {
                let mut decoded_gradient = run.take(decoder.outputs)?;
                let out = (&mut decoded_gradient, Write::Replace);
                run.norm_gradient(norm, gradients, out, &normed_gradient, &saved.input)?;
                backend.relu_backward(
                    backend.all_mut(&mut decoded_gradient),
                    backend.all(&saved.input),
                )?;
                run.weight_gradient(decoder, gradients, &decoded_gradient, &received)?;
                let mut received_gradient = run.input_gradient(decoder, &decoded_gradient)?;
                run.add_columns(&mut received_gradient, &middle_gradient)?;
                for buffer in [decoded_gradient, received, middle_gradient] {
                    run.give(buffer);
                }
                received_gradient
            }
            _ => {
                let out = (&mut middle_gradient, Write::Add);
                run.norm_gradient(norm, gradients, out, &normed_gradient, &saved.input)?;
                middle_gradient
            }
        };
        for buffer in [
            normed_gradient,
            saved.input,
            saved.attention_normed,
            saved.attention_inverse,
        ] {
            run.give(buffer);
        }
        cross_back(
            self.receiver.as_ref(),
            run,
            gradients,
            saved.receiver,
            input_gradient,
        )
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
    /// Gives everything back unused.
    pub(super) fn discard(self, run: &mut Run<'_, B>) {
        let always = [
            self.input,
            self.attention_inverse,
            self.attention_normed,
            self.packed,
            self.attended,
            self.log_sums,
            self.middle,
            self.feed_forward_inverse,
            self.feed_forward_normed,
            self.gate_up,
        ];
        let bridges = [self.receiver, self.sender].into_iter().flatten();
        for buffer in always
            .into_iter()
            .chain(self.received)
            .chain(self.uncoded)
            .chain(bridges.flat_map(SavedBridge::into_buffers))
        {
            run.give(buffer);
        }
    }

    /// Elements held.
    pub(super) fn elements(&self, backend: &B) -> usize {
        [
            &self.input,
            &self.attention_inverse,
            &self.attention_normed,
            &self.packed,
            &self.attended,
            &self.log_sums,
            &self.middle,
            &self.feed_forward_inverse,
            &self.feed_forward_normed,
            &self.gate_up,
        ]
        .into_iter()
        .chain(&self.received)
        .chain(&self.uncoded)
        .chain(
            [&self.receiver, &self.sender]
                .into_iter()
                .flatten()
                .flat_map(SavedBridge::buffers),
        )
        .map(|buffer| backend.elements(buffer))
        .sum()
    }
}
