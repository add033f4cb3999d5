//! A stage's state on its way between its device and the host.

use std::ops::Range;

use super::Stage;
use crate::backend::Backend;
use crate::error::Result;
use crate::state::StateHasher;

/// Elements read back at a time where the whole is not wanted at once: 16 MiB.
const STRETCH: usize = 4 << 20;

impl<B: Backend> Stage<B> {
    /// Steps that the optimizer has taken.
    pub const fn optimizer_steps(&self) -> u64 {
        self.optimizer_steps
    }

    /// Says how many steps lie behind the state that was [uploaded](Self::upload_state).
    pub const fn set_optimizer_steps(&mut self, steps: u64) {
        self.optimizer_steps = steps;
    }

    /// A range of parameters, first and second moment, as [`State`](crate::State) has them.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    ///
    /// # Panics
    /// If the range exceeds the stage.
    pub fn download_state(&self, range: Range<usize>) -> Result<[Vec<f32>; 3]> {
        let plane = |buffer| {
            let view = self.backend.view(buffer, range.clone());
            self.backend.download(view)
        };
        Ok([
            plane(&self.parameters)?,
            plane(&self.moments.0)?,
            plane(&self.moments.1)?,
        ])
    }

    /// Makes the optimizer's moments what they are before its first step.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn forget_moments(&mut self) -> Result<()> {
        for moment in [&mut self.moments.0, &mut self.moments.1] {
            self.backend.fill(self.backend.all_mut(moment), 0.0)?;
        }
        self.optimizer_steps = 0;
        Ok(())
    }

    /// Replaces parameters, first and second moment from `start` on, by as many of each; none are left as they are.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    ///
    /// # Panics
    /// If they exceed the stage.
    pub fn upload_state(&mut self, start: usize, planes: [&[f32]; 3]) -> Result<()> {
        let buffers = [
            &mut self.parameters,
            &mut self.moments.0,
            &mut self.moments.1,
        ];
        for (buffer, values) in buffers.into_iter().zip(planes) {
            if values.is_empty() {
                continue;
            }
            let part = self.backend.view_mut(buffer, start..start + values.len());
            self.backend.upload(part, values)?;
        }
        Ok(())
    }

    /// [`State::digest`](crate::State::digest) of the state, wherever it is.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn download_digest(&self) -> Result<[u8; 32]> {
        let mut hasher = StateHasher::new(self.optimizer_steps);
        let elements = self.layout.elements();
        for buffer in [&self.parameters, &self.moments.0, &self.moments.1] {
            for start in (0..elements).step_by(STRETCH) {
                let range = start..(start + STRETCH).min(elements);
                let values = self.backend.download(self.backend.view(buffer, range))?;
                hasher.update(&values);
            }
        }
        Ok(hasher.finish())
    }
}
