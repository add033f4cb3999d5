//! The merge of each stage, from the roster to the last settled cell.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Merged;
use crate::event::CellResult;
use crate::id::{CellIndex, Digest, Epoch, LeaseId, Session, StageIndex};
use crate::work::{MergeInput, ObjectName, ObjectRef, UploadRecord};

/// What a member of the roster uploaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Upload {
    pub(crate) record: UploadRecord,
    /// Backward passes behind it, at least 1.
    pub(crate) weight: u64,
    /// Left out of the merge.
    pub(crate) excluded: bool,
}

/// What an owner made of a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MergedCell {
    pub(crate) object: ObjectRef,
    /// What the merge changed.
    #[serde(default)]
    pub(crate) delta: Option<ObjectRef>,
    pub(crate) quarantined: Vec<Session>,
}

impl MergedCell {
    /// Whether both owners came to the same bits.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        let delta = |cell: &Self| cell.delta.map(|delta| delta.seal);
        self.object.seal == other.object.seal
            && delta(self) == delta(other)
            && self.quarantined == other.quarantined
    }
}

/// What an owner is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "slot")]
pub(crate) enum Slot {
    Leased { lease: LeaseId },
    Done { merged: MergedCell },
}

/// One cell on its way to the next checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) range: Range<u64>,
    /// Who is to merge it, if they can.
    pub(crate) planned: Vec<Session>,
    /// Who is at it or has done it.
    #[serde(with = "crate::pairs")]
    pub(crate) slots: BTreeMap<Session, Slot>,
    /// Who failed it, and how often.
    #[serde(with = "crate::pairs")]
    pub(crate) failures: BTreeMap<Session, u32>,
    pub(crate) settled: Option<Settled>,
}

/// How a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settled {
    pub(crate) result: CellResult,
    pub(crate) merged: Option<ObjectRef>,
}

impl Cell {
    /// The merged cell, if it is settled and there is one.
    pub(crate) fn merged(&self) -> Option<Merged> {
        let object = self.settled?.merged?;
        let mut results = self.results().map(|(_, result)| result);
        let result = results.find(|result| result.object == object);
        let delta = result.and_then(|result| result.delta);
        Some(Merged { object, delta })
    }

    /// What was handed in, in session order.
    pub(crate) fn results(&self) -> impl Iterator<Item = (Session, &MergedCell)> {
        self.slots.iter().filter_map(|(session, slot)| match slot {
            Slot::Done { merged } => Some((*session, merged)),
            Slot::Leased { .. } => None,
        })
    }
}

/// The merge of one stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageMerge {
    pub(crate) roster: BTreeSet<Session>,
    #[serde(with = "crate::pairs")]
    pub(crate) uploads: BTreeMap<Session, Upload>,
    pub(crate) cells: Vec<Cell>,
    /// Who could not read whose upload.
    #[serde(with = "crate::pairs")]
    pub(crate) accusations: BTreeMap<Session, BTreeSet<Session>>,
    /// Whose copies held values that are not finite.
    pub(crate) quarantined: BTreeSet<Session>,
    /// Owners that have not begun are no longer waited for.
    pub(crate) relaxed: bool,
}

impl StageMerge {
    /// The copies of a cell that go into its mean, in session order (M3).
    pub(crate) fn inputs(&self, cell: CellIndex) -> Vec<MergeInput> {
        let index = cell.get() as usize;
        let included = self.uploads.iter().filter(|(_, upload)| !upload.excluded);
        included
            .map(|(session, upload)| MergeInput {
                session: *session,
                object: ObjectRef {
                    name: upload.record.cells[index].output,
                    seal: upload.record.seals[index],
                },
                weight: upload.weight,
            })
            .collect()
    }

    /// Whose upload an object is.
    pub(crate) fn author(&self, object: ObjectName) -> Option<(Session, ObjectRef)> {
        self.uploads.iter().find_map(|(session, upload)| {
            let index = upload
                .record
                .cells
                .iter()
                .position(|cell| cell.output == object)?;
            Some((
                *session,
                ObjectRef {
                    name: object,
                    seal: upload.record.seals[index],
                },
            ))
        })
    }

    /// Who merged a cell into this object.
    pub(crate) fn merger(&self, object: ObjectName) -> Option<Session> {
        let results = self.cells.iter().flat_map(Cell::results);
        let mut results = results.filter(|(_, merged)| merged.object.name == object);
        results.next().map(|(session, _)| session)
    }

    /// Other objects that hold the same bits as this merged cell.
    pub(crate) fn copies(&self, object: ObjectName) -> impl Iterator<Item = ObjectRef> {
        let results = |cell: &Cell| -> Vec<ObjectRef> {
            cell.results().map(|(_, merged)| merged.object).collect()
        };
        let of_cell = self.cells.iter().map(results).find_map(|objects| {
            let lost = objects.iter().find(|other| other.name == object)?.seal;
            Some((objects, lost))
        });
        of_cell.into_iter().flat_map(move |(objects, lost)| {
            let same = move |other: &ObjectRef| other.seal == lost && other.name != object;
            objects.into_iter().filter(same)
        })
    }

    pub(crate) fn cell_mut(&mut self, cell: CellIndex) -> Option<&mut Cell> {
        self.cells.get_mut(cell.get() as usize)
    }
}

/// How the merge of one stage went, for the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeRecord {
    /// The epoch that starts from it; 1 for a run's first merge.
    pub epoch: Epoch,
    /// Of which stage.
    pub stage: StageIndex,
    /// With which, the roster and the run's settings [`plan`](crate::cells::plan) gives the cells and their owners again.
    pub seed: Digest,
    /// Cells that the stage was cut into.
    pub cells: u64,
    /// Cells with a merged result; the others keep their old values.
    pub covered: u64,
    /// Cells whose owners came to the same bits.
    pub agreed: u64,
    /// Bytes that miners wrote: uploads and merged cells.
    pub bytes_up: u64,
    /// Bytes that miners read: uploads to merge and merged cells to install.
    pub bytes_down: u64,
}
