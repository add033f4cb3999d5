//! A stage of a model: forward, backward, step.

mod block;
mod run;

use std::ops::Range;

use iota_model::{StageLayout, StagePlan, StageRole, TensorId};

use self::block::{Block, SavedBlock};
use self::run::{Run, Weight};
use crate::backend::{AttentionShape, Backend, Write};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::initialise::initialise;
use crate::optimizer::{OptimizerSettings, StepSummary, clip_factor};
use crate::recycler::Recycler;
use crate::state::{State, StateMut};

/// How a stage computes on a CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageOptions {
    /// Threads of the stage's own. With 1 it computes on its caller's thread, which is best for many stages in one
    /// process. Results do not depend on it.
    pub threads: usize,
    /// How it steps.
    pub optimizer: OptimizerSettings,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            optimizer: OptimizerSettings::default(),
        }
    }
}

/// What a stage takes: whole sequences of the model's `context` tokens, one after the other, or a single shorter one.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// For the first stage: tokens below the vocabulary.
    Tokens(&'a [u32]),
    /// For every other stage: what the stage before gave, `[tokens, boundary_width]`.
    Activation(&'a [f32]),
}

/// What a backward pass needs from its forward pass. It is large (see [`crate::MemoryEstimate`]).
///
/// Dropped, it frees its buffers; handed to [`Stage::backward`] or [`Stage::discard`], they are used again.
#[derive(Debug)]
pub struct Saved<B: Backend = Cpu> {
    tokens: Option<B::Indices>,
    attention: AttentionShape,
    blocks: Vec<SavedBlock<B>>,
    optimizer_steps: u64,
}

impl<B: Backend> Saved<B> {
    /// Steps that the stage's optimizer had taken. If it has taken more since, a backward pass mixes activations of the
    /// old parameters with the new parameters; running the forward pass again from its input avoids that.
    pub const fn optimizer_steps(&self) -> u64 {
        self.optimizer_steps
    }

    /// Memory that it holds on the device of its stage: [`crate::MemoryEstimate::saved_bytes`].
    pub fn bytes(&self, stage: &Stage<B>) -> u64 {
        let elements: usize = self
            .blocks
            .iter()
            .map(|block| block.elements(&stage.backend))
            .sum();
        (elements * size_of::<f32>()) as u64
    }
}

/// A stage with its parameters, gradients and optimizer state on one device.
///
/// Always true: parameters, gradients and both moments have one length, and [`layout`](Self::layout) is the map of each.
/// Gradients are the sum over the backward passes since the last step.
#[derive(Debug)]
pub struct Stage<B: Backend = Cpu> {
    backend: B,
    plan: StagePlan,
    role: StageRole,
    layout: StageLayout,
    optimizer: OptimizerSettings,
    embedding: Option<Weight>,
    blocks: Vec<Block>,
    output: Option<Output>,
    parameters: B::Buffer,
    gradients: B::Buffer,
    moments: (B::Buffer, B::Buffer),
    optimizer_steps: u64,
    rotary: (B::Buffer, B::Buffer),
    recycler: Recycler<B>,
}

/// The end of the model.
#[derive(Debug, Clone)]
struct Output {
    norm: Range<usize>,
    projection: Weight,
}

impl Stage<Cpu> {
    /// A stage on the CPU, with all-zero parameters: [`initialise`](Self::initialise) it, or write its
    /// [`state_mut`](Self::state_mut).
    ///
    /// # Errors
    /// [`Error::NoSuchStage`], [`Error::Threads`].
    pub fn new(plan: &StagePlan, index: usize, options: StageOptions) -> Result<Self> {
        Self::on(Cpu::new(options.threads)?, plan, index, options.optimizer)
    }

    /// Parameters and optimizer state, to read.
    pub fn state(&self) -> State<'_> {
        State {
            optimizer_steps: self.optimizer_steps,
            parameters: &self.parameters,
            first_moment: &self.moments.0,
            second_moment: &self.moments.1,
        }
    }

    /// Parameters and optimizer state, to write.
    pub fn state_mut(&mut self) -> StateMut<'_> {
        StateMut {
            optimizer_steps: &mut self.optimizer_steps,
            parameters: &mut self.parameters,
            first_moment: &mut self.moments.0,
            second_moment: &mut self.moments.1,
        }
    }

    /// The sum of the gradients since the last step.
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// [`State::digest`] of the state.
    pub fn digest(&self) -> [u8; 32] {
        self.state().digest()
    }
}

impl<B: Backend> Stage<B> {
    /// A stage on any device, with all-zero parameters.
    ///
    /// # Errors
    /// [`Error::NoSuchStage`], [`Error::Device`].
    pub fn on(
        backend: B,
        plan: &StagePlan,
        index: usize,
        optimizer: OptimizerSettings,
    ) -> Result<Self> {
        let stages = plan.stages().len();
        let span = plan
            .stages()
            .get(index)
            .ok_or(Error::NoSuchStage { index, stages })?;
        let layout = plan.layout(index);
        let weight = |id| layout.find(id).map(|tensor| Weight::of(&[tensor]));
        let norm = layout
            .find(TensorId::FinalNorm)
            .map(|tensor| tensor.range());
        let output = norm
            .zip(weight(TensorId::Projection))
            .map(|(norm, projection)| Output { norm, projection });
        let elements = layout.elements();
        let (cosines, sines) = rotary_tables(plan);
        let on_device = |values: &[f32]| {
            let mut buffer = backend.allocate(values.len())?;
            backend.upload(backend.all_mut(&mut buffer), values)?;
            Ok::<_, Error>(buffer)
        };
        Ok(Self {
            role: span.role,
            optimizer,
            embedding: weight(TensorId::Embedding),
            blocks: span
                .blocks
                .clone()
                .map(|block| Block::new(&layout, block))
                .collect(),
            output,
            parameters: backend.allocate(elements)?,
            gradients: backend.allocate(elements)?,
            moments: (backend.allocate(elements)?, backend.allocate(elements)?),
            optimizer_steps: 0,
            rotary: (on_device(&cosines)?, on_device(&sines)?),
            recycler: Recycler::new(),
            plan: plan.clone(),
            layout,
            backend,
        })
    }

    /// Sets the parameters to those that a run with this seed starts from, and forgets gradients and optimizer state.
    /// The same bits on every machine, and for any cut of the model.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn initialise(&mut self, seed: u64) -> Result<()> {
        let mut values = Vec::new();
        for tensor in self.layout.tensors() {
            values.resize(tensor.elements(), 0.0);
            initialise(tensor, seed, &mut values);
            self.backend.upload(
                self.backend.view_mut(&mut self.parameters, tensor.range()),
                &values,
            )?;
        }
        for buffer in [
            &mut self.gradients,
            &mut self.moments.0,
            &mut self.moments.1,
        ] {
            self.backend.fill(self.backend.all_mut(buffer), 0.0)?;
        }
        self.optimizer_steps = 0;
        Ok(())
    }

    /// The plan that the stage belongs to.
    pub const fn plan(&self) -> &StagePlan {
        &self.plan
    }

    /// The stage's place in the model.
    pub const fn role(&self) -> StageRole {
        self.role
    }

    /// Where each tensor lies in the flat slices.
    pub const fn layout(&self) -> &StageLayout {
        &self.layout
    }

    /// Runs the stage. Returns its output, `[tokens, boundary_width]`, for the next stage, and what
    /// [`backward`](Self::backward) needs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on the last stage, whose only output is a loss; what is wrong with the input.
    pub fn forward(&mut self, input: Input<'_>) -> Result<(Vec<f32>, Saved<B>)> {
        self.must_pass_on("output an activation")?;
        let attention = self.check_input(input)?;
        let optimizer_steps = self.optimizer_steps;
        let backend = self.backend.clone();
        backend.scope(|| {
            let mut parts = self.parts(attention);
            let (x, tokens) = parts.enter(input)?;
            let (output, blocks) = parts.forward(x)?;
            Ok((
                parts.run.leave(output)?,
                Saved {
                    tokens,
                    attention,
                    blocks,
                    optimizer_steps,
                },
            ))
        })
    }

    /// Runs the stage without keeping anything: the output of [`forward`](Self::forward).
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_only(&mut self, input: Input<'_>) -> Result<Vec<f32>> {
        self.must_pass_on("output an activation")?;
        let attention = self.check_input(input)?;
        let backend = self.backend.clone();
        backend.scope(|| {
            let mut parts = self.parts(attention);
            let (x, _) = parts.enter(input)?;
            let output = parts.forward_only(x)?;
            parts.run.leave(output)
        })
    }

    /// Goes back from the gradient of the output, `[tokens, boundary_width]`: adds to the gradients, and returns the
    /// gradient of the input for the stage before, or `None` on the first stage.
    ///
    /// # Errors
    /// [`Error::ForeignSaved`], [`Error::Length`], [`Error::NotFinite`], before anything is changed.
    pub fn backward(
        &mut self,
        saved: Saved<B>,
        output_gradient: &[f32],
    ) -> Result<Option<Vec<f32>>> {
        self.must_pass_on("take an output gradient")?;
        self.check_saved(&saved)?;
        let expected = saved.attention.rows() * self.plan.boundary_width();
        check_length("the output gradient", expected, output_gradient.len())?;
        check_finite("the output gradient", output_gradient)?;
        let backend = self.backend.clone();
        backend.scope(|| {
            let mut parts = self.parts(saved.attention);
            let gradient = parts.run.upload(output_gradient)?;
            let gradient = parts.backward(saved.blocks, gradient)?;
            parts.exit(saved.tokens, gradient)
        })
    }

    /// The last stage's forward and backward pass in one: adds to the gradients, and returns the loss (mean nats per
    /// token) and the gradient of the input for the stage before, or `None` if this is the only stage.
    ///
    /// `targets`: the token that follows each of the input's.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on other stages; what is wrong with the input or the targets, before anything is changed;
    /// [`Error::NotFinite`] if the loss is not a number, which spoils the gradients until the next step.
    pub fn forward_backward_loss(
        &mut self,
        input: Input<'_>,
        targets: &[u32],
    ) -> Result<(f32, Option<Vec<f32>>)> {
        let attention = self.check_loss(input, targets)?;
        let backend = self.backend.clone();
        backend.scope(|| {
            let mut parts = self.parts(attention);
            let targets = backend.upload_indices(targets)?;
            let (x, tokens) = parts.enter(input)?;
            let (x, blocks) = parts.forward(x)?;
            let (loss, gradient) = parts.loss_backward(x, &targets)?;
            let gradient = parts.backward(blocks, gradient)?;
            let input_gradient = parts.exit(tokens, gradient)?;
            if loss.is_finite() {
                Ok((loss, input_gradient))
            } else {
                Err(Error::NotFinite { what: "the loss" })
            }
        })
    }

    /// The loss alone, mean nats per token; changes nothing.
    ///
    /// # Errors
    /// As [`forward_backward_loss`](Self::forward_backward_loss).
    pub fn evaluate(&mut self, input: Input<'_>, targets: &[u32]) -> Result<f32> {
        let attention = self.check_loss(input, targets)?;
        let backend = self.backend.clone();
        backend.scope(|| {
            let mut parts = self.parts(attention);
            let targets = backend.upload_indices(targets)?;
            let (x, _) = parts.enter(input)?;
            let x = parts.forward_only(x)?;
            let loss = parts.loss(x, &targets)?;
            if loss.is_finite() {
                Ok(loss)
            } else {
                Err(Error::NotFinite { what: "the loss" })
            }
        })
    }

    /// Steps the optimizer on the mean of the gradients of `backwards` passes, clipped to the stage's share of the
    /// clipping norm, and zeroes the gradients.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a gradient is: the gradients are zeroed, everything else stays as it was.
    ///
    /// # Panics
    /// If `backwards` is 0.
    pub fn step(&mut self, learning_rate: f32, backwards: u32) -> Result<StepSummary> {
        assert!(backwards > 0, "a step follows at least one backward pass");
        let backend = self.backend.clone();
        backend.scope(|| {
            let mean = 1.0 / f64::from(backwards);
            let norm = backend.squared_norm(backend.all(&self.gradients))?.sqrt() * mean;
            let finite = norm.is_finite();
            let clip_norm = self
                .optimizer
                .clip_norm_of_stage(self.layout.elements(), self.plan.parameters());
            let factor = clip_factor(norm, clip_norm);
            if finite {
                self.optimizer_steps += 1;
                let update =
                    self.optimizer
                        .update(self.optimizer_steps, learning_rate, mean * factor);
                for tensor in self.layout.tensors() {
                    let weight_decay = if tensor.decays {
                        update.weight_decay
                    } else {
                        0.0
                    };
                    backend.adamw(
                        backend.view_mut(&mut self.parameters, tensor.range()),
                        (
                            backend.view_mut(&mut self.moments.0, tensor.range()),
                            backend.view_mut(&mut self.moments.1, tensor.range()),
                        ),
                        backend.view(&self.gradients, tensor.range()),
                        crate::AdamWUpdate {
                            weight_decay,
                            ..update
                        },
                    )?;
                }
            }
            backend.fill(backend.all_mut(&mut self.gradients), 0.0)?;
            if finite {
                Ok(StepSummary {
                    gradient_norm: norm,
                    clipped: factor < 1.0,
                })
            } else {
                Err(Error::NotFinite {
                    what: "the gradient",
                })
            }
        })
    }

    /// Forgets the gradients since the last step.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn zero_gradients(&mut self) -> Result<()> {
        self.backend
            .fill(self.backend.all_mut(&mut self.gradients), 0.0)
    }

    /// Takes back the buffers of a forward pass that gets no backward pass.
    pub fn discard(&mut self, saved: Saved<B>) {
        let mut parts = self.parts(saved.attention);
        for block in saved.blocks {
            block.discard(&mut parts.run);
        }
    }

    /// Frees the buffers that are kept for the next pass.
    pub fn release_scratch(&mut self) {
        self.recycler.clear();
    }
}

/// Checks of what comes from outside.
impl<B: Backend> Stage<B> {
    fn must_pass_on(&self, operation: &'static str) -> Result<()> {
        if self.output.is_none() {
            Ok(())
        } else {
            Err(Error::Unsupported {
                role: self.role,
                operation,
            })
        }
    }

    fn check_saved(&self, saved: &Saved<B>) -> Result<()> {
        let elements: usize = saved
            .blocks
            .iter()
            .map(|block| block.elements(&self.backend))
            .sum();
        let per_row: usize = self
            .blocks
            .iter()
            .map(|block| block.saved_elements(self.plan.config().heads))
            .sum();
        let same_input = saved.tokens.is_some() == self.embedding.is_some();
        let same_blocks =
            saved.blocks.len() == self.blocks.len() && elements == per_row * saved.attention.rows();
        if same_input && same_blocks {
            Ok(())
        } else {
            Err(Error::ForeignSaved)
        }
    }

    fn check_loss(&self, input: Input<'_>, targets: &[u32]) -> Result<AttentionShape> {
        if self.output.is_none() {
            return Err(Error::Unsupported {
                role: self.role,
                operation: "compute a loss",
            });
        }
        let attention = self.check_input(input)?;
        check_length("the list of targets", attention.rows(), targets.len())?;
        self.check_vocabulary("target", targets)?;
        Ok(attention)
    }

    fn check_input(&self, input: Input<'_>) -> Result<AttentionShape> {
        let config = self.plan.config();
        let tokens = match (self.role.takes_tokens(), input) {
            (true, Input::Tokens(tokens)) => {
                self.check_vocabulary("token", tokens)?;
                tokens.len()
            }
            (false, Input::Activation(activation)) => {
                let width = self.plan.boundary_width();
                if !activation.len().is_multiple_of(width) {
                    return Err(Error::Rows {
                        elements: activation.len(),
                        width,
                    });
                }
                check_finite("the input activation", activation)?;
                activation.len() / width
            }
            (takes_tokens, _) => {
                let (tokens, activation) = ("tokens", "an activation");
                let (expected, given) = if takes_tokens {
                    (tokens, activation)
                } else {
                    (activation, tokens)
                };
                return Err(Error::InputKind {
                    role: self.role,
                    expected,
                    given,
                });
            }
        };
        let context = config.context;
        if tokens == 0 || (tokens > context && !tokens.is_multiple_of(context)) {
            return Err(Error::Sequences { tokens, context });
        }
        Ok(AttentionShape {
            sequences: tokens.div_ceil(context),
            tokens: tokens.min(context),
            heads: config.heads,
            key_value_heads: config.key_value_heads,
            head_width: config.head_width(),
        })
    }

    fn check_vocabulary(&self, what: &'static str, tokens: &[u32]) -> Result<()> {
        let vocabulary = self.plan.config().vocabulary;
        match tokens
            .iter()
            .position(|&token| token as usize >= vocabulary)
        {
            None => Ok(()),
            Some(position) => Err(Error::Vocabulary {
                what,
                token: tokens[position],
                position,
                vocabulary,
            }),
        }
    }
}

fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual {
        Ok(())
    } else {
        Err(Error::Length {
            what,
            expected,
            actual,
        })
    }
}

fn check_finite(what: &'static str, values: &[f32]) -> Result<()> {
    if values.iter().all(|value| value.is_finite()) {
        Ok(())
    } else {
        Err(Error::NotFinite { what })
    }
}

/// A stage in the middle of a pass, with its fields apart.
struct Parts<'a, B: Backend> {
    run: Run<'a, B>,
    gradients: &'a mut B::Buffer,
    embedding: Option<&'a Weight>,
    blocks: &'a [Block],
    output: Option<&'a Output>,
}

impl<B: Backend> Stage<B> {
    fn parts(&mut self, attention: AttentionShape) -> Parts<'_, B> {
        Parts {
            run: Run {
                backend: &self.backend,
                recycler: &mut self.recycler,
                parameters: &self.parameters,
                rotary: (&self.rotary.0, &self.rotary.1),
                attention,
                norm_epsilon: self.plan.config().norm_epsilon,
            },
            gradients: &mut self.gradients,
            embedding: self.embedding.as_ref(),
            blocks: &self.blocks,
            output: self.output.as_ref(),
        }
    }
}

impl<B: Backend> Parts<'_, B> {
    /// The input on the device as the first block takes it, and its tokens if it is tokens.
    fn enter(&mut self, input: Input<'_>) -> Result<(B::Buffer, Option<B::Indices>)> {
        let tokens = match input {
            Input::Activation(activation) => return Ok((self.run.upload(activation)?, None)),
            Input::Tokens(tokens) => self.run.backend.upload_indices(tokens)?,
        };
        let embedding = self
            .embedding
            .expect("checked: a stage that is given tokens holds the embedding");
        let mut x = self.run.take(embedding.inputs)?;
        let backend = self.run.backend;
        let table = backend.view(self.run.parameters, embedding.range.clone());
        backend.embedding(backend.all_mut(&mut x), table, &tokens, embedding.inputs)?;
        Ok((x, Some(tokens)))
    }

    fn forward(&mut self, mut x: B::Buffer) -> Result<(B::Buffer, Vec<SavedBlock<B>>)> {
        let mut saved = Vec::with_capacity(self.blocks.len());
        for block in self.blocks {
            let (output, saved_block) = block.forward(&mut self.run, x)?;
            x = output;
            saved.push(saved_block);
        }
        Ok((x, saved))
    }

    fn forward_only(&mut self, mut x: B::Buffer) -> Result<B::Buffer> {
        for block in self.blocks {
            let (output, saved) = block.forward(&mut self.run, x)?;
            saved.discard(&mut self.run);
            x = output;
        }
        Ok(x)
    }

    fn backward(
        &mut self,
        saved: Vec<SavedBlock<B>>,
        mut gradient: B::Buffer,
    ) -> Result<B::Buffer> {
        for (block, saved) in self.blocks.iter().zip(saved).rev() {
            gradient = block.backward(&mut self.run, self.gradients, saved, gradient)?;
        }
        Ok(gradient)
    }

    /// The gradient of the input for the stage before, or of the embedding.
    fn exit(
        &mut self,
        tokens: Option<B::Indices>,
        gradient: B::Buffer,
    ) -> Result<Option<Vec<f32>>> {
        let (Some(embedding), Some(tokens)) = (self.embedding, tokens) else {
            return self.run.leave(gradient).map(Some);
        };
        let backend = self.run.backend;
        let table_gradient = backend.view_mut(self.gradients, embedding.range.clone());
        backend.embedding_backward(
            table_gradient,
            backend.all(&gradient),
            &tokens,
            embedding.inputs,
        )?;
        self.run.give(gradient);
        Ok(None)
    }

    fn loss(&mut self, x: B::Buffer, targets: &B::Indices) -> Result<f32> {
        let output = self.output.expect("checked: the stage computes a loss");
        let (normed, inverse) = self.run.norm(&output.norm, &x)?;
        let backend = self.run.backend;
        let projection = backend.view(self.run.parameters, output.projection.range.clone());
        let loss = backend.cross_entropy(
            None,
            backend.all(&normed),
            projection,
            targets,
            output.norm.len(),
        )?;
        for buffer in [x, normed, inverse] {
            self.run.give(buffer);
        }
        Ok(loss)
    }

    /// The loss, and its gradient for the last block.
    fn loss_backward(&mut self, x: B::Buffer, targets: &B::Indices) -> Result<(f32, B::Buffer)> {
        let output = self.output.expect("checked: the stage computes a loss");
        let width = output.norm.len();
        let (normed, inverse) = self.run.norm(&output.norm, &x)?;
        let (mut normed_gradient, mut gradient) = (self.run.take(width)?, self.run.take(width)?);
        let backend = self.run.backend;
        let range = &output.projection.range;
        let loss = backend.cross_entropy(
            Some((
                backend.all_mut(&mut normed_gradient),
                backend.view_mut(self.gradients, range.clone()),
            )),
            backend.all(&normed),
            backend.view(self.run.parameters, range.clone()),
            targets,
            width,
        )?;
        let out = (&mut gradient, Write::Replace);
        self.run.norm_gradient(
            (&output.norm, &inverse),
            self.gradients,
            out,
            &normed_gradient,
            &x,
        )?;
        for buffer in [x, normed, inverse, normed_gradient] {
            self.run.give(buffer);
        }
        Ok((loss, gradient))
    }
}

/// Cosines and sines of the angles of every rotary pair at every position, `[context, head_width / 2]` each: the same
/// bits on every platform.
fn rotary_tables(plan: &StagePlan) -> (Vec<f32>, Vec<f32>) {
    let frequencies = plan.config().rope_frequencies();
    (0..plan.config().context)
        .flat_map(|position| {
            frequencies
                .iter()
                .map(move |frequency| position as f64 * frequency)
        })
        .map(|angle| (libm::cos(angle) as f32, libm::sin(angle) as f32))
        .unzip()
}
