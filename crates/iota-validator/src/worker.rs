//! What a validator does with a lease.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use iota_peer::{
    Engine, Error, Gate, OperationInput, Transfer, Undone, Worker, fetch_cells, merge,
};
use iota_protocol::work::{
    Checkpoint, Difference, Failure, Lease, LogEntry, ObjectRef, Outcome, Purpose, UploadRecord,
    Verdict, Work,
};
use iota_protocol::{Digest, StageIndex};
use iota_run::Description;
use iota_wire::{Joined, LeasedWork};
use tokio::sync::watch;
use tracing::info;

/// Operations whose inputs are fetched ahead of the one being redone.
const FETCHED_AHEAD: usize = 4;

/// A validator's hands. It reads the store and the run's description, nothing else (V1).
#[derive(Debug)]
pub(crate) struct ValidatorWorker {
    description: Arc<Description>,
    transfer: Transfer,
    gate: Gate,
    threads: usize,
}

/// An operation with everything it reads.
struct Fetched {
    entry: LogEntry,
    input: OperationInput,
    output_gradient: Option<Arc<[f32]>>,
}

impl ValidatorWorker {
    pub(crate) fn new(
        description: Arc<Description>,
        gate: Gate,
        threads: usize,
    ) -> Result<Self, Error> {
        let transfer = Transfer::new(Arc::clone(&description))?;
        Ok(Self {
            description,
            transfer,
            gate,
            threads,
        })
    }

    async fn replay(
        &self,
        checkpoint: &Checkpoint,
        entries: &[LogEntry],
        upload: Option<&UploadRecord>,
        leased: &LeasedWork,
        abandoned: &watch::Receiver<bool>,
    ) -> Result<Verdict, Failure> {
        let cells = fetch_cells(&self.transfer, checkpoint, leased).await?;
        let (description, stage, threads) = (
            Arc::clone(&self.description),
            checkpoint.stage,
            self.threads,
        );
        let start = checkpoint.clone();
        let mut engine = self
            .compute(move || {
                let mut engine = Engine::new(description, stage, threads)?;
                engine.install(&start, &cells)?;
                Ok(engine)
            })
            .await?;
        let mut operations = 0;
        let mut fetched = futures::stream::iter(entries.iter().cloned())
            .map(|entry| self.fetch(entry, stage, leased))
            .buffered(FETCHED_AHEAD);
        while let Some(Fetched {
            entry,
            input,
            output_gradient,
        }) = fetched.try_next().await?
        {
            if *abandoned.borrow() {
                return Err(Failure::Leaving);
            }
            let ordinal = entry.ordinal;
            let difference;
            (engine, difference) = self
                .compute(move || {
                    let difference = redo(&mut engine, &entry, &input, output_gradient.as_deref())?;
                    Ok((engine, difference))
                })
                .await?;
            if let Some(difference) = difference {
                return Ok(Verdict::Differs {
                    ordinal: Some(ordinal),
                    difference,
                });
            }
            operations += 1;
        }
        if let Some(upload) = upload.cloned() {
            let equal = self
                .compute(move || uploads_equal(&mut engine, &upload))
                .await?;
            if !equal {
                return Ok(Verdict::Differs {
                    ordinal: None,
                    difference: Difference::Upload,
                });
            }
        }
        Ok(Verdict::Agrees { operations })
    }

    async fn fetch(
        &self,
        entry: LogEntry,
        stage: StageIndex,
        leased: &LeasedWork,
    ) -> Result<Fetched, Failure> {
        let (Work::Forward { sample, input, .. } | Work::Backward { sample, input, .. }) =
            &entry.work
        else {
            return Err(Failure::Internal);
        };
        let reads_tokens = stage.get() == 0 || stage.get() + 1 == self.description.stages;
        let tokens = if reads_tokens {
            Some(self.transfer.tokens(*sample, leased).await?)
        } else {
            None
        };
        let activation = match input {
            Some(object) => Some((
                object.seal.digest,
                self.transfer.activation(object, leased).await?,
            )),
            None => None,
        };
        let output_gradient = match &entry.work {
            Work::Backward {
                output_gradient: Some(object),
                ..
            } => Some(self.transfer.activation(object, leased).await?),
            _ => None,
        };
        Ok(Fetched {
            entry,
            input: OperationInput { tokens, activation },
            output_gradient,
        })
    }

    async fn inspect(&self, object: &ObjectRef, leased: &LeasedWork) -> Result<Verdict, Failure> {
        let looked_at = match object.name.purpose {
            Purpose::Activation | Purpose::Gradient => {
                self.transfer.activation(object, leased).await.map(drop)
            }
            Purpose::Upload | Purpose::Merged => {
                match iota_run::cell_elements(object.seal.length) {
                    Some(elements) => self.transfer.cell(object, elements, leased).await.map(drop),
                    None => Err(Failure::BadInput {
                        object: object.name,
                        difference: Difference::Malformed,
                    }),
                }
            }
        };
        match looked_at {
            Ok(()) => Ok(Verdict::Agrees { operations: 1 }),
            Err(Failure::BadInput { difference, .. }) => Ok(Verdict::Differs {
                ordinal: None,
                difference,
            }),
            Err(failure) => Err(failure),
        }
    }

    async fn compute<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Failure> {
        let gate = self.gate.clone();
        tokio::task::spawn_blocking(move || gate.pass(job))
            .await
            .map_err(|_| Failure::Internal)?
            .map_err(|_| Failure::Internal)
    }
}

/// Does a logged operation again; says how its result differs from what the miner committed to, if it does.
fn redo(
    engine: &mut Engine,
    entry: &LogEntry,
    input: &OperationInput,
    output_gradient: Option<&[f32]>,
) -> Result<Option<Difference>, Error> {
    match (&entry.work, &entry.outcome) {
        (Work::Forward { sample, .. }, Outcome::Forward { output, .. }) => {
            let (_, bytes) = engine.forward(*sample, input)?;
            Ok((Digest::of(&bytes) != output.digest).then_some(Difference::Output))
        }
        (
            Work::Backward {
                sample,
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
            let result =
                engine.backward(*sample, input, output_gradient, *learning_rate, *recomputed)?;
            let ours = result.gradient.as_deref().map(Digest::of);
            if ours != gradient.map(|seal| seal.digest) {
                Ok(Some(Difference::Output))
            } else if result.loss.map(f32::to_bits) != loss.map(f32::to_bits) {
                Ok(Some(Difference::Loss))
            } else {
                Ok(None)
            }
        }
        _ => Err(Error::Input(
            "the log entry's outcome is not one of its work",
        )),
    }
}

fn uploads_equal(engine: &mut Engine, upload: &UploadRecord) -> Result<bool, Error> {
    engine.finish(upload.learning_rate)?;
    if engine.optimizer_steps() != upload.optimizer_steps
        || upload.cells.len() != upload.seals.len()
    {
        return Ok(false);
    }
    for (cell, seal) in upload.cells.iter().zip(&upload.seals) {
        if Digest::of(&engine.cell(&cell.range)?) != seal.digest {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Worker for ValidatorWorker {
    async fn reset(&self, _: &Joined) -> Result<(), Error> {
        Ok(())
    }

    async fn work(
        &self,
        leased: Arc<LeasedWork>,
        abandoned: watch::Receiver<bool>,
    ) -> Result<Outcome, Undone> {
        let verdict = match &leased.lease.work {
            Work::Replay {
                subject,
                checkpoint,
                entries,
                upload,
            } => {
                let verdict = self
                    .replay(checkpoint, entries, upload.as_ref(), &leased, &abandoned)
                    .await?;
                info!(?subject, stage = %checkpoint.stage, ?verdict, "audit finished");
                verdict
            }
            Work::Inspect {
                object,
                producer,
                accuser,
            } => {
                let verdict = self.inspect(object, &leased).await?;
                info!(?producer, ?accuser, ?verdict, "inspection finished");
                verdict
            }
            Work::Merge { .. } => return Ok(merge(&self.transfer, &self.gate, &leased).await?),
            Work::Forward { .. }
            | Work::Backward { .. }
            | Work::Upload { .. }
            | Work::Install { .. } => {
                return Err(Failure::Internal.into());
            }
        };
        Ok(Outcome::Audit { verdict })
    }

    fn reported(&self, _: &Lease, _: bool) {}
}
