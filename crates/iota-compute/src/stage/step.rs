//! A stage's step: the optimizer over its flat buffers.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::optimizer::{StepSummary, TensorUpdate, clip_factor};
use crate::stage::Stage;

impl<B: Backend> Stage<B> {
    /// Steps the optimizer on the mean of the gradients of `backwards` passes, clipped to the stage's share of the
    /// clipping norm, and zeroes the gradients.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a gradient is: the gradients are zeroed, everything else stays as it was.
    ///
    /// # Panics
    /// If `backwards` is 0.
    pub fn step(&mut self, learning_rate: f32, backwards: u32) -> Result<StepSummary> {
        assert!(backwards > 0, "a step follows at least one backward pass");
        let backend = self.backend.clone();
        backend.scope(|| {
            let mean = 1.0 / f64::from(backwards);
            let norm = backend.squared_norm(backend.all(&self.gradients))?.sqrt() * mean;
            let finite = norm.is_finite();
            let clip_norm = self
                .optimizer
                .clip_norm_of_stage(self.layout.elements(), self.plan.parameters());
            let factor = clip_factor(norm, clip_norm);
            if finite {
                self.optimizer_steps += 1;
                self.apply(learning_rate, mean * factor)?;
            }
            backend.fill(backend.all_mut(&mut self.gradients), 0.0)?;
            if finite {
                Ok(StepSummary {
                    gradient_norm: norm,
                    clipped: factor < 1.0,
                })
            } else {
                Err(Error::NotFinite {
                    what: "the gradient",
                })
            }
        })
    }

    /// Changes every tensor as the update rule has it for step `optimizer_steps`.
    fn apply(&mut self, learning_rate: f32, gradient_scale: f64) -> Result<()> {
        let backend = &self.backend;
        let step = self
            .optimizer
            .step(self.optimizer_steps, learning_rate, gradient_scale);
        let mut workspace = match self.optimizer.workspace(&self.layout) {
            Some(workspace) => Some(workspace.take(backend, &mut self.recycler)?),
            None => None,
        };
        for tensor in self.layout.tensors() {
            let range = tensor.range();
            let parameters = backend.view_mut(&mut self.parameters, range.clone());
            let first_moment = backend.view_mut(&mut self.moments.0, range.clone());
            let gradients = backend.view(&self.gradients, range.clone());
            match step.of(tensor) {
                TensorUpdate::Elementwise(update) => {
                    let second_moment = backend.view_mut(&mut self.moments.1, range);
                    let moments = (first_moment, second_moment);
                    backend.adam(parameters, moments, gradients, update)?;
                }
                TensorUpdate::Matrix(update) => {
                    let workspace = workspace
                        .as_mut()
                        .expect("there is room for every matrix that has a rule of its own");
                    update.apply(backend, workspace, parameters, first_moment, gradients)?;
                }
            }
        }
        if let Some(workspace) = workspace {
            workspace.give_back(backend, &mut self.recycler);
        }
        Ok(())
    }
}
