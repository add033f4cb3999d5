//! What a validator does with a lease.

mod compare;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use iota_node::blocking;
use iota_peer::{
    Base, CellPlanes, Engine, Error, Gate, OperationInput, Start, Transfer, Undone, Worker,
    fetch_cells, merge,
};
use iota_protocol::StageIndex;
use iota_protocol::work::{
    Checkpoint, Difference, Failure, Lease, LogEntry, ObjectName, ObjectRef, Outcome, Purpose,
    Segment, SegmentSource, UploadRecord, Verdict, Work,
};
use iota_run::Description;
use iota_store::GrantClient;
use iota_wire::{Joined, LeasedWork};
use tokio::sync::watch;
use tracing::info;

use self::compare::{Fetched, compare_learned, finish, redo};

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

/// Merged cells by the objects that hold them.
type Cells = BTreeMap<ObjectName, CellPlanes>;

/// What a miner says of its epoch, as [`Work::Replay`] has it.
#[derive(Clone, Copy)]
struct Claim<'a> {
    checkpoint: &'a Checkpoint,
    kept: Option<&'a ObjectRef>,
    entries: &'a [LogEntry],
    ahead: u32,
    upload: Option<&'a UploadRecord>,
}

impl ValidatorWorker {
    pub(crate) fn new(
        description: Arc<Description>,
        store: GrantClient,
        gate: Gate,
        threads: usize,
    ) -> Result<Self, Error> {
        let transfer = Transfer::new(Arc::clone(&description), store)?;
        Ok(Self {
            description,
            transfer,
            gate,
            threads,
        })
    }

    /// An engine where the subject began, and what of its checkpoint it installed only after it had trained on for a while.
    /// A difference if what it kept is not there, or nothing of the kind: it has sealed that, and says that it handed it over,
    /// so this is its own doing, and to give the audit back would let it get away.
    async fn begin(
        &self,
        claim: Claim<'_>,
        leased: &LeasedWork,
    ) -> Result<Result<(Engine, Option<Cells>), Difference>, Failure> {
        let kept = match claim.kept {
            Some(object) => match self.transfer.object(object, leased).await {
                Ok(bytes) => Some(bytes),
                Err(Failure::BadInput { difference, .. }) => return Ok(Err(difference)),
                Err(failure) => return Err(failure),
            },
            None => None,
        };
        let went_ahead = kept.is_some() && self.description.merge.overlaps;
        // Of who trained on, what is redone may end before the installation.
        let is_all_ahead = claim.ahead as usize >= claim.entries.len();
        let installs = !went_ahead || claim.upload.is_some() || !is_all_ahead;
        let cells = if installs {
            fetch_cells(&self.transfer, &claim.checkpoint.segments, leased).await?
        } else {
            Cells::new()
        };
        let (description, threads) = (Arc::clone(&self.description), self.threads);
        let checkpoint = claim.checkpoint.clone();
        self.compute(move || {
            let mut engine = Engine::new(Arc::clone(&description), checkpoint.stage, threads)?;
            if !description.comparison.is_bits() {
                engine = engine.with_anchor();
            }
            let begun = match kept.as_deref() {
                Some(kept) if went_ahead => engine.go_ahead_from(kept),
                kept => {
                    let begins = kept.map_or(Start::Anew, Start::Kept);
                    engine.install(&checkpoint, &cells, begins).map(drop)
                }
            };
            match begun {
                Ok(()) => Ok(Ok((engine, (installs && went_ahead).then_some(cells)))),
                Err(Error::Kept) => Ok(Err(Difference::Malformed)),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn replay(
        &self,
        claim: Claim<'_>,
        leased: &LeasedWork,
        abandoned: &watch::Receiver<bool>,
    ) -> Result<Verdict, Failure> {
        let Claim {
            checkpoint,
            entries,
            upload,
            ..
        } = claim;
        let stage = checkpoint.stage;
        let (mut engine, mut to_install) = match self.begin(claim, leased).await? {
            Ok(begun) => begun,
            Err(difference) => {
                return Ok(Verdict::Differs {
                    ordinal: None,
                    difference,
                });
            }
        };
        let reused = reused_forwards(entries);
        let mut operations: u32 = 0;
        let mut fetched = futures::stream::iter(entries.iter().cloned())
            .map(|entry| self.fetch(entry, stage, leased))
            .buffered(FETCHED_AHEAD);
        while let Some(fetched) = fetched.try_next().await? {
            if *abandoned.borrow() {
                return Err(Failure::Leaving);
            }
            if self.is_beyond(&engine) {
                return Ok(Verdict::Agrees { operations });
            }
            if operations == claim.ahead
                && let Some(cells) = to_install.take()
            {
                engine = self.go_on(engine, checkpoint, cells).await?;
            }
            let ordinal = fetched.entry.ordinal;
            let keep = reused.contains(&ordinal);
            let description = Arc::clone(&self.description);
            let difference;
            (engine, difference) = self
                .compute(move || {
                    let difference = redo(&description, &mut engine, &fetched, keep)?;
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
        if let Some(cells) = to_install {
            engine = self.go_on(engine, checkpoint, cells).await?;
        }
        if let Some(upload) = upload
            && let Some(difference) = self.compare_upload(engine, upload, leased).await?
        {
            return Ok(Verdict::Differs {
                ordinal: None,
                difference,
            });
        }
        Ok(Verdict::Agrees { operations })
    }

    /// Has the engine install what its miner installed after it had trained on for a while.
    async fn go_on(
        &self,
        mut engine: Engine,
        checkpoint: &Checkpoint,
        cells: Cells,
    ) -> Result<Engine, Failure> {
        let checkpoint = checkpoint.clone();
        self.compute(move || {
            engine.install(&checkpoint, &cells, Start::GoesOn)?;
            Ok(engine)
        })
        .await
    }

    /// Says how the end of a replayed training differs from what the miner uploaded, if it does.
    async fn compare_upload(
        &self,
        mut engine: Engine,
        upload: &UploadRecord,
        leased: &LeasedWork,
    ) -> Result<Option<Difference>, Failure> {
        let record = upload.clone();
        let difference;
        (engine, difference) = self
            .compute(move || {
                let difference = finish(&mut engine, &record)?;
                Ok((engine, difference))
            })
            .await?;
        if difference.is_some() || self.is_beyond(&engine) {
            return Ok(difference);
        }
        let cells = upload.cells.iter().zip(&upload.seals);
        let cells = cells.map(|(cell, seal)| (Some(cell.range.clone()), *seal, Some(cell.output)));
        let kept = upload.keeps.map(|seal| (None, seal, upload.keeps_at));
        for (range, seal, name) in cells.chain(kept) {
            let bytes = match name {
                _ if !self.compares_values() => None,
                // Values can be compared only with what is there.
                None => continue,
                Some(name) => match self
                    .transfer
                    .object(&ObjectRef { name, seal }, leased)
                    .await
                {
                    Ok(bytes) => Some(bytes),
                    Err(Failure::BadInput { difference, .. }) => return Ok(Some(difference)),
                    Err(failure) => return Err(failure),
                },
            };
            let description = Arc::clone(&self.description);
            let difference;
            (engine, difference) = self
                .compute(move || {
                    let said = (seal.digest, bytes.as_deref());
                    let difference = compare_learned(&description, &mut engine, range, said)?;
                    Ok((engine, difference))
                })
                .await?;
            if difference.is_some() {
                return Ok(difference);
            }
        }
        Ok(None)
    }

    /// Whether two honest machines may be any distance apart where the engine has come to. What agreed before is then what
    /// an audit can say.
    fn is_beyond(&self, engine: &Engine) -> bool {
        let comparison = &self.description.comparison;
        comparison.is_beyond(engine.steps_since_installed())
    }

    fn compares_values(&self) -> bool {
        !self.description.comparison.is_bits()
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
        let said = match entry.output().filter(|_| self.compares_values()) {
            Some(object) => match self.transfer.activation(&object, leased).await {
                Ok(values) => Some(Ok(values)),
                // What the subject committed to has to be there, and what it said.
                Err(Failure::BadInput { difference, .. }) => Some(Err(difference)),
                Err(failure) => return Err(failure),
            },
            None => None,
        };
        Ok(Fetched {
            entry,
            input: OperationInput { tokens, activation },
            output_gradient,
            said,
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
        blocking::spawn(move || gate.pass(job))
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
                ahead,
                upload,
            } => {
                let claim = Claim {
                    checkpoint,
                    kept: kept.as_ref(),
                    entries,
                    ahead: *ahead,
                    upload: upload.as_ref(),
                };
                let verdict = self.replay(claim, &leased, &abandoned).await?;
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
            | Work::HandOver { .. }
            | Work::Fetch { .. }
            | Work::Install { .. } => {
                return Err(Failure::Internal.into());
            }
        };
        Ok(Outcome::Audit { verdict })
    }

    fn reported(&self, _: &Lease, _: bool) {}
}
