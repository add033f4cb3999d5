//! How a stage steps: the update rule, weight decay, and IOTA's gradient clipping.
//!
//! A rule turns the gradient of each tensor into a change of its parameters. All of them keep what they remember in the
//! stage's two moments, and nothing else: whoever writes moments and the number of steps (a merge, a checkpoint) has
//! written the whole state of an optimizer.
//!
//! | module | rule |
//! |---|---|
//! | `adamw` | [`AdamW`] |
//! | `nadam` | [`NAdam`], with a first beta by the stage's place |
//! | `muon` | [`Muon`] for the matrices inside blocks, AdamW for the rest |

mod adamw;
mod muon;
mod nadam;

use iota_model::{BlockTensor, StageLayout, TensorId, TensorLayout};

pub use self::adamw::AdamW;
pub(crate) use self::muon::{MatrixUpdate, Workspace};
pub use self::muon::{Muon, UpdateScale};
pub use self::nadam::{Beta1, NAdam};
use crate::backend::AdamUpdate;

/// An update rule, and what all rules have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerSettings {
    /// How a gradient becomes a change of the parameters.
    pub rule: UpdateRule,
    /// Decoupled weight decay of matrices: each step they shrink by this times the learning rate. Norm scales do not
    /// decay.
    pub weight_decay: f32,
    /// Largest norm of a whole model's mean gradient. A stage is held to its share of it, see
    /// [`clip_norm_of_stage`](Self::clip_norm_of_stage). Infinite: no clipping.
    pub clip_norm: f32,
}

/// How a gradient becomes a change of the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UpdateRule {
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
    /// AdamW that looks one step of momentum ahead.
    NAdam(NAdam),
    /// Orthogonalised momentum for the matrices inside blocks; AdamW for embedding, output projection and norm scales.
    Muon(Muon),
}

impl Default for UpdateRule {
    fn default() -> Self {
        Self::AdamW(AdamW::default())
    }
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            rule: UpdateRule::default(),
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

    /// f32 elements that a step of a stage works in, beside the stage's state: for Muon's largest matrix, otherwise none.
    pub fn workspace_elements(&self, layout: &StageLayout) -> usize {
        self.workspace(layout)
            .map_or(0, |workspace| workspace.elements())
    }

    pub(crate) fn workspace(&self, layout: &StageLayout) -> Option<Workspace> {
        match self.rule {
            UpdateRule::AdamW(_) | UpdateRule::NAdam(_) => None,
            UpdateRule::Muon(_) => {
                Workspace::for_all(layout.tensors().iter().filter_map(hidden_matrix))
            }
        }
    }

    /// The same with whatever depends on the stage's place filled in.
    pub(crate) fn at_stage(self, index: usize, stages: usize) -> Self {
        let rule = match self.rule {
            UpdateRule::NAdam(nadam) => UpdateRule::NAdam(NAdam {
                beta1: Beta1::Fixed(nadam.beta1.at_stage(index, stages)),
                ..nadam
            }),
            rule => rule,
        };
        Self { rule, ..self }
    }

    /// The numbers of step `step`, counted from 1. Settings that depend on a stage's place take those of an only stage,
    /// unless they went through [`at_stage`](Self::at_stage).
    pub(crate) fn step(&self, step: u64, learning_rate: f32, gradient_scale: f64) -> Step {
        assert!(step > 0, "steps are counted from 1");
        let common = Common {
            step,
            learning_rate,
            gradient_scale: gradient_scale as f32,
            weight_decay: self.weight_decay,
        };
        match self.rule {
            UpdateRule::AdamW(adamw) => Step {
                elementwise: adamw.update(common),
                matrices: None,
            },
            UpdateRule::NAdam(nadam) => Step {
                elementwise: nadam.update(common),
                matrices: None,
            },
            UpdateRule::Muon(muon) => Step {
                elementwise: muon.rest.update(Common {
                    learning_rate: learning_rate * muon.rest_rate,
                    ..common
                }),
                matrices: Some((muon, common)),
            },
        }
    }
}

/// What every rule is told of a step.
#[derive(Debug, Clone, Copy)]
struct Common {
    /// From 1.
    step: u64,
    learning_rate: f32,
    /// Makes the mean, clipped gradient out of the sum that a stage has.
    gradient_scale: f32,
    /// Of tensors that decay.
    weight_decay: f32,
}

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    elementwise: AdamUpdate,
    /// If the matrices inside blocks have a rule of their own.
    matrices: Option<(Muon, Common)>,
}

/// What a step does to one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum TensorUpdate {
    Elementwise(AdamUpdate),
    Matrix(MatrixUpdate),
}

impl Step {
    pub(crate) fn of(&self, tensor: &TensorLayout) -> TensorUpdate {
        match (self.matrices, hidden_matrix(tensor)) {
            (Some((muon, common)), Some(shape)) => TensorUpdate::Matrix(muon.update(common, shape)),
            _ => TensorUpdate::Elementwise(AdamUpdate {
                weight_decay: if tensor.decays {
                    self.elementwise.weight_decay
                } else {
                    0.0
                },
                ..self.elementwise
            }),
        }
    }
}

/// Rows and columns of a matrix inside a block, which maps hidden states to hidden states. Embeddings and the output
/// projection are tables with a row for each token, and norm scales are vectors.
fn hidden_matrix(tensor: &TensorLayout) -> Option<[usize; 2]> {
    match (tensor.id, tensor.shape.as_slice()) {
        (
            TensorId::Block {
                tensor: BlockTensor::Anchor,
                ..
            },
            _,
        ) => None,
        (TensorId::Block { .. }, &[rows, columns]) => Some([rows, columns]),
        _ => None,
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
    use iota_model::{StagePlan, preset};

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

    #[test]
    fn only_muon_needs_room_to_work_in() {
        let layout = StagePlan::new(&preset("tiny").unwrap(), 2)
            .unwrap()
            .layout(0);
        let elements = |rule| {
            let settings = OptimizerSettings {
                rule,
                ..OptimizerSettings::default()
            };
            settings.workspace_elements(&layout)
        };
        assert_eq!(elements(UpdateRule::AdamW(AdamW::default())), 0);
        assert_eq!(elements(UpdateRule::NAdam(NAdam::default())), 0);
        // Two matrices of the feed-forward network's size, and two squares of the width.
        assert_eq!(
            elements(UpdateRule::Muon(Muon::default())),
            2 * (48 * 32 + 32 * 32)
        );
    }

    #[test]
    fn muon_takes_the_matrices_inside_blocks_and_nothing_else() {
        let settings = OptimizerSettings {
            rule: UpdateRule::Muon(Muon::default()),
            ..OptimizerSettings::default()
        };
        let step = settings.step(1, 0.1, 1.0);
        let plan = StagePlan::new(&preset("tiny").unwrap(), 2).unwrap();
        for tensor in (0..2).flat_map(|stage| plan.layout(stage).tensors().to_vec()) {
            let name = tensor.name();
            let in_a_block = name.starts_with("blocks.") && !name.ends_with("_norm");
            assert_eq!(
                matches!(step.of(&tensor), TensorUpdate::Matrix(_)),
                in_a_block,
                "{name}"
            );
        }
    }
}
