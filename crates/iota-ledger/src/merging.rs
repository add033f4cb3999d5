//! The merge of one stage in one epoch: who uploaded, what was merged from what, and how much of it a checkpoint holds.

mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use iota_protocol::cells::Cells;
use iota_protocol::event::{CellResult, ExclusionReason};
use iota_protocol::work::{
    CellUpload, Lease, MergeInput, ObjectName, ObjectRef, Outcome, Seal, Work,
};
use iota_protocol::{CellIndex, Epoch, LeaseId, PeerId, RunSettings, Session, StageIndex};

use crate::Discrepancy;
use crate::holdings::{Origin, share};
use crate::settling::objection;

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
pub(crate) struct Made {
    pub(crate) owner: Session,
    pub(crate) output: ObjectName,
    range: Range<u64>,
    /// None if it has nothing finite.
    pub(crate) seal: Option<Seal>,
    /// Whether it is in the store, or its owner only said what it would be.
    pub(crate) stored: bool,
    /// What the merge changed, if that was asked for.
    delta: Option<ObjectRef>,
    /// Whose copies it left out.
    quarantined: Vec<Session>,
    /// Whose copies are in it.
    pub(crate) from: Vec<Session>,
}

impl Made {
    /// Whether two owners came to the same.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        let changed = |made: &Self| made.delta.map(|delta| delta.seal);
        self.seal == other.seal
            && changed(self) == changed(other)
            && self.quarantined == other.quarantined
    }

    /// What one owner made of two copies.
    #[cfg(test)]
    pub(crate) fn by(owner: Session, content: &str, copies: &[Session]) -> Self {
        use iota_protocol::testing::seal;
        use iota_protocol::work::Purpose;
        use iota_protocol::{Digest, ObjectId};

        let mut id = [0; 16];
        id.copy_from_slice(&Digest::of(owner.to_string().as_bytes()).as_bytes()[..16]);
        Self {
            owner,
            output: ObjectName {
                purpose: Purpose::Merged,
                epoch: Epoch::new(0),
                id: ObjectId::from_bytes(id),
            },
            range: 0..4,
            seal: Some(seal(content, 8)),
            stored: true,
            delta: None,
            quarantined: Vec::new(),
            from: copies.to_vec(),
        }
    }

    /// Where the elements come from that this object of it holds.
    fn origin(&self, object: ObjectRef) -> Origin {
        Origin::Cell {
            object,
            begins: self.range.start,
            elements: self.range.end.wrapping_sub(self.range.start),
            delta: self.delta,
        }
    }
}

/// The merge of one stage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StageMerge {
    pub(crate) stage: StageIndex,
    /// The epoch that is merged.
    pub(crate) epoch: Epoch,
    /// Elements of the stage.
    stage_elements: u64,
    pub(crate) roster: BTreeSet<Session>,
    /// Whose uploads somebody could not read.
    pub(crate) accused: BTreeSet<Session>,
    pub(crate) uploads: BTreeMap<Session, Upload>,
    /// What owners made of each cell.
    made: BTreeMap<CellIndex, Vec<Made>>,
    /// Of which cell an object is.
    cell_of: BTreeMap<ObjectName, CellIndex>,
    pub(crate) settled: BTreeMap<CellIndex, (CellResult, Option<ObjectRef>)>,
    /// Elements of the checkpoint that follows which each session's copy went into; none before there is one.
    pub(crate) elements: Option<BTreeMap<Session, u64>>,
}

impl StageMerge {
    pub(crate) fn new(
        stage: StageIndex,
        epoch: Epoch,
        stage_elements: u64,
        roster: &[Session],
    ) -> Self {
        Self {
            stage,
            epoch,
            stage_elements,
            roster: roster.iter().copied().collect(),
            accused: BTreeSet::new(),
            uploads: BTreeMap::new(),
            made: BTreeMap::new(),
            cell_of: BTreeMap::new(),
            settled: BTreeMap::new(),
            elements: None,
        }
    }

    /// Cells that the stage is cut into.
    pub(crate) fn cells(&self, rule: Cells) -> u64 {
        let cells = match (self.roster.len() as u64, rule) {
            (0, _) => 0,
            (1, Cells::Butterfly) => 1,
            (miners, Cells::Butterfly) => miners * (miners - 1) / 2,
            (_, Cells::Grid { cells, .. }) => u64::from(cells).max(1),
        };
        cells.min(self.stage_elements)
    }

    /// The range of each cell.
    fn ranges(&self, rule: Cells) -> impl Iterator<Item = (CellIndex, Range<u64>)> + use<> {
        let (cells, elements) = (self.cells(rule), self.stage_elements);
        (0..cells).map(move |cell| {
            let index = CellIndex::new(u32::try_from(cell).unwrap_or(u32::MAX));
            (index, share(elements, cells, cell))
        })
    }

    fn range(&self, rule: Cells, cell: CellIndex) -> Option<Range<u64>> {
        let (index, cells) = (u64::from(cell.get()), self.cells(rule));
        (index < cells).then(|| share(self.stage_elements, cells, index))
    }

    /// Takes in what a member of the roster uploaded.
    pub(crate) fn upload(
        &mut self,
        lease: &Lease,
        rule: Cells,
        upload: Upload,
        cells: &[CellUpload],
    ) -> Option<Discrepancy> {
        let said = cells.iter().map(|cell| (cell.cell, cell.range.clone()));
        let mut said = said.fuse();
        let mut expected = self.ranges(rule);
        let odd = loop {
            match (expected.next(), said.next()) {
                (None, None) => break None,
                (expected, said) if expected != said => break said.or(expected),
                _ => {}
            }
        };
        self.uploads.insert(lease.session, upload);
        odd.map(|(cell, _)| Discrepancy::AnotherRange {
            lease: lease.id,
            stage: self.stage,
            cell,
        })
    }

    /// Leaves out an upload: what was merged so far contains it and is void.
    pub(crate) fn exclude(&mut self, session: Session, why: ExclusionReason) {
        if let Some(upload) = self.uploads.get_mut(&session) {
            upload.excluded = Some(why);
        }
        self.made.clear();
        self.cell_of.clear();
        self.settled.clear();
    }

    /// Takes in what an owner made of a cell, and compares what it was made of with what was uploaded.
    pub(crate) fn merge(
        &mut self,
        settings: &RunSettings,
        lease: &Lease,
        outcome: &Outcome,
    ) -> Vec<Discrepancy> {
        let (
            Work::Merge {
                cell,
                range,
                inputs,
                output,
                delta,
                stores,
                ..
            },
            Some((merged, quarantined, changed)),
        ) = (&lease.work, said_of_merge(outcome))
        else {
            return Vec::new();
        };
        let (stage, cell, owner) = (self.stage, *cell, lease.session);
        let mut found = self.compare_inputs(lease.id, cell, inputs);
        if self.range(settings.merging.cells, cell).as_ref() != Some(range) {
            let lease = lease.id;
            found.push(Discrepancy::AnotherRange { lease, stage, cell });
        }
        if !self.uploads.contains_key(&owner) && !settings.validators.contains(&owner.peer) {
            let session = owner;
            found.push(Discrepancy::MergedByOutsider {
                session,
                stage,
                cell,
            });
        }
        let sessions = inputs.iter().map(|input| input.session);
        let from = sessions.filter(|session| !quarantined.contains(session));
        let delta = delta.zip(changed);
        self.cell_of.insert(*output, cell);
        // Whoever is asked for the objects of what it said before says it again.
        let results = self.made.entry(cell).or_default();
        results.retain(|made| made.owner != owner);
        results.push(Made {
            owner,
            output: *output,
            range: range.clone(),
            seal: merged,
            stored: *stores,
            delta: delta.map(|(name, seal)| ObjectRef { name, seal }),
            quarantined: quarantined.to_vec(),
            from: from.collect(),
        });
        found
    }

    fn compare_inputs(
        &self,
        lease: LeaseId,
        cell: CellIndex,
        inputs: &[MergeInput],
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
        found
    }

    /// Settles a cell, with what an owner made of it or with the old values, and compares with what its owners made.
    pub(crate) fn settle(
        &mut self,
        validators: &[PeerId],
        cell: CellIndex,
        result: CellResult,
        merged: Option<ObjectRef>,
    ) -> Option<Discrepancy> {
        let (epoch, stage) = (self.epoch, self.stage);
        let is_kept = matches!(
            result,
            CellResult::CarriedForward | CellResult::Unmergeable { .. }
        );
        let known = merged.is_none_or(|object| {
            let of_cell = self.cell_of.get(&object.name) == Some(&cell);
            of_cell && self.made(&object).is_some() && !is_kept
        });
        let mut results: Vec<&Made> = self.results(cell).collect();
        results.sort_unstable_by_key(|made| made.owner);
        let name = merged.map(|object| object.name);
        let objection = objection(&results, validators, (result, name));
        self.settled.insert(cell, (result, merged));
        if !known {
            return Some(Discrepancy::NobodyMerged { epoch, stage, cell });
        }
        objection.map(|what| Discrepancy::SettledOtherwise {
            epoch,
            stage,
            cell,
            what,
        })
    }

    /// What its owners made of a cell.
    fn results(&self, cell: CellIndex) -> impl Iterator<Item = &Made> {
        self.made.get(&cell).into_iter().flatten()
    }

    /// Whether an owner of a cell found somebody's copy not finite.
    pub(crate) fn is_quarantined(&self, cell: CellIndex, session: Session) -> bool {
        self.results(cell)
            .any(|made| made.quarantined.contains(&session))
    }

    /// Whether a peer made something else of a cell than what it was settled with.
    pub(crate) fn dissented(&self, cell: CellIndex, peer: PeerId) -> bool {
        let settled = self.settled.get(&cell).and_then(|(_, merged)| *merged);
        let settled = settled.and_then(|object| self.made(&object));
        let mut own = self.results(cell).filter(|made| made.owner.peer == peer);
        own.any(|own| match settled {
            Some(settled) => !own.agrees(settled),
            // Those who decided left out all copies: the old values stay.
            None => self.results(cell).any(|other| !own.agrees(other)),
        })
    }

    /// What a banned peer made of cells that are not settled counts no more.
    pub(crate) fn forget_results_of(&mut self, peer: PeerId) {
        let open = self.made.iter_mut();
        let open = open.filter(|(cell, _)| !self.settled.contains_key(cell));
        open.for_each(|(_, results)| results.retain(|made| made.owner.peer != peer));
    }

    /// Those who were outvoted.
    pub(crate) fn liars(&self) -> impl Iterator<Item = (CellIndex, Session)> {
        self.settled
            .iter()
            .filter_map(|(cell, (result, _))| match result {
                CellResult::Arbitrated { liar } => Some((*cell, *liar)),
                _ => None,
            })
    }

    /// Forgets what only a repair of its checkpoint could ask for.
    pub(crate) fn close(&mut self) {
        self.made.clear();
        self.cell_of.clear();
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
        let mut results = self.results(*self.cell_of.get(&object.name)?);
        results.find(|made| {
            made.stored && made.output == object.name && made.seal == Some(object.seal)
        })
    }
}

/// What was merged, whose copies were left out, and what changed; none if this is not about a merge.
fn said_of_merge(outcome: &Outcome) -> Option<(Option<Seal>, &[Session], Option<Seal>)> {
    match outcome {
        Outcome::Merge {
            merged,
            quarantined,
            delta,
        } => Some((Some(*merged), quarantined, *delta)),
        Outcome::Unmergeable { quarantined } => Some((None, quarantined, None)),
        _ => None,
    }
}
