//! What an operator can set about the optimizer.

use iota_protocol::settings::InvalidSetting;
use iota_run::{AdamW, Beta1, Muon, NAdam, Optimizer, UpdateRule, UpdateScale};
use serde::{Deserialize, Serialize};

use super::TrainingOptions;

/// How gradients become changes of the parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    #[default]
    AdamW,
    /// AdamW that looks one step of momentum ahead, for pipelines whose gradients come late.
    NAdam,
    /// Orthogonalised momentum for the matrices inside blocks, AdamW for the rest.
    Muon,
}

/// What NAdam has beyond AdamW.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NAdamOptions {
    /// Take 0.9 to 0.99 for the first beta, higher in earlier stages (IOTA's rule); otherwise `training.beta1`.
    pub beta1_by_stage: bool,
    /// How fast the momentum rises from half of the first beta to all of it: 1 takes some 100 steps.
    pub momentum_decay: f64,
}

/// What Muon has beyond AdamW.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuonOptions {
    /// Decay of the running mean of gradients.
    pub momentum: f64,
    /// Whether an update looks one step of momentum ahead.
    pub nesterov: bool,
    /// How large an update is: `match_rms_adamw`, so that AdamW's learning rates hold, or `original`, for which they are
    /// some ten times larger.
    pub scale: UpdateScale,
    /// Learning rate of what AdamW steps (embedding, output projection, norm scales), as a multiple of Muon's.
    pub rest_rate: f64,
}

impl Default for NAdamOptions {
    fn default() -> Self {
        Self {
            beta1_by_stage: true,
            momentum_decay: 1.0,
        }
    }
}

impl Default for MuonOptions {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            scale: UpdateScale::MatchRmsAdamW,
            rest_rate: 1.0,
        }
    }
}

impl TrainingOptions {
    /// The optimizer that everybody is told of.
    ///
    /// # Errors
    /// Names the first setting that is out of range, whether or not the chosen optimizer has a use for it.
    pub(crate) fn optimizer(&self) -> Result<Optimizer, InvalidSetting> {
        for (setting, value) in [
            ("training.beta1", self.beta1),
            ("training.beta2", self.beta2),
            ("training.muon.momentum", self.muon.momentum),
        ] {
            // As it travels: what is below 1 in f64 may be 1 in f32.
            check(
                setting,
                (0.0..1.0).contains(&(value as f32)),
                "must lie in 0..1",
            )?;
        }
        for (setting, value) in [
            ("training.weight_decay", self.weight_decay),
            ("training.nadam.momentum_decay", self.nadam.momentum_decay),
            ("training.muon.rest_rate", self.muon.rest_rate),
        ] {
            let is_usable = value >= 0.0 && (value as f32).is_finite();
            check(setting, is_usable, "must be a number that is not negative")?;
        }
        check(
            "training.clip_norm",
            self.clip_norm > 0.0,
            "must be positive; inf for no clipping",
        )?;
        Ok(Optimizer {
            rule: self.rule(),
            weight_decay: self.weight_decay as f32,
            clip_norm: Some(self.clip_norm as f32).filter(|norm| norm.is_finite()),
        })
    }

    fn rule(&self) -> UpdateRule {
        let adamw = AdamW {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            ..AdamW::default()
        };
        match self.optimizer {
            OptimizerName::AdamW => UpdateRule::AdamW(adamw),
            OptimizerName::NAdam => UpdateRule::NAdam(NAdam {
                beta1: if self.nadam.beta1_by_stage {
                    Beta1::ByStage
                } else {
                    Beta1::Fixed(adamw.beta1)
                },
                beta2: adamw.beta2,
                epsilon: adamw.epsilon,
                momentum_decay: self.nadam.momentum_decay as f32,
            }),
            OptimizerName::Muon => UpdateRule::Muon(Muon {
                momentum: self.muon.momentum as f32,
                nesterov: self.muon.nesterov,
                scale: self.muon.scale,
                rest: adamw,
                rest_rate: self.muon.rest_rate as f32,
            }),
        }
    }
}

fn check(setting: &'static str, is_usable: bool, problem: &str) -> Result<(), InvalidSetting> {
    if is_usable {
        Ok(())
    } else {
        let problem = problem.to_owned();
        Err(InvalidSetting { setting, problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_further_settings_each_optimizer_has_its_own_defaults() {
        let rule = |optimizer| {
            let options = TrainingOptions {
                optimizer,
                ..TrainingOptions::default()
            };
            options.optimizer().unwrap().rule
        };
        assert_eq!(
            TrainingOptions::default().optimizer().unwrap(),
            Optimizer::default()
        );
        assert_eq!(
            rule(OptimizerName::NAdam),
            UpdateRule::NAdam(NAdam::default())
        );
        assert_eq!(rule(OptimizerName::Muon), UpdateRule::Muon(Muon::default()));
    }

    #[test]
    fn names_and_numbers_are_read_as_they_are_documented() {
        let options: TrainingOptions = serde_json::from_str(
            r#"{
                "optimizer": "nadam", "beta1": 0.8, "clip_norm": 2.0,
                "nadam": {"beta1_by_stage": false, "momentum_decay": 0.004},
                "muon": {"scale": "original", "nesterov": false}
            }"#,
        )
        .unwrap();
        let nadam = NAdam {
            beta1: Beta1::Fixed(0.8),
            momentum_decay: 0.004,
            ..NAdam::default()
        };
        let optimizer = options.optimizer().unwrap();
        assert_eq!(optimizer.rule, UpdateRule::NAdam(nadam));
        assert_eq!(optimizer.clip_norm, Some(2.0));
        let muon = TrainingOptions {
            optimizer: OptimizerName::Muon,
            clip_norm: f64::INFINITY,
            ..options
        };
        let optimizer = muon.optimizer().unwrap();
        assert_eq!(optimizer.clip_norm, None);
        assert!(matches!(
            optimizer.rule,
            UpdateRule::Muon(Muon { scale: UpdateScale::Original, nesterov: false, rest, .. }) if rest.beta1 == 0.8
        ));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        type Change = fn(&mut TrainingOptions);
        let cases: [(&str, Change); 7] = [
            ("training.beta1", |options| options.beta1 = 1.0),
            ("training.beta1", |options| options.beta1 = 0.999_999_999_99),
            ("training.beta2", |options| options.beta2 = f64::NAN),
            ("training.weight_decay", |options| {
                options.weight_decay = -0.1
            }),
            ("training.clip_norm", |options| options.clip_norm = 0.0),
            ("training.muon.momentum", |options| {
                options.muon.momentum = 1.5
            }),
            ("training.nadam.momentum_decay", |options| {
                options.nadam.momentum_decay = f64::INFINITY;
            }),
        ];
        for (setting, change) in cases {
            let mut options = TrainingOptions::default();
            change(&mut options);
            assert_eq!(options.optimizer().unwrap_err().setting, setting);
        }
    }
}
