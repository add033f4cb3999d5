//! Boundaries of a model, and the stages it is cut into.

use std::ops::Range;

use crate::balance::{self, Costs, Weights};
use crate::config::{InvalidModel, ModelConfig};
use crate::layout::StageLayout;

/// What a stage does at its two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StageRole {
    /// The only stage: tokens in, loss out.
    Whole,
    /// The first of several: tokens in, activations out.
    Head,
    /// Activations in, activations out.
    Body,
    /// The last of several: activations in, loss out.
    Tail,
}

impl StageRole {
    /// Whether it holds the embedding and takes tokens.
    pub const fn takes_tokens(self) -> bool {
        matches!(self, Self::Whole | Self::Head)
    }

    /// Whether it holds the output projection and computes the loss.
    pub const fn computes_loss(self) -> bool {
        matches!(self, Self::Whole | Self::Tail)
    }
}

/// The stretch of a model that a miner holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageSpan {
    /// What it does at its ends.
    pub role: StageRole,
    /// Its blocks. Never empty.
    pub blocks: Range<usize>,
}

/// A model with its boundaries, cut into stages.
///
/// Always true: the configuration is valid; boundaries ascend strictly; the stages are in order and cover all blocks;
/// if the model has a bottleneck, every cut is at a boundary, and if not, there are no boundaries.
#[derive(Debug, Clone, PartialEq)]
pub struct StagePlan {
    config: ModelConfig,
    /// A boundary at `i` lies before block `i`.
    boundaries: Vec<usize>,
    stages: Vec<StageSpan>,
}

/// A model that cannot be cut like that.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Model(#[from] InvalidModel),
    /// There is not a piece for every stage.
    #[error("cannot cut {pieces} {piece} into {stages} stages")]
    Stages {
        /// How many were asked for.
        stages: usize,
        /// How many pieces there are to hand out.
        pieces: usize,
        /// What the pieces are: blocks, or segments between boundaries.
        piece: &'static str,
    },
    /// Positions must ascend strictly, and lie between the first and the last block.
    #[error("{what} {positions:?} do not ascend strictly between 1 and {last}")]
    Positions {
        /// Boundaries or cuts.
        what: &'static str,
        /// As given.
        positions: Vec<usize>,
        /// Index of the last block.
        last: usize,
    },
    /// The full width would have to cross here, but this model's stages exchange the bottleneck only.
    #[error("the cut before block {cut} is not at a boundary")]
    NotABoundary {
        /// Where the cut was to be.
        cut: usize,
    },
    /// A model without a bottleneck has no boundaries.
    #[error("boundaries were given for a model without a bottleneck")]
    NoBottleneck,
    /// Costs are finite and not negative, and a block costs something.
    #[error("{costs:?} are no costs to share out")]
    Costs {
        /// As given.
        costs: Costs,
    },
}

impl StagePlan {
    /// Cuts a model into stages of roughly equal cost, as its dimensions let expect. If it has a bottleneck, its
    /// boundaries are where it is cut.
    ///
    /// # Errors
    /// [`PlanError::Stages`] for no stages, or more stages than blocks; [`PlanError::Model`].
    pub fn new(config: &ModelConfig, stages: usize) -> Result<Self, PlanError> {
        config.validate()?;
        Self::balanced(config, stages, Weights::estimate(config))
    }

    /// As [`new`](Self::new), with costs that were measured: `iota_compute::measure_costs` does that. All who take part
    /// in a run have to cut alike, so one measures, and the others are told where the cuts came to lie
    /// ([`cuts`](Self::cuts), [`cut_at`](Self::cut_at)).
    ///
    /// # Errors
    /// [`PlanError::Costs`]; and as [`new`](Self::new).
    pub fn weighted(config: &ModelConfig, stages: usize, costs: &Costs) -> Result<Self, PlanError> {
        config.validate()?;
        let weights = costs.weights().ok_or(PlanError::Costs { costs: *costs })?;
        Self::balanced(config, stages, weights)
    }

    fn balanced(config: &ModelConfig, stages: usize, weights: Weights) -> Result<Self, PlanError> {
        let blocks: Vec<usize> = (0..config.blocks).collect();
        let cuts =
            balance::cuts(weights, &blocks, config.blocks, stages).ok_or(PlanError::Stages {
                stages,
                pieces: config.blocks,
                piece: "blocks",
            })?;
        Self::cut_at(config, &cuts)
    }

    /// Cut exactly there, as [`with_cuts`](Self::with_cuts). If the model has a bottleneck, its boundaries are where it is
    /// cut.
    ///
    /// # Errors
    /// As [`with_cuts`](Self::with_cuts).
    pub fn cut_at(config: &ModelConfig, cuts: &[usize]) -> Result<Self, PlanError> {
        let boundaries = if config.boundary.is_bottleneck() {
            cuts.to_vec()
        } else {
            Vec::new()
        };
        Self::with_cuts(config, boundaries, cuts)
    }

    /// A model with these boundaries, cut exactly there: a position `i` is between blocks `i - 1` and `i`.
    ///
    /// # Errors
    /// [`PlanError`] says which of the rules of this type would be broken.
    pub fn with_cuts(
        config: &ModelConfig,
        boundaries: Vec<usize>,
        cuts: &[usize],
    ) -> Result<Self, PlanError> {
        config.validate()?;
        for (what, positions) in [("boundaries", &boundaries[..]), ("cuts", cuts)] {
            let inside = positions
                .iter()
                .all(|position| (1..config.blocks).contains(position));
            if !inside || !positions.is_sorted_by(|a, b| a < b) {
                let last = config.blocks - 1;
                return Err(PlanError::Positions {
                    what,
                    positions: positions.to_vec(),
                    last,
                });
            }
        }
        if !config.boundary.is_bottleneck() && !boundaries.is_empty() {
            return Err(PlanError::NoBottleneck);
        }
        if config.boundary.is_bottleneck()
            && let Some(&cut) = cuts.iter().find(|cut| !boundaries.contains(cut))
        {
            return Err(PlanError::NotABoundary { cut });
        }
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain(std::iter::once(config.blocks));
        let stages = starts
            .zip(ends)
            .map(|(start, end)| {
                let role = match (start == 0, end == config.blocks) {
                    (true, true) => StageRole::Whole,
                    (true, false) => StageRole::Head,
                    (false, false) => StageRole::Body,
                    (false, true) => StageRole::Tail,
                };
                StageSpan {
                    role,
                    blocks: start..end,
                }
            })
            .collect();
        Ok(Self {
            config: config.clone(),
            boundaries,
            stages,
        })
    }

    /// The same model, with the same boundaries, in another number of stages: one is the uncut model.
    ///
    /// # Errors
    /// [`PlanError::Stages`] for no stages, or more than there are segments between boundaries (blocks, without a
    /// bottleneck).
    pub fn regroup(&self, stages: usize) -> Result<Self, PlanError> {
        let (starts, piece): (Vec<usize>, _) = if self.config.boundary.is_bottleneck() {
            (
                std::iter::once(0)
                    .chain(self.boundaries.iter().copied())
                    .collect(),
                "segments",
            )
        } else {
            ((0..self.config.blocks).collect(), "blocks")
        };
        let weights = Weights::estimate(&self.config);
        let cuts = balance::cuts(weights, &starts, self.config.blocks, stages).ok_or(
            PlanError::Stages {
                stages,
                pieces: starts.len(),
                piece,
            },
        )?;
        Self::with_cuts(&self.config, self.boundaries.clone(), &cuts)
    }

    /// The model's dimensions.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Indices of the blocks that begin behind a boundary, ascending.
    pub fn boundaries(&self) -> &[usize] {
        &self.boundaries
    }

    /// Indices of the first blocks of all stages but the first, ascending.
    pub fn cuts(&self) -> impl Iterator<Item = usize> + '_ {
        self.stages[1..].iter().map(|stage| stage.blocks.start)
    }

    /// The stages from head to tail. Never empty.
    pub fn stages(&self) -> &[StageSpan] {
        &self.stages
    }

    /// Channels per token that cross from a stage to the next.
    pub fn boundary_width(&self) -> usize {
        self.config.boundary_width()
    }

    /// Whether a stage takes the tokens of a sample: the first does, and those behind a boundary that is anchored. The last
    /// takes the targets besides.
    ///
    /// # Panics
    /// If there is no stage of this index.
    pub fn takes_tokens(&self, stage: usize) -> bool {
        self.stages[stage].role.takes_tokens() || self.config.boundary.is_anchored()
    }

    /// Whether this block takes fewer than all channels and decodes them.
    pub fn receives_bottleneck(&self, block: usize) -> bool {
        self.boundaries.contains(&block)
    }

    /// Whether this block's output is encoded into fewer than all channels.
    pub fn sends_bottleneck(&self, block: usize) -> bool {
        self.boundaries.contains(&(block + 1))
    }

    /// Where a stage's tensors lie in its flat parameters.
    ///
    /// # Panics
    /// If there is no stage of this index.
    pub fn layout(&self, stage: usize) -> StageLayout {
        StageLayout::new(self, &self.stages[stage])
    }

    /// Parameters of all stages together.
    pub fn parameters(&self) -> usize {
        let config = &self.config;
        let boundary_modules = config.boundary.parameters(config.width, config.vocabulary);
        self.config.parameters() + boundary_modules * self.boundaries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundary::Boundary;
    use crate::preset;

    fn lengths(plan: &StagePlan) -> Vec<usize> {
        plan.stages()
            .iter()
            .map(|stage| stage.blocks.len())
            .collect()
    }

    #[test]
    fn a_plan_says_both_numbers_when_the_stages_do_not_fit() {
        let model = preset("tiny").unwrap();
        for stages in [0, 5] {
            let message = StagePlan::new(&model, stages).unwrap_err().to_string();
            assert_eq!(message, format!("cannot cut 4 blocks into {stages} stages"));
        }
        let plan = StagePlan::new(&model, 2).unwrap();
        assert_eq!(
            plan.regroup(3).unwrap_err().to_string(),
            "cannot cut 2 segments into 3 stages"
        );
    }

    #[test]
    fn the_head_and_the_tail_of_a_large_vocabulary_hold_fewer_blocks() {
        let plan = StagePlan::new(&preset("15B").unwrap(), 5).unwrap();
        assert_eq!(lengths(&plan), [9, 11, 11, 11, 8]);
        assert_eq!(plan.stages()[0].role, StageRole::Head);
        assert_eq!(plan.stages()[2].role, StageRole::Body);
        assert_eq!(plan.stages()[4].role, StageRole::Tail);
    }

    #[test]
    fn measured_costs_move_the_cuts() {
        let model = preset("testnet").unwrap();
        let costs = Costs {
            block: 1.0,
            head: 0.5,
            tail: 1.5,
        };
        let plan = StagePlan::weighted(&model, 3, &costs).unwrap();
        assert_eq!(lengths(&plan), [2, 3, 1]);
        assert_eq!(plan.cuts().collect::<Vec<_>>(), [2, 5]);
        assert_eq!(plan.boundaries(), [2, 5]);
        let told = StagePlan::cut_at(&model, &[2, 5]).unwrap();
        assert_eq!(plan, told, "whoever is told the cuts has the same plan");
        let costs = Costs {
            block: 0.0,
            ..costs
        };
        assert_eq!(
            StagePlan::weighted(&model, 3, &costs),
            Err(PlanError::Costs { costs })
        );
    }

    #[test]
    fn a_small_vocabulary_is_cut_evenly() {
        assert_eq!(
            lengths(&StagePlan::new(&preset("testnet").unwrap(), 3).unwrap()),
            [2, 2, 2]
        );
    }

    #[test]
    fn one_stage_is_whole_and_has_no_boundaries() {
        let plan = StagePlan::new(&preset("testnet").unwrap(), 1).unwrap();
        assert_eq!(
            plan.stages(),
            [StageSpan {
                role: StageRole::Whole,
                blocks: 0..6
            }]
        );
        assert!(plan.boundaries().is_empty());
    }

    #[test]
    fn regrouping_keeps_the_boundaries() {
        let plan = StagePlan::new(&preset("testnet").unwrap(), 6).unwrap();
        for stages in 1..=6 {
            let regrouped = plan.regroup(stages).unwrap();
            assert_eq!(regrouped.boundaries(), plan.boundaries());
            assert_eq!(regrouped.stages().len(), stages);
            assert_eq!(regrouped.parameters(), plan.parameters());
        }
    }

    #[test]
    fn a_model_without_a_bottleneck_is_cut_anywhere() {
        let model = ModelConfig {
            boundary: Boundary::None,
            ..preset("testnet").unwrap()
        };
        let plan = StagePlan::new(&model, 2).unwrap();
        assert!(plan.boundaries().is_empty());
        assert_eq!(plan.boundary_width(), model.width);
        assert_eq!(plan.regroup(6).unwrap().stages().len(), 6);
        assert_eq!(
            StagePlan::with_cuts(&model, vec![2], &[2]),
            Err(PlanError::NoBottleneck)
        );
    }

    #[test]
    fn a_cut_must_be_at_a_boundary_and_positions_must_ascend() {
        let model = preset("testnet").unwrap();
        let cut = |boundaries: &[usize], cuts: &[usize]| {
            StagePlan::with_cuts(&model, boundaries.to_vec(), cuts)
        };
        assert_eq!(cut(&[2, 4], &[3]), Err(PlanError::NotABoundary { cut: 3 }));
        assert!(matches!(
            cut(&[4, 2], &[]),
            Err(PlanError::Positions {
                what: "boundaries",
                ..
            })
        ));
        assert!(matches!(
            cut(&[2], &[0]),
            Err(PlanError::Positions { what: "cuts", .. })
        ));
        assert!(matches!(cut(&[6], &[6]), Err(PlanError::Positions { .. })));
        assert_eq!(lengths(&cut(&[2, 4], &[4]).unwrap()), [4, 2]);
    }
}
