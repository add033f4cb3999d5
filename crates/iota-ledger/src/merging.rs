//! The merge of one stage in one epoch: who uploaded, what was merged from what, and how much of it a checkpoint holds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use iota_protocol::cells::Cells;
use iota_protocol::checkpoint::covers;
use iota_protocol::event::{CellResult, ExclusionReason};
use iota_protocol::work::{
    CellUpload, Checkpoint, MergeInput, ObjectName, ObjectRef, Seal, SegmentSource,
};
use iota_protocol::{CellIndex, Epoch, LeaseId, Session, StageIndex};

use crate::Discrepancy;

/// What a session uploaded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Upload {
    pub(crate) stint: usize,
    /// Backward passes behind it, at least 1.
    pub(crate) weight: u64,
    pub(crate) objects: BTreeMap<CellIndex, ObjectRef>,
    pub(crate) excluded: Option<ExclusionReason>,
}

impl Upload {
    pub(crate) fn new(stint: usize, backwards: u64, cells: &[CellUpload], seals: &[Seal]) -> Self {
        let object = |(cell, seal): (&CellUpload, &Seal)| {
            let name = cell.output;
            (cell.cell, ObjectRef { name, seal: *seal })
        };
        Self {
            stint,
            weight: backwards.max(1),
            objects: cells.iter().zip(seals).map(object).collect(),
            excluded: None,
        }
    }
}

/// What an owner made of a cell.
#[derive(Debug, Clone, PartialEq)]
struct Made {
    cell: CellIndex,
    range: Range<u64>,
    seal: Seal,
    /// Whether it is in the store, or its owner only said what it would be.
    stored: bool,
    /// Whose copies are in it.
    from: Vec<Session>,
}

/// The merge of one stage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StageMerge {
    pub(crate) stage: StageIndex,
    /// The epoch that is merged.
    pub(crate) epoch: Epoch,
    pub(crate) roster: BTreeSet<Session>,
    pub(crate) uploads: BTreeMap<Session, Upload>,
    made: BTreeMap<ObjectName, Made>,
    /// Cells of which an owner said that they have no finite merge.
    unmergeable: BTreeSet<CellIndex>,
    pub(crate) settled: BTreeMap<CellIndex, (CellResult, Option<ObjectRef>)>,
    /// Elements of the checkpoint that follows which each session's copy went into; none before there is one.
    pub(crate) elements: Option<BTreeMap<Session, u64>>,
}

impl StageMerge {
    pub(crate) fn new(stage: StageIndex, epoch: Epoch, roster: &[Session]) -> Self {
        Self {
            stage,
            epoch,
            roster: roster.iter().copied().collect(),
            uploads: BTreeMap::new(),
            made: BTreeMap::new(),
            unmergeable: BTreeSet::new(),
            settled: BTreeMap::new(),
            elements: None,
        }
    }

    /// Cells that the stage is cut into.
    pub(crate) fn cells(&self, rule: Cells, stage_elements: u64) -> u64 {
        let cells = match (self.roster.len() as u64, rule) {
            (0, _) => 0,
            (1, Cells::Butterfly) => 1,
            (miners, Cells::Butterfly) => miners * (miners - 1) / 2,
            (_, Cells::Grid { cells, .. }) => cells.into(),
        };
        cells.min(stage_elements)
    }

    /// Leaves out an upload: what was merged so far contains it and is void.
    pub(crate) fn exclude(&mut self, session: Session, why: ExclusionReason) {
        if let Some(upload) = self.uploads.get_mut(&session) {
            upload.excluded = Some(why);
        }
        self.made.clear();
        self.unmergeable.clear();
        self.settled.clear();
    }

    /// Takes in what an owner made of a cell, and compares what it was made of with what was uploaded.
    pub(crate) fn merge(
        &mut self,
        lease: LeaseId,
        (cell, range): (CellIndex, &Range<u64>),
        inputs: &[MergeInput],
        (merged, stored): (ObjectRef, bool),
        quarantined: &[Session],
    ) -> Vec<Discrepancy> {
        let (stage, mut found) = (self.stage, Vec::new());
        for input in inputs {
            let session = input.session;
            let upload = self.uploads.get(&session);
            let upload = upload.filter(|upload| {
                upload.excluded.is_none() && upload.objects.get(&cell) == Some(&input.object)
            });
            match upload {
                None => found.push(Discrepancy::InputNotUploaded {
                    lease,
                    stage,
                    cell,
                    session,
                }),
                Some(upload) if upload.weight != input.weight => {
                    found.push(Discrepancy::AnotherWeight {
                        lease,
                        stage,
                        session,
                        said: input.weight,
                        did: upload.weight,
                    });
                }
                Some(_) => {}
            }
        }
        let included = self.uploads.iter().filter(|(_, u)| u.excluded.is_none());
        let left_out = included
            .filter(|(session, _)| inputs.iter().all(|input| input.session != **session))
            .map(|(session, _)| Discrepancy::InputLeftOut {
                lease,
                stage,
                cell,
                session: *session,
            });
        found.extend(left_out);
        let sessions = inputs.iter().map(|input| input.session);
        let from = sessions.filter(|session| !quarantined.contains(session));
        self.made.insert(
            merged.name,
            Made {
                cell,
                range: range.clone(),
                seal: merged.seal,
                stored,
                from: from.collect(),
            },
        );
        found
    }

    /// Notes that an owner found nothing finite in a cell.
    pub(crate) fn find_unmergeable(&mut self, cell: CellIndex) {
        self.unmergeable.insert(cell);
    }

    /// Settles a cell: with what an owner made of it, or with the old values.
    pub(crate) fn settle(
        &mut self,
        cell: CellIndex,
        result: CellResult,
        merged: Option<ObjectRef>,
    ) -> Option<Discrepancy> {
        self.settled.insert(cell, (result, merged));
        let made = merged.map(|object| self.made(&object));
        let known = match (result, made) {
            (CellResult::CarriedForward, made) => made.is_none(),
            (CellResult::Unmergeable { .. }, made) => {
                made.is_none() && self.unmergeable.contains(&cell)
            }
            (_, made) => made.is_some_and(|made| made.is_some_and(|made| made.cell == cell)),
        };
        (!known).then_some(Discrepancy::NobodyMerged {
            epoch: self.epoch,
            stage: self.stage,
            cell,
        })
    }

    /// Compares a checkpoint with what was settled, and counts what of each session's work is in it. `before` are the
    /// checkpoints that it may have older values from.
    pub(crate) fn commit(
        &mut self,
        checkpoint: &Checkpoint,
        before: &[&Checkpoint],
        (rule, stage_elements): (Cells, u64),
        repaired: bool,
    ) -> Vec<Discrepancy> {
        let (stage, epoch) = (self.stage, checkpoint.epoch);
        let mut found = Vec::new();
        if !covers(checkpoint, stage_elements) {
            found.push(Discrepancy::CheckpointHasGaps { epoch, stage });
        }
        let is_older =
            |object: &ObjectRef| objects(before.iter().copied()).any(|older| older == *object);
        let mut elements = BTreeMap::new();
        for segment in &checkpoint.segments {
            let SegmentSource::Merged { object, .. } = &segment.source else {
                continue;
            };
            match self.made(object) {
                Some(made) if made.range == segment.range => {
                    for session in &made.from {
                        *elements.entry(*session).or_default() += made.range.end - made.range.start;
                    }
                }
                Some(_) => found.push(Discrepancy::FromNowhere { epoch, stage }),
                None if is_older(object) => {}
                None => found.push(Discrepancy::FromNowhere { epoch, stage }),
            }
        }
        if !repaired {
            let cells = self.cells(rule, stage_elements);
            let cells =
                (0..cells).map(|cell| CellIndex::new(u32::try_from(cell).unwrap_or(u32::MAX)));
            let missing = cells.filter(|cell| match self.settled.get(cell) {
                None => true,
                Some((_, merged)) => {
                    merged.is_some_and(|merged| objects([checkpoint]).all(|named| named != merged))
                }
            });
            found.extend(missing.map(|cell| Discrepancy::CellNotInCheckpoint {
                epoch,
                stage,
                cell,
            }));
        }
        self.elements = Some(elements);
        found
    }

    /// Forgets what only a repair of its checkpoint could ask for.
    pub(crate) fn close(&mut self) {
        self.made.clear();
        for upload in self.uploads.values_mut() {
            upload.objects.clear();
        }
    }

    /// Cells that are settled with a merged object, and those that their owners agree on.
    pub(crate) fn covered_and_agreed(&self) -> (u64, u64) {
        let settled = self.settled.values();
        let covered = settled.clone().filter(|(_, merged)| merged.is_some());
        let agreed = settled.filter(|(result, _)| *result == CellResult::Agreed);
        (covered.count() as u64, agreed.count() as u64)
    }

    fn made(&self, object: &ObjectRef) -> Option<&Made> {
        self.made
            .get(&object.name)
            .filter(|made| made.seal == object.seal && made.stored)
    }
}

/// The objects that checkpoints name.
pub(crate) fn objects<'a>(
    checkpoints: impl IntoIterator<Item = &'a Checkpoint>,
) -> impl Iterator<Item = ObjectRef> {
    let segments = checkpoints.into_iter().flat_map(|one| &one.segments);
    segments.filter_map(|segment| match &segment.source {
        SegmentSource::Genesis => None,
        SegmentSource::Merged { object, .. } => Some(*object),
    })
}
