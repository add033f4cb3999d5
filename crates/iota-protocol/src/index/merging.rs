//! What is to be done about the cells of a stage that merges.

use std::collections::{BTreeMap, BTreeSet};

use super::{Index, take};
use crate::event::Phase;
use crate::id::{CellIndex, Session, StageIndex};
use crate::merge::{Uploaders, Wants};
use crate::state::State;

/// What the index knows of a stage's merge. Cells are filed while they are being merged.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct MergeIndex {
    uploaders: Uploaders,
    /// Uploads of the banned that are not left out yet.
    pub(crate) banned: BTreeSet<Session>,
    filed: BTreeMap<CellIndex, FiledCell>,
    /// Cells that have come to an end, whatever the time.
    pub(crate) ripe: BTreeSet<CellIndex>,
    /// Cells that want an owner and do not wait for those who were planned.
    pub(crate) open: BTreeSet<CellIndex>,
    /// By planned owner, the cells that wait for it.
    awaited: BTreeMap<Session, BTreeSet<CellIndex>>,
    /// Settled cells that are on offer to be fetched.
    pub(crate) on_offer: usize,
}

/// Where the index has a cell that is not settled.
#[derive(Debug, Clone, PartialEq)]
struct FiledCell {
    ripe: bool,
    wants: Wants,
}

impl MergeIndex {
    pub(super) fn of(state: &State, stage: StageIndex) -> Self {
        if !matches!(state.phase, Phase::Uploading | Phase::Merging) {
            return Self::default();
        }
        let merge = state.merge_of(stage);
        let included = merge.uploads.iter().filter(|(_, upload)| !upload.excluded);
        let banned = included
            .map(|(session, _)| *session)
            .filter(|session| state.sessions.is_banned(session.peer));
        let mut index = Self {
            banned: banned.collect(),
            ..Self::default()
        };
        if state.phase == Phase::Merging {
            index.on_offer = merge.on_offer();
            index.uploaders = state.uploaders(merge);
            for cell in (0..).take(merge.cells.len()).map(CellIndex::new) {
                index.file(state, stage, cell);
            }
        }
        index
    }

    /// Whose uploads are merged, and who of them may merge.
    pub(crate) const fn uploaders(&self) -> &Uploaders {
        &self.uploaders
    }

    /// The first cell that is not settled.
    pub(crate) fn unsettled(&self) -> Option<&CellIndex> {
        self.filed.first_key_value().map(|(cell, _)| cell)
    }

    /// The first cell that waits for this owner.
    pub(crate) fn first_of(&self, owner: Session) -> Option<CellIndex> {
        self.awaited.get(&owner)?.first().copied()
    }

    /// Files a cell anew.
    fn file(&mut self, state: &State, stage: StageIndex, index: CellIndex) {
        let merge = state.merge_of(stage);
        let cell = merge.cells.get(index.get() as usize);
        let unsettled = cell.filter(|cell| cell.settled.is_none());
        let now = unsettled.map(|cell| FiledCell {
            ripe: state.ending(cell, &self.uploaders, false).is_some(),
            wants: cell.wants(&self.uploaders, merge.relaxed),
        });
        if let Some(before) = self.filed.remove(&index) {
            self.ripe.remove(&index);
            self.open.remove(&index);
            for owner in before.awaited() {
                take(&mut self.awaited, owner, &index);
            }
        }
        let Some(now) = now else {
            return;
        };
        if now.ripe {
            self.ripe.insert(index);
        }
        if now.wants == Wants::Anybody {
            self.open.insert(index);
        }
        for owner in now.awaited() {
            self.awaited.entry(*owner).or_default().insert(index);
        }
        self.filed.insert(index, now);
    }

    /// The planned owners of a cell that it waits for.
    fn awaited_at(&self, cell: CellIndex) -> impl Iterator<Item = Session> + '_ {
        let filed = self.filed.get(&cell).into_iter();
        filed.flat_map(|filed| filed.awaited().iter().copied())
    }
}

impl FiledCell {
    fn awaited(&self) -> &[Session] {
        match &self.wants {
            Wants::Planned(owners) => owners,
            Wants::Nobody | Wants::Anybody => &[],
        }
    }
}

impl Index {
    /// What is to be done about the cells of a stage.
    pub(crate) fn merge(&self, stage: StageIndex) -> &MergeIndex {
        &self.merges[usize::from(stage.get())]
    }

    /// Notes how many settled cells are on offer.
    pub(super) fn note_offer(&mut self, stage: StageIndex, on_offer: usize) {
        self.merges[usize::from(stage.get())].on_offer = on_offer;
    }

    /// Notes whether an owner has room and cells that wait for it.
    pub(super) fn note_owner(&mut self, stage: StageIndex, owner: Session) {
        let has_room = || self.filed.get(&owner).is_some_and(|filed| filed.has_room());
        if self.merge(stage).awaited.contains_key(&owner) && has_room() {
            self.to_merge.insert((stage, owner));
        } else {
            self.to_merge.remove(&(stage, owner));
        }
    }

    /// Notes it of all owners of a stage.
    pub(super) fn note_owners(&mut self, stage: StageIndex) {
        let noted = self.to_merge.iter().filter(|(of, _)| *of == stage);
        let noted = noted.map(|(_, owner)| *owner);
        let owners: BTreeSet<Session> = noted
            .chain(self.merge(stage).awaited.keys().copied())
            .collect();
        for owner in owners {
            self.note_owner(stage, owner);
        }
    }
}

impl State {
    /// Files a cell anew.
    pub(crate) fn refile_cell(&mut self, stage: StageIndex, cell: CellIndex) {
        if self.phase != Phase::Merging {
            return;
        }
        let place = usize::from(stage.get());
        let mut merge = std::mem::take(&mut self.index.merges[place]);
        let mut owners: BTreeSet<Session> = merge.awaited_at(cell).collect();
        merge.file(self, stage, cell);
        owners.extend(merge.awaited_at(cell));
        self.index.merges[place] = merge;
        for owner in owners {
            self.index.note_owner(stage, owner);
        }
    }

    /// Files all cells of a stage anew: who may merge has changed.
    pub(super) fn refile_merge(&mut self, stage: StageIndex) {
        self.index.merges[usize::from(stage.get())] = MergeIndex::of(self, stage);
        self.index.note_owners(stage);
    }

    /// Files all cells of all stages anew.
    pub(super) fn refile_merges(&mut self) {
        for stage in self.stages() {
            self.refile_merge(stage);
        }
    }
}
