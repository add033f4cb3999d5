//! Where each tensor lies in a stage's flat parameters.
//!
//! A stage's parameters, gradients and optimizer moments are flat buffers of equal length; this is their common map.
//! Tensors lie in the order in which a forward pass meets them, and are named by their block's index in the whole
//! model, so the layouts of all stages, one after the other, are the layout of the uncut model.

use std::fmt;
use std::ops::Range;

use crate::plan::{StagePlan, StageSpan};

/// One tensor of a model. Prints as its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorId {
    /// `[vocabulary, width]`, in the first stage.
    Embedding,
    /// In whichever stage holds the block.
    Block {
        /// The block's index in the whole model.
        block: usize,
        /// Which of its tensors.
        tensor: BlockTensor,
    },
    /// Scale of the last RMSNorm, `[width]`, in the last stage.
    FinalNorm,
    /// `[vocabulary, width]`, in the last stage.
    Projection,
}

/// The tensors of a block. Matrices are `[outputs, inputs]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockTensor {
    /// `[width, bottleneck]`, only behind a boundary: `h = relu(decoder z)`.
    Decoder,
    /// Scale of the RMSNorm before attention, `[width]`.
    AttentionNorm,
    /// `[width, width]`.
    Query,
    /// `[key_value_width, width]`.
    Key,
    /// `[key_value_width, width]`.
    Value,
    /// `[width, width]`.
    AttentionOutput,
    /// Scale of the RMSNorm before the feed-forward network, `[width]`.
    FeedForwardNorm,
    /// `[feed_forward, width]`.
    Gate,
    /// `[feed_forward, width]`.
    Up,
    /// `[width, feed_forward]`.
    Down,
    /// `[bottleneck, width]`, only before a boundary: `z = encoder silu(f) + x[..bottleneck]`.
    Encoder,
}

impl BlockTensor {
    const ORDER: [Self; 11] = [
        Self::Decoder,
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionOutput,
        Self::FeedForwardNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::Encoder,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Decoder => "decoder",
            Self::AttentionNorm => "attention_norm",
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::AttentionOutput => "attention_output",
            Self::FeedForwardNorm => "feed_forward_norm",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
            Self::Encoder => "encoder",
        }
    }
}

impl fmt::Display for TensorId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => formatter.write_str("embedding"),
            Self::Block { block, tensor } => write!(formatter, "blocks.{block}.{}", tensor.name()),
            Self::FinalNorm => formatter.write_str("final_norm"),
            Self::Projection => formatter.write_str("projection"),
        }
    }
}

/// What a tensor holds before training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initialisation {
    /// Drawn from a normal distribution of mean 0.
    Normal {
        /// Its standard deviation.
        standard_deviation: f32,
    },
    /// All ones.
    Ones,
}

/// One tensor within a stage's flat parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorLayout {
    /// Which tensor.
    pub id: TensorId,
    /// Rows and columns of a matrix (row-major), or the length of a vector.
    pub shape: Vec<usize>,
    /// Index of its first element.
    pub offset: usize,
    /// What it holds before training.
    pub initialisation: Initialisation,
    /// Whether weight decay applies: to matrices, not to norm scales.
    pub decays: bool,
}

impl TensorLayout {
    /// Its name: unique in the model, the same however the model is cut.
    pub fn name(&self) -> String {
        self.id.to_string()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its elements within the flat parameters.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.elements()
    }
}

/// All tensors of a stage.
///
/// Always true: tensors lie in order, without gaps, and no two have the same id.
#[derive(Debug, Clone, PartialEq)]
pub struct StageLayout {
    tensors: Vec<TensorLayout>,
}

impl StageLayout {
    pub(crate) fn new(plan: &StagePlan, stage: &StageSpan) -> Self {
        let config = plan.config();
        let (width, feed_forward, key_value) =
            (config.width, config.feed_forward, config.key_value_width());
        let bottleneck = config.boundary_width();
        let mut layout = Self {
            tensors: Vec::new(),
        };
        if stage.role.takes_tokens() {
            layout.push(TensorId::Embedding, &[config.vocabulary, width]);
        }
        for block in stage.blocks.clone() {
            for tensor in BlockTensor::ORDER {
                let shape: &[usize] = match tensor {
                    BlockTensor::Decoder if !plan.receives_bottleneck(block) => continue,
                    BlockTensor::Encoder if !plan.sends_bottleneck(block) => continue,
                    BlockTensor::Decoder => &[width, bottleneck],
                    BlockTensor::AttentionNorm | BlockTensor::FeedForwardNorm => &[width],
                    BlockTensor::Query | BlockTensor::AttentionOutput => &[width, width],
                    BlockTensor::Key | BlockTensor::Value => &[key_value, width],
                    BlockTensor::Gate | BlockTensor::Up => &[feed_forward, width],
                    BlockTensor::Down => &[width, feed_forward],
                    BlockTensor::Encoder => &[bottleneck, width],
                };
                layout.push(TensorId::Block { block, tensor }, shape);
            }
        }
        if stage.role.computes_loss() {
            layout.push(TensorId::FinalNorm, &[width]);
            layout.push(TensorId::Projection, &[config.vocabulary, width]);
        }
        layout
    }

    fn push(&mut self, id: TensorId, shape: &[usize]) {
        let matrix = shape.len() > 1;
        let initialisation = if matrix {
            Initialisation::Normal {
                standard_deviation: 0.02,
            }
        } else {
            Initialisation::Ones
        };
        let offset = self.elements();
        self.tensors.push(TensorLayout {
            id,
            shape: shape.to_vec(),
            offset,
            initialisation,
            decays: matrix,
        });
    }

    /// The tensors, in the order in which they lie.
    pub fn tensors(&self) -> &[TensorLayout] {
        &self.tensors
    }

    /// The tensor, if the stage has it.
    pub fn find(&self, id: TensorId) -> Option<&TensorLayout> {
        self.tensors.iter().find(|tensor| tensor.id == id)
    }

    /// Length of the stage's flat parameters.
    pub fn elements(&self) -> usize {
        self.tensors.last().map_or(0, |tensor| tensor.range().end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::ModelConfig;
    use crate::preset;

    #[test]
    fn stages_have_the_published_sizes_without_the_unused_decoders() {
        let model = preset("15B").unwrap();
        let cuts = [8, 19, 30, 41];
        let plan = StagePlan::with_cuts(&model, cuts.to_vec(), &cuts).unwrap();
        let sizes: Vec<usize> = (0..5).map(|stage| plan.layout(stage).elements()).collect();
        // IOTA's head and bodies hold one more decoder each, in their last block, which nothing ever uses.
        let unused = 5120 * 80;
        let body = 3_029_104_640 - unused;
        assert_eq!(
            sizes,
            [2_859_581_440 - unused, body, body, body, 3_134_438_400]
        );
        assert_eq!(plan.parameters(), sizes.iter().sum::<usize>());
    }

    #[test]
    fn only_blocks_at_a_boundary_hold_its_modules() {
        let plan = StagePlan::new(&preset("tiny").unwrap(), 4).unwrap();
        let has = |stage, block, tensor| {
            plan.layout(stage)
                .find(TensorId::Block { block, tensor })
                .is_some()
        };
        assert!(!has(0, 0, BlockTensor::Decoder) && has(0, 0, BlockTensor::Encoder));
        assert!(has(1, 1, BlockTensor::Decoder) && has(1, 1, BlockTensor::Encoder));
        assert!(has(3, 3, BlockTensor::Decoder) && !has(3, 3, BlockTensor::Encoder));
        assert_eq!(plan.layout(0).find(TensorId::Projection), None);
    }

    #[test]
    fn matrices_decay_and_norm_scales_start_at_one() {
        let layout = StagePlan::new(&preset("tiny").unwrap(), 1)
            .unwrap()
            .layout(0);
        for tensor in layout.tensors() {
            assert_eq!(tensor.decays, tensor.shape.len() == 2, "{}", tensor.id);
            assert_eq!(
                tensor.initialisation == Initialisation::Ones,
                tensor.shape.len() == 1,
                "{}",
                tensor.id
            );
        }
    }

    proptest! {
        #[test]
        fn the_stages_one_after_the_other_are_the_uncut_model(
            blocks in 1..9_usize, stages in 1..9_usize, bottleneck in proptest::option::of(1..8_usize),
        ) {
            let model = ModelConfig { blocks, bottleneck, ..preset("tiny").unwrap() };
            prop_assume!(stages <= blocks);
            let plan = StagePlan::new(&model, stages).unwrap();
            let uncut = plan.regroup(1).unwrap().layout(0);
            let mut start = 0;
            let mut tensors = Vec::new();
            for stage in 0..stages {
                let layout = plan.layout(stage);
                tensors.extend(layout.tensors().iter().cloned().map(|mut tensor| {
                    tensor.offset += start;
                    tensor
                }));
                start += layout.elements();
            }
            prop_assert_eq!(&tensors[..], uncut.tensors());
            prop_assert_eq!(uncut.elements(), plan.parameters());
            for pair in tensors.windows(2) {
                prop_assert_eq!(pair[0].range().end, pair[1].offset);
            }
        }
    }
}
