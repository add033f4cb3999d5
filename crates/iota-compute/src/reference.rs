//! The same model as a plain composition of candle's tensor operations, with candle's autograd.
//!
//! It is slow and short, and made of operations that have a gradient in candle (many fast ones of `candle-nn` silently have
//! none). Tests hold the stage to it; users can read it as the definition of the model, or start experiments from it.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use iota_model::{BlockTensor, Boundary, StageLayout, StagePlan, TensorId};

use crate::error::{Error, Result};
use crate::stage::Input;

/// What a stage is given, as tensors; [`Reference::input`] makes it.
#[derive(Debug)]
pub struct ReferenceInput {
    /// `[sequences, tokens]`.
    tokens: Option<Tensor>,
    /// A variable, `[sequences, tokens, boundary_width]`.
    activation: Option<Tensor>,
}

/// A stage as candle variables.
#[derive(Debug)]
pub struct Reference {
    plan: StagePlan,
    layout: StageLayout,
    index: usize,
    blocks: std::ops::Range<usize>,
    variables: BTreeMap<TensorId, Var>,
    dtype: DType,
}

impl Reference {
    /// From a stage's flat parameters. With [`DType::F64`], rounding is out of the way of comparisons.
    ///
    /// # Errors
    /// [`Error::NoSuchStage`]; [`Error::Length`] if these are not the stage's parameters.
    pub fn new(plan: &StagePlan, stage: usize, parameters: &[f32], dtype: DType) -> Result<Self> {
        let stages = plan.stages().len();
        let span = plan.stages().get(stage).ok_or(Error::NoSuchStage {
            index: stage,
            stages,
        })?;
        let layout = plan.layout(stage);
        if layout.elements() != parameters.len() {
            let (expected, actual) = (layout.elements(), parameters.len());
            return Err(Error::Length {
                what: "the list of parameters",
                expected,
                actual,
            });
        }
        let variables = layout
            .tensors()
            .iter()
            .map(|tensor| {
                let values = Tensor::from_slice(
                    &parameters[tensor.range()],
                    tensor.shape.as_slice(),
                    &Device::Cpu,
                )?;
                Ok((tensor.id, Var::from_tensor(&values.to_dtype(dtype)?)?))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            plan: plan.clone(),
            index: stage,
            blocks: span.blocks.clone(),
            layout,
            variables,
            dtype,
        })
    }

    /// What the stage sends on, `[sequences, tokens, boundary_width]`.
    ///
    /// # Errors
    /// [`Error::Reference`]; [`Error::InputKind`] if tokens or activation are missing.
    pub fn output(&self, input: &ReferenceInput) -> Result<Tensor> {
        let mut x = match &input.activation {
            Some(activation) => activation.clone(),
            None => self.embed(TensorId::Embedding, input)?,
        };
        for block in self.blocks.clone() {
            x = self.block(block, &x, input)?;
        }
        Ok(x)
    }

    /// The rows of a table that the input's tokens stand for.
    fn embed(&self, table: TensorId, input: &ReferenceInput) -> Result<Tensor> {
        let tokens = input.tokens.as_ref().ok_or(Error::InputKind {
            role: self.plan.stages()[self.index].role,
            expected: "tokens",
            given: "an activation",
        })?;
        let (sequences, count) = tokens.dims2()?;
        let rows = self.variables[&table].index_select(&tokens.flatten_all()?, 0)?;
        Ok(rows.reshape((sequences, count, ()))?)
    }

    /// The last stage's mean loss in nats per token. `targets`: `[sequences, tokens]`.
    ///
    /// # Errors
    /// [`Error::Reference`].
    pub fn loss(&self, input: &ReferenceInput, targets: &Tensor) -> Result<Tensor> {
        let x = self.norm(&self.output(input)?, TensorId::FinalNorm)?;
        let logits = self.linear(&x, TensorId::Projection)?.flatten_to(1)?;
        let targets = targets.flatten_all()?.unsqueeze(1)?;
        let log_shares = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
        Ok(log_shares.gather(&targets, 1)?.mean_all()?.neg()?)
    }

    /// The input as tensors.
    ///
    /// # Errors
    /// [`Error::Reference`].
    pub fn input(&self, input: Input<'_>) -> Result<ReferenceInput> {
        let (tokens, activation) = match input {
            Input::Tokens(tokens) => (Some(tokens), None),
            Input::Activation(activation) => (None, Some(activation)),
            Input::Anchored { activation, tokens } => (Some(tokens), Some(activation)),
        };
        let context = self.plan.config().context;
        let grid = |rows: usize| (rows.div_ceil(context), rows.min(context));
        let tokens = tokens
            .map(|tokens| Tensor::from_slice(tokens, grid(tokens.len()), &Device::Cpu))
            .transpose()?;
        let activation = activation
            .map(|values| {
                let width = self.plan.boundary_width();
                let (sequences, count) = grid(values.len() / width);
                let values = Tensor::from_slice(values, (sequences, count, width), &Device::Cpu)?
                    .to_dtype(self.dtype)?;
                Var::from_tensor(&values).map(Var::into_inner)
            })
            .transpose()?;
        Ok(ReferenceInput { tokens, activation })
    }

    /// The gradients of all parameters as a stage lays them out, and that of the input if it is a variable.
    ///
    /// # Errors
    /// [`Error::MissingGradient`] if candle has no gradient for a parameter.
    pub fn gradients(
        &self,
        objective: &Tensor,
        input: &ReferenceInput,
    ) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
        let store = objective.backward()?;
        let flat = |gradient: &Tensor| {
            gradient
                .to_dtype(DType::F32)?
                .flatten_all()?
                .to_vec1::<f32>()
        };
        let mut gradients = Vec::with_capacity(self.layout.elements());
        for tensor in self.layout.tensors() {
            let gradient =
                store
                    .get(&self.variables[&tensor.id])
                    .ok_or_else(|| Error::MissingGradient {
                        tensor: tensor.name(),
                    })?;
            gradients.extend(flat(gradient)?);
        }
        let activation = input.activation.as_ref();
        let input_gradient = activation
            .and_then(|activation| store.get(activation))
            .map(flat)
            .transpose()?;
        Ok((gradients, input_gradient))
    }

    fn block(&self, block: usize, received: &Tensor, input: &ReferenceInput) -> Result<Tensor> {
        let id = |tensor| TensorId::Block { block, tensor };
        let (width, channels) = (self.plan.config().width, self.plan.boundary_width());
        let iota = matches!(self.plan.config().boundary, Boundary::Iota { .. });
        let resbm = self.plan.config().boundary.hidden_channels().is_some();
        let behind_boundary = self.plan.receives_bottleneck(block);
        let before_boundary = self.plan.sends_bottleneck(block);

        let x = if iota && behind_boundary {
            self.linear(received, id(BlockTensor::Decoder))?.relu()?
        } else if resbm && behind_boundary {
            let hidden = self.linear(received, id(BlockTensor::DecoderHidden))?;
            let decoded = self.linear(&hidden.silu()?, id(BlockTensor::DecoderOutput))?;
            let decoded = (decoded + received.pad_with_zeros(2, 0, width - channels)?)?;
            if self.plan.config().boundary.is_anchored() {
                (decoded + self.embed(id(BlockTensor::Anchor), input)?)?
            } else {
                decoded
            }
        } else {
            received.clone()
        };
        let attended = self.attention(block, &self.norm(&x, id(BlockTensor::AttentionNorm))?)?;
        let x = if iota && behind_boundary {
            let carried = (attended.narrow(2, 0, channels)? + received)?;
            Tensor::cat(
                &[&carried, &attended.narrow(2, channels, width - channels)?],
                2,
            )?
        } else {
            (x + attended)?
        };

        let normed = self.norm(&x, id(BlockTensor::FeedForwardNorm))?;
        let gate = self.linear(&normed, id(BlockTensor::Gate))?.silu()?;
        let hidden = (gate * self.linear(&normed, id(BlockTensor::Up))?)?;
        let fed = self.linear(&hidden, id(BlockTensor::Down))?;
        if iota && before_boundary {
            let encoded = self.linear(&fed.silu()?, id(BlockTensor::Encoder))?;
            return Ok((encoded + x.narrow(2, 0, channels)?)?);
        }
        let x = (x + fed)?;
        if resbm && before_boundary {
            let hidden = self.linear(&x, id(BlockTensor::EncoderHidden))?;
            let encoded = self.linear(&hidden.silu()?, id(BlockTensor::EncoderOutput))?;
            return Ok((encoded + x.narrow(2, 0, channels)?)?);
        }
        Ok(x)
    }

    fn attention(&self, block: usize, x: &Tensor) -> Result<Tensor> {
        let config = self.plan.config();
        let (sequences, tokens, width) = x.dims3()?;
        let shared_by = config.heads / config.key_value_heads;
        let heads = |tensor, heads: usize| {
            let all = self.linear(x, TensorId::Block { block, tensor })?;
            Ok::<_, Error>(
                all.reshape((sequences, tokens, heads, ()))?
                    .transpose(1, 2)?
                    .contiguous()?,
            )
        };
        let repeat = |shared: Tensor| {
            let (_, _, _, head_width) = shared.dims4()?;
            let shape = (
                sequences,
                config.key_value_heads,
                shared_by,
                tokens,
                head_width,
            );
            shared.unsqueeze(2)?.expand(shape)?.reshape((
                sequences,
                config.heads,
                tokens,
                head_width,
            ))
        };
        let queries = self.rotate(&heads(BlockTensor::Query, config.heads)?)?;
        let keys = repeat(self.rotate(&heads(BlockTensor::Key, config.key_value_heads)?)?)?;
        let values = repeat(heads(BlockTensor::Value, config.key_value_heads)?)?;

        let scores = (queries.matmul(&keys.t()?)? * (config.head_width() as f64).powf(-0.5))?;
        let later: Vec<f32> = (0..tokens)
            .flat_map(|query| {
                (0..tokens).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 })
            })
            .collect();
        let later =
            Tensor::from_vec(later, (tokens, tokens), &Device::Cpu)?.to_dtype(self.dtype)?;
        let weights = candle_nn::ops::softmax(&scores.broadcast_add(&later)?, D::Minus1)?;
        let attended = weights
            .matmul(&values)?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((sequences, tokens, width))?;
        self.linear(
            &attended,
            TensorId::Block {
                block,
                tensor: BlockTensor::AttentionOutput,
            },
        )
    }

    /// `x`: `[sequences, heads, tokens, head_width]`.
    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, tokens, head_width) = x.dims4()?;
        let frequencies = self.plan.config().rope_frequencies();
        let angles: Vec<f64> = (0..tokens)
            .flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
            .collect();
        let angles = Tensor::from_vec(angles, (tokens, head_width / 2), &Device::Cpu)?;
        let (cosines, sines) = (
            angles.cos()?.to_dtype(self.dtype)?,
            angles.sin()?.to_dtype(self.dtype)?,
        );
        let (first, second) = (
            x.narrow(3, 0, head_width / 2)?,
            x.narrow(3, head_width / 2, head_width / 2)?,
        );
        let turned = (first.broadcast_mul(&cosines)? - second.broadcast_mul(&sines)?)?;
        let other = (second.broadcast_mul(&cosines)? + first.broadcast_mul(&sines)?)?;
        Ok(Tensor::cat(&[turned, other], 3)?)
    }

    fn norm(&self, x: &Tensor, scale: TensorId) -> Result<Tensor> {
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let root = (mean_square + f64::from(self.plan.config().norm_epsilon))?.sqrt()?;
        Ok(x.broadcast_div(&root)?
            .broadcast_mul(&self.variables[&scale])?)
    }

    fn linear(&self, x: &Tensor, weight: TensorId) -> Result<Tensor> {
        let (sequences, tokens, inputs) = x.dims3()?;
        let rows = x
            .reshape((sequences * tokens, inputs))?
            .matmul(&self.variables[&weight].t()?)?;
        Ok(rows.reshape((sequences, tokens, ()))?)
    }
}
