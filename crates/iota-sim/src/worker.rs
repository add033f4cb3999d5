//! What a miner or validator does with its leases: fetch, operate, store. It follows `iota-miner` and `iota-validator`
//! step by step, with a [`Replica`] in place of tensors, and keeps the same books of what the orchestrator has in its log.

use std::collections::{BTreeMap, BTreeSet};

use iota_protocol::work::{
    CellUpload, Checkpoint, Difference, Failure, Lease, LogEntry, ObjectName, ObjectRef, Outcome,
    Seal, Segment, SegmentSource, UploadRecord, Verdict, Work,
};
use iota_protocol::{Digest, Epoch, LeaseId, RunSettings, SampleId, StageIndex};

use crate::plan::Behaviour;
use crate::replica::{self, Replica};
use crate::store::Store;

/// Why work ended without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    /// Nothing has changed; the lease goes back.
    Failed(Failure),
    /// The weights hold an operation that the orchestrator's log will lack: the session has to begin again.
    Tainted,
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

pub(crate) type Ended = Result<Outcome, Undone>;

/// A session's work.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    tasks: BTreeMap<LeaseId, Task>,
    installed: Option<Installed>,
    installations: u64,
    trainings: u64,
}

#[derive(Debug)]
struct Task {
    lease: Lease,
    abandoned: bool,
    /// The installation that it is for, and the training.
    installation: u64,
    training: u64,
    /// What an inspection found.
    found: Result<(), Difference>,
    /// What to say, once everything that it says is stored.
    outcome: Option<Outcome>,
    /// Stored, and waiting for the orchestrator to have answered for every backward pass.
    settles: bool,
}

/// A checkpoint that was installed, and what was done since.
#[derive(Debug)]
struct Installed {
    epoch: Epoch,
    number: u64,
    /// The epoch that its holder trains for, and which training of all this is. From the upload to the next installation that
    /// is the next epoch, if the run overlaps the two.
    trains_for: Epoch,
    training: u64,
    overlaps: bool,
    /// What was said of the installation, if the training went on over it.
    went_on: Option<(Checkpoint, Outcome)>,
    replica: Replica,
    /// What its holder had kept as it began, and keeps since it uploaded.
    began_with: Option<Seal>,
    keeps: Option<Seal>,
    /// The last step is taken and uploaded: no operation comes after it.
    closed: bool,
    /// Backward passes that are in the gradients and that the orchestrator has not answered for.
    open: BTreeSet<LeaseId>,
    /// One of them will never be in the log.
    tainted: bool,
    /// The last forward of each sample, and whether it is in the log.
    forwards: BTreeMap<SampleId, (LeaseId, bool)>,
}

/// What an operation gives to store, and whether it is what it should be.
#[derive(Debug, Default)]
pub(crate) struct Operated {
    pub(crate) outputs: Vec<(ObjectName, Seal)>,
    pub(crate) lied: bool,
}

impl Worker {
    /// A lease has come.
    pub(crate) fn start(&mut self, lease: Lease) {
        let task = Task {
            abandoned: false,
            installation: self.installed.as_ref().map_or(0, |it| it.number),
            training: self.installed.as_ref().map_or(0, |it| it.training),
            found: Ok(()),
            outcome: None,
            settles: false,
            lease,
        };
        self.tasks.insert(task.lease.id, task);
    }

    /// The result is not wanted any more: what has not reached the stage ends there.
    pub(crate) fn abandon(&mut self, lease: LeaseId) {
        if let Some(task) = self.tasks.get_mut(&lease) {
            task.abandoned = true;
        }
    }

    /// The lease that is being worked on.
    pub(crate) fn lease(&self, lease: LeaseId) -> Option<&Lease> {
        self.tasks.get(&lease).map(|task| &task.lease)
    }

    /// Nothing is to be done under a lease any more.
    pub(crate) fn forget(&mut self, lease: LeaseId) {
        self.tasks.remove(&lease);
    }

    /// The inputs of a lease have been read.
    pub(crate) fn fetched(&mut self, lease: LeaseId, store: &Store) -> Result<(), Undone> {
        let Some(task) = self.tasks.get_mut(&lease) else {
            return Err(Failure::Internal.into());
        };
        if let Work::Inspect { object, .. } = &task.lease.work {
            task.found = store.check(object);
            return Ok(());
        }
        for object in inputs(&task.lease.work) {
            store.check(&object).map_err(|difference| {
                Undone::Failed(Failure::BadInput {
                    object: object.name,
                    difference,
                })
            })?;
        }
        Ok(())
    }

    /// The operation itself.
    pub(crate) fn operate(
        &mut self,
        lease: LeaseId,
        settings: &RunSettings,
        behaviour: Behaviour,
    ) -> Result<Operated, Undone> {
        let Some(task) = self.tasks.get_mut(&lease).filter(|task| !task.abandoned) else {
            return Err(Failure::Internal.into());
        };
        let installed = self
            .installed
            .as_mut()
            .filter(|it| it.training == task.training && it.trains_for == task.lease.epoch)
            .filter(|it| !it.closed)
            .ok_or(Undone::Failed(Failure::Internal));
        let mut operated = Operated::default();
        let outcome = match &task.lease.work {
            Work::Forward {
                sample,
                input,
                output,
            } => {
                let installed = installed?;
                installed.forwards.insert(*sample, (lease, false));
                let digest = installed.replica.forward(*sample, digest_of(input));
                operated.lied = behaviour == Behaviour::WrongOutputs;
                let seal = Seal {
                    digest: said(digest, operated.lied),
                    length: settings.activation_bytes,
                };
                operated.outputs.push((*output, seal));
                Outcome::Forward {
                    ordinal: installed.replica.ordinal(),
                    output: seal,
                }
            }
            Work::Backward {
                sample,
                input,
                output_gradient,
                gradient,
                learning_rate,
            } => {
                let installed = installed?;
                installed.open.insert(lease);
                let logged = matches!(installed.forwards.remove(sample), Some((_, true)));
                let done = installed.replica.backward(
                    *sample,
                    digest_of(input),
                    digest_of(output_gradient),
                    *learning_rate,
                    !logged,
                );
                operated.lied = behaviour == Behaviour::WrongOutputs && gradient.is_some();
                let seal = Seal {
                    digest: said(done.gradient, operated.lied),
                    length: settings.gradient_bytes,
                };
                operated.outputs.extend(gradient.map(|name| (name, seal)));
                let at_tail = task.lease.stage == settings.tail();
                Outcome::Backward {
                    ordinal: installed.replica.ordinal(),
                    recomputed: !logged,
                    gradient: gradient.map(|_| seal),
                    loss: at_tail.then_some(done.loss),
                }
            }
            Work::Upload {
                cells,
                learning_rate,
                seals_kept,
            } => {
                let installed = installed?;
                installed.closed = true;
                installed.replica.finish(*learning_rate);
                operated.lied = behaviour == Behaviour::WrongUploads;
                let stage = task.lease.stage;
                let kept = seals_kept.then(|| seal_of_kept(&installed.replica, stage, settings));
                installed.keeps = kept;
                for cell in cells {
                    let digest = installed.replica.cell(&cell.range);
                    let seal = Seal {
                        digest: said(digest, operated.lied),
                        length: settings.upload_bytes(cell.range.end - cell.range.start),
                    };
                    operated.outputs.push((cell.output, seal));
                }
                let cells = operated.outputs.iter().map(|(_, seal)| *seal).collect();
                Outcome::Upload {
                    cells,
                    optimizer_steps: installed.replica.steps(),
                    kept,
                }
            }
            Work::HandOver { began_with, keeps } => {
                let current = self.installed.as_ref();
                let held = current
                    .filter(|it| it.number == task.installation && it.epoch == task.lease.epoch)
                    .ok_or(Undone::Failed(Failure::Internal))?;
                for (object, held) in [(began_with, held.began_with), (keeps, held.keeps)] {
                    if let Some(object) = object {
                        assert_eq!(Some(object.seal), held, "asked for what it does not have");
                        operated.outputs.push((object.name, object.seal));
                    }
                }
                Outcome::HandedOver
            }
            Work::Merge {
                range,
                inputs,
                output,
                delta,
                stores,
                ..
            } => {
                operated.lied = behaviour == Behaviour::WrongMerges;
                let mut digest = replica::merge(range, inputs);
                if operated.lied {
                    // Its own way of being wrong: cheaters here do not know of each other.
                    digest = Digest::of(task.lease.session.peer.as_bytes());
                }
                let merged = Seal {
                    digest,
                    length: settings.cell_bytes(range.end - range.start),
                };
                let delta_bytes = settings.delta_bytes(range.end - range.start, inputs.len());
                let delta = delta
                    .zip(delta_bytes)
                    .map(|(name, length)| (name, Seal { digest, length }));
                if *stores {
                    operated.outputs.push((*output, merged));
                    operated.outputs.extend(delta);
                }
                Outcome::Merge {
                    merged,
                    quarantined: Vec::new(),
                    delta: delta.map(|(_, seal)| seal),
                }
            }
            // What it fetched it finds in the store again.
            Work::Fetch { .. } => Outcome::Fetched,
            Work::Install {
                checkpoint,
                goes_on,
            } => {
                self.installations += 1;
                let mut before = self.installed.take();
                // What is kept counts only where somebody can check it, and so has been sealed. An installation that is done
                // again begins with the same.
                let sealed = before.as_ref().and_then(|it| it.keeps.or(it.began_with));
                let began_with = sealed.filter(|_| *goes_on);
                let trains_on = before
                    .take_if(|it| *goes_on && it.overlaps && it.trains_for == checkpoint.epoch);
                if let Some(mut installed) = trains_on {
                    let said = installed.went_on.take();
                    let outcome = match said.filter(|(of, _)| of == checkpoint) {
                        Some((_, outcome)) => outcome,
                        None => {
                            installed.replica.go_on(checkpoint);
                            Outcome::Install {
                                state: installed.replica.state(),
                                operations: installed.replica.operations(),
                            }
                        }
                    };
                    self.installed = Some(Installed {
                        epoch: checkpoint.epoch,
                        number: self.installations,
                        went_on: Some((checkpoint.clone(), outcome.clone())),
                        began_with,
                        keeps: None,
                        ..installed
                    });
                    outcome
                } else {
                    self.trainings += 1;
                    let kept = began_with.map(|seal| seal.digest);
                    let replica = Replica::install(checkpoint, kept, settings.backwards_per_step);
                    let state = replica.state();
                    self.installed = Some(Installed {
                        epoch: checkpoint.epoch,
                        number: self.installations,
                        trains_for: checkpoint.epoch,
                        training: self.trainings,
                        overlaps: settings.merging.overlaps,
                        went_on: None,
                        replica,
                        began_with,
                        keeps: None,
                        closed: false,
                        open: BTreeSet::new(),
                        tainted: false,
                        forwards: BTreeMap::new(),
                    });
                    Outcome::Install {
                        state,
                        operations: 0,
                    }
                }
            }
            Work::Replay {
                checkpoint,
                kept,
                entries,
                ahead,
                upload,
                ..
            } => Outcome::Audit {
                verdict: replay(
                    checkpoint,
                    digest_of(kept),
                    (entries, *ahead),
                    upload.as_ref(),
                    settings,
                ),
            },
            Work::Inspect { .. } => Outcome::Audit {
                verdict: match task.found {
                    Ok(()) => Verdict::Agrees { operations: 1 },
                    Err(difference) => Verdict::Differs {
                        ordinal: None,
                        difference,
                    },
                },
            },
        };
        task.outcome = Some(outcome);
        Ok(operated)
    }

    /// What an operation gave has been stored, or could not be. None if an upload has to wait for answers.
    pub(crate) fn stored(&mut self, lease: LeaseId, is_stored: bool) -> Option<Ended> {
        let task = self.tasks.get_mut(&lease)?;
        let outcome = task.outcome.clone()?;
        if is_stored {
            if !matches!(task.lease.work, Work::Upload { .. }) {
                return Some(Ok(outcome));
            }
            task.settles = true;
            return self.settle(lease);
        }
        match &task.lease.work {
            // The gradient is in and cannot be reported.
            Work::Backward { .. } => Some(Err(Undone::Tainted)),
            Work::Forward { sample, .. } => {
                let sample = *sample;
                self.answer_forward(lease, sample, false);
                Some(Err(Failure::StoreUnavailable.into()))
            }
            _ => Some(Err(Failure::StoreUnavailable.into())),
        }
    }

    /// The orchestrator has answered for good what was said of a lease. An upload that waited for it may go on.
    pub(crate) fn reported(&mut self, lease: &Lease, logged: bool) -> Option<(LeaseId, Ended)> {
        let task = self.tasks.remove(&lease.id)?;
        match &lease.work {
            Work::Forward { sample, .. } => self.answer_forward(lease.id, *sample, logged),
            Work::Backward { .. } => {
                let installed = self.installed.as_mut();
                if let Some(it) = installed.filter(|it| it.training == task.training) {
                    it.tainted |= it.open.remove(&lease.id) && !logged;
                }
            }
            _ => {}
        }
        let settling = self.tasks.values().find(|task| task.settles)?;
        let upload = settling.lease.id;
        Some((upload, self.settle(upload)?))
    }

    /// The upload holds every backward pass that was done, so the log has to hold them too before anybody may compare. From
    /// then on its holder may train for the next epoch.
    fn settle(&mut self, upload: LeaseId) -> Option<Ended> {
        let task = self.tasks.get(&upload)?;
        let installed = self.installed.as_mut();
        let Some(it) = installed.filter(|it| it.training == task.training && !it.tainted) else {
            return Some(Err(Undone::Tainted));
        };
        if !it.open.is_empty() {
            return None;
        }
        if it.overlaps {
            self.trainings += 1;
            it.training = self.trainings;
            it.trains_for = it.epoch.next();
            it.replica.go_ahead();
            it.forwards.clear();
            it.closed = false;
        }
        let outcome = task.outcome.clone();
        Some(outcome.ok_or(Undone::Failed(Failure::Internal)))
    }

    fn answer_forward(&mut self, lease: LeaseId, sample: SampleId, logged: bool) {
        let Some(it) = &mut self.installed else {
            return;
        };
        if let Some((last, is_logged)) = it.forwards.get_mut(&sample)
            && *last == lease
        {
            if logged {
                *is_logged = true;
            } else {
                it.forwards.remove(&sample);
            }
        }
    }
}

/// What a validator says of a log.
fn replay(
    checkpoint: &Checkpoint,
    kept: Option<Digest>,
    (entries, ahead): (&[LogEntry], u32),
    upload: Option<&UploadRecord>,
    settings: &RunSettings,
) -> Verdict {
    let trains_on = kept.filter(|_| settings.merging.overlaps);
    let mut replica = match trains_on {
        Some(kept) => Replica::went_ahead(kept, settings.backwards_per_step),
        None => Replica::install(checkpoint, kept, settings.backwards_per_step),
    };
    let mut to_install = trains_on.map(|_| ahead as usize);
    let differs = |ordinal, difference| Verdict::Differs {
        ordinal,
        difference,
    };
    for (at, entry) in entries.iter().enumerate() {
        if to_install.take_if(|ahead| *ahead == at).is_some() {
            replica.go_on(checkpoint);
        }
        let difference = match (&entry.work, &entry.outcome) {
            (Work::Forward { sample, input, .. }, Outcome::Forward { output, .. }) => {
                let again = replica.forward(*sample, digest_of(input));
                (again != output.digest).then_some(Difference::Output)
            }
            (
                Work::Backward {
                    sample,
                    input,
                    output_gradient,
                    learning_rate,
                    ..
                },
                Outcome::Backward {
                    recomputed,
                    gradient,
                    loss,
                    ..
                },
            ) => {
                let again = replica.backward(
                    *sample,
                    digest_of(input),
                    digest_of(output_gradient),
                    *learning_rate,
                    *recomputed,
                );
                if gradient.is_some_and(|seal| seal.digest != again.gradient) {
                    Some(Difference::Output)
                } else {
                    loss.is_some_and(|loss| loss.to_bits() != again.loss.to_bits())
                        .then_some(Difference::Loss)
                }
            }
            _ => Some(Difference::Malformed),
        };
        if let Some(difference) = difference {
            return differs(Some(entry.ordinal), difference);
        }
    }
    if let Some(upload) = upload {
        if to_install.is_some() {
            replica.go_on(checkpoint);
        }
        replica.finish(upload.learning_rate);
        let cells: &[CellUpload] = &upload.cells;
        let mut pairs = cells.iter().zip(&upload.seals);
        let same = pairs.all(|(cell, seal)| replica.cell(&cell.range) == seal.digest);
        let same = same
            && upload
                .keeps
                .is_none_or(|seal| seal == seal_of_kept(&replica, checkpoint.stage, settings));
        if !same || replica.steps() != upload.optimizer_steps {
            return differs(None, Difference::Upload);
        }
    }
    Verdict::Agrees {
        operations: u32::try_from(entries.len()).expect("a replay is bounded"),
    }
}

/// What a miner commits to as what it keeps for itself.
fn seal_of_kept(replica: &Replica, stage: StageIndex, settings: &RunSettings) -> Seal {
    let elements = settings.stage_parameters[usize::from(stage.get())];
    let bytes = settings.merging.kept.map(|size| size.bytes(elements));
    Seal {
        digest: replica.kept(),
        length: bytes.unwrap_or_default(),
    }
}

fn digest_of(object: &Option<ObjectRef>) -> Option<Digest> {
    object.map(|object| object.seal.digest)
}

/// A digest, or another if its owner lies.
fn said(digest: Digest, lies: bool) -> Digest {
    if lies {
        Digest::of(digest.as_bytes())
    } else {
        digest
    }
}

/// Every object that work reads, in the order in which it is read. An inspection looks at its object by itself.
pub(crate) fn inputs(work: &Work) -> Vec<ObjectRef> {
    let within = |segments: &[Segment]| -> Vec<ObjectRef> {
        let sources = segments.iter().map(|segment| &segment.source);
        sources
            .filter_map(|source| match source {
                SegmentSource::Merged { object, .. } => Some(*object),
                SegmentSource::Genesis => None,
            })
            .collect()
    };
    let merged = |checkpoint: &Checkpoint| within(&checkpoint.segments);
    match work {
        Work::Fetch { segments } => within(segments),
        Work::Forward { input, .. } => input.iter().copied().collect(),
        Work::Backward {
            input,
            output_gradient,
            ..
        } => input.iter().chain(output_gradient).copied().collect(),
        Work::Merge { inputs, .. } => inputs.iter().map(|input| input.object).collect(),
        Work::Install { checkpoint, .. } => merged(checkpoint),
        Work::Replay {
            checkpoint,
            kept,
            entries,
            ..
        } => {
            let mut objects = merged(checkpoint);
            objects.extend(kept);
            objects.extend(entries.iter().flat_map(|entry| inputs(&entry.work)));
            objects
        }
        Work::Inspect { .. } | Work::Upload { .. } | Work::HandOver { .. } => Vec::new(),
    }
}
