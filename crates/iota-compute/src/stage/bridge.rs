//! One end of a ResBM boundary, forward and backward.

use iota_model::{BlockTensor, StageLayout, TensorId};

use super::run::{Run, Weight};
use crate::backend::Backend;
use crate::error::Result;

/// `y = O silu(H x) + I x`, where `I` keeps as many channels as `x` and `y` both have, and the others are zero.
///
/// The sender's encoder takes `[rows, width]` to `[rows, channels]`, the receiver's decoder goes the other way. Both begin
/// near the identity, so that a boundary passes gradients on from the first step.
///
/// Source: ResBM, arXiv 2604.11947.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    hidden: Weight,
    output: Weight,
}

/// What the backward pass needs from the forward pass. Shapes are `[rows, ..]`.
#[derive(Debug)]
pub(super) struct SavedBridge<B: Backend> {
    input: B::Buffer,
    /// Before the SiLU.
    hidden: B::Buffer,
}

impl Bridge {
    /// The decoder before a block, if it has one.
    pub(super) fn receiver(layout: &StageLayout, block: usize) -> Option<Self> {
        let (hidden, output) = (BlockTensor::DecoderHidden, BlockTensor::DecoderOutput);
        Self::find(layout, block, hidden, output)
    }

    /// The encoder behind a block, if it has one.
    pub(super) fn sender(layout: &StageLayout, block: usize) -> Option<Self> {
        let (hidden, output) = (BlockTensor::EncoderHidden, BlockTensor::EncoderOutput);
        Self::find(layout, block, hidden, output)
    }

    fn find(
        layout: &StageLayout,
        block: usize,
        hidden: BlockTensor,
        output: BlockTensor,
    ) -> Option<Self> {
        let weight = |tensor| {
            let found = layout.find(TensorId::Block { block, tensor })?;
            Some(Weight::of(&[found]))
        };
        Some(Self {
            hidden: weight(hidden)?,
            output: weight(output)?,
        })
    }

    /// Elements that [`SavedBridge`] holds per row.
    pub(super) const fn saved_elements(&self) -> usize {
        self.hidden.inputs + self.hidden.outputs
    }

    pub(super) fn forward<B: Backend>(
        &self,
        run: &mut Run<'_, B>,
        input: B::Buffer,
    ) -> Result<(B::Buffer, SavedBridge<B>)> {
        let backend = run.backend;
        let hidden = run.linear(&self.hidden, &input)?;
        let mut activated = run.take(self.hidden.outputs)?;
        backend.silu(backend.all_mut(&mut activated), backend.all(&hidden))?;
        let mut output = run.linear(&self.output, &activated)?;
        run.add_columns(&mut output, &input)?;
        run.give(activated);
        Ok((output, SavedBridge { input, hidden }))
    }

    /// Takes the gradient of the output, adds to the parameters' gradients, and returns the gradient of the input.
    pub(super) fn backward<B: Backend>(
        &self,
        run: &mut Run<'_, B>,
        gradients: &mut B::Buffer,
        saved: SavedBridge<B>,
        output_gradient: B::Buffer,
    ) -> Result<B::Buffer> {
        let (backend, input) = (run.backend, saved.input);
        let mut activated = saved.hidden;
        let mut hidden_gradient = run.input_gradient(&self.output, &output_gradient)?;
        backend.silu_backward(
            backend.all_mut(&mut activated),
            backend.all_mut(&mut hidden_gradient),
        )?;
        run.weight_gradient(&self.output, gradients, &output_gradient, &activated)?;
        run.weight_gradient(&self.hidden, gradients, &hidden_gradient, &input)?;
        let mut input_gradient = run.input_gradient(&self.hidden, &hidden_gradient)?;
        run.add_columns(&mut input_gradient, &output_gradient)?;
        for buffer in [activated, hidden_gradient, input, output_gradient] {
            run.give(buffer);
        }
        Ok(input_gradient)
    }
}

impl<B: Backend> SavedBridge<B> {
    /// What is held.
    pub(super) fn buffers(&self) -> [&B::Buffer; 2] {
        [&self.input, &self.hidden]
    }

    /// What is held, to be given back unused.
    pub(super) fn into_buffers(self) -> [B::Buffer; 2] {
        [self.input, self.hidden]
    }
}
