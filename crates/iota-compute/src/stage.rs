//! A stage of a model: forward, backward, step.

mod block;
mod bridge;
mod checks;
mod parts;
mod run;
mod step;
mod transfer;

use std::ops::Range;

use iota_model::{Precision, StageLayout, StagePlan, StageRole, TensorId};

use self::block::{Block, SavedBlock};
use self::checks::{check_finite, check_length};
use self::run::{Run, Weight};
use crate::backend::{AttentionShape, Backend};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::initialise::initialise;
use crate::optimizer::OptimizerSettings;
use crate::recycler::Recycler;
use crate::state::{State, StateMut};

/// How a stage computes on a CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageOptions {
    /// Threads of the stage's own. With 1 it computes on its caller's thread, which is best for many stages in one
    /// process. Results do not depend on it.
    pub threads: usize,
    /// Factors of its matrix products. Part of what a run agrees on: results depend on it.
    pub precision: Precision,
    /// How it steps.
    pub optimizer: OptimizerSettings,
    /// What a backward pass computes again. See [`Recompute`] for when results depend on it.
    pub recompute: Recompute,
}

/// What a backward pass computes again instead of having it kept by its forward pass: time for memory.
///
/// The bits are the same as long as the parameters are: if the stage has taken a step since the forward pass (see
/// [`Saved::optimizer_steps`]), what is computed again is that of the new parameters. So all who have to agree on the bits
/// of such a backward pass have to choose alike.
///
/// Kept per token and block, of a model of width `w`, query, key and value channels `p`, `h` heads and feed-forward width
/// `f`, in f32: `3 w + p + h + 2 f` by `Nothing`, `w` by `Blocks` (behind a boundary as many channels as crossed it, in
/// place of one `w`; before one, `Nothing` keeps another `w`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// Nothing that takes a matrix product, boundaries apart.
    #[default]
    Nothing,
    /// The forward pass of each block but for its last product, from the block's input.
    Blocks,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            precision: Precision::F32,
            optimizer: OptimizerSettings::default(),
            recompute: Recompute::default(),
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
    /// For every stage but the first of a model whose boundaries are [anchored](iota_model::Boundary::Anchored).
    Anchored {
        /// What the stage before gave, `[tokens, boundary_width]`.
        activation: &'a [f32],
        /// Tokens below the vocabulary.
        tokens: &'a [u32],
    },
}

impl<'a> Input<'a> {
    /// What a stage of this plan takes of a sample: `activation` is what the stage before gave, none at the first.
    pub fn of(plan: &StagePlan, tokens: &'a [u32], activation: Option<&'a [f32]>) -> Self {
        match activation {
            None => Self::Tokens(tokens),
            Some(activation) if plan.config().boundary.is_anchored() => {
                Self::Anchored { activation, tokens }
            }
            Some(activation) => Self::Activation(activation),
        }
    }
}

/// What a backward pass needs from its forward pass. It is large (see [`crate::MemoryPlan`]).
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

    /// Memory that it holds on the device of its stage: [`crate::MemoryPlan::saved_bytes`].
    pub fn bytes(&self, stage: &Stage<B>) -> u64 {
        let elements: usize = self
            .blocks
            .iter()
            .map(|block| block.elements(&stage.backend))
            .sum();
        (elements * size_of::<f32>()) as u64
    }
}

/// What a pass gives for another stage, on its way to the host: [`Stage::arrive`] waits for it.
///
/// Until then it holds a buffer, which no later pass touches.
#[derive(Debug)]
pub struct Outgoing<B: Backend = Cpu> {
    download: B::Download,
    /// Tokens of the sample.
    rows: usize,
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
    recompute: Recompute,
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
        let cpu = Cpu::new(options.threads)?.with_precision(options.precision);
        Ok(Self::on(cpu, plan, index, options.optimizer)?.with_recompute(options.recompute))
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

    /// The sum of the gradients since the last step, to write: by whoever reduces gradients in other ways than by passes.
    pub fn gradients_mut(&mut self) -> &mut [f32] {
        &mut self.gradients
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
            optimizer: optimizer.at_stage(index, stages),
            recompute: Recompute::default(),
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

    /// With another choice of what its backward passes compute again.
    #[must_use]
    pub fn with_recompute(self, recompute: Recompute) -> Self {
        Self { recompute, ..self }
    }

    /// Sets the parameters to those that a run with this seed starts from, and forgets gradients and optimizer state.
    /// The same bits on every machine, and for any cut of the model.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn initialise(&mut self, seed: u64) -> Result<()> {
        for tensor in self.layout.tensors() {
            initialise(tensor, seed, |range, values| {
                let range = tensor.offset + range.start..tensor.offset + range.end;
                let into = self.backend.view_mut(&mut self.parameters, range);
                self.backend.upload(into, values)
            })?;
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
        let (output, saved) = self.begin_forward(input)?;
        Ok((self.arrive(output)?, saved))
    }

    /// Begins what [`forward`](Self::forward) does. Where a device works on its own, this returns before it is done, and
    /// other passes can be begun; they are done in this order.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn begin_forward(&mut self, input: Input<'_>) -> Result<(Outgoing<B>, Saved<B>)> {
        self.forward_then(input, |run, output| run.leave(output))
    }

    /// What [`forward`](Self::forward) leaves for a backward pass, without the output.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_again(&mut self, input: Input<'_>) -> Result<Saved<B>> {
        let done = |run: &mut Run<'_, B>, output| {
            run.give(output);
            Ok(())
        };
        Ok(self.forward_then(input, done)?.1)
    }

    fn forward_then<R: Send>(
        &mut self,
        input: Input<'_>,
        leave: impl FnOnce(&mut Run<'_, B>, B::Buffer) -> Result<R> + Send,
    ) -> Result<(R, Saved<B>)> {
        self.must_pass_on("output an activation")?;
        let attention = self.check_input(input)?;
        let optimizer_steps = self.optimizer_steps;
        let backend = self.backend.clone();
        backend.scope(|| {
            let mut parts = self.parts(attention);
            let x = parts.enter(input)?;
            let (output, blocks) = parts.forward(x)?;
            Ok((
                leave(&mut parts.run, output)?,
                Saved {
                    tokens: parts.run.tokens,
                    attention,
                    blocks,
                    optimizer_steps,
                },
            ))
        })
    }

    /// Waits for what a pass of this stage gives. Passes that were begun since then go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn arrive(&mut self, outgoing: Outgoing<B>) -> Result<Vec<f32>> {
        let (values, buffer) = self.backend.finish_download(outgoing.download)?;
        self.recycler
            .give_late(&self.backend, outgoing.rows, buffer);
        Ok(values)
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
            let x = parts.enter(input)?;
            let output = parts.forward_only(x)?;
            let values = backend.download(backend.all(&output))?;
            parts.run.give(output);
            Ok(values)
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
        let gradient = self.begin_backward(saved, output_gradient)?;
        gradient.map(|gradient| self.arrive(gradient)).transpose()
    }

    /// Begins what [`backward`](Self::backward) does, as [`begin_forward`](Self::begin_forward) does of a forward pass.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn begin_backward(
        &mut self,
        saved: Saved<B>,
        output_gradient: &[f32],
    ) -> Result<Option<Outgoing<B>>> {
        self.must_pass_on("take an output gradient")?;
        self.check_saved(&saved)?;
        let expected = saved.attention.rows() * self.plan.boundary_width();
        check_length("the output gradient", expected, output_gradient.len())?;
        check_finite("the output gradient", output_gradient)?;
        let backend = self.backend.clone();
        backend.scope(|| {
            let mut parts = self.parts(saved.attention);
            parts.run.tokens = saved.tokens;
            let gradient = parts.run.upload(output_gradient)?;
            let gradient = parts.backward(saved.blocks, gradient)?;
            parts.exit(gradient)
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
        let (loss, gradient) = self.begin_forward_backward_loss(input, targets)?;
        let gradient = gradient.map(|gradient| self.arrive(gradient)).transpose()?;
        Ok((loss, gradient))
    }

    /// Does the forward pass of [`forward_backward_loss`](Self::forward_backward_loss), and begins the rest.
    ///
    /// # Errors
    /// As [`forward_backward_loss`](Self::forward_backward_loss).
    pub fn begin_forward_backward_loss(
        &mut self,
        input: Input<'_>,
        targets: &[u32],
    ) -> Result<(f32, Option<Outgoing<B>>)> {
        let attention = self.check_loss(input, targets)?;
        let backend = self.backend.clone();
        backend.scope(|| {
            let mut parts = self.parts(attention);
            let targets = backend.upload_indices(targets)?;
            let x = parts.enter(input)?;
            let (x, blocks) = parts.forward(x)?;
            let (loss, gradient) = parts.loss_backward(x, &targets)?;
            let gradient = parts.backward(blocks, gradient)?;
            let input_gradient = parts.exit(gradient)?;
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
            let x = parts.enter(input)?;
            let x = parts.forward_only(x)?;
            let loss = parts.loss(x, &targets)?;
            if loss.is_finite() {
                Ok(loss)
            } else {
                Err(Error::NotFinite { what: "the loss" })
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

    /// What [`Saved`] holds of a sample of so many tokens.
    pub(crate) fn saved_bytes(&self, sample_tokens: usize) -> u64 {
        let heads = self.plan.config().heads;
        let per_row: usize = self
            .blocks
            .iter()
            .map(|block| block.saved_elements(heads, self.recompute))
            .sum();
        (per_row * sample_tokens * size_of::<f32>()) as u64
    }

    /// The rotary tables.
    pub(crate) fn tables_bytes(&self) -> u64 {
        let (cosines, sines) = &self.rotary;
        let elements = self.backend.elements(cosines) + self.backend.elements(sines);
        (elements * size_of::<f32>()) as u64
    }

    /// Frees the buffers that are kept for the next pass: before the memory is wanted for something else.
    pub fn release_scratch(&mut self) {
        self.recycler.clear(&self.backend);
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
