//! The thread that owns the stage. Operations reach it through a bounded queue, one after the other.
//!
//! Tensors arrive decoded and leave encoded, so that downloads and uploads of other samples go on meanwhile.
//!
//! On a device that works on its own the thread keeps it supplied: if another pass waits in the queue it is begun before
//! the last one is finished, so that its input is copied while the last one is computed, and the last one's result is copied
//! and encoded while it is computed itself. The order of passes, and with it every bit, stays that of the queue.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use iota_node::blocking;
use iota_peer::{
    BackwardResult, Base, BegunBackward, BegunForward, CellPlanes, Engine, Error, Gate, Installed,
    OperationInput, Start,
};
use iota_protocol::work::{CellUpload, Checkpoint, ObjectName};
use iota_protocol::{Digest, SampleId, Session};
use tokio::sync::{mpsc, oneshot};

use crate::sealed::Kept;

/// A handle to the thread. The thread ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(crate) struct StageThread {
    jobs: mpsc::Sender<Job>,
}

/// Which weights an operation is meant for: those of one installation, of whichever session and epoch, or those on which a
/// stage trains on after an upload. An operation that is still in the queue when its weights are replaced must not touch
/// the next ones, even if they belong to the same epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Weights(u64);

/// One operation and where its answer goes. An answer that nobody waits for any more is dropped; the operation stands.
#[derive(Debug)]
enum Job {
    Vacate(Reply<()>),
    Reset(Session, Box<Engine>),
    Install(
        Session,
        Checkpoint,
        BTreeMap<ObjectName, CellPlanes>,
        bool,
        Reply<(Weights, Installed)>,
    ),
    Base(Weights, Range<u64>, Reply<Option<Base>>),
    Stepped(Weights, Range<u64>, Bytes, Reply<(CellPlanes, Digest)>),
    Forward(Weights, SampleId, OperationInput, Reply<(u32, Bytes)>),
    Backward(
        Weights,
        SampleId,
        OperationInput,
        BackwardJob,
        Reply<BackwardResult>,
    ),
    Upload(Weights, UploadJob, Reply<Uploaded>),
    Discard(Weights, SampleId),
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What a backward pass needs besides its input.
#[derive(Debug)]
pub(crate) struct BackwardJob {
    /// The gradient from the stage after; none at the tail.
    pub(crate) output_gradient: Option<Arc<[f32]>>,
    /// Learning rate of the step, if this pass completes one.
    pub(crate) learning_rate: f32,
    /// Whether to redo the forward even if it was kept.
    pub(crate) recompute: bool,
}

/// What an upload is asked for.
#[derive(Debug)]
pub(crate) struct UploadJob {
    pub(crate) cells: Vec<CellUpload>,
    /// Learning rate of the pending step.
    pub(crate) learning_rate: f32,
    /// Whether what the stage keeps for itself is asked for too.
    pub(crate) keeps: bool,
}

/// The cells of an upload, encoded, in the order of the lease.
#[derive(Debug)]
pub(crate) struct Uploaded {
    pub(crate) cells: Vec<Bytes>,
    /// What the stage keeps for itself, if it was asked for and is anything.
    pub(crate) kept: Option<Kept>,
    pub(crate) optimizer_steps: u64,
    /// What the stage trains on, if the run trains while it merges: for what is leased from now on.
    pub(crate) ahead: Option<Weights>,
}

impl StageThread {
    /// Starts the thread. `queue`: operations that may wait. Each computes when `gate` lets it.
    pub(crate) fn start(queue: usize, gate: Gate) -> std::io::Result<Self> {
        let (jobs, queued) = mpsc::channel::<Job>(queue.max(1));
        let mut owner = Owner::default();
        blocking::spawn_thread("stage", queued, move |job, waiting| {
            gate.pass(|| owner.run(job, waiting));
        })?;
        Ok(Self { jobs })
    }

    /// Gives up the stage that the thread has, so that two are never held.
    pub(crate) async fn vacate(&self) -> Result<(), Error> {
        self.ask(Job::Vacate).await
    }

    /// From now on the thread works for `session`, on a stage without weights.
    pub(crate) async fn reset(&self, session: Session, engine: Engine) -> Result<(), Error> {
        self.send(Job::Reset(session, Box::new(engine))).await
    }

    /// Installs a checkpoint: which weights these are from now on. Whoever goes on with what it trained on meanwhile does that
    /// under the name that those weights had.
    pub(crate) async fn install(
        &self,
        session: Session,
        checkpoint: Checkpoint,
        cells: BTreeMap<ObjectName, CellPlanes>,
        goes_on: bool,
    ) -> Result<(Weights, Installed), Error> {
        self.ask(|reply| Job::Install(session, checkpoint, cells, goes_on, reply))
            .await
    }

    /// What a range of the checkpoint was that these weights began with, if the run asks for it.
    pub(crate) async fn base(
        &self,
        weights: Weights,
        range: Range<u64>,
    ) -> Result<Option<Base>, Error> {
        self.ask(|reply| Job::Base(weights, range, reply)).await
    }

    /// The merged cell that a delta makes of a range of that checkpoint, and its object's digest.
    pub(crate) async fn stepped(
        &self,
        weights: Weights,
        range: Range<u64>,
        delta: Bytes,
    ) -> Result<(CellPlanes, Digest), Error> {
        self.ask(|reply| Job::Stepped(weights, range, delta, reply))
            .await
    }

    pub(crate) async fn forward(
        &self,
        weights: Weights,
        sample: SampleId,
        input: OperationInput,
    ) -> Result<(u32, Bytes), Error> {
        self.ask(|reply| Job::Forward(weights, sample, input, reply))
            .await
    }

    pub(crate) async fn backward(
        &self,
        weights: Weights,
        sample: SampleId,
        input: OperationInput,
        job: BackwardJob,
    ) -> Result<BackwardResult, Error> {
        self.ask(|reply| Job::Backward(weights, sample, input, job, reply))
            .await
    }

    /// Ends the training of these weights: a pass that comes later is [`Error::Outdated`].
    pub(crate) async fn upload(&self, weights: Weights, job: UploadJob) -> Result<Uploaded, Error> {
        self.ask(|reply| Job::Upload(weights, job, reply)).await
    }

    /// Forgets what the forward of a sample left.
    pub(crate) async fn discard(&self, weights: Weights, sample: SampleId) -> Result<(), Error> {
        self.send(Job::Discard(weights, sample)).await
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(job(reply)).await?;
        answer.await.map_err(|_| Error::StageGone)?
    }

    async fn send(&self, job: Job) -> Result<(), Error> {
        self.jobs.send(job).await.map_err(|_| Error::StageGone)
    }
}

/// What the thread owns.
#[derive(Debug, Default)]
struct Owner {
    stage: Option<(Session, Box<Engine>)>,
    /// What is installed.
    weights: Option<Weights>,
    /// What is trained. None once the weights have been uploaded, unless they are trained on: what an older pass did then
    /// would be in the log of an epoch whose upload does not have it.
    trained: Option<Weights>,
    names: u64,
    /// Whether the stage's device works on its own.
    passes_overlap: bool,
    /// The pass that was begun last, if nobody has been told of it yet. Another one comes right behind it.
    begun: Option<Begun>,
}

/// A pass that has been begun, and where its answer goes.
#[derive(Debug)]
enum Begun {
    Forward(BegunForward, Reply<(u32, Bytes)>),
    Backward(BegunBackward, Reply<BackwardResult>),
}

impl Owner {
    /// `waiting`: jobs that come right behind this one.
    fn run(&mut self, job: Job, waiting: usize) {
        // Passes follow each other; anything else comes after the answer to the last one.
        let before = self.begun.take();
        let before = match job {
            Job::Forward(..) | Job::Backward(..) => before,
            _ => {
                self.answer(before);
                None
            }
        };
        // A receiver that is gone has been told of in the comment of `Job`.
        match job {
            Job::Vacate(reply) => {
                self.stage = None;
                self.weights = None;
                self.trained = None;
                drop(reply.send(Ok(())));
            }
            Job::Reset(session, engine) => {
                self.passes_overlap = engine.passes_overlap();
                self.stage = Some((session, engine));
                self.weights = None;
                self.trained = None;
            }
            Job::Install(session, checkpoint, cells, goes_on, reply) => {
                drop(reply.send(self.install(session, &checkpoint, &cells, goes_on)));
            }
            Job::Base(weights, range, reply) => {
                let base = self.engine(weights).and_then(|engine| engine.base(&range));
                drop(reply.send(base));
            }
            Job::Stepped(weights, range, delta, reply) => {
                let stepped = self
                    .engine(weights)
                    .and_then(|engine| engine.stepped(&range, &delta));
                drop(reply.send(stepped));
            }
            Job::Forward(weights, sample, input, reply) => {
                let begun = self
                    .training(weights)
                    .and_then(|engine| engine.begin_forward(sample, &input));
                match begun {
                    Ok(begun) => self.begun = Some(Begun::Forward(begun, reply)),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Job::Backward(weights, sample, input, job, reply) => {
                let begun = self.training(weights).and_then(|engine| {
                    engine.begin_backward(
                        sample,
                        &input,
                        job.output_gradient.as_deref(),
                        job.learning_rate,
                        job.recompute,
                    )
                });
                match begun {
                    Ok(begun) => self.begun = Some(Begun::Backward(begun, reply)),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Job::Upload(weights, job, reply) => {
                drop(reply.send(self.upload(weights, &job)));
            }
            Job::Discard(weights, sample) => {
                if let Ok(engine) = self.training(weights) {
                    engine.discard(sample);
                }
            }
        }
        self.answer(before);
        if waiting == 0 || !self.passes_overlap {
            let last = self.begun.take();
            self.answer(last);
        }
    }

    /// Waits for what a pass gives, and says what it is.
    fn answer(&mut self, begun: Option<Begun>) {
        // Whatever takes the stage away answers first.
        let Some((_, engine)) = &mut self.stage else {
            return;
        };
        match begun {
            Some(Begun::Forward(begun, reply)) => drop(reply.send(engine.finish_forward(begun))),
            Some(Begun::Backward(begun, reply)) => drop(reply.send(engine.finish_backward(begun))),
            None => {}
        }
    }

    fn install(
        &mut self,
        session: Session,
        checkpoint: &Checkpoint,
        cells: &BTreeMap<ObjectName, CellPlanes>,
        goes_on: bool,
    ) -> Result<(Weights, Installed), Error> {
        let Some((_, engine)) = self.stage.as_mut().filter(|(owner, _)| *owner == session) else {
            return Err(Error::Outdated);
        };
        self.weights = None;
        let trained = self.trained.take();
        let start = if goes_on { Start::GoesOn } else { Start::Anew };
        let installed = engine.install(checkpoint, cells, start)?;
        let trains_on = goes_on && engine.trains_while_merging();
        let weights = self.name();
        self.weights = Some(weights);
        self.trained = trained.filter(|_| trains_on).or(Some(weights));
        Ok((weights, installed))
    }

    fn name(&mut self) -> Weights {
        self.names += 1;
        Weights(self.names)
    }

    fn upload(&mut self, weights: Weights, job: &UploadJob) -> Result<Uploaded, Error> {
        if self.engine(weights)?.has_trained_ahead() {
            return Err(Error::Outdated);
        }
        self.trained = None;
        let engine = self.engine(weights)?;
        engine.finish(job.learning_rate)?;
        let encoded = job
            .cells
            .iter()
            .map(|cell| engine.cell(&cell.range))
            .collect::<Result<_, _>>()?;
        let mut uploaded = Uploaded {
            cells: encoded,
            kept: if job.keeps {
                engine.kept()?.map(Kept::new)
            } else {
                None
            },
            optimizer_steps: engine.optimizer_steps(),
            ahead: None,
        };
        if engine.trains_while_merging() {
            engine.go_ahead()?;
            uploaded.ahead = Some(self.name());
            self.trained = uploaded.ahead;
        }
        Ok(uploaded)
    }

    fn training(&mut self, weights: Weights) -> Result<&mut Engine, Error> {
        match &mut self.stage {
            Some((_, engine)) if self.trained == Some(weights) => Ok(engine),
            _ => Err(Error::Outdated),
        }
    }

    fn engine(&mut self, weights: Weights) -> Result<&mut Engine, Error> {
        match &mut self.stage {
            Some((_, engine)) if self.weights == Some(weights) => Ok(engine),
            _ => Err(Error::Outdated),
        }
    }
}

#[cfg(test)]
mod tests {
    use iota_data::{Corpus, Document, Preparation, Split, Tokenizer};
    use iota_model::preset;
    use iota_protocol::work::{Purpose, Segment, SegmentSource};
    use iota_protocol::{CellIndex, Epoch, ObjectId, PeerId, RunId, StageIndex};
    use iota_run::{Description, Optimizer};

    use super::*;

    const SAMPLE: SampleId = SampleId::new(0);

    fn session(generation: u32) -> Session {
        Session {
            peer: PeerId::from_bytes([7; 32]),
            generation,
        }
    }

    /// The middle of three stages of the `tiny` model.
    fn engine() -> Box<Engine> {
        let corpus = Corpus::from_documents(vec![Document {
            name: "song".to_owned(),
            text: "Row, row, row your boat, gently down the stream. ".repeat(20),
        }]);
        let corpus = corpus.unwrap();
        let mut shards =
            Preparation::new(&corpus, Tokenizer::default(), Split::Training, 1 << 12).unwrap();
        while shards.next().is_some() {}
        let description = Description {
            version: iota_run::VERSION,
            run: RunId::from_bytes([3; 16]),
            seed: 5,
            model: preset("tiny").unwrap(),
            cuts: vec![1, 2],
            sequences: 1,
            backwards_per_step: 2,
            optimizer: Optimizer::default(),
            precision: iota_model::Precision::F32,
            recompute: false,
            wire: iota_run::Wire::default(),
            merge: iota_run::Merge::default(),
            comparison: iota_run::Comparison::Bits,
            data: shards.finish(),
        };
        Box::new(Engine::new(Arc::new(description), StageIndex::new(1), 1).unwrap())
    }

    /// An owner in session 1 with the weights of genesis.
    fn owner() -> (Owner, Weights) {
        let mut owner = Owner::default();
        owner.run(Job::Reset(session(1), engine()), 0);
        let weights = install(&mut owner, session(1)).unwrap();
        (owner, weights)
    }

    fn install(owner: &mut Owner, session: Session) -> Result<Weights, Error> {
        let (_, engine) = owner.stage.as_ref().unwrap();
        let checkpoint = Checkpoint {
            stage: StageIndex::new(1),
            epoch: Epoch::new(0),
            optimizer_steps: 0,
            segments: vec![Segment {
                range: 0..engine.elements() as u64,
                source: SegmentSource::Genesis,
            }],
        };
        let (weights, _) = owner.install(session, &checkpoint, &BTreeMap::new(), false)?;
        Ok(weights)
    }

    fn forward(owner: &mut Owner, weights: Weights) -> Result<u32, Error> {
        let (reply, mut answer) = oneshot::channel();
        owner.run(Job::Forward(weights, SAMPLE, input(), reply), 0);
        Ok(answer.try_recv().expect("every operation is answered")?.0)
    }

    fn backward(owner: &mut Owner, weights: Weights) -> Result<u32, Error> {
        let (reply, mut answer) = oneshot::channel();
        let job = BackwardJob {
            output_gradient: Some(values()),
            learning_rate: 0.01,
            recompute: false,
        };
        owner.run(Job::Backward(weights, SAMPLE, input(), job, reply), 0);
        let result = answer.try_recv().expect("every operation is answered")?;
        Ok(result.ordinal)
    }

    fn input() -> OperationInput {
        OperationInput {
            tokens: None,
            activation: Some((Digest::of(b"input"), values())),
        }
    }

    /// An activation of 32 tokens, 16 wide.
    fn values() -> Arc<[f32]> {
        (0..32 * 16).map(|at| (at % 7) as f32 - 3.0).collect()
    }

    fn upload(owner: &mut Owner, weights: Weights) -> Result<Uploaded, Error> {
        let cell = CellUpload {
            cell: CellIndex::new(0),
            range: 0..100,
            output: ObjectName {
                purpose: Purpose::Upload,
                epoch: Epoch::new(0),
                id: ObjectId::from_bytes([1; 16]),
            },
        };
        let job = UploadJob {
            cells: vec![cell],
            learning_rate: 0.01,
            keeps: false,
        };
        owner.upload(weights, &job)
    }

    #[test]
    fn what_was_queued_before_an_install_in_the_same_epoch_does_not_touch_it() {
        let (mut owner, old) = owner();
        assert_eq!(forward(&mut owner, old).unwrap(), 0);
        let new = install(&mut owner, session(1)).unwrap();
        assert!(matches!(forward(&mut owner, old), Err(Error::Outdated)));
        assert!(matches!(backward(&mut owner, old), Err(Error::Outdated)));
        assert_eq!(forward(&mut owner, new).unwrap(), 0);
        owner.run(Job::Discard(old, SAMPLE), 0);
        assert_eq!(backward(&mut owner, new).unwrap(), 1);
    }

    /// Four passes and something else, all of them in the queue: what the passes are answered, how many were when each job
    /// had been done, and what is uploaded then.
    fn passes(overlap: bool) -> (Vec<(u32, Bytes)>, Vec<usize>, Vec<Bytes>) {
        type Answer = Box<dyn FnMut() -> Option<(u32, Bytes)>>;
        let (mut owner, weights) = owner();
        owner.passes_overlap = overlap;
        let mut jobs = Vec::new();
        let mut answers: Vec<Answer> = Vec::new();
        for sample in (0..2).map(SampleId::new) {
            let (reply, mut forwarded) = oneshot::channel();
            jobs.push(Job::Forward(weights, sample, input(), reply));
            answers.push(Box::new(move || Some(forwarded.try_recv().ok()?.unwrap())));
            let (reply, mut went_back) = oneshot::channel();
            let job = BackwardJob {
                output_gradient: Some(values()),
                learning_rate: 0.01,
                recompute: false,
            };
            jobs.push(Job::Backward(weights, sample, input(), job, reply));
            answers.push(Box::new(move || {
                let result = went_back.try_recv().ok()?.unwrap();
                Some((result.ordinal, result.gradient.unwrap()))
            }));
        }
        jobs.push(Job::Discard(weights, SAMPLE));
        let (mut heard, mut answered) = (Vec::new(), Vec::new());
        for waiting in (0..jobs.len()).rev() {
            owner.run(jobs.remove(0), waiting);
            let open = &mut answers[heard.len()..];
            heard.extend(open.iter_mut().map_while(|answer| answer()));
            answered.push(heard.len());
        }
        let cells = upload(&mut owner, weights).unwrap().cells;
        (heard, answered, cells)
    }

    #[test]
    fn a_device_that_works_on_its_own_has_the_next_pass_before_the_last_is_answered() {
        let (at_once, one_by_one, cells) = passes(false);
        assert_eq!(one_by_one, [1, 2, 3, 4, 4]);
        let (late, one_behind, late_cells) = passes(true);
        assert_eq!(one_behind, [0, 1, 2, 3, 4]);
        assert!(late == at_once && late_cells == cells, "the same bits");
    }

    #[test]
    fn an_ended_session_installs_nothing_and_its_work_is_refused() {
        let (mut owner, old) = owner();
        owner.run(Job::Reset(session(2), engine()), 0);
        assert!(matches!(forward(&mut owner, old), Err(Error::Outdated)));
        let late = install(&mut owner, session(1));
        assert!(matches!(late, Err(Error::Outdated)));
        let new = install(&mut owner, session(2)).unwrap();
        assert_ne!(old, new);
    }

    #[test]
    fn nothing_is_trained_on_weights_that_have_been_uploaded() {
        let (mut owner, weights) = owner();
        backward(&mut owner, weights).unwrap();
        let first = upload(&mut owner, weights).unwrap();
        assert_eq!(first.optimizer_steps, 1);
        assert!(matches!(
            backward(&mut owner, weights),
            Err(Error::Outdated)
        ));
        let again = upload(&mut owner, weights).unwrap();
        assert_eq!(again.optimizer_steps, 1);
        assert!(again.cells == first.cells);
    }
}
