//! The merge of each stage, from the roster to the last settled cell.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Merged;
use crate::event::CellResult;
use crate::id::{CellIndex, Digest, Epoch, LeaseId, Session, StageIndex};
use crate::work::{MergeInput, ObjectName, ObjectRef, UploadRecord};

/// Parts in which a stage's merged cells are offered while others are still being merged.
const FETCHES: usize = 4;

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
    /// None: there is nothing finite to be made of it.
    pub(crate) made: Option<Made>,
    pub(crate) quarantined: Vec<Session>,
}

/// The objects that an owner made of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) object: ObjectRef,
    /// What the merge changed.
    pub(crate) delta: Option<ObjectRef>,
    /// Whether they are in the store. If not, the owner only said what they would be.
    pub(crate) stored: bool,
}

impl MergedCell {
    /// Whether both owners came to the same bits.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        let seals = |cell: &Self| {
            cell.made
                .map(|made| (made.object.seal, made.delta.map(|delta| delta.seal)))
        };
        seals(self) == seals(other) && self.quarantined == other.quarantined
    }

    /// Whether whoever needs it can have it: from the store, or because it is nothing.
    pub(crate) fn is_at_hand(&self) -> bool {
        self.made.is_none_or(|made| made.stored)
    }

    /// Objects of it that are in the store.
    pub(crate) fn stored(&self) -> Option<Made> {
        self.made.filter(|made| made.stored)
    }
}

/// What an owner is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "slot")]
pub(crate) enum Slot {
    /// Merges; whether it is to store what it gets.
    Leased { lease: LeaseId, stores: bool },
    /// Has merged.
    Done { merged: MergedCell },
    /// Has said what it came to, and is asked for the objects too because nobody else stored them.
    Storing { lease: LeaseId, merged: MergedCell },
}

impl Slot {
    /// The lease that it waits for.
    pub(crate) const fn lease(&self) -> Option<LeaseId> {
        match self {
            Self::Leased { lease, .. } | Self::Storing { lease, .. } => Some(*lease),
            Self::Done { .. } => None,
        }
    }

    /// Whether objects of this owner are in the store, or are to be.
    pub(crate) fn stores(&self) -> bool {
        match self {
            Self::Leased { stores, .. } => *stores,
            Self::Done { merged } => merged.stored().is_some(),
            Self::Storing { .. } => true,
        }
    }
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
    /// A session is asked to merge this, or to store what it has already merged.
    pub(crate) fn lease(&mut self, session: Session, lease: LeaseId, stores: bool) {
        let slot = match self.slots.remove(&session) {
            Some(Slot::Done { merged }) => Slot::Storing { lease, merged },
            _ => Slot::Leased { lease, stores },
        };
        self.slots.insert(session, slot);
    }

    /// A session did not do what it was leased. What it has said stands.
    pub(crate) fn fail(&mut self, session: Session, lease: LeaseId) {
        let slot = self.slots.get(&session);
        if slot.and_then(Slot::lease) != Some(lease) {
            return;
        }
        if let Some(Slot::Storing { merged, .. }) = self.slots.remove(&session) {
            self.slots.insert(session, Slot::Done { merged });
        }
        *self.failures.entry(session).or_default() += 1;
    }

    /// The merged cell, if it is settled and there is one.
    pub(crate) fn merged(&self) -> Option<Merged> {
        let object = self.settled?.merged?;
        let mut stored = self.stored();
        let made = stored.find(|made| made.object == object);
        let delta = made.and_then(|made| made.delta);
        Some(Merged { object, delta })
    }

    /// What was handed in, in session order.
    pub(crate) fn results(&self) -> impl Iterator<Item = (Session, &MergedCell)> {
        self.slots.iter().filter_map(|(session, slot)| match slot {
            Slot::Done { merged } | Slot::Storing { merged, .. } => Some((*session, merged)),
            Slot::Leased { .. } => None,
        })
    }

    /// What of that is in the store.
    pub(crate) fn stored(&self) -> impl Iterator<Item = Made> {
        self.results().filter_map(|(_, merged)| merged.stored())
    }
}

/// The merge of one stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageMerge {
    pub(crate) roster: BTreeSet<Session>,
    #[serde(with = "crate::pairs")]
    pub(crate) uploads: BTreeMap<Session, Upload>,
    pub(crate) cells: Vec<Cell>,
    /// Bytes that those of the roster handed over for audits.
    #[serde(default)]
    pub(crate) handed_over_bytes: u64,
    /// Who could not read whose upload.
    #[serde(with = "crate::pairs")]
    pub(crate) accusations: BTreeMap<Session, BTreeSet<Session>>,
    /// Whose copies held values that are not finite.
    pub(crate) quarantined: BTreeSet<Session>,
    /// Owners that have not begun are no longer waited for.
    pub(crate) relaxed: bool,
    /// Cells that are settled and not, and of the settled those with an object, in the order in which they were settled.
    #[serde(default)]
    pub(crate) settled: usize,
    #[serde(default)]
    pub(crate) fetchable: Vec<CellIndex>,
    /// How many of these each session has been asked to fetch.
    #[serde(default, with = "crate::pairs")]
    pub(crate) fetched: BTreeMap<Session, usize>,
}

impl StageMerge {
    /// Whether a session is on the roster and has not uploaded.
    pub(crate) fn waits_for_upload_of(&self, session: Session) -> bool {
        self.roster.contains(&session) && !self.uploads.contains_key(&session)
    }

    /// How many of the cells that can be fetched are on offer: whenever another quarter of all is, for a lease per cell
    /// and miner would be more work than it saves, and at last all.
    pub(crate) fn on_offer(&self) -> usize {
        let (all, settled) = (self.cells.len(), self.fetchable.len());
        if self.settled == all {
            settled
        } else {
            let quarters = FETCHES * settled / all.max(1);
            quarters * all / FETCHES
        }
    }

    /// Cells that a session could fetch, on from those that it was asked for.
    pub(crate) fn to_fetch(&self, session: Session) -> &[CellIndex] {
        let asked = self.fetched.get(&session).copied().unwrap_or(0);
        let on_offer = &self.fetchable[..self.on_offer()];
        on_offer.get(asked..).unwrap_or(&[])
    }

    pub(crate) fn note_settled(&mut self, cell: CellIndex, settled: Settled) {
        let Some(state) = self.cell_mut(cell) else {
            return;
        };
        state.settled = Some(settled);
        self.settled += 1;
        self.fetchable.extend(settled.merged.map(|_| cell));
    }

    /// All cells are to be merged again.
    pub(crate) fn begin_again(&mut self) {
        for cell in &mut self.cells {
            cell.slots.clear();
            cell.settled = None;
        }
        self.settled = 0;
        self.fetchable.clear();
        self.fetched.clear();
    }

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

    /// Digests of the cells that a session has merged, stored or not.
    pub(crate) fn made_by(&self, session: Session) -> BTreeSet<Digest> {
        let results = self.cells.iter().flat_map(Cell::results);
        let own = results.filter(|(owner, _)| *owner == session);
        own.filter_map(|(_, merged)| Some(merged.made?.object.seal.digest))
            .collect()
    }

    /// Who merged a cell into this object.
    pub(crate) fn merger(&self, object: ObjectName) -> Option<Session> {
        let is_it = |merged: &MergedCell| {
            let stored = merged.stored();
            stored.is_some_and(|made| made.object.name == object)
        };
        let mut results = self.cells.iter().flat_map(Cell::results);
        results.find_map(|(session, merged)| is_it(merged).then_some(session))
    }

    /// Other objects that hold the same bits as this merged cell.
    pub(crate) fn copies(&self, object: ObjectName) -> impl Iterator<Item = ObjectRef> {
        let stored =
            |cell: &Cell| -> Vec<ObjectRef> { cell.stored().map(|made| made.object).collect() };
        let of_cell = self.cells.iter().map(stored).find_map(|objects| {
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
