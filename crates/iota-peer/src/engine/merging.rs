//! What an engine holds for the sake of merging: the checkpoint that it started from, and what is its own.

use std::ops::Range;

use bytes::Bytes;
use iota_compute::Distance;
use iota_compute::drift::STATE_ROW;
use iota_protocol::Digest;
use iota_run::{Merge, OptimizerState};
use iota_store::tensor;

use crate::Error;
use crate::device::DeviceStage;
use crate::learned::{self, Base, CellPlanes, floats, write_floats};

/// What an engine begins an epoch with, beside the checkpoint.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// Nothing.
    Anew,
    /// What it has kept since its last upload.
    GoesOn,
    /// What a miner kept, as it handed it over.
    Kept(&'a [u8]),
}

/// How far what somebody learned about a range is from what an engine did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearnedDistance {
    /// Of what became of the parameters since the checkpoint.
    pub change: Distance,
    /// Of both moments, if they are merged.
    pub moments: Option<[Distance; 2]>,
}

/// Beside a stage, in flat planes as long as its parameters; empty where the run has no use for them.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    anchor: Vec<f32>,
    momentum: Vec<f32>,
    /// What the uploads before this epoch left out, and those up to its end.
    residual: Vec<f32>,
    next_residual: Vec<f32>,
    /// Steps that the optimizer's moments had behind them when the epoch began, and steps behind the checkpoint.
    own_steps: u64,
    checkpoint_steps: u64,
    /// Whether there is an anchor even if uploads do not need one.
    keeps_anchor: bool,
    /// What the stage was when it uploaded, while it trains on from there.
    then: Option<Ahead>,
}

/// A stage's parameters and optimizer steps at one time, or how they differ between two.
#[derive(Debug)]
pub(super) struct Ahead {
    parameters: Vec<f32>,
    steps: u64,
}

impl Holdings {
    pub(super) fn with_anchor(self) -> Self {
        Self {
            keeps_anchor: true,
            ..self
        }
    }

    /// The stage trains on from here.
    pub(super) fn go_ahead(&mut self, stage: &DeviceStage) -> Result<(), Error> {
        let [now, ..] = stage.state(0..stage.elements())?;
        self.then = Some(Ahead {
            parameters: now.into_owned(),
            steps: stage.optimizer_steps(),
        });
        Ok(())
    }

    /// Whether the stage trains on from what it uploaded.
    pub(super) const fn is_ahead(&self) -> bool {
        self.then.is_some()
    }

    /// What the stage has learned since it [went ahead](Self::go_ahead), which ends with that; none if nobody asks.
    pub(super) fn learned_ahead(
        &mut self,
        stage: &DeviceStage,
        is_asked: bool,
    ) -> Result<Option<Ahead>, Error> {
        let then = self.then.take();
        if !is_asked {
            return Ok(None);
        }
        let nothing = Error::Checkpoint("there is nothing to go on with");
        let mut learned = then.ok_or(nothing)?;
        let [now, ..] = stage.state(0..stage.elements())?;
        for (value, now) in learned.parameters.iter_mut().zip(&*now) {
            *value = now - *value;
        }
        learned.steps = stage.optimizer_steps() - learned.steps;
        Ok(Some(learned))
    }

    /// Adds that to the checkpoint that has been installed since.
    pub(super) fn put_on_top(
        &mut self,
        stage: &mut DeviceStage,
        learned: Ahead,
    ) -> Result<(), Error> {
        let mut parameters = learned.parameters;
        let [merged, ..] = stage.state(0..stage.elements())?;
        for (value, merged) in parameters.iter_mut().zip(&*merged) {
            *value += merged;
        }
        stage.upload_state(0, [&parameters, &[], &[]])?;
        self.checkpoint_steps += learned.steps;
        Ok(())
    }

    /// The momentum of a stage that is being installed, to write; empty if there is none.
    pub(super) fn begin(&mut self, merge: &Merge, elements: usize) -> &mut [f32] {
        self.momentum.clear();
        if merge.outer.has_momentum() {
            self.momentum.resize(elements, 0.0);
        }
        &mut self.momentum
    }

    /// A checkpoint is in the stage, but for moments that are not merged: those are made what `start` says.
    pub(super) fn installed(
        &mut self,
        merge: &Merge,
        stage: &mut DeviceStage,
        checkpoint_steps: u64,
        start: Start<'_>,
    ) -> Result<(), Error> {
        let elements = stage.elements();
        self.anchor.clear();
        if merge.is_relative() || self.keeps_anchor {
            let [parameters, ..] = stage.state(0..elements)?;
            self.anchor.extend_from_slice(&parameters);
        }
        let has_residual = merge.residual_decay().is_some();
        match start {
            Start::GoesOn => {
                if has_residual && self.next_residual.len() != elements {
                    return Err(Error::Checkpoint("there is nothing to go on with"));
                }
                std::mem::swap(&mut self.residual, &mut self.next_residual);
            }
            Start::Anew | Start::Kept(_) => {
                self.residual.clear();
                self.residual
                    .resize(if has_residual { elements } else { 0 }, 0.0);
            }
        }
        self.next_residual.clone_from(&self.residual);
        let anew = match (merge.optimizer_state, start) {
            (OptimizerState::Merged, _) => {
                stage.set_optimizer_steps(checkpoint_steps);
                false
            }
            (OptimizerState::Local, Start::GoesOn) => false,
            _ => true,
        };
        if anew {
            stage.forget_moments()?;
        }
        if let Start::Kept(bytes) = start {
            self.read_kept(merge, stage, bytes)?;
        }
        self.own_steps = stage.optimizer_steps();
        self.checkpoint_steps = checkpoint_steps;
        Ok(())
    }

    /// Digest of what all who installed the same checkpoint have in common.
    pub(super) fn digest(merge: &Merge, stage: &DeviceStage) -> Result<Digest, Error> {
        Ok(Digest::from_bytes(if merge.shares_moments() {
            stage.digest()?
        } else {
            let [parameters, ..] = stage.state(0..stage.elements())?;
            iota_merge::digest(&parameters)
        }))
    }

    /// Optimizer steps behind the stage's parameters, whoever took them.
    pub(super) fn optimizer_steps(&self, stage: &DeviceStage) -> u64 {
        self.checkpoint_steps + (stage.optimizer_steps() - self.own_steps)
    }

    /// What a range of the checkpoint was; none if the run does not ask.
    pub(super) fn base(&self, range: &Range<usize>) -> Option<Base> {
        let momentum = self.momentum.get(range.clone());
        Some(Base {
            anchor: self.anchor.get(range.clone())?.to_vec(),
            momentum: momentum.map(<[f32]>::to_vec).unwrap_or_default(),
        })
    }

    /// The object that holds what the stage uploads of a range.
    pub(super) fn upload(
        &mut self,
        merge: &Merge,
        stage: &DeviceStage,
        range: Range<usize>,
    ) -> Result<Bytes, Error> {
        let [parameters, first, second] = stage.state(range.clone())?;
        let parameters: &[f32] = &parameters;
        let moments: Vec<&[f32]> = [&*first, &*second]
            .into_iter()
            .filter(|_| merge.shares_moments())
            .collect();
        if !merge.is_relative() {
            let planes = [parameters].into_iter().chain(moments);
            let tensors: Vec<_> = merge
                .cell_spec(range.len())
                .into_iter()
                .zip(planes)
                .collect();
            return Ok(tensor::encode(&tensors));
        }
        let residual: &mut [f32] = if self.residual.is_empty() {
            &mut []
        } else {
            // From what was left out before the epoch, so that a range may be uploaded twice.
            let next = &mut self.next_residual[range.clone()];
            next.copy_from_slice(&self.residual[range.clone()]);
            next
        };
        let anchor = &self.anchor[range];
        learned::encode_trained(merge, anchor, parameters, &moments, residual)
    }

    /// How far one upload of a range is from another; none if `theirs` is none.
    pub(super) fn upload_distance(
        &self,
        merge: &Merge,
        range: Range<usize>,
        ours: &[u8],
        theirs: &[u8],
    ) -> Option<LearnedDistance> {
        let elements = range.len();
        let anchor = &self.anchor[range];
        let read = |object| -> Option<Vec<Vec<f32>>> {
            if merge.is_relative() {
                let learned = learned::decode(merge, merge.upload, elements, object).ok()?;
                return Some([learned.delta].into_iter().chain(learned.moments).collect());
            }
            let shared = if merge.shares_moments() { 3 } else { 1 };
            let spec = &merge.cell_spec(elements)[..shared];
            let mut planes = tensor::decode(object, spec).ok()?;
            for (value, before) in planes[0].iter_mut().zip(anchor) {
                *value -= before;
            }
            Some(planes)
        };
        let (ours, theirs) = (read(ours)?, read(theirs)?);
        let mut distances = ours
            .iter()
            .zip(&theirs)
            .map(|(ours, theirs)| Distance::between(ours, theirs, STATE_ROW));
        Some(LearnedDistance {
            change: distances.next()?,
            moments: distances.next().zip(distances.next()).map(<[_; 2]>::from),
        })
    }

    /// The object with what the engine keeps for itself, once every range has been uploaded; none if it keeps nothing.
    pub(super) fn kept(&self, merge: &Merge, stage: &DeviceStage) -> Result<Option<Bytes>, Error> {
        if !merge.keeps_something() {
            return Ok(None);
        }
        let elements = stage.elements();
        let [parameters, first, second] = stage.state(0..elements)?;
        let spec = merge.kept_spec(elements);
        let written: Result<_, std::convert::Infallible> = tensor::encode_with(&spec, |data| {
            let (steps, planes) = data.split_at_mut(8);
            steps.copy_from_slice(&stage.optimizer_steps().to_le_bytes());
            let moments = [&*first, &*second].into_iter();
            let is_own = merge.optimizer_state == OptimizerState::Local;
            let own = moments
                .filter(|_| is_own)
                .chain(Some(self.next_residual.as_slice()).filter(|plane| !plane.is_empty()))
                .chain(Some(&*parameters).filter(|_| merge.overlaps));
            for (into, plane) in planes.chunks_exact_mut(4 * elements).zip(own) {
                write_floats(into, plane);
            }
            Ok(())
        });
        match written {
            Ok(bytes) => Ok(Some(bytes)),
            Err(never) => match never {},
        }
    }

    pub(super) fn read_kept(
        &mut self,
        merge: &Merge,
        stage: &mut DeviceStage,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let elements = stage.elements();
        let spec = merge.kept_spec(elements);
        let data = tensor::element_bytes(bytes, &spec).map_err(|_| Error::Kept)?;
        let (steps, planes) = data.split_at(8);
        let mut planes = planes.chunks_exact(4 * elements).map(floats);
        if merge.optimizer_state == OptimizerState::Local {
            let steps = steps.try_into().expect("split after eight bytes");
            let mut next = || planes.next().ok_or(Error::Kept);
            let (first, second) = (next()?, next()?);
            stage.upload_state(0, [&[], &first, &second])?;
            stage.set_optimizer_steps(u64::from_le_bytes(steps));
        }
        if merge.residual_decay().is_some() {
            self.residual = planes.next().ok_or(Error::Kept)?;
            self.next_residual.clone_from(&self.residual);
        }
        if merge.overlaps {
            let parameters = planes.next().ok_or(Error::Kept)?;
            stage.upload_state(0, [&parameters, &[], &[]])?;
        }
        Ok(())
    }
}

/// How far the moments in one object of what is kept are from those in another; none if `theirs` is none, or has other
/// steps behind it.
pub(super) fn kept_distance(
    merge: &Merge,
    elements: usize,
    ours: &[u8],
    theirs: &[u8],
) -> Option<[Distance; 2]> {
    let spec = merge.kept_spec(elements);
    let read = |object| Some(tensor::element_bytes(object, &spec).ok()?.split_at(8));
    let ((our_steps, ours), (their_steps, theirs)) = (read(ours)?, read(theirs)?);
    if our_steps != their_steps {
        return None;
    }
    let planes =
        |data: &[u8]| -> Vec<Vec<f32>> { data.chunks_exact(4 * elements).map(floats).collect() };
    let (ours, theirs) = (planes(ours), planes(theirs));
    let mut distances = ours
        .iter()
        .zip(&theirs)
        .map(|(ours, theirs)| Distance::between(ours, theirs, STATE_ROW));
    Some([distances.next()?, distances.next()?])
}

/// Memory that a peer takes for the sake of merging, beside a stage of so many elements: what an engine holds, and what a
/// miner keeps for itself, as it sealed it after this epoch and the one before.
pub(crate) fn merging_bytes(merge: &Merge, elements: u64) -> u64 {
    let anchor = u64::from(merge.is_relative());
    let momentum = u64::from(merge.outer.has_momentum());
    let residuals = 2 * u64::from(merge.residual_decay().is_some());
    // What it was at its upload.
    let then = u64::from(merge.overlaps);
    let sealed_bytes = merge.kept_size().map_or(0, |kept| kept.bytes(elements));
    4 * elements * (anchor + momentum + residuals + then) + 2 * sealed_bytes
}

/// The merged cell that a delta makes of a range of the checkpoint of epoch `round`.
pub(super) fn stepped(
    merge: &Merge,
    base: Base,
    delta: &[u8],
    round: u64,
) -> Result<CellPlanes, Error> {
    let codec = merge.delta.ok_or(Error::Input("the run has no deltas"))?;
    let learned = learned::decode(merge, codec, base.anchor.len(), delta)?;
    learned::step(merge, base, learned, round)
}
