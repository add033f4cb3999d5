//! What a miner does with each kind of lease.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iota_peer::{
    CellPlanes, Device, Engine, Error, Gate, Installed as Done, OperationInput, PeerMemory,
    Transfer, Undone, Worker, fetch_cells_with, merge,
};
use iota_protocol::work::{
    Checkpoint, Failure, Lease, ObjectName, ObjectRef, Outcome, Seal, Segment, SegmentSource, Work,
};
use iota_protocol::{Epoch, SampleId, Session, StageIndex};
use iota_run::Description;
use iota_store::GrantClient;
use iota_wire::{Joined, LeasedWork};
use tokio::sync::watch;
use tracing::{debug, error, info};

use crate::behaviour::Behaviour;
use crate::ledger::{Ledger, Tainted};
use crate::sealed::Sealed;
use crate::stage_thread::{BackwardJob, StageThread, UploadJob, Uploaded, Weights};

/// A miner's hands: transfers, and a thread that owns the stage.
#[derive(Debug)]
pub(crate) struct MinerWorker {
    description: Arc<Description>,
    transfer: Transfer,
    stage: StageThread,
    gate: Gate,
    device: Device,
    threads: usize,
    memory_limit_bytes: Option<u64>,
    behaviour: Behaviour,
    place: Mutex<Option<Place>>,
    /// Merged cells that will be in the next checkpoint. Locked while they are fetched: an installation waits for what is
    /// on its way.
    fetched: tokio::sync::Mutex<BTreeMap<ObjectName, CellPlanes>>,
}

/// Where the miner stands: its session and stage, and what it has installed.
#[derive(Debug, Clone)]
struct Place {
    session: Session,
    stage: StageIndex,
    installed: Option<Installed>,
    sealed: Sealed,
}

/// A checkpoint, and what is trained.
#[derive(Debug, Clone)]
struct Installed {
    epoch: Epoch,
    weights: Weights,
    training: Training,
}

/// The weights that passes for an epoch work on, and what of these passes is in the log. From an upload to the next
/// installation that is the epoch after the checkpoint's, in a run that trains while it merges.
#[derive(Debug, Clone)]
struct Training {
    epoch: Epoch,
    weights: Weights,
    ledger: Arc<Ledger>,
}

impl MinerWorker {
    pub(crate) fn new(
        description: Arc<Description>,
        store: GrantClient,
        stage: StageThread,
        gate: Gate,
        (device, threads): (Device, usize),
        memory_limit_bytes: Option<u64>,
        behaviour: Behaviour,
    ) -> Result<Self, Error> {
        let transfer = Transfer::new(Arc::clone(&description), store)?;
        Ok(Self {
            description,
            transfer,
            stage,
            gate,
            device,
            threads,
            memory_limit_bytes,
            behaviour,
            place: Mutex::default(),
            fetched: tokio::sync::Mutex::default(),
        })
    }

    /// What the stage will take; with as many kept forwards as there is room for.
    fn planned_memory(&self, stage: StageIndex) -> Result<PeerMemory, Error> {
        let planned = PeerMemory::planned(
            &self.device,
            &self.description,
            stage,
            self.threads,
            self.memory_limit_bytes,
        )?;
        info!(
            %stage,
            total_bytes = planned.total_bytes(),
            limit_bytes = self.memory_limit_bytes,
            parameters_bytes = planned.stage.parameters_bytes,
            gradients_bytes = planned.stage.gradients_bytes,
            optimizer_bytes = planned.stage.optimizer_bytes,
            pass_bytes = planned.stage.scratch_bytes + planned.stage.workspace_bytes,
            kept_forward_bytes = planned.stage.saved_bytes,
            kept_max = planned.kept_max(),
            transfer_bytes = planned.transfer_bytes,
            "memory planned"
        );
        Ok(planned)
    }

    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        // What is in it is only ever replaced as a whole.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn installed(&self, session: Session) -> Option<Installed> {
        let place = self.place();
        let place = place.as_ref().filter(|it| it.session == session)?;
        place.installed.clone()
    }

    /// The checkpoint that the lease's work is about; none if that is not installed or not any more.
    fn installed_for(&self, lease: &Lease) -> Option<Installed> {
        let installed = self.installed(lease.session);
        installed.filter(|it| it.epoch == lease.epoch)
    }

    /// What the lease's pass works on; none if that is not trained or not any more.
    fn training_for(&self, lease: &Lease) -> Option<Training> {
        let training = self.installed(lease.session)?.training;
        Some(training).filter(|it| it.epoch == lease.epoch)
    }

    async fn operation_input(
        &self,
        sample: SampleId,
        stage: StageIndex,
        activation: Option<&ObjectRef>,
        leased: &LeasedWork,
    ) -> Result<OperationInput, Failure> {
        let needs_tokens = self.description.needs_tokens(stage);
        let tokens = async {
            if needs_tokens {
                self.transfer.tokens(sample, leased).await.map(Some)
            } else {
                Ok(None)
            }
        };
        let activation = async {
            let Some(object) = activation else {
                return Ok(None);
            };
            Ok(Some((
                object.seal.digest,
                self.transfer.activation(object, leased).await?,
            )))
        };
        let (tokens, activation) = futures::try_join!(tokens, activation)?;
        Ok(OperationInput { tokens, activation })
    }

    async fn forward(
        &self,
        Training {
            weights, ledger, ..
        }: Training,
        leased: &LeasedWork,
        abandoned: &watch::Receiver<bool>,
    ) -> Result<Outcome, Undone> {
        let Lease {
            id, stage, work, ..
        } = &leased.lease;
        let Work::Forward {
            sample,
            input,
            output,
        } = work
        else {
            unreachable!("called for a forward")
        };
        let input = self
            .operation_input(*sample, *stage, input.as_ref(), leased)
            .await?;
        still_wanted(abandoned)?;
        ledger.begin_forward(*id, *sample);
        let done = self.stage.forward(weights, *sample, input).await;
        let (ordinal, bytes) = done.map_err(|error| {
            ledger.drop_forward(*id, *sample);
            failure(&error)
        })?;
        let bytes = self.behaviour.tamper(bytes);
        match self.transfer.upload(*output, bytes, leased).await {
            Ok(output) => Ok(Outcome::Forward { ordinal, output }),
            Err(undone) => {
                // Nobody will ever have seen this forward.
                ledger.drop_forward(*id, *sample);
                self.stage
                    .discard(weights, *sample)
                    .await
                    .map_err(|error| failure(&error))?;
                Err(undone.into())
            }
        }
    }

    async fn backward(
        &self,
        Training {
            weights, ledger, ..
        }: Training,
        leased: &LeasedWork,
        abandoned: &watch::Receiver<bool>,
    ) -> Result<Outcome, Undone> {
        let Lease {
            id, stage, work, ..
        } = &leased.lease;
        let Work::Backward {
            sample,
            input,
            output_gradient,
            gradient,
            learning_rate,
        } = work
        else {
            unreachable!("called for a backward")
        };
        let output_gradient_values = async {
            let Some(object) = output_gradient else {
                return Ok(None);
            };
            self.transfer.activation(object, leased).await.map(Some)
        };
        let input = self.operation_input(*sample, *stage, input.as_ref(), leased);
        let (output_gradient, input) = futures::try_join!(output_gradient_values, input)?;
        still_wanted(abandoned)?;
        let job = BackwardJob {
            output_gradient,
            learning_rate: *learning_rate,
            recompute: ledger.begin_backward(*id, *sample),
        };
        let done = self.stage.backward(weights, *sample, input, job).await;
        let tainted = || {
            ledger.answer_backward(*id, false);
            Undone::Tainted
        };
        let result = match done {
            Ok(result) => result,
            // Gradients or weights have blown up, or the device gave up in the middle; the pass, or a part of it, is in them.
            Err(error) if error.spoils_gradients() => {
                failure(&error);
                return Err(tainted());
            }
            Err(error) => {
                ledger.drop_backward(*id);
                return Err(failure(&error));
            }
        };
        // From here on the gradient is in: what cannot be reported has to be undone by joining again.
        let sealed = match (gradient, result.gradient) {
            (None, None) => None,
            (Some(name), Some(bytes)) => {
                let bytes = self.behaviour.tamper(bytes);
                let sealed = self.transfer.upload(*name, bytes, leased).await;
                Some(sealed.map_err(|_| tainted())?)
            }
            _ => return Err(tainted()),
        };
        Ok(Outcome::Backward {
            ordinal: result.ordinal,
            recomputed: result.recomputed,
            gradient: sealed,
            loss: result.loss,
        })
    }

    async fn upload(
        &self,
        Installed {
            epoch,
            weights,
            training,
        }: Installed,
        job: UploadJob,
        leased: &LeasedWork,
    ) -> Result<Outcome, Undone> {
        let (cells, seals_kept) = (job.cells.clone(), job.keeps);
        let done = self.stage.upload(weights, job);
        let Uploaded {
            cells: encoded,
            kept,
            optimizer_steps,
            ahead,
        } = done.await.map_err(|error| match failure(&error) {
            // The last step has failed and taken the gradients with it.
            Undone::Failed(Failure::NotFinite) => Undone::Tainted,
            undone => undone,
        })?;
        let settling = training.ledger.settling();
        drop(training);
        let uploads = cells
            .iter()
            .zip(encoded)
            .map(|(cell, bytes)| (cell, self.behaviour.tamper_upload(bytes)))
            .map(|(cell, bytes)| self.transfer.upload(cell.output, bytes, leased));
        let seals: Vec<Seal> = futures::future::try_join_all(uploads).await?;
        if kept.is_some() != seals_kept {
            return Err(Failure::Internal.into());
        }
        let sealed = kept.as_ref().map(|kept| kept.seal);
        let session = leased.lease.session;
        if let Some(place) = self.place().as_mut().filter(|it| it.session == session)
            && let Some(kept) = kept
        {
            place.sealed.end_epoch(kept);
        }
        // The upload holds every backward pass that the stage has done, so the log has to hold them too before anybody
        // may compare the two.
        settling.wait().await.map_err(|Tainted| Undone::Tainted)?;
        if let Some(weights) = ahead {
            self.train_from_now_on(
                session,
                Training {
                    epoch: epoch.next(),
                    weights,
                    ledger: Arc::default(),
                },
            );
        }
        Ok(Outcome::Upload {
            cells: seals,
            optimizer_steps,
            kept: sealed,
        })
    }

    /// Everything that is in the upload is in the log: passes from here on are of the next epoch.
    fn train_from_now_on(&self, session: Session, training: Training) {
        let mut place = self.place();
        let place = place.as_mut().filter(|it| it.session == session);
        let installed = place.and_then(|it| it.installed.as_mut());
        if let Some(installed) = installed.filter(|it| it.epoch.next() == training.epoch) {
            installed.training = training;
        }
    }

    /// Stores what the stage once kept for itself.
    async fn hand_over(&self, object: &ObjectRef, leased: &LeasedWork) -> Result<(), Failure> {
        let held = {
            let place = self.place();
            let session = leased.lease.session;
            let place = place.as_ref().filter(|it| it.session == session);
            place.and_then(|it| it.sealed.get(&object.seal))
        };
        let bytes = self.behaviour.tamper_kept(held.ok_or(Failure::Internal)?);
        self.transfer.upload(object.name, bytes, leased).await?;
        Ok(())
    }

    /// Fetches the cells of these segments beside those that are there.
    async fn fetch(
        &self,
        fetched: &mut BTreeMap<ObjectName, CellPlanes>,
        segments: &[Segment],
        next_epoch: Epoch,
        leased: &LeasedWork,
    ) -> Result<(), Failure> {
        // What the merge changed is enough for whoever has the checkpoint before.
        let before = {
            let place = self.place();
            let place = place
                .as_ref()
                .filter(|it| it.session == leased.lease.session);
            let installed = place.and_then(|it| it.installed.as_ref());
            let before = installed.filter(|it| it.epoch.next() == next_epoch);
            before.map(|it| it.weights)
        };
        let step = |range, delta| async move {
            let stepped = self.stage.stepped(before?, range, delta).await;
            stepped
                .inspect_err(|error| debug!(%error, "a delta cannot be used"))
                .ok()
        };
        let is_missing = |segment: &&Segment| match &segment.source {
            SegmentSource::Merged { object, .. } => !fetched.contains_key(&object.name),
            SegmentSource::Genesis => false,
        };
        let missing: Vec<Segment> = segments.iter().filter(is_missing).cloned().collect();
        fetched.extend(fetch_cells_with(&self.transfer, &missing, leased, step).await?);
        Ok(())
    }

    async fn install(
        &self,
        checkpoint: &Checkpoint,
        goes_on: bool,
        leased: &LeasedWork,
        abandoned: &watch::Receiver<bool>,
    ) -> Result<Outcome, Undone> {
        let session = leased.lease.session;
        let cells = {
            let mut fetched = self.fetched.lock().await;
            let mut cells = std::mem::take(&mut *fetched);
            self.fetch(&mut cells, &checkpoint.segments, checkpoint.epoch, leased)
                .await?;
            cells
        };
        self.transfer.forget_made();
        // Another install may have been leased meanwhile, and this one must not come after it.
        still_wanted(abandoned)?;
        let (weights, done) = self
            .stage
            .install(session, checkpoint.clone(), cells, goes_on)
            .await
            .map_err(|error| failure(&error))?;
        if let Some(place) = self.place().as_mut().filter(|it| it.session == session) {
            // Of two answers that come at once, the stage's order decides.
            let before = place.installed.take();
            if before.as_ref().is_some_and(|it| it.weights > weights) {
                place.installed = before;
            } else {
                let epoch = checkpoint.epoch;
                // What it trains for this epoch already, it trains on.
                let trains_on = goes_on && self.description.merge.overlaps;
                let ahead = before.map(|it| it.training);
                let ahead = ahead.filter(|it| trains_on && it.epoch == epoch);
                let training = ahead.unwrap_or_else(|| Training {
                    epoch,
                    weights,
                    ledger: Arc::default(),
                });
                place.installed = Some(Installed {
                    epoch,
                    weights,
                    training,
                });
                place.sealed.begin_epoch(goes_on);
            }
        }
        let Done { state, operations } = done;
        Ok(Outcome::Install { state, operations })
    }
}

impl Worker for MinerWorker {
    async fn reset(&self, joined: &Joined) -> Result<(), Error> {
        let stage = joined.stage.ok_or(Error::Input("a miner needs a stage"))?;
        self.stage.vacate().await?;
        self.transfer.forget_made();
        self.fetched.lock().await.clear();
        let memory = self.planned_memory(stage)?;
        let (description, threads) = (Arc::clone(&self.description), self.threads);
        let device = self.device.clone();
        let engine = iota_node::blocking::spawn(move || {
            let engine = Engine::on(&device, description, stage, threads)?;
            Ok::<_, Error>(engine.with_kept_max(memory.kept_max()))
        })
        .await
        .map_err(|error| Error::Panicked(error.to_string()))??;
        self.stage.reset(joined.session, engine).await?;
        *self.place() = Some(Place {
            session: joined.session,
            stage,
            installed: None,
            sealed: Sealed::default(),
        });
        Ok(())
    }

    async fn work(
        &self,
        leased: Arc<LeasedWork>,
        abandoned: watch::Receiver<bool>,
    ) -> Result<Outcome, Undone> {
        let lease = &leased.lease;
        let is_ours = |place: &Place| place.session == lease.session && place.stage == lease.stage;
        if !self.place().as_ref().is_some_and(is_ours) {
            return Err(Failure::Internal.into());
        }
        // Taken before anything is fetched: an operation works on the weights that it was leased for or not at all.
        let gone = Undone::Failed(Failure::Internal);
        let training = || self.training_for(lease).ok_or(gone);
        let installed = || self.installed_for(lease).ok_or(gone);
        match &lease.work {
            Work::Forward { .. } => self.forward(training()?, &leased, &abandoned).await,
            Work::Backward { .. } => self.backward(training()?, &leased, &abandoned).await,
            Work::Upload {
                cells,
                learning_rate,
                seals_kept,
            } => {
                let job = UploadJob {
                    cells: cells.clone(),
                    learning_rate: *learning_rate,
                    keeps: *seals_kept,
                };
                self.upload(installed()?, job, &leased).await
            }
            Work::HandOver { began_with, keeps } => {
                for object in began_with.iter().chain(keeps) {
                    self.hand_over(object, &leased).await?;
                }
                Ok(Outcome::HandedOver)
            }
            Work::Merge { range, .. } => {
                let base = if self.description.merge.is_relative() {
                    let weights = installed()?.weights;
                    let base = self.stage.base(weights, range.clone()).await;
                    base.map_err(|error| failure(&error))?
                } else {
                    None
                };
                let merged = merge(&self.transfer, &self.gate, &leased, base).await?;
                if let Some(cell) = merged.cell {
                    self.transfer.keep_made(cell);
                }
                Ok(merged.outcome)
            }
            Work::Fetch { segments } => {
                let mut fetched = self.fetched.lock().await;
                let next_epoch = lease.epoch.next();
                self.fetch(&mut fetched, segments, next_epoch, &leased)
                    .await?;
                Ok(Outcome::Fetched)
            }
            Work::Install {
                checkpoint,
                goes_on,
            } => {
                self.install(checkpoint, *goes_on, &leased, &abandoned)
                    .await
            }
            Work::Replay { .. } | Work::Inspect { .. } => {
                debug!(lease = %leased.lease.id, "work for a validator came to a miner");
                Err(Failure::Internal.into())
            }
        }
    }

    fn reported(&self, lease: &Lease, logged: bool) {
        let Some(Training {
            weights, ledger, ..
        }) = self.training_for(lease)
        else {
            return;
        };
        match &lease.work {
            Work::Backward { .. } => ledger.answer_backward(lease.id, logged),
            Work::Forward { sample, .. } => {
                ledger.answer_forward(lease.id, *sample, logged);
                if !logged {
                    self.forget(weights, *sample);
                }
            }
            _ => {}
        }
    }
}

impl MinerWorker {
    /// Gives back the memory of a forward that is not in the log. No hurry: the ledger keeps backwards from using it.
    fn forget(&self, weights: Weights, sample: SampleId) {
        let stage = self.stage.clone();
        tokio::spawn(async move {
            if let Err(error) = stage.discard(weights, sample).await {
                debug!(%error, "could not forget a refused forward");
            }
        });
    }
}

fn still_wanted(abandoned: &watch::Receiver<bool>) -> Result<(), Undone> {
    if *abandoned.borrow() {
        Err(Failure::Internal.into())
    } else {
        Ok(())
    }
}

fn failure(error: &Error) -> Undone {
    if matches!(error, Error::Outdated) {
        debug!(%error, "the stage has moved on");
    } else {
        error!(%error, "the stage could not do its work");
    }
    if matches!(error, Error::StageGone) {
        return Undone::Broken;
    }
    Undone::Failed(if error.is_not_finite() {
        Failure::NotFinite
    } else {
        Failure::Internal
    })
}
