//! Adam with decoupled weight decay.

use super::Common;
use crate::backend::AdamUpdate;

/// Adam with decoupled weight decay. At step `t`, with the gradient `g` and the learning rate `r`:
///
/// ```text
/// m = beta1 m + (1 - beta1) g            first moment
/// v = beta2 v + (1 - beta2) g^2          second moment
/// p = p - r decay p - r (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
/// ```
///
/// Source: Loshchilov & Hutter, arXiv 1711.05101; the betas are those of Llama's training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
        }
    }
}

impl AdamW {
    pub(super) fn update(&self, common: Common) -> AdamUpdate {
        AdamUpdate {
            learning_rate: common.learning_rate,
            gradient_scale: common.gradient_scale,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: common.weight_decay,
            gradient_weight: 0.0,
            moment_weight: correction(self.beta1, common.step),
            second_correction: correction(self.beta2, common.step),
        }
    }
}

/// `1 / (1 - beta^step)`: what a moment that began at zero lacks after so many steps. The same bits on every platform.
pub(super) fn correction(beta: f32, step: u64) -> f32 {
    (1.0 / (1.0 - libm::pow(f64::from(beta), step as f64))) as f32
}
