//! What a miner does with each kind of lease.

use std::sync::{Arc, Mutex, PoisonError};

use iota_peer::{
    Engine, Error, Gate, OperationInput, Transfer, Undone, Worker, fetch_cells, merge,
};
use iota_protocol::work::{CellUpload, Checkpoint, Failure, Lease, ObjectRef, Outcome, Seal, Work};
use iota_protocol::{SampleId, Session, StageIndex};
use iota_run::Description;
use iota_wire::{Joined, LeasedWork};
use tokio::sync::watch;
use tracing::{debug, error};

use crate::behaviour::Behaviour;
use crate::stage_thread::{BackwardJob, StageThread};

/// A miner's hands: transfers, and a thread that owns the stage.
#[derive(Debug)]
pub(crate) struct MinerWorker {
    description: Arc<Description>,
    transfer: Transfer,
    stage: StageThread,
    gate: Gate,
    threads: usize,
    behaviour: Behaviour,
    place: Mutex<Option<(Session, StageIndex)>>,
}

impl MinerWorker {
    pub(crate) fn new(
        description: Arc<Description>,
        stage: StageThread,
        gate: Gate,
        threads: usize,
        behaviour: Behaviour,
    ) -> Result<Self, Error> {
        let transfer = Transfer::new(Arc::clone(&description))?;
        Ok(Self {
            description,
            transfer,
            stage,
            gate,
            threads,
            behaviour,
            place: Mutex::default(),
        })
    }

    fn place(&self) -> Result<(Session, StageIndex), Failure> {
        self.place
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ok_or(Failure::Internal)
    }

    async fn operation_input(
        &self,
        sample: SampleId,
        stage: StageIndex,
        activation: Option<&ObjectRef>,
        leased: &LeasedWork,
    ) -> Result<OperationInput, Failure> {
        let reads_tokens = stage.get() == 0 || stage.get() + 1 == self.description.stages;
        let tokens = async {
            if reads_tokens {
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
        leased: &LeasedWork,
        abandoned: &watch::Receiver<bool>,
    ) -> Result<Outcome, Undone> {
        let Lease {
            session,
            stage,
            epoch,
            work,
            ..
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
        let (ordinal, bytes) = self
            .stage
            .forward(*session, *epoch, *sample, input)
            .await
            .map_err(|error| failure(&error))?;
        let bytes = self.behaviour.tamper(bytes);
        match self.transfer.upload(*output, bytes, leased).await {
            Ok(output) => Ok(Outcome::Forward { ordinal, output }),
            Err(failure) => {
                // Nobody will ever have seen this forward.
                self.stage
                    .discard(*session, *sample)
                    .await
                    .map_err(|error| crate::worker::failure(&error))?;
                Err(failure.into())
            }
        }
    }

    async fn backward(
        &self,
        leased: &LeasedWork,
        abandoned: &watch::Receiver<bool>,
    ) -> Result<Outcome, Undone> {
        let Lease {
            session,
            stage,
            epoch,
            work,
            ..
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
        };
        let result = self
            .stage
            .backward(*session, *epoch, *sample, input, job)
            .await
            .map_err(|error| match failure(&error) {
                // Gradients or weights have blown up, and the pass is in them.
                Undone::Failed(Failure::NotFinite) => Undone::Tainted,
                undone => undone,
            })?;
        // From here on the gradient is in: what cannot be reported has to be undone by joining again.
        let sealed = match (gradient, result.gradient) {
            (None, None) => None,
            (Some(name), Some(bytes)) => {
                let bytes = self.behaviour.tamper(bytes);
                Some(
                    self.transfer
                        .upload(*name, bytes, leased)
                        .await
                        .map_err(|_| Undone::Tainted)?,
                )
            }
            _ => return Err(Undone::Tainted),
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
        cells: &[CellUpload],
        learning_rate: f32,
        leased: &LeasedWork,
    ) -> Result<Outcome, Undone> {
        let Lease { session, epoch, .. } = &leased.lease;
        let uploaded = self
            .stage
            .upload(*session, *epoch, cells.to_vec(), learning_rate)
            .await
            .map_err(|error| failure(&error))?;
        let uploads = cells
            .iter()
            .zip(uploaded.cells)
            .map(|(cell, bytes)| self.transfer.upload(cell.output, bytes, leased));
        let seals: Vec<Seal> = futures::future::try_join_all(uploads).await?;
        Ok(Outcome::Upload {
            cells: seals,
            optimizer_steps: uploaded.optimizer_steps,
        })
    }

    async fn install(
        &self,
        checkpoint: &Checkpoint,
        leased: &LeasedWork,
    ) -> Result<Outcome, Undone> {
        let cells = fetch_cells(&self.transfer, checkpoint, leased).await?;
        let state = self
            .stage
            .install(leased.lease.session, checkpoint.clone(), cells)
            .await
            .map_err(|error| failure(&error))?;
        Ok(Outcome::Install { state })
    }
}

impl Worker for MinerWorker {
    async fn reset(&self, joined: &Joined) -> Result<(), Error> {
        let stage = joined.stage.ok_or(Error::Input("a miner needs a stage"))?;
        let (description, threads) = (Arc::clone(&self.description), self.threads);
        let engine = tokio::task::spawn_blocking(move || Engine::new(description, stage, threads))
            .await
            .map_err(|error| Error::Panicked(error.to_string()))??;
        self.stage.reset(joined.session, engine).await?;
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some((joined.session, stage));
        Ok(())
    }

    async fn work(
        &self,
        leased: Arc<LeasedWork>,
        abandoned: watch::Receiver<bool>,
    ) -> Result<Outcome, Undone> {
        let (session, stage) = self.place()?;
        if leased.lease.session != session || leased.lease.stage != stage {
            return Err(Failure::Internal.into());
        }
        match &leased.lease.work {
            Work::Forward { .. } => self.forward(&leased, &abandoned).await,
            Work::Backward { .. } => self.backward(&leased, &abandoned).await,
            Work::Upload {
                cells,
                learning_rate,
            } => self.upload(cells, *learning_rate, &leased).await,
            Work::Merge { .. } => Ok(merge(&self.transfer, &self.gate, &leased).await?),
            Work::Install { checkpoint } => self.install(checkpoint, &leased).await,
            Work::Replay { .. } | Work::Inspect { .. } => {
                debug!(lease = %leased.lease.id, "work for a validator came to a miner");
                Err(Failure::Internal.into())
            }
        }
    }

    fn reported(&self, lease: &Lease, logged: bool) {
        let (Work::Forward { sample, .. }, false) = (&lease.work, logged) else {
            return;
        };
        let (stage, session, sample) = (self.stage.clone(), lease.session, *sample);
        // In the queue before any backward of the sample can be: that is leased only after an accepted forward.
        tokio::spawn(async move {
            if let Err(error) = stage.discard(session, sample).await {
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
    error!(%error, "the stage could not do its work");
    Undone::Failed(match error {
        Error::Compute(iota_compute::Error::NotFinite { .. }) => Failure::NotFinite,
        _ => Failure::Internal,
    })
}
