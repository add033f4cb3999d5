//! AdamW that looks one step of momentum ahead, with more momentum where gradients come late.

use super::Common;
use super::adamw::correction;
use crate::backend::AdamUpdate;

/// Adam with Nesterov momentum and decoupled weight decay. At step `t`, with the gradient `g` and the learning rate `r`:
///
/// ```text
/// mu(t) = beta1 (1 - 0.96^(t momentum_decay) / 2)        M(t) = mu(1) mu(2) .. mu(t)
/// m = beta1 m + (1 - beta1) g                            first moment
/// v = beta2 v + (1 - beta2) g^2                          second moment
/// n = (1 - mu(t)) / (1 - M(t)) g  +  mu(t + 1) / (1 - M(t + 1)) m
/// p = p - r decay p - r n / (sqrt(v / (1 - beta2^t)) + epsilon)
/// ```
///
/// `M(t)` follows from `t` alone, so it is no part of a stage's state.
///
/// Source: Dozat, "Incorporating Nesterov momentum into Adam" (2016), as `torch.optim.NAdam` has it with
/// `decoupled_weight_decay=True`; the defaults are IOTA's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NAdam {
    /// Decay of the first moment.
    pub beta1: Beta1,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// How fast the momentum rises from half of `beta1` to all of it: with 1 in some 100 steps, with torch's 0.004 in
    /// some 25,000.
    pub momentum_decay: f32,
}

impl Default for NAdam {
    fn default() -> Self {
        Self {
            beta1: Beta1::ByStage,
            beta2: 0.95,
            epsilon: 1e-8,
            momentum_decay: 1.0,
        }
    }
}

/// Decay of a first moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Beta1 {
    /// The same in every stage.
    Fixed(f32),
    /// `0.9 + 0.09 (stages - (index + 1)) / stages`: almost 0.99 in the head, 0.9 in the tail.
    ///
    /// The gradient of a sample reaches the head last, when other samples' steps have moved the weights on. A look-ahead
    /// along a long-lived momentum makes up for that delay.
    ///
    /// Source: Ajanthan et al., "Nesterov method for asynchronous pipeline parallel optimization", arXiv 2505.01099, with
    /// the stages counted as IOTA does.
    ByStage,
}

impl Beta1 {
    /// For stage `index` of `stages`.
    pub fn at_stage(self, index: usize, stages: usize) -> f32 {
        match self {
            Self::Fixed(beta1) => beta1,
            Self::ByStage => {
                let behind = stages.saturating_sub(index + 1) as f64;
                (0.9 + 0.09 * behind / stages.max(1) as f64) as f32
            }
        }
    }
}

impl NAdam {
    pub(super) fn update(&self, common: Common) -> AdamUpdate {
        let beta1 = self.beta1.at_stage(0, 1);
        let momentum = Momentum::at(common.step, beta1, self.momentum_decay);
        AdamUpdate {
            learning_rate: common.learning_rate,
            gradient_scale: common.gradient_scale,
            beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: common.weight_decay,
            gradient_weight: ((1.0 - momentum.now) / (1.0 - momentum.product)) as f32,
            moment_weight: (momentum.next / (1.0 - momentum.product * momentum.next)) as f32,
            second_correction: correction(self.beta2, common.step),
        }
    }
}

/// `mu(t)`, `mu(t + 1)` and `M(t)`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Momentum {
    now: f64,
    next: f64,
    product: f64,
}

impl Momentum {
    /// Multiplies from the first step on, every time: a handful of microseconds, for which nobody has to keep a product
    /// that a merge or a checkpoint would make wrong. It stops where `1 - M` has become 1, after 40 / (1 - beta1) steps
    /// at most.
    fn at(step: u64, beta1: f32, momentum_decay: f32) -> Self {
        let beta1 = f64::from(beta1);
        let ratio = libm::pow(0.96, f64::from(momentum_decay));
        let momentum = |remaining: f64| beta1 * (1.0 - 0.5 * remaining);
        let (mut remaining, mut product) = (1.0, 1.0);
        for _ in 0..step {
            remaining *= ratio;
            product *= momentum(remaining);
            if product < NEGLIGIBLE {
                product = 0.0;
                break;
            }
        }
        let remaining = libm::pow(ratio, step as f64);
        Self {
            now: momentum(remaining),
            next: momentum(remaining * ratio),
            product,
        }
    }
}

/// 1 minus anything below this is 1 in f64.
const NEGLIGIBLE: f64 = f64::EPSILON / 4.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_have_the_betas_of_the_published_rule() {
        let betas: Vec<f32> = (0..5)
            .map(|index| Beta1::ByStage.at_stage(index, 5))
            .collect();
        for (beta, expected) in betas.into_iter().zip([0.972, 0.954, 0.936, 0.918, 0.9]) {
            assert!((beta - expected).abs() < 1e-6, "{beta} is not {expected}");
        }
        assert_eq!(Beta1::ByStage.at_stage(0, 1), 0.9);
        assert_eq!(Beta1::Fixed(0.8).at_stage(0, 5), 0.8);
    }

    /// As torch's implementation does it: one factor a step, for ever.
    fn torch_momentum(step: u64, beta1: f32, decay: f32) -> Momentum {
        let momentum = |step: u64| {
            f64::from(beta1) * (1.0 - 0.5 * 0.96_f64.powf(step as f64 * f64::from(decay)))
        };
        Momentum {
            now: momentum(step),
            next: momentum(step + 1),
            product: (1..=step).map(momentum).product(),
        }
    }

    #[test]
    fn the_momentum_of_any_step_is_torchs() {
        for (beta1, decay) in [(0.9, 1.0), (0.99, 4e-3), (0.972, 1.0)] {
            for step in [1, 2, 10, 100, 1_000, 20_000] {
                let (actual, expected) = (
                    Momentum::at(step, beta1, decay),
                    torch_momentum(step, beta1, decay),
                );
                let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
                assert!(
                    close(actual.now, expected.now)
                        && close(actual.next, expected.next)
                        && close(actual.product, expected.product),
                    "step {step}: {actual:?} is not {expected:?}"
                );
            }
        }
    }

    #[test]
    fn a_product_that_no_longer_counts_changes_no_bit() {
        let (beta1, decay) = (0.9, 1.0);
        for step in 300..500 {
            let (actual, whole) = (
                Momentum::at(step, beta1, decay),
                torch_momentum(step, beta1, decay),
            );
            assert_eq!(1.0 - actual.product, 1.0 - whole.product, "step {step}");
        }
        assert_eq!(
            Momentum::at(u64::MAX, beta1, decay).product,
            0.0,
            "any step count is answered at once"
        );
    }
}
