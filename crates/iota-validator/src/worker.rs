//! What a validator does with a lease.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use iota_peer::{
    Base, CellPlanes, Engine, Error, Gate, OperationInput, Start, Transfer, Undone, Worker,
    fetch_cells, merge,
};
use iota_protocol::work::{
    Checkpoint, Difference, Failure, Lease, LogEntry, ObjectName, ObjectRef, Outcome, Purpose,
    Segment, SegmentSource, UploadRecord, Verdict, Work,
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
        kept: Option<&ObjectRef>,
        entries: &[LogEntry],
        upload: Option<&UploadRecord>,
        leased: &LeasedWork,
        abandoned: &watch::Receiver<bool>,
    ) -> Result<Verdict, Failure> {
        let cells = fetch_cells(&self.transfer, &checkpoint.segments, leased).await?;
        // What the subject kept it has committed to. If it is not there, or nothing of the kind, that is its own doing: to
        // give the audit back would let it get away.
        let not_kept = |difference| Verdict::Differs {
            ordinal: None,
            difference,
        };
        let kept = match kept {
            Some(object) => match self.transfer.object(object, leased).await {
                Ok(bytes) => Some(bytes),
                Err(Failure::BadInput { difference, .. }) => return Ok(not_kept(difference)),
                Err(failure) => return Err(failure),
            },
            None => None,
        };
        let (description, stage, threads) = (
            Arc::clone(&self.description),
            checkpoint.stage,
            self.threads,
        );
        let start = checkpoint.clone();
        let begun = self
            .compute(move || {
                let mut engine = Engine::new(description, stage, threads)?;
                let begins = kept.as_deref().map_or(Start::Anew, Start::Kept);
                match engine.install(&start, &cells, begins) {
                    Ok(_) => Ok(Some(engine)),
                    Err(Error::Kept) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .await?;
        let Some(mut engine) = begun else {
            return Ok(not_kept(Difference::Malformed));
        };
        let reused = reused_forwards(entries);
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
            let keep = reused.contains(&ordinal);
            let difference;
            (engine, difference) = self
                .compute(move || {
                    let gradient = output_gradient.as_deref();
                    let difference = redo(&mut engine, &entry, &input, gradient, keep)?;
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
            let difference = self
                .compute(move || compare_upload(&mut engine, &upload))
                .await?;
            if let Some(difference) = difference {
                return Ok(Verdict::Differs {
                    ordinal: None,
                    difference,
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
        let needs_tokens = self.description.needs_tokens(stage);
        let tokens = if needs_tokens {
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
            // Whether these are well-formed depends on which range they are of; that they are there does not.
            Purpose::Upload | Purpose::Delta | Purpose::Kept if self.is_relative() => {
                self.transfer.object(object, leased).await.map(drop)
            }
            Purpose::Upload | Purpose::Merged | Purpose::Delta | Purpose::Kept => {
                match self.description.merge.cell_elements(object.seal.length) {
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

    /// What a cell was in the checkpoint that is being merged on.
    async fn base(
        &self,
        stage: StageIndex,
        range: Range<u64>,
        segments: &[Segment],
        leased: &LeasedWork,
    ) -> Result<Base, Failure> {
        let cells = fetch_cells(&self.transfer, segments, leased).await?;
        let (description, segments) = (Arc::clone(&self.description), segments.to_vec());
        self.compute(move || base_of(description, stage, &range, &segments, &cells))
            .await
    }

    fn is_relative(&self) -> bool {
        self.description.merge.is_relative()
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

/// The range of a checkpoint that `segments` say everything about.
fn base_of(
    description: Arc<Description>,
    stage: StageIndex,
    range: &Range<u64>,
    segments: &[Segment],
    cells: &BTreeMap<ObjectName, CellPlanes>,
) -> Result<Base, Error> {
    let has_momentum = description.merge.outer.has_momentum();
    let mut base = Base {
        anchor: Vec::new(),
        momentum: Vec::new(),
    };
    let mut initial = None;
    for segment in segments {
        let length = (segment.range.end - segment.range.start) as usize;
        match &segment.source {
            SegmentSource::Merged { object, offset, .. } => {
                let source = *offset as usize..*offset as usize + length;
                let planes = cells.get(&object.name);
                let plane = |at: usize| planes?.get(at)?.get(source.clone());
                let missing = Error::Checkpoint("a cell of it was not given");
                base.anchor.extend_from_slice(plane(0).ok_or(missing)?);
                if has_momentum {
                    // Momentum is the last plane.
                    let last = planes.map_or(0, |planes| planes.len() - 1);
                    let missing = Error::Checkpoint("a cell of it has no momentum");
                    base.momentum.extend_from_slice(plane(last).ok_or(missing)?);
                }
            }
            SegmentSource::Genesis => {
                let weights = match &initial {
                    Some(weights) => weights,
                    None => initial.insert(Engine::initial(&description, stage)?),
                };
                let range = segment.range.start as usize..segment.range.end as usize;
                let missing = Error::Checkpoint("a segment exceeds the stage");
                base.anchor
                    .extend_from_slice(weights.get(range).ok_or(missing)?);
                if has_momentum {
                    base.momentum.resize(base.anchor.len(), 0.0);
                }
            }
        }
    }
    if base.anchor.len() as u64 != range.end - range.start {
        return Err(Error::Checkpoint("its segments do not cover the cell"));
    }
    Ok(base)
}

/// Ordinals of the forwards that a later backward of the log made use of. Nothing else has to be kept: what a miner kept
/// in vain, or lost, decides no bits, and an honest one never kept more than [`iota_peer::KEPT_MAX`] at a time.
fn reused_forwards(entries: &[LogEntry]) -> BTreeSet<u32> {
    let mut last = BTreeMap::new();
    let mut reused = BTreeSet::new();
    for entry in entries {
        match (&entry.work, &entry.outcome) {
            (Work::Forward { sample, .. }, _) => {
                last.insert(*sample, entry.ordinal);
            }
            (Work::Backward { sample, .. }, Outcome::Backward { recomputed, .. }) => {
                let forward = last.remove(sample);
                reused.extend(forward.filter(|_| !recomputed));
            }
            _ => {}
        }
    }
    reused
}

/// Does a logged operation again; says how its result differs from what the miner committed to, if it does. `keep`:
/// whether a backward will need what this forward leaves.
fn redo(
    engine: &mut Engine,
    entry: &LogEntry,
    input: &OperationInput,
    output_gradient: Option<&[f32]>,
    keep: bool,
) -> Result<Option<Difference>, Error> {
    match (&entry.work, &entry.outcome) {
        (Work::Forward { sample, .. }, Outcome::Forward { output, .. }) => {
            let Some((_, bytes)) = finite(engine.forward(*sample, input))? else {
                return Ok(Some(Difference::NotFinite));
            };
            if !keep {
                engine.discard(*sample);
            }
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
                engine.backward(*sample, input, output_gradient, *learning_rate, *recomputed);
            let Some(result) = finite(result)? else {
                return Ok(Some(Difference::NotFinite));
            };
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

/// Ends the replayed training and says how its end differs from what the miner uploaded, if it does.
fn compare_upload(engine: &mut Engine, upload: &UploadRecord) -> Result<Option<Difference>, Error> {
    if finite(engine.finish(upload.learning_rate))?.is_none() {
        return Ok(Some(Difference::NotFinite));
    }
    if engine.optimizer_steps() != upload.optimizer_steps
        || upload.cells.len() != upload.seals.len()
    {
        return Ok(Some(Difference::Upload));
    }
    for (cell, seal) in upload.cells.iter().zip(&upload.seals) {
        let Some(bytes) = finite(engine.cell(&cell.range))? else {
            return Ok(Some(Difference::NotFinite));
        };
        if Digest::of(&bytes) != seal.digest {
            return Ok(Some(Difference::Upload));
        }
    }
    if let Some(kept) = &upload.kept {
        let ours = engine.kept()?.as_deref().map(Digest::of);
        if ours != Some(kept.seal.digest) {
            return Ok(Some(Difference::Upload));
        }
    }
    Ok(None)
}

/// None for a result that is not finite. The miner's engine would have refused it in the same way, so a miner that has
/// committed to one anyway has not done the work.
fn finite<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(result) => Ok(Some(result)),
        Err(error) if error.is_not_finite() => Ok(None),
        Err(error) => Err(error),
    }
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
                kept,
                entries,
                upload,
            } => {
                let (kept, upload) = (kept.as_ref(), upload.as_ref());
                let verdict = self
                    .replay(checkpoint, kept, entries, upload, &leased, &abandoned)
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
            Work::Merge { range, base, .. } => {
                let base = if self.is_relative() {
                    let stage = leased.lease.stage;
                    Some(self.base(stage, range.clone(), base, &leased).await?)
                } else {
                    None
                };
                let merged = merge(&self.transfer, &self.gate, &leased, base).await?;
                return Ok(merged.outcome);
            }
            Work::Forward { .. }
            | Work::Backward { .. }
            | Work::Upload { .. }
            | Work::Fetch { .. }
            | Work::Install { .. } => {
                return Err(Failure::Internal.into());
            }
        };
        Ok(Outcome::Audit { verdict })
    }

    fn reported(&self, _: &Lease, _: bool) {}
}

#[cfg(test)]
mod tests {
    use iota_data::{Corpus, Document, Preparation, Split, Tokenizer};
    use iota_protocol::work::Seal;
    use iota_protocol::{Epoch, LeaseId, ObjectId, RunId, SampleId};

    use super::*;

    /// The middle of three stages of the `tiny` model, with the weights of genesis.
    fn engine() -> Engine {
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
            model: iota_model::preset("tiny").unwrap(),
            cuts: vec![1, 2],
            sequences: 1,
            backwards_per_step: 2,
            optimizer: iota_run::Optimizer::default(),
            precision: iota_model::Precision::F32,
            recompute: false,
            wire: iota_run::Wire::default(),
            merge: iota_run::Merge::default(),
            data: shards.finish(),
        };
        let stage = StageIndex::new(1);
        let mut engine = Engine::new(Arc::new(description), stage, 1).unwrap();
        let segments = vec![Segment {
            range: 0..engine.elements() as u64,
            source: SegmentSource::Genesis,
        }];
        let checkpoint = Checkpoint {
            stage,
            epoch: Epoch::new(0),
            optimizer_steps: 0,
            segments,
        };
        engine
            .install(&checkpoint, &BTreeMap::new(), Start::Anew)
            .unwrap();
        engine
    }

    /// An activation of 32 tokens, 16 wide.
    fn values() -> Arc<[f32]> {
        (0..32 * 16).map(|at| (at % 7) as f32 - 3.0).collect()
    }

    fn input() -> OperationInput {
        OperationInput {
            tokens: None,
            activation: Some((Digest::of(b"input"), values())),
        }
    }

    fn name(purpose: Purpose) -> ObjectName {
        ObjectName {
            purpose,
            epoch: Epoch::new(0),
            id: ObjectId::from_bytes([1; 16]),
        }
    }

    fn seal(bytes: &[u8]) -> Seal {
        Seal {
            digest: Digest::of(bytes),
            length: bytes.len() as u64,
        }
    }

    fn forward(ordinal: u32, sample: u64, output: &[u8]) -> LogEntry {
        LogEntry {
            ordinal,
            lease: LeaseId::new(ordinal.into()),
            credited: true,
            work: Work::Forward {
                sample: SampleId::new(sample),
                input: None,
                output: name(Purpose::Activation),
            },
            outcome: Outcome::Forward {
                ordinal,
                output: seal(output),
            },
        }
    }

    fn backward(ordinal: u32, sample: u64, recomputed: bool, gradient: &[u8]) -> LogEntry {
        LogEntry {
            ordinal,
            lease: LeaseId::new(ordinal.into()),
            credited: true,
            work: Work::Backward {
                sample: SampleId::new(sample),
                input: None,
                output_gradient: None,
                gradient: Some(name(Purpose::Gradient)),
                learning_rate: 0.01,
            },
            outcome: Outcome::Backward {
                ordinal,
                recomputed,
                gradient: Some(seal(gradient)),
                loss: None,
            },
        }
    }

    #[test]
    fn only_forwards_that_a_backward_made_use_of_are_kept() {
        let log = [
            forward(0, 10, b""),
            forward(1, 11, b""),
            forward(3, 12, b""),
            backward(4, 11, true, b""),
            forward(5, 10, b""),
            backward(6, 10, false, b""),
            backward(8, 13, false, b""),
            backward(9, 10, false, b""),
        ];
        assert_eq!(reused_forwards(&log), BTreeSet::from([5]));
    }

    #[test]
    fn an_honest_log_agrees_and_another_output_differs() {
        let mut miner = engine();
        let sample = SampleId::new(4);
        let (_, output) = miner.forward(sample, &input()).unwrap();
        let gradient = miner
            .backward(sample, &input(), Some(&values()), 0.01, false)
            .unwrap()
            .gradient
            .unwrap();
        let log = [forward(0, 4, &output), backward(1, 4, false, &gradient)];
        let replay = |log: &[LogEntry]| {
            let mut validator = engine();
            let reused = reused_forwards(log);
            log.iter()
                .map(|entry| {
                    let keep = reused.contains(&entry.ordinal);
                    redo(&mut validator, entry, &input(), Some(&values()), keep).unwrap()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(replay(&log), [None, None]);
        let other = [forward(0, 4, b"free ride"), backward(1, 4, false, b"again")];
        assert_eq!(replay(&other), [Some(Difference::Output); 2]);
    }

    #[test]
    fn who_commits_to_what_cannot_be_finite_has_not_done_the_work() {
        let mut validator = engine();
        let huge = vec![f32::MAX; values().len()];
        let entry = backward(0, 4, true, b"made up");
        assert_eq!(
            redo(&mut validator, &entry, &input(), Some(&huge), false).unwrap(),
            Some(Difference::NotFinite)
        );
        let upload = UploadRecord {
            cells: Vec::new(),
            seals: Vec::new(),
            optimizer_steps: 1,
            learning_rate: 0.01,
            kept: None,
        };
        assert_eq!(
            compare_upload(&mut validator, &upload).unwrap(),
            Some(Difference::NotFinite)
        );
    }
}
