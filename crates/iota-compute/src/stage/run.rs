//! What every part of one pass has at hand, and the operations on it in terms of weights.

use std::ops::Range;

use iota_model::TensorLayout;

use crate::backend::{AttentionShape, Backend, Form, Product, Turn, Write};
use crate::error::Result;
use crate::recycler::Recycler;
use crate::stage::Outgoing;

/// A matrix `[outputs, inputs]` within the flat parameters.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    pub(super) range: Range<usize>,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl Weight {
    /// Matrices of equal inputs that lie one after the other, as one.
    ///
    /// # Panics
    /// If they are not, or do not.
    pub(super) fn of(tensors: &[&TensorLayout]) -> Self {
        let (first, last) = (tensors[0], tensors[tensors.len() - 1]);
        let inputs = first.shape[1];
        assert!(
            tensors.iter().all(|tensor| tensor.shape[1] == inputs),
            "joined matrices have equal inputs"
        );
        let adjacent = tensors
            .windows(2)
            .all(|pair| pair[0].range().end == pair[1].offset);
        assert!(adjacent, "joined matrices lie one after the other");
        let outputs = tensors.iter().map(|tensor| tensor.shape[0]).sum();
        Self {
            range: first.offset..last.range().end,
            outputs,
            inputs,
        }
    }
}

/// One pass through a stage.
pub(super) struct Run<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) recycler: &'a mut Recycler<B>,
    pub(super) parameters: &'a B::Buffer,
    /// Of the sample, where the stage takes them.
    pub(super) tokens: Option<B::Indices>,
    /// Cosines and sines, `[context, head_width / 2]` each.
    pub(super) rotary: (&'a B::Buffer, &'a B::Buffer),
    pub(super) attention: AttentionShape,
    pub(super) norm_epsilon: f32,
}

impl<B: Backend> Run<'_, B> {
    /// Room for `[rows, columns]`.
    pub(super) fn take(&mut self, columns: usize) -> Result<B::Buffer> {
        self.recycler
            .take(self.backend, self.attention.rows() * columns)
    }

    pub(super) fn give(&mut self, buffer: B::Buffer) {
        self.recycler.give(self.backend, buffer);
    }

    /// An input or a gradient from the host.
    pub(super) fn upload(&mut self, values: &[f32]) -> Result<B::Buffer> {
        let mut buffer = self.recycler.take(self.backend, values.len())?;
        self.backend
            .upload_beside(self.backend.all_mut(&mut buffer), values)?;
        Ok(buffer)
    }

    /// An output or a gradient for the host.
    pub(super) fn leave(&self, buffer: B::Buffer) -> Result<Outgoing<B>> {
        Ok(Outgoing {
            download: self.backend.begin_download(buffer)?,
            rows: self.attention.rows(),
        })
    }

    pub(super) fn copy(&mut self, source: &B::Buffer) -> Result<B::Buffer> {
        let mut copy = self
            .recycler
            .take(self.backend, self.backend.elements(source))?;
        self.backend
            .copy(self.backend.all_mut(&mut copy), self.backend.all(source))?;
        Ok(copy)
    }

    /// The rows of a table that the sample's tokens stand for.
    pub(super) fn embed(&mut self, table: &Weight) -> Result<B::Buffer> {
        let mut rows = self.take(table.inputs)?;
        self.backend.embedding(
            self.backend.all_mut(&mut rows),
            self.backend.view(self.parameters, table.range.clone()),
            self.known_tokens(),
            table.inputs,
        )?;
        Ok(rows)
    }

    /// Adds to the gradient of a table.
    pub(super) fn embed_gradient(
        &self,
        table: &Weight,
        gradients: &mut B::Buffer,
        out_gradient: &B::Buffer,
    ) -> Result<()> {
        self.backend.embedding_backward(
            self.backend.view_mut(gradients, table.range.clone()),
            self.backend.all(out_gradient),
            self.known_tokens(),
            table.inputs,
        )
    }

    fn known_tokens(&self) -> &B::Indices {
        self.tokens
            .as_ref()
            .expect("checked: a stage that embeds tokens is given them")
    }

    /// Adds rows of one width to rows of another, in the channels that both have.
    pub(super) fn add_columns(&self, out: &mut B::Buffer, source: &B::Buffer) -> Result<()> {
        let rows = self.attention.rows();
        let (out_width, source_width) = (
            self.backend.elements(out) / rows,
            self.backend.elements(source) / rows,
        );
        self.backend.add_columns(
            (self.backend.all_mut(out), out_width),
            (self.backend.all(source), source_width),
            out_width.min(source_width),
        )
    }

    /// `x w^T`.
    pub(super) fn linear(&mut self, weight: &Weight, x: &B::Buffer) -> Result<B::Buffer> {
        let mut out = self.take(weight.outputs)?;
        self.linear_into(weight, x, &mut out, Write::Replace)?;
        Ok(out)
    }

    /// `out = x w^T` or `out += x w^T`.
    pub(super) fn linear_into(
        &self,
        weight: &Weight,
        x: &B::Buffer,
        out: &mut B::Buffer,
        write: Write,
    ) -> Result<()> {
        let (rows, columns, inner) = (self.attention.rows(), weight.outputs, weight.inputs);
        self.backend.matmul(
            Product {
                form: Form::TransposedRight,
                rows,
                columns,
                inner,
            },
            self.backend.all_mut(out),
            self.backend.all(x),
            self.backend.view(self.parameters, weight.range.clone()),
            write,
        )
    }

    /// `dy w`: the gradient of what went into a linear layer.
    pub(super) fn input_gradient(
        &mut self,
        weight: &Weight,
        out_gradient: &B::Buffer,
    ) -> Result<B::Buffer> {
        let (rows, columns, inner) = (self.attention.rows(), weight.inputs, weight.outputs);
        let mut gradient = self.take(columns)?;
        self.backend.matmul(
            Product {
                form: Form::Plain,
                rows,
                columns,
                inner,
            },
            self.backend.all_mut(&mut gradient),
            self.backend.all(out_gradient),
            self.backend.view(self.parameters, weight.range.clone()),
            Write::Replace,
        )?;
        Ok(gradient)
    }

    /// Adds `dy^T x` to the gradient of a linear layer's weight.
    pub(super) fn weight_gradient(
        &self,
        weight: &Weight,
        gradients: &mut B::Buffer,
        out_gradient: &B::Buffer,
        x: &B::Buffer,
    ) -> Result<()> {
        let (rows, columns, inner) = (weight.outputs, weight.inputs, self.attention.rows());
        self.backend.matmul(
            Product {
                form: Form::TransposedLeft,
                rows,
                columns,
                inner,
            },
            self.backend.view_mut(gradients, weight.range.clone()),
            self.backend.all(out_gradient),
            self.backend.all(x),
            Write::Add,
        )
    }

    /// The normalised rows, and what they were multiplied by.
    pub(super) fn norm(
        &mut self,
        scale: &Range<usize>,
        x: &B::Buffer,
    ) -> Result<(B::Buffer, B::Buffer)> {
        let (mut out, mut inverse) = (self.take(scale.len())?, self.take(1)?);
        self.backend.rms_norm(
            self.backend.all_mut(&mut out),
            self.backend.all_mut(&mut inverse),
            self.backend.all(x),
            self.backend.view(self.parameters, scale.clone()),
            self.norm_epsilon,
        )?;
        Ok((out, inverse))
    }

    /// A linear layer on normalised rows.
    pub(super) fn normed_linear(
        &mut self,
        (scale, weight): (&Range<usize>, &Weight),
        x: &B::Buffer,
    ) -> Result<B::Buffer> {
        let (normed, inverse) = self.norm(scale, x)?;
        self.give(inverse);
        let out = self.linear(weight, &normed)?;
        self.give(normed);
        Ok(out)
    }

    /// The gradients of [`normed_linear`](Self::normed_linear): those of scale and weight are added to, that of `x` is
    /// written as asked for.
    ///
    /// Normalises `x` again: that takes a pass over it, a hundredth of the product's time or less, and so nobody has to
    /// keep the normalised rows.
    pub(super) fn normed_linear_backward(
        &mut self,
        (scale, weight): (&Range<usize>, &Weight),
        gradients: &mut B::Buffer,
        x_gradient: (&mut B::Buffer, Write),
        out_gradient: B::Buffer,
        x: &B::Buffer,
    ) -> Result<()> {
        let (normed, inverse) = self.norm(scale, x)?;
        self.weight_gradient(weight, gradients, &out_gradient, &normed)?;
        self.give(normed);
        let normed_gradient = self.input_gradient(weight, &out_gradient)?;
        self.give(out_gradient);
        self.norm_gradient(
            (scale, &inverse),
            gradients,
            x_gradient,
            &normed_gradient,
            x,
        )?;
        self.give(normed_gradient);
        self.give(inverse);
        Ok(())
    }

    pub(super) fn norm_gradient(
        &self,
        (scale, inverse): (&Range<usize>, &B::Buffer),
        gradients: &mut B::Buffer,
        (x_gradient, write): (&mut B::Buffer, Write),
        out_gradient: &B::Buffer,
        x: &B::Buffer,
    ) -> Result<()> {
        self.backend.rms_norm_backward(
            (self.backend.all_mut(x_gradient), write),
            self.backend.view_mut(gradients, scale.clone()),
            self.backend.all(out_gradient),
            self.backend.all(x),
            self.backend.view(self.parameters, scale.clone()),
            self.backend.all(inverse),
        )
    }

    pub(super) fn rotate(&self, packed: &mut B::Buffer, turn: Turn) -> Result<()> {
        let (cosines, sines) = self.rotary;
        let tables = (self.backend.all(cosines), self.backend.all(sines));
        self.backend
            .rotate(self.backend.all_mut(packed), tables, self.attention, turn)
    }
}
