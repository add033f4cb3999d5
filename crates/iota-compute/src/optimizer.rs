//! How a stage steps.

use crate::backend::AdamWUpdate;

/// AdamW, and IOTA's gradient clipping.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerSettings {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay of matrices; norm scales do not decay.
    pub weight_decay: f32,
    /// Largest norm of a whole model's mean gradient. A stage is held to its share of it, see
    /// [`clip_norm_of_stage`](Self::clip_norm_of_stage). Infinite: no clipping.
    pub clip_norm: f32,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }
}

impl OptimizerSettings {
    /// Largest norm of a stage's mean gradient: `clip_norm * sqrt(stage's parameters / model's parameters)`, so that
    /// stages can clip without knowing of each other, and together stay within `clip_norm`.
    ///
    /// Source: IOTA, `clip_grad_norm` in the miner's local step.
    pub fn clip_norm_of_stage(&self, stage_parameters: usize, model_parameters: usize) -> f64 {
        f64::from(self.clip_norm) * (stage_parameters as f64 / model_parameters as f64).sqrt()
    }

    /// The numbers of step `step`, counted from 1.
    pub(crate) fn update(&self, step: u64, learning_rate: f32, gradient_scale: f64) -> AdamWUpdate {
        let correction = |beta: f32| (1.0 / (1.0 - libm::pow(f64::from(beta), step as f64))) as f32;
        AdamWUpdate {
            learning_rate,
            gradient_scale: gradient_scale as f32,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            first_correction: correction(self.beta1),
            second_correction: correction(self.beta2),
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSummary {
    /// Norm of the mean gradient, before clipping.
    pub gradient_norm: f64,
    /// Whether it was clipped.
    pub clipped: bool,
}

/// The factor that brings a gradient of this norm down to `clip_norm`; 1 if it is there already.
///
/// As torch's `clip_grad_norm_` does it, with its small constant against division by zero.
pub(crate) fn clip_factor(norm: f64, clip_norm: f64) -> f64 {
    (clip_norm / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clip_norms_of_a_published_15b_model_are_met() {
        let settings = OptimizerSettings::default();
        let share = |stage| settings.clip_norm_of_stage(stage, 15_081_333_760);
        assert!((share(2_859_581_440) - 0.4355).abs() < 1e-4);
        assert!((share(3_029_104_640) - 0.4482).abs() < 1e-4);
        assert!((share(3_134_438_400) - 0.4560).abs() < 2e-4);
    }

    #[test]
    fn clipping_only_ever_shrinks() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(0.5, f64::INFINITY), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
    }
}
