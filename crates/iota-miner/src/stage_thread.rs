//! The thread that owns the stage. Operations reach it through a bounded queue, one after the other.
//!
//! Tensors arrive decoded and leave encoded, so that downloads and uploads of other samples go on meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use iota_peer::{BackwardResult, CellPlanes, Engine, Error, Gate, OperationInput};
use iota_protocol::work::{CellUpload, Checkpoint, ObjectName};
use iota_protocol::{Digest, Epoch, SampleId, Session};
use tokio::sync::{mpsc, oneshot};

/// A handle to the thread. The thread ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(crate) struct StageThread {
    jobs: mpsc::Sender<(Session, Job)>,
}

/// One operation and where its answer goes. An answer that nobody waits for any more is dropped; the operation stands.
#[derive(Debug)]
enum Job {
    Reset(Box<Engine>),
    Install(
        Checkpoint,
        BTreeMap<ObjectName, CellPlanes>,
        oneshot::Sender<Result<Digest, Error>>,
    ),
    Forward(
        Epoch,
        SampleId,
        OperationInput,
        oneshot::Sender<Result<(u32, Bytes), Error>>,
    ),
    Backward(
        Epoch,
        SampleId,
        OperationInput,
        BackwardJob,
        oneshot::Sender<Result<BackwardResult, Error>>,
    ),
    Upload(
        Epoch,
        Vec<CellUpload>,
        f32,
        oneshot::Sender<Result<Uploaded, Error>>,
    ),
    Discard(SampleId),
}

/// What a backward pass needs besides its input.
#[derive(Debug)]
pub(crate) struct BackwardJob {
    /// The gradient from the stage after; none at the tail.
    pub(crate) output_gradient: Option<Arc<[f32]>>,
    /// Learning rate of the step, if this pass completes one.
    pub(crate) learning_rate: f32,
}

/// The cells of an upload, encoded, in the order of the lease.
#[derive(Debug)]
pub(crate) struct Uploaded {
    pub(crate) cells: Vec<Bytes>,
    pub(crate) optimizer_steps: u64,
}

impl StageThread {
    /// Starts the thread. `queue`: operations that may wait. Each computes when `gate` lets it.
    pub(crate) fn start(queue: usize, gate: Gate) -> std::io::Result<Self> {
        let (jobs, mut queued) = mpsc::channel::<(Session, Job)>(queue.max(1));
        std::thread::Builder::new()
            .name("stage".to_owned())
            .spawn(move || {
                let mut owner: Option<(Session, Box<Engine>)> = None;
                while let Some((session, job)) = queued.blocking_recv() {
                    if let Job::Reset(engine) = job {
                        owner = Some((session, engine));
                        continue;
                    }
                    // What an ended session still had in the queue must not touch the weights of the next.
                    let Some((_, engine)) =
                        owner.as_mut().filter(|(current, _)| *current == session)
                    else {
                        continue;
                    };
                    gate.pass(|| job.run(engine));
                }
            })?;
        Ok(Self { jobs })
    }

    /// From now on the thread works for `session`, on a stage without weights.
    pub(crate) async fn reset(&self, session: Session, engine: Engine) -> Result<(), Error> {
        self.send(session, Job::Reset(Box::new(engine))).await
    }

    pub(crate) async fn install(
        &self,
        session: Session,
        checkpoint: Checkpoint,
        cells: BTreeMap<ObjectName, CellPlanes>,
    ) -> Result<Digest, Error> {
        self.ask(session, |reply| Job::Install(checkpoint, cells, reply))
            .await
    }

    pub(crate) async fn forward(
        &self,
        session: Session,
        epoch: Epoch,
        sample: SampleId,
        input: OperationInput,
    ) -> Result<(u32, Bytes), Error> {
        self.ask(session, |reply| Job::Forward(epoch, sample, input, reply))
            .await
    }

    pub(crate) async fn backward(
        &self,
        session: Session,
        epoch: Epoch,
        sample: SampleId,
        input: OperationInput,
        job: BackwardJob,
    ) -> Result<BackwardResult, Error> {
        self.ask(session, |reply| {
            Job::Backward(epoch, sample, input, job, reply)
        })
        .await
    }

    pub(crate) async fn upload(
        &self,
        session: Session,
        epoch: Epoch,
        cells: Vec<CellUpload>,
        learning_rate: f32,
    ) -> Result<Uploaded, Error> {
        self.ask(session, |reply| {
            Job::Upload(epoch, cells, learning_rate, reply)
        })
        .await
    }

    /// Forgets what the forward of a sample left.
    pub(crate) async fn discard(&self, session: Session, sample: SampleId) -> Result<(), Error> {
        self.send(session, Job::Discard(sample)).await
    }

    async fn ask<T>(
        &self,
        session: Session,
        job: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Job,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(session, job(reply)).await?;
        answer.await.map_err(|_| Error::StageGone)?
    }

    async fn send(&self, session: Session, job: Job) -> Result<(), Error> {
        self.jobs
            .send((session, job))
            .await
            .map_err(|_| Error::StageGone)
    }
}

impl Job {
    fn run(self, engine: &mut Engine) {
        let is_current = |epoch: Epoch, engine: &Engine| {
            if engine.epoch() == Some(epoch) {
                Ok(())
            } else {
                Err(Error::Input("its epoch is closed"))
            }
        };
        // A receiver that is gone has been told of in the type's comment.
        match self {
            Self::Reset(_) => {
                unreachable!("the thread takes a new engine before it runs jobs on one")
            }
            Self::Install(checkpoint, cells, reply) => {
                drop(reply.send(engine.install(&checkpoint, &cells)))
            }
            Self::Forward(epoch, sample, input, reply) => {
                drop(
                    reply.send(
                        is_current(epoch, engine).and_then(|()| engine.forward(sample, &input)),
                    ),
                );
            }
            Self::Backward(epoch, sample, input, job, reply) => {
                let BackwardJob {
                    output_gradient,
                    learning_rate,
                } = job;
                drop(reply.send(is_current(epoch, engine).and_then(|()| {
                    engine.backward(
                        sample,
                        &input,
                        output_gradient.as_deref(),
                        learning_rate,
                        false,
                    )
                })));
            }
            Self::Upload(epoch, cells, learning_rate, reply) => {
                drop(reply.send(is_current(epoch, engine).and_then(|()| {
                    engine.finish(learning_rate)?;
                    let encoded = cells
                        .iter()
                        .map(|cell| engine.cell(&cell.range))
                        .collect::<Result<_, _>>()?;
                    Ok(Uploaded {
                        cells: encoded,
                        optimizer_steps: engine.optimizer_steps(),
                    })
                })));
            }
            Self::Discard(sample) => engine.discard(sample),
        }
    }
}
