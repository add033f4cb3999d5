//! From what a run says of its optimizer to what the compute engine is told.

use iota_compute::OptimizerSettings;
use iota_run::{Beta1, Optimizer, UpdateRule, UpdateScale};

/// The run's optimizer as the compute engine wants it. A rule that goes by the stage's place finds it out there.
pub const fn optimizer_settings(optimizer: &Optimizer) -> OptimizerSettings {
    let Optimizer {
        rule,
        weight_decay,
        clip_norm,
    } = *optimizer;
    OptimizerSettings {
        rule: match rule {
            UpdateRule::AdamW(numbers) => iota_compute::UpdateRule::AdamW(adamw(numbers)),
            UpdateRule::NAdam(numbers) => iota_compute::UpdateRule::NAdam(nadam(numbers)),
            UpdateRule::Muon(numbers) => iota_compute::UpdateRule::Muon(muon(numbers)),
        },
        weight_decay,
        clip_norm: match clip_norm {
            Some(norm) => norm,
            None => f32::INFINITY,
        },
    }
}

const fn adamw(numbers: iota_run::AdamW) -> iota_compute::AdamW {
    let iota_run::AdamW {
        beta1,
        beta2,
        epsilon,
    } = numbers;
    iota_compute::AdamW {
        beta1,
        beta2,
        epsilon,
    }
}

const fn nadam(numbers: iota_run::NAdam) -> iota_compute::NAdam {
    let iota_run::NAdam {
        beta1,
        beta2,
        epsilon,
        momentum_decay,
    } = numbers;
    iota_compute::NAdam {
        beta1: match beta1 {
            Beta1::Fixed(beta1) => iota_compute::Beta1::Fixed(beta1),
            Beta1::ByStage => iota_compute::Beta1::ByStage,
        },
        beta2,
        epsilon,
        momentum_decay,
    }
}

const fn muon(numbers: iota_run::Muon) -> iota_compute::Muon {
    let iota_run::Muon {
        momentum,
        nesterov,
        scale,
        rest,
        rest_rate,
    } = numbers;
    iota_compute::Muon {
        momentum,
        nesterov,
        scale: match scale {
            UpdateScale::Original => iota_compute::UpdateScale::Original,
            UpdateScale::MatchRmsAdamW => iota_compute::UpdateScale::MatchRmsAdamW,
        },
        rest: adamw(rest),
        rest_rate,
    }
}

#[cfg(test)]
mod tests {
    use iota_run::{AdamW, Muon, NAdam};

    use super::*;

    #[test]
    fn both_crates_have_the_same_defaults() {
        assert_eq!(
            optimizer_settings(&Optimizer::default()),
            OptimizerSettings::default()
        );
        assert_eq!(adamw(AdamW::default()), iota_compute::AdamW::default());
        assert_eq!(nadam(NAdam::default()), iota_compute::NAdam::default());
        assert_eq!(muon(Muon::default()), iota_compute::Muon::default());
    }

    #[test]
    fn no_norm_to_clip_to_is_an_infinite_one() {
        let optimizer = Optimizer {
            clip_norm: None,
            ..Optimizer::default()
        };
        assert_eq!(optimizer_settings(&optimizer).clip_norm, f32::INFINITY);
    }
}
