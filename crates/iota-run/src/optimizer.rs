//! The update rules that a run can have. What each does is `iota-compute`'s; here is what has to be said of it.
//!
//! Every number is written out in a description, so that two versions of this program with other defaults still step
//! alike. Learning rates are not here: they come with each backward pass.

use serde::{Deserialize, Serialize};

/// How a run's stages step.
///
/// ```
/// let optimizer: iota_run::Optimizer = serde_json::from_str(
///     r#"{
///         "rule": {"nadam": {"beta1": "by_stage", "beta2": 0.95, "epsilon": 1e-8, "momentum_decay": 1.0}},
///         "weight_decay": 0.1,
///         "clip_norm": null
///     }"#,
/// )?;
/// assert_eq!(optimizer.clip_norm, None);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// How a gradient becomes a change of the parameters.
    pub rule: UpdateRule,
    /// Decoupled decay of matrices, times the learning rate.
    pub weight_decay: f32,
    /// Largest gradient norm of the whole model; a stage's share goes by the root of its share of the parameters. None:
    /// gradients are taken as they are.
    pub clip_norm: Option<f32>,
}

/// How a gradient becomes a change of the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum UpdateRule {
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
    /// AdamW that looks one step of momentum ahead.
    NAdam(NAdam),
    /// Orthogonalised momentum for the matrices inside blocks, AdamW for the rest.
    Muon(Muon),
}

/// AdamW's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Keeps the division finite.
    pub epsilon: f32,
}

/// NAdam's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NAdam {
    /// Decay of the first moment.
    pub beta1: Beta1,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Keeps the division finite.
    pub epsilon: f32,
    /// How fast the momentum rises to `beta1`.
    pub momentum_decay: f32,
}

/// Decay of NAdam's first moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Beta1 {
    /// The same in every stage.
    Fixed(f32),
    /// Higher in earlier stages, which gradients reach later.
    ByStage,
}

/// Muon's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Muon {
    /// Decay of the running mean of gradients.
    pub momentum: f32,
    /// Whether the update looks one step of momentum ahead.
    pub nesterov: bool,
    /// How large an update is.
    pub scale: UpdateScale,
    /// For embedding, output projection and norm scales.
    pub rest: AdamW,
    /// Their learning rate, as a multiple of the matrices'.
    pub rest_rate: f32,
}

/// By what Muon multiplies an orthogonalised matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateScale {
    /// `sqrt(max(1, rows / columns))`.
    Original,
    /// `0.2 sqrt(max(rows, columns))`: as large as AdamW's updates, for the same learning rates.
    #[serde(rename = "match_rms_adamw")]
    MatchRmsAdamW,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            rule: UpdateRule::AdamW(AdamW::default()),
            weight_decay: 0.1,
            clip_norm: Some(1.0),
        }
    }
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

impl Default for Muon {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            scale: UpdateScale::MatchRmsAdamW,
            rest: AdamW::default(),
            rest_rate: 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_comes_back_as_it_was_sent() {
        let rules = [
            (UpdateRule::AdamW(AdamW::default()), "adamw"),
            (UpdateRule::NAdam(NAdam::default()), "nadam"),
            (
                UpdateRule::NAdam(NAdam {
                    beta1: Beta1::Fixed(0.8),
                    ..NAdam::default()
                }),
                "nadam",
            ),
            (UpdateRule::Muon(Muon::default()), "muon"),
        ];
        for (rule, name) in rules {
            for clip_norm in [Some(0.1), None] {
                let optimizer = Optimizer {
                    rule,
                    clip_norm,
                    ..Optimizer::default()
                };
                let json = serde_json::to_value(optimizer).unwrap();
                assert!(json["rule"][name].is_object(), "{json}");
                assert_eq!(
                    serde_json::from_value::<Optimizer>(json).unwrap(),
                    optimizer
                );
            }
        }
    }

    #[test]
    fn a_number_that_is_missing_or_unknown_is_refused() {
        let mut json = serde_json::to_value(Optimizer::default()).unwrap();
        json["rule"]["adamw"]["gamma"] = 1.into();
        assert!(serde_json::from_value::<Optimizer>(json.clone()).is_err());
        let adamw = json["rule"]["adamw"].as_object_mut().unwrap();
        adamw.remove("gamma");
        adamw.remove("beta2");
        assert!(serde_json::from_value::<Optimizer>(json).is_err());
    }
}
