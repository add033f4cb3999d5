//! A pass through a stage, piece by piece: in, through the blocks, out, and back.

use super::block::{Block, SavedBlock};
use super::run::{Run, Weight};
use super::{Input, Outgoing, Output, Recompute, Stage};
use crate::backend::{AttentionShape, Backend, Write};
use crate::error::Result;

/// A stage in the middle of a pass, with its fields apart.
pub(super) struct Parts<'a, B: Backend> {
    pub(super) run: Run<'a, B>,
    gradients: &'a mut B::Buffer,
    embedding: Option<&'a Weight>,
    blocks: &'a [Block],
    output: Option<&'a Output>,
    recompute: Recompute,
}

impl<B: Backend> Stage<B> {
    pub(super) fn parts(&mut self, attention: AttentionShape) -> Parts<'_, B> {
        self.recycler.serve(&self.backend, attention.rows());
        Parts {
            run: Run {
                backend: &self.backend,
                recycler: &mut self.recycler,
                parameters: &self.parameters,
                tokens: None,
                rotary: (&self.rotary.0, &self.rotary.1),
                attention,
                norm_epsilon: self.plan.config().norm_epsilon,
            },
            gradients: &mut self.gradients,
            embedding: self.embedding.as_ref(),
            blocks: &self.blocks,
            output: self.output.as_ref(),
            recompute: self.recompute,
        }
    }
}

impl<B: Backend> Parts<'_, B> {
    /// The input on the device as the first block takes it.
    pub(super) fn enter(&mut self, input: Input<'_>) -> Result<B::Buffer> {
        if let Input::Tokens(tokens) | Input::Anchored { tokens, .. } = input {
            self.run.tokens = Some(self.run.backend.upload_indices(tokens)?);
        }
        match input {
            Input::Activation(activation) | Input::Anchored { activation, .. } => {
                self.run.upload(activation)
            }
            Input::Tokens(_) => {
                self.run.embed(self.embedding.expect(
                    "checked: a stage that is given nothing but tokens holds the embedding",
                ))
            }
        }
    }

    pub(super) fn forward(&mut self, mut x: B::Buffer) -> Result<(B::Buffer, Vec<SavedBlock<B>>)> {
        let mut saved = Vec::with_capacity(self.blocks.len());
        for block in self.blocks {
            let (output, saved_block) = block.forward(&mut self.run, x, self.recompute)?;
            x = output;
            saved.push(saved_block);
        }
        Ok((x, saved))
    }

    pub(super) fn forward_only(&mut self, mut x: B::Buffer) -> Result<B::Buffer> {
        for block in self.blocks {
            let (output, saved) = block.forward(&mut self.run, x, Recompute::Blocks)?;
            saved.discard(&mut self.run);
            x = output;
        }
        Ok(x)
    }

    pub(super) fn backward(
        &mut self,
        saved: Vec<SavedBlock<B>>,
        mut gradient: B::Buffer,
    ) -> Result<B::Buffer> {
        for (block, saved) in self.blocks.iter().zip(saved).rev() {
            gradient = block.backward(&mut self.run, self.gradients, saved, gradient)?;
        }
        Ok(gradient)
    }

    /// The gradient of the input for the stage before, or of the embedding.
    pub(super) fn exit(&mut self, gradient: B::Buffer) -> Result<Option<Outgoing<B>>> {
        let Some(embedding) = self.embedding else {
            return self.run.leave(gradient).map(Some);
        };
        self.run
            .embed_gradient(embedding, self.gradients, &gradient)?;
        self.run.give(gradient);
        Ok(None)
    }

    pub(super) fn loss(&mut self, x: B::Buffer, targets: &B::Indices) -> Result<f32> {
        let output = self.output.expect("checked: the stage computes a loss");
        let (normed, inverse) = self.run.norm(&output.norm, &x)?;
        let backend = self.run.backend;
        let projection = backend.view(self.run.parameters, output.projection.range.clone());
        let loss = backend.cross_entropy(
            None,
            backend.all(&normed),
            projection,
            targets,
            output.norm.len(),
        )?;
        for buffer in [x, normed, inverse] {
            self.run.give(buffer);
        }
        Ok(loss)
    }

    /// The loss, and its gradient for the last block.
    pub(super) fn loss_backward(
        &mut self,
        x: B::Buffer,
        targets: &B::Indices,
    ) -> Result<(f32, B::Buffer)> {
        let output = self.output.expect("checked: the stage computes a loss");
        let width = output.norm.len();
        let (normed, inverse) = self.run.norm(&output.norm, &x)?;
        let mut normed_gradient = self.run.take(width)?;
        let backend = self.run.backend;
        let range = &output.projection.range;
        let loss = backend.cross_entropy(
            Some((
                backend.all_mut(&mut normed_gradient),
                backend.view_mut(self.gradients, range.clone()),
            )),
            backend.all(&normed),
            backend.view(self.run.parameters, range.clone()),
            targets,
            width,
        )?;
        self.run.give(normed);
        let mut gradient = self.run.take(width)?;
        let out = (&mut gradient, Write::Replace);
        self.run.norm_gradient(
            (&output.norm, &inverse),
            self.gradients,
            out,
            &normed_gradient,
            &x,
        )?;
        for buffer in [x, inverse, normed_gradient] {
            self.run.give(buffer);
        }
        Ok((loss, gradient))
    }
}
