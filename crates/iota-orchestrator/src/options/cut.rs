//! Where a model is cut into stages.

use iota_model::{Costs, ModelConfig, PlanError, StagePlan};
use serde::{Deserialize, Serialize};

/// Where a model is cut. All costs in one unit, of which only the ratios matter; `iota-miner costs` measures them. With a
/// block's cost of 0 they are estimated from the model's dimensions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CutOptions {
    /// `balanced`: so that the slowest stage is as fast as can be; `published`: where IOTA cuts the preset; or a list of
    /// the first blocks of all stages but the first.
    pub at: Cuts,
    /// What a block costs a stage.
    pub block_cost: f64,
    /// What the embedding costs the first stage.
    pub head_cost: f64,
    /// What the projection and the loss cost the last stage.
    pub tail_cost: f64,
}

/// A rule, or positions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "neither `balanced` nor `published` nor a list of blocks"
)]
pub enum Cuts {
    /// By rule.
    By(CutRule),
    /// Before these blocks.
    Before(Vec<usize>),
}

impl Default for Cuts {
    fn default() -> Self {
        Self::By(CutRule::Balanced)
    }
}

/// A rule for where to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CutRule {
    /// Stages of roughly equal cost.
    Balanced,
    /// As IOTA has published it for the preset.
    Published,
}

/// A model that is not to be cut like that.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// The positions are those of another number of stages.
    #[error("cut.at: cutting before the blocks {cuts:?} gives {} stages, not {stages}", cuts.len() + 1)]
    Stages {
        /// The positions.
        cuts: Vec<usize>,
        /// The number of stages that was asked for.
        stages: usize,
    },
    /// IOTA has no cuts for it.
    #[error("cut.at: no cuts of `{preset}` are published")]
    NotPublished {
        /// Name of the model.
        preset: String,
    },
    /// It cannot be cut there at all.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl CutOptions {
    /// The cut model. `preset`: its name, for what is published of it.
    pub(crate) fn plan(
        &self,
        model: &ModelConfig,
        preset: &str,
        stages: usize,
    ) -> Result<StagePlan, CutError> {
        let cuts = match &self.at {
            Cuts::By(CutRule::Balanced) if self.block_cost == 0.0 => {
                return Ok(StagePlan::new(model, stages)?);
            }
            Cuts::By(CutRule::Balanced) => {
                let costs = Costs {
                    block: self.block_cost,
                    head: self.head_cost,
                    tail: self.tail_cost,
                };
                return Ok(StagePlan::weighted(model, stages, &costs)?);
            }
            Cuts::By(CutRule::Published) => {
                iota_model::published_cuts(preset).ok_or_else(|| {
                    let preset = preset.to_owned();
                    CutError::NotPublished { preset }
                })?
            }
            Cuts::Before(cuts) => cuts,
        };
        if cuts.len() + 1 != stages {
            let cuts = cuts.to_vec();
            return Err(CutError::Stages { cuts, stages });
        }
        Ok(StagePlan::cut_at(model, cuts)?)
    }
}

#[cfg(test)]
mod tests {
    use iota_model::preset;

    use super::*;

    fn cuts(options: &CutOptions, name: &str, stages: usize) -> Result<Vec<usize>, CutError> {
        let plan = options.plan(&preset(name).unwrap(), name, stages)?;
        Ok(plan.cuts().collect())
    }

    #[test]
    fn a_model_is_cut_by_rule_by_cost_or_where_one_says() {
        let options = |json| serde_json::from_str::<CutOptions>(json).unwrap();
        assert_eq!(cuts(&options("{}"), "testnet", 3), Ok(vec![2, 4]));
        let measured = r#"{"block_cost": 1.0, "head_cost": 0.5, "tail_cost": 1.5}"#;
        assert_eq!(cuts(&options(measured), "testnet", 3), Ok(vec![2, 5]));
        let published = options(r#"{"at": "published"}"#);
        assert_eq!(cuts(&published, "15B", 5), Ok(vec![8, 19, 30, 41]));
        let chosen = options(r#"{"at": [1, 2]}"#);
        assert_eq!(cuts(&chosen, "testnet", 3), Ok(vec![1, 2]));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        let refusal = |options: &CutOptions, name, stages| {
            cuts(options, name, stages).unwrap_err().to_string()
        };
        let published = CutOptions {
            at: Cuts::By(CutRule::Published),
            ..CutOptions::default()
        };
        assert_eq!(
            refusal(&published, "testnet", 3),
            "cut.at: no cuts of `testnet` are published"
        );
        let chosen = CutOptions {
            at: Cuts::Before(vec![1, 2]),
            ..CutOptions::default()
        };
        assert_eq!(
            refusal(&chosen, "testnet", 2),
            "cut.at: cutting before the blocks [1, 2] gives 3 stages, not 2"
        );
        let costs = CutOptions {
            block_cost: -1.0,
            ..CutOptions::default()
        };
        assert!(refusal(&costs, "testnet", 2).contains("no costs"));
    }
}
