//! Where each tensor lies in a stage's flat parameters.
//!
//! A stage's parameters, gradients and optimizer moments are flat buffers of equal length; this is their common map.
//! Tensors lie in the order in which a forward pass meets them, and are named by their block's index in the whole
//! model, so the layouts of all stages, one after the other, are the layout of the uncut model.

use std::fmt;
use std::ops::Range;

use crate::boundary::Boundary;
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
    /// `[width, channels]`, only behind a boundary of [`Boundary::Iota`].
    Decoder,
    /// `[hidden_channels, channels]`, only behind a boundary of [`Boundary::ResBm`] or [`Boundary::Anchored`]: the first layer of `D`.
    DecoderHidden,
    /// `[width, hidden_channels]`, only behind a boundary of [`Boundary::ResBm`] or [`Boundary::Anchored`]: the second layer of `D`.
    DecoderOutput,
    /// `[vocabulary, width]`, only behind a boundary of [`Boundary::Anchored`]: the embedding that is added.
    Anchor,
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
    /// `[channels, width]`, only before a boundary of [`Boundary::Iota`].
    Encoder,
    /// `[hidden_channels, width]`, only before a boundary of [`Boundary::ResBm`] or [`Boundary::Anchored`]: the first layer of `E`.
    EncoderHidden,
    /// `[channels, hidden_channels]`, only before a boundary of [`Boundary::ResBm`] or [`Boundary::Anchored`]: the second layer of `E`.
    EncoderOutput,
}

impl BlockTensor {
    const ORDER: [Self; 16] = [
        Self::Decoder,
        Self::DecoderHidden,
        Self::DecoderOutput,
        Self::Anchor,
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
        Self::EncoderHidden,
        Self::EncoderOutput,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Decoder => "decoder",
            Self::DecoderHidden => "decoder_hidden",
            Self::DecoderOutput => "decoder_output",
            Self::Anchor => "anchor",
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
            Self::EncoderHidden => "encoder_hidden",
            Self::EncoderOutput => "encoder_output",
        }
    }

    /// Standard deviation of a matrix before training. ResBM's encoders and decoders begin near their identities.
    const fn standard_deviation(self) -> f32 {
        match self {
            Self::DecoderHidden
            | Self::DecoderOutput
            | Self::EncoderHidden
            | Self::EncoderOutput => 0.01,
            _ => STANDARD_DEVIATION,
        }
    }
}

/// Of matrices before training.
const STANDARD_DEVIATION: f32 = 0.02;

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
        let width = config.width;
        let mut layout = Self {
            tensors: Vec::new(),
        };
        if stage.role.takes_tokens() {
            layout.push(
                TensorId::Embedding,
                &[config.vocabulary, width],
                STANDARD_DEVIATION,
            );
        }
        for block in stage.blocks.clone() {
            for tensor in BlockTensor::ORDER {
                if let Some(shape) = block_shape(plan, block, tensor) {
                    let deviation = tensor.standard_deviation();
                    layout.push(TensorId::Block { block, tensor }, &shape, deviation);
                }
            }
        }
        if stage.role.computes_loss() {
            layout.push(TensorId::FinalNorm, &[width], STANDARD_DEVIATION);
            layout.push(
                TensorId::Projection,
                &[config.vocabulary, width],
                STANDARD_DEVIATION,
            );
        }
        layout
    }

    /// `standard_deviation`: of a matrix; a vector scales and begins with ones.
    fn push(&mut self, id: TensorId, shape: &[usize], standard_deviation: f32) {
        let matrix = shape.len() > 1;
        let initialisation = if matrix {
            Initialisation::Normal { standard_deviation }
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

/// The shape of a block's tensor; `None` if this block has no such tensor.
fn block_shape(plan: &StagePlan, block: usize, tensor: BlockTensor) -> Option<Vec<usize>> {
    let config = plan.config();
    let (width, feed_forward, key_value) =
        (config.width, config.feed_forward, config.key_value_width());
    let (receives, sends) = (
        plan.receives_bottleneck(block),
        plan.sends_bottleneck(block),
    );
    let (iota, channels) = (
        matches!(config.boundary, Boundary::Iota { .. }),
        config.boundary_width(),
    );
    let hidden = config.boundary.hidden_channels();
    let shape = match tensor {
        BlockTensor::Decoder => (iota && receives).then(|| vec![width, channels])?,
        BlockTensor::DecoderHidden => vec![hidden.filter(|_| receives)?, channels],
        BlockTensor::DecoderOutput => vec![width, hidden.filter(|_| receives)?],
        BlockTensor::Anchor => {
            let anchored = receives && config.boundary.is_anchored();
            anchored.then(|| vec![config.vocabulary, width])?
        }
        BlockTensor::AttentionNorm | BlockTensor::FeedForwardNorm => vec![width],
        BlockTensor::Query | BlockTensor::AttentionOutput => vec![width, width],
        BlockTensor::Key | BlockTensor::Value => vec![key_value, width],
        BlockTensor::Gate | BlockTensor::Up => vec![feed_forward, width],
        BlockTensor::Down => vec![width, feed_forward],
        BlockTensor::Encoder => (iota && sends).then(|| vec![channels, width])?,
        BlockTensor::EncoderHidden => vec![hidden.filter(|_| sends)?, width],
        BlockTensor::EncoderOutput => vec![channels, hidden.filter(|_| sends)?],
    };
    Some(shape)
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
    fn resbm_gives_its_encoder_to_the_sender_and_its_decoder_to_the_receiver() {
        let model = ModelConfig {
            boundary: Boundary::ResBm { channels: 2 },
            ..preset("tiny").unwrap()
        };
        let plan = StagePlan::new(&model, 2).unwrap();
        let shapes = |stage, block| -> Vec<_> {
            let boundary = |tensor: &&TensorLayout| {
                tensor.initialisation
                    == Initialisation::Normal {
                        standard_deviation: 0.01,
                    }
            };
            let layout = plan.layout(stage);
            let named = layout.tensors().iter().filter(boundary);
            named
                .map(|tensor| {
                    let name = tensor.name();
                    let prefix = format!("blocks.{block}.");
                    let name = name.strip_prefix(&prefix).expect("at the boundary");
                    (name.to_owned(), tensor.shape.clone())
                })
                .collect()
        };
        let expected =
            |first: &str, first_shape: [usize; 2], second: &str, second_shape: [usize; 2]| {
                vec![
                    (first.to_owned(), first_shape.to_vec()),
                    (second.to_owned(), second_shape.to_vec()),
                ]
            };
        assert_eq!(
            shapes(0, 1),
            expected("encoder_hidden", [64, 32], "encoder_output", [2, 64])
        );
        assert_eq!(
            shapes(1, 2),
            expected("decoder_hidden", [64, 2], "decoder_output", [32, 64])
        );
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

    fn boundaries() -> impl Strategy<Value = Boundary> {
        prop_oneof![
            Just(Boundary::None),
            (1..8_usize).prop_map(|channels| Boundary::Iota { channels }),
            (1..32_usize).prop_map(|channels| Boundary::ResBm { channels }),
            (1..32_usize).prop_map(|channels| Boundary::Anchored { channels }),
        ]
    }

    proptest! {
        #[test]
        fn the_stages_one_after_the_other_are_the_uncut_model(
            blocks in 1..9_usize, stages in 1..9_usize, boundary in boundaries(),
        ) {
            let model = ModelConfig { blocks, boundary, ..preset("tiny").unwrap() };
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
