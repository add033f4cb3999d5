//! A stage as the protocol sees it: operations in an order, each with an ordinal, on weights that belong to an epoch.
//!
//! A miner does its work through an [`Engine`]; a validator that replays the miner's log drives another one through
//! the same calls. Whatever decides the bits (which forward a backward belongs to, when the optimizer steps, how a
//! tensor is written) is therefore decided here, once.
//!
//! A result that is not finite is no result: it is refused here, before anybody can be blamed for having uploaded it.

mod begun;
mod merging;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use iota_compute::{Distance, Input, Recompute, Stage, StageOptions};
use iota_model::StagePlan;
use iota_protocol::event::{Direction, Piece};
use iota_protocol::work::{Checkpoint, ObjectName, Segment, SegmentSource};
use iota_protocol::{Digest, Epoch, SampleId, StageIndex};
use iota_run::{Description, Tokens};

pub use self::begun::{BegunBackward, BegunForward};
use self::merging::Holdings;
pub(crate) use self::merging::merging_bytes;
pub use self::merging::{LearnedDistance, Start};
use crate::Error;
use crate::device::{Device, DeviceSaved, DeviceStage};
use crate::learned::{self, Base, CellPlanes};
use crate::optimizer::optimizer_settings;

/// A stage with the weights of an epoch.
#[derive(Debug)]
pub struct Engine {
    description: Arc<Description>,
    index: StageIndex,
    stage: DeviceStage,
    epoch: Option<Epoch>,
    ordinal: u32,
    /// Backward passes since the last optimizer step.
    pending: u32,
    /// What forwards have left for their backwards.
    kept: BTreeMap<SampleId, Kept>,
    /// How many of them there may be.
    kept_max: usize,
    holdings: Holdings,
    /// Optimizer steps behind the installed checkpoint.
    installed_steps: u64,
    /// The checkpoint that it went on with last, if it trained on meanwhile.
    went_on: Option<(Checkpoint, Installed)>,
}

/// What came of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Installed {
    /// Digest of what all who installed the same checkpoint have in common: parameters, and moments if they are merged.
    pub state: Digest,
    /// Operations that came before it in the epoch: none but those of who trained on from its upload.
    pub operations: u32,
}

#[derive(Debug)]
struct Kept {
    /// Ordinal of the forward.
    ordinal: u32,
    /// Digest of the activation that the forward read; none at the head, where the sample says it all.
    input: Option<Digest>,
    saved: DeviceSaved,
}

/// Forwards kept for their backwards, at most; the oldest goes first, and its backward redoes it. Without a bound the
/// forwards whose backward went to another miner would add up until the next install. 64 is the largest number of
/// leases that a miner may hold: more samples than that are seldom on their way between a stage and the loss.
pub const KEPT_MAX: usize = 64;

/// What an operation reads of a sample.
#[derive(Debug, Clone)]
pub struct OperationInput {
    /// The sample's tokens; needed by head and tail.
    pub tokens: Option<Arc<Tokens>>,
    /// The activation from the stage before with its digest; needed by all but the head.
    pub activation: Option<(Digest, Arc<[f32]>)>,
}

/// What a backward pass came to.
#[derive(Debug, Clone)]
pub struct BackwardResult {
    /// Place in the order of operations.
    pub ordinal: u32,
    /// Whether the forward was redone.
    pub recomputed: bool,
    /// The encoded gradient for the stage before; none at the head.
    pub gradient: Option<Bytes>,
    /// Mean loss over the sample's tokens, in nats; at the tail only.
    pub loss: Option<f32>,
}

impl Engine {
    /// Stage `index` of the run, without weights, on the CPU. `threads`: how many its operations may use; the bits do
    /// not depend on it.
    ///
    /// # Errors
    /// If the run has no such stage.
    pub fn new(
        description: Arc<Description>,
        index: StageIndex,
        threads: usize,
    ) -> Result<Self, Error> {
        Self::on(&Device::Cpu, description, index, threads)
    }

    /// The same on any device. The bits are those of the device.
    ///
    /// # Errors
    /// If the run has no such stage, or the device no room for it.
    pub fn on(
        device: &Device,
        description: Arc<Description>,
        index: StageIndex,
        threads: usize,
    ) -> Result<Self, Error> {
        let plan = description.plan()?;
        let options = stage_options(&description, threads);
        let stage = DeviceStage::new(device, &plan, usize::from(index.get()), options)?;
        Ok(Self {
            description,
            index,
            stage,
            epoch: None,
            ordinal: 0,
            pending: 0,
            kept: BTreeMap::new(),
            kept_max: KEPT_MAX,
            holdings: Holdings::default(),
            installed_steps: 0,
            went_on: None,
        })
    }

    /// The weights that stage `index` of the run has before anybody has trained it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn initial(description: &Description, index: StageIndex) -> Result<Vec<f32>, Error> {
        let options = stage_options(description, 1);
        let plan = description.plan()?;
        let mut stage = Stage::new(&plan, usize::from(index.get()), options)?;
        stage.initialise(description.seed)?;
        Ok(stage.state().parameters.to_vec())
    }

    /// Keeps fewer forwards than [`KEPT_MAX`]: as many as there is memory for. With 0 every backward redoes its forward.
    #[must_use]
    pub fn with_kept_max(self, kept_max: usize) -> Self {
        Self {
            kept_max: kept_max.min(KEPT_MAX),
            ..self
        }
    }

    /// Remembers what it installs, so that it can say how far what somebody else has learned since is from what it has
    /// learned itself: [`upload_distance`](Self::upload_distance).
    #[must_use]
    pub fn with_anchor(self) -> Self {
        Self {
            holdings: self.holdings.with_anchor(),
            ..self
        }
    }

    /// The epoch whose weights it holds.
    pub const fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The stage's position.
    pub const fn index(&self) -> StageIndex {
        self.index
    }

    /// Whether it reads tokens.
    pub const fn is_head(&self) -> bool {
        self.index.get() == 0
    }

    /// Whether it computes the loss.
    pub fn is_tail(&self) -> bool {
        usize::from(self.index.get()) + 1 == self.description.stages()
    }

    /// Whether the run has its stages train on while they merge.
    pub fn trains_while_merging(&self) -> bool {
        self.description.merge.overlaps
    }

    /// Trains on from what it has uploaded while that is merged: counts operations from 0, and puts what it learns from here
    /// on on top of the checkpoint that it installs next with [`Start::GoesOn`]. As long as nothing was learned since,
    /// saying so again changes nothing.
    ///
    /// # Errors
    /// If the device fails.
    pub fn go_ahead(&mut self) -> Result<(), Error> {
        self.forget_forwards();
        self.ordinal = 0;
        self.holdings.go_ahead(&self.stage)
    }

    /// Whether it has done anything since it [went ahead](Self::go_ahead): what it uploaded is gone then.
    pub const fn has_trained_ahead(&self) -> bool {
        self.holdings.is_ahead() && self.ordinal > 0
    }

    /// Does the same from what a miner kept when it uploaded.
    ///
    /// # Errors
    /// [`Error::Kept`] if that is nothing of the kind; the weights are those of no epoch until it installs.
    pub fn go_ahead_from(&mut self, kept: &[u8]) -> Result<(), Error> {
        self.epoch = None;
        self.pending = 0;
        self.stage.zero_gradients()?;
        let merge = self.description.merge;
        self.holdings.read_kept(&merge, &mut self.stage, kept)?;
        self.go_ahead()
    }

    /// Takes over a checkpoint, for which `cells` holds every merged cell that it names. Starts counting operations from 0,
    /// unless it [went ahead](Self::go_ahead) and goes on: what it has learned since goes on top then, what forwards have
    /// left stays, and saying so again changes nothing.
    ///
    /// # Errors
    /// If a segment does not fit the stage; the weights are then those of no epoch.
    pub fn install(
        &mut self,
        checkpoint: &Checkpoint,
        cells: &BTreeMap<ObjectName, CellPlanes>,
        start: Start<'_>,
    ) -> Result<Installed, Error> {
        let merge = self.description.merge;
        let trains_on = merge.overlaps && matches!(start, Start::GoesOn);
        let went_on = self.went_on.take();
        if let Some((before, installed)) = went_on
            && trains_on
            && before == *checkpoint
            && !self.holdings.is_ahead()
        {
            self.went_on = Some((before, installed));
            return Ok(installed);
        }
        self.epoch = None;
        let ahead = self.holdings.learned_ahead(&self.stage, trains_on)?;
        if ahead.is_none() {
            self.forget_forwards();
            self.ordinal = 0;
            self.pending = 0;
            self.stage.zero_gradients()?;
        }
        let elements = self.elements() as u64;
        let mut next = 0;
        // Initial weights are the same for every range of genesis, so they are made once, below what is merged.
        let has_initial = |segment: &Segment| segment.source == SegmentSource::Genesis;
        if checkpoint.segments.iter().any(has_initial) {
            self.initialise(matches!(start, Start::GoesOn))?;
        }
        let momentum = self.holdings.begin(&merge, elements as usize);
        for segment in &checkpoint.segments {
            if segment.range.start != next
                || segment.range.end > elements
                || segment.range.is_empty()
            {
                return Err(Error::Checkpoint(
                    "its segments do not cover the stage in order",
                ));
            }
            next = segment.range.end;
            let SegmentSource::Merged { object, offset, .. } = &segment.source else {
                continue;
            };
            let planes = cells
                .get(&object.name)
                .ok_or(Error::Checkpoint("a cell of it was not given"))?;
            let target = segment.range.start as usize..segment.range.end as usize;
            let source = *offset as usize..*offset as usize + target.len();
            let mut state: [&[f32]; 3] = [&[]; 3];
            let own: &mut [f32] = if merge.outer.has_momentum() {
                &mut momentum[target.clone()]
            } else {
                &mut []
            };
            // As `Merge::cell_spec` has them: parameters, moments if they are merged, momentum if there is one.
            let shared = if merge.shares_moments() { 3 } else { 1 };
            let mut parts = Vec::with_capacity(planes.len());
            for values in planes {
                let part = values
                    .get(source.clone())
                    .ok_or(Error::Checkpoint("a segment exceeds its cell"))?;
                parts.push(part);
            }
            for (plane, part) in state.iter_mut().zip(parts.iter().take(shared)) {
                *plane = part;
            }
            if let Some(part) = parts.get(shared).filter(|_| !own.is_empty()) {
                own.copy_from_slice(part);
            }
            self.stage.upload_state(target.start, state)?;
        }
        if next != elements {
            return Err(Error::Checkpoint("its segments do not cover the stage"));
        }
        let steps = checkpoint.optimizer_steps;
        self.holdings
            .installed(&merge, &mut self.stage, steps, start)?;
        self.installed_steps = steps;
        let installed = Installed {
            state: Holdings::digest(&merge, &self.stage)?,
            operations: self.ordinal,
        };
        if let Some(ahead) = ahead {
            self.holdings.put_on_top(&mut self.stage, ahead)?;
            self.went_on = Some((checkpoint.clone(), installed));
        }
        self.epoch = Some(checkpoint.epoch);
        Ok(installed)
    }

    fn forget_forwards(&mut self) {
        for (_, kept) in std::mem::take(&mut self.kept) {
            self.stage.discard(kept.saved);
        }
    }

    /// The stage's initial weights. `keeps_moments`: the moments stay what they are, unless they are merged.
    fn initialise(&mut self, keeps_moments: bool) -> Result<(), Error> {
        let kept = if keeps_moments && !self.description.merge.shares_moments() {
            let [_, first, second] = self.stage.state(0..self.stage.elements())?;
            let moments = [first.into_owned(), second.into_owned()];
            Some((moments, self.stage.optimizer_steps()))
        } else {
            None
        };
        self.stage.initialise(self.description.seed)?;
        if let Some(([first, second], steps)) = kept {
            self.stage.upload_state(0, [&[], &first, &second])?;
            self.stage.set_optimizer_steps(steps);
        }
        Ok(())
    }

    /// What a range of the installed checkpoint was, if the run merges what was learned since.
    ///
    /// # Errors
    /// If the range exceeds the stage.
    pub fn base(&self, range: &Range<u64>) -> Result<Option<Base>, Error> {
        let range = self.within(range)?;
        Ok(self.holdings.base(&range))
    }

    /// The merged cell that a delta makes of a range of the installed checkpoint, and its object's digest.
    ///
    /// # Errors
    /// If nothing is installed, the range exceeds the stage, or the delta is none.
    pub fn stepped(&self, range: &Range<u64>, delta: &[u8]) -> Result<(CellPlanes, Digest), Error> {
        let merge = &self.description.merge;
        let epoch = self.epoch.ok_or(Error::Input("nothing is installed"))?;
        let base = self
            .base(range)?
            .ok_or(Error::Input("the run has no deltas"))?;
        let planes = merging::stepped(merge, base, delta, epoch.get())?;
        let digest = Digest::of(&learned::encode_cell(merge, &planes));
        Ok((planes, digest))
    }

    /// Carries a sample through the stage and keeps what its backward needs. Returns the operation's ordinal and the
    /// encoded activation.
    ///
    /// At most [`KEPT_MAX`] forwards are kept, or as many as [`with_kept_max`](Self::with_kept_max) allows.
    ///
    /// # Errors
    /// If the input does not fit the stage: the operation has then not happened, and takes no ordinal. If the output is not
    /// finite: nothing is left of it, nor of an earlier forward of the sample, and its ordinal is nobody's.
    pub fn forward(
        &mut self,
        sample: SampleId,
        input: &OperationInput,
    ) -> Result<(u32, Bytes), Error> {
        let begun = self.begin_forward(sample, input)?;
        self.finish_forward(begun)
    }

    /// Begins what [`forward`](Self::forward) does. Other operations may be begun before it is
    /// [finished](Self::finish_forward): what they come to is the same.
    ///
    /// # Errors
    /// If the input does not fit the stage, or its device fails.
    pub fn begin_forward(
        &mut self,
        sample: SampleId,
        input: &OperationInput,
    ) -> Result<BegunForward, Error> {
        let plan = self.stage.plan().clone();
        let (output, saved) = self
            .stage
            .begin_forward(stage_input(&plan, self.index, input)?)?;
        let ordinal = self.next_ordinal();
        let input = input.activation.as_ref().map(|(digest, _)| *digest);
        self.discard(sample);
        self.kept.insert(
            sample,
            Kept {
                ordinal,
                input,
                saved,
            },
        );
        if self.kept.len() > self.kept_max {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.ordinal);
            let oldest = *oldest.expect("there are more than none").0;
            self.discard(oldest);
        }
        Ok(BegunForward {
            sample,
            ordinal,
            output,
        })
    }

    /// Carries a sample's gradient back, adds to the stage's gradients, and steps the optimizer if it is time. At the
    /// tail `output_gradient` is none and the loss is computed first. `recompute` forces the forward to be redone.
    ///
    /// # Errors
    /// If an input does not fit the stage; weights and gradients are then as before. If the loss, the gradient or the
    /// optimizer's step is not finite ([`Error::is_not_finite`]), the pass is in the gradients or has taken others with
    /// it: the stage has to be installed anew.
    pub fn backward(
        &mut self,
        sample: SampleId,
        input: &OperationInput,
        output_gradient: Option<&[f32]>,
        learning_rate: f32,
        recompute: bool,
    ) -> Result<BackwardResult, Error> {
        let begun =
            self.begin_backward(sample, input, output_gradient, learning_rate, recompute)?;
        self.finish_backward(begun)
    }

    /// Begins what [`backward`](Self::backward) does, with the optimizer's step. Other operations may be begun before it is
    /// [finished](Self::finish_backward): what they come to is the same.
    ///
    /// # Errors
    /// As [`backward`](Self::backward), but for a gradient that is not finite.
    pub fn begin_backward(
        &mut self,
        sample: SampleId,
        input: &OperationInput,
        output_gradient: Option<&[f32]>,
        learning_rate: f32,
        recompute: bool,
    ) -> Result<BegunBackward, Error> {
        let plan = self.stage.plan().clone();
        let digest = input.activation.as_ref().map(|(digest, _)| *digest);
        let kept = match self.kept.remove(&sample) {
            Some(kept) if recompute || kept.input != digest => {
                self.stage.discard(kept.saved);
                None
            }
            kept => kept,
        };
        let recomputed = kept.is_none();
        let (loss, gradient) = match output_gradient {
            None if self.is_tail() => {
                let tokens = input
                    .tokens
                    .as_ref()
                    .ok_or(Error::Input("the tail needs the sample's tokens"))?;
                let (loss, gradient) = self.stage.begin_forward_backward_loss(
                    stage_input(&plan, self.index, input)?,
                    &tokens.targets,
                )?;
                (Some(loss), gradient)
            }
            Some(output_gradient) if !self.is_tail() => {
                let saved = match kept {
                    Some(kept) => kept.saved,
                    None => self
                        .stage
                        .forward_again(stage_input(&plan, self.index, input)?)?,
                };
                (None, self.stage.begin_backward(saved, output_gradient)?)
            }
            _ => {
                return Err(Error::Input(
                    "the tail starts from the loss, every other stage from a gradient",
                ));
            }
        };
        self.pending += 1;
        if self.pending >= self.description.backwards_per_step {
            self.step(learning_rate)?;
        }
        Ok(BegunBackward {
            sample,
            ordinal: self.next_ordinal(),
            recomputed,
            loss,
            gradient,
        })
    }

    /// Takes the optimizer step that is pending, if one is: the end of an epoch's training.
    ///
    /// # Errors
    /// If the gradients are not finite: nothing has been stepped and they are gone, so the stage has to be installed anew.
    pub fn finish(&mut self, learning_rate: f32) -> Result<(), Error> {
        if self.pending > 0 {
            self.step(learning_rate)
        } else {
            Ok(())
        }
    }

    /// Optimizer steps that lie behind its weights.
    pub fn optimizer_steps(&self) -> u64 {
        self.holdings.optimizer_steps(&self.stage)
    }

    /// Of these, the ones since the checkpoint that it has installed.
    pub fn steps_since_installed(&self) -> u64 {
        self.optimizer_steps() - self.installed_steps
    }

    /// Elements of the stage's flat parameters.
    pub fn elements(&self) -> usize {
        self.stage.elements()
    }

    /// The object that the stage uploads of a range: the same one however often it is asked for.
    ///
    /// # Errors
    /// If the range exceeds the stage, or what was learned is not finite.
    pub fn cell(&mut self, range: &Range<u64>) -> Result<Bytes, Error> {
        let range = self.within(range)?;
        self.holdings
            .upload(&self.description.merge, &self.stage, range)
    }

    /// The object with what the engine keeps for itself and begins the next epoch with, once every
    /// [`cell`](Self::cell) has been made; none if it keeps nothing.
    ///
    /// # Errors
    /// If the device fails.
    pub fn kept(&self) -> Result<Option<Bytes>, Error> {
        self.holdings.kept(&self.description.merge, &self.stage)
    }

    /// How far somebody's object of a range is from [`cell`](Self::cell): what was learned, and both moments if they are
    /// merged. None if the object is nothing of the kind.
    ///
    /// # Errors
    /// As [`cell`](Self::cell).
    ///
    /// # Panics
    /// If the engine was not made [with an anchor](Self::with_anchor).
    pub fn upload_distance(
        &mut self,
        range: &Range<u64>,
        object: &[u8],
    ) -> Result<Option<LearnedDistance>, Error> {
        let ours = self.cell(range)?;
        let range = self.within(range)?;
        let merge = &self.description.merge;
        Ok(self.holdings.upload_distance(merge, range, &ours, object))
    }

    /// How far the moments that somebody keeps for itself are from [`kept`](Self::kept). None if the object is nothing of
    /// the kind, or of another number of steps.
    ///
    /// # Errors
    /// As [`kept`](Self::kept).
    pub fn kept_distance(&self, object: &[u8]) -> Result<Option<[Distance; 2]>, Error> {
        let Some(ours) = self.kept()? else {
            return Ok(None);
        };
        let merge = &self.description.merge;
        Ok(merging::kept_distance(
            merge,
            self.elements(),
            &ours,
            object,
        ))
    }

    fn within(&self, range: &Range<u64>) -> Result<Range<usize>, Error> {
        let range = range.start as usize..range.end as usize;
        if range.is_empty() || range.end > self.elements() {
            return Err(Error::Checkpoint("a cell exceeds the stage"));
        }
        Ok(range)
    }

    /// Forgets what the forward of a sample has left: its result was not accepted, so it never happened.
    pub fn discard(&mut self, sample: SampleId) {
        if let Some(kept) = self.kept.remove(&sample) {
            self.stage.discard(kept.saved);
        }
    }

    /// What the stage sends of a sample. Values that are too large for the run's codec are as good as infinite.
    fn encode(
        &self,
        sample: SampleId,
        direction: Direction,
        values: &[f32],
    ) -> Result<Bytes, Error> {
        let stage = self.index;
        let piece = Piece { stage, direction };
        let encoded = self.description.encode_boundary(sample, piece, values);
        encoded.map_err(|_| {
            let what = match direction {
                Direction::Forward => "the output activation",
                Direction::Backward => "the input gradient",
            };
            iota_compute::Error::NotFinite { what }.into()
        })
    }

    fn step(&mut self, learning_rate: f32) -> Result<(), Error> {
        // A step that fails zeroes the gradients as well, so nothing is pending after it either.
        let pending = std::mem::take(&mut self.pending);
        self.stage.step(learning_rate, pending)?;
        Ok(())
    }

    fn next_ordinal(&mut self) -> u32 {
        let ordinal = self.ordinal;
        self.ordinal += 1;
        ordinal
    }
}

/// How a stage of the run computes on so many threads.
pub(crate) fn stage_options(description: &Description, threads: usize) -> StageOptions {
    StageOptions {
        threads,
        precision: description.precision,
        optimizer: optimizer_settings(&description.optimizer),
        recompute: if description.recompute {
            Recompute::Blocks
        } else {
            Recompute::Nothing
        },
    }
}

fn stage_input<'a>(
    plan: &StagePlan,
    index: StageIndex,
    input: &'a OperationInput,
) -> Result<Input<'a>, Error> {
    let index = usize::from(index.get());
    let tokens = input.tokens.as_ref().map(|tokens| tokens.inputs.as_slice());
    let activation = input
        .activation
        .as_ref()
        .map(|(_, activation)| &activation[..]);
    if plan.takes_tokens(index) && tokens.is_none() {
        return Err(Error::Input("the stage needs the sample's tokens"));
    }
    if index > 0 && activation.is_none() {
        return Err(Error::Input("the stage needs an activation"));
    }
    // The head has no use for an activation, nor a body for tokens that it does not embed.
    let activation = activation.filter(|_| index > 0);
    Ok(Input::of(plan, tokens.unwrap_or_default(), activation))
}

#[cfg(test)]
pub(crate) mod tests;
