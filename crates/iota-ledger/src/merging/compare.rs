//! Whether a checkpoint, or a repaired one, holds what the merge of its stage leads to.

use std::collections::BTreeMap;

use iota_protocol::CellIndex;
use iota_protocol::cells::Cells;
use iota_protocol::work::{Checkpoint, ObjectName, ObjectRef};

use super::StageMerge;
use crate::Discrepancy;
use crate::holdings::{Holding, Origin, agree, holdings, within};

impl StageMerge {
    /// Compares a checkpoint, element by element, with what was settled and with what the one `before` held.
    pub(crate) fn compare(
        &self,
        checkpoint: &Checkpoint,
        before: Option<&Checkpoint>,
        rule: Cells,
    ) -> Vec<Discrepancy> {
        let (stage, epoch) = (self.stage, checkpoint.epoch);
        let said = holdings(Some(checkpoint), self.stage_elements);
        let before = holdings(before, self.stage_elements);
        let mut found = Vec::new();
        // Nobody had anything to upload: everything stays, as if it were one cell.
        let mut ranges: Vec<_> = self.ranges(rule).collect();
        let nothing = ranges.is_empty();
        if nothing {
            ranges.push((CellIndex::new(0), 0..self.stage_elements));
        }
        for (cell, range) in ranges {
            let settled = self.settled.get(&cell).map(|(_, merged)| *merged);
            let made = settled
                .flatten()
                .and_then(|object| Some((object, self.made(&object)?)));
            let expected: Vec<Holding> = match made {
                Some((object, made)) => vec![Holding {
                    range,
                    origin: made.origin(object),
                }],
                None => within(&before, &range).map(Holding::carried).collect(),
            };
            if settled.is_none() && !nothing || !agree(&expected, &said) {
                found.push(if made.is_none() && (nothing || settled.is_some()) {
                    Discrepancy::NotCarried { epoch, stage, cell }
                } else {
                    Discrepancy::CellNotInCheckpoint { epoch, stage, cell }
                });
            }
        }
        found
    }

    /// Compares a checkpoint that was repaired with the `broken` one. In the place of an object of it is another one with
    /// the same bits, or what the checkpoint `before` held there; the seed's values where that was not readable either.
    pub(crate) fn compare_repair(
        &self,
        repaired: &Checkpoint,
        lost: ObjectName,
        (broken, before): (&Checkpoint, Option<&Checkpoint>),
        is_unreadable: impl Fn(ObjectName) -> bool,
    ) -> Option<Discrepancy> {
        let (stage, epoch) = (self.stage, repaired.epoch);
        if !is_unreadable(lost) {
            return Some(Discrepancy::RepairedUnasked { epoch, stage });
        }
        let said = holdings(Some(repaired), self.stage_elements);
        let older = holdings(before, self.stage_elements);
        let fits = |broken: Holding| {
            let is_lost = |object: &&ObjectRef| object.name == lost;
            if broken.origin.object().filter(is_lost).is_none() {
                return agree(&[broken], &said);
            }
            let mut copies = within(&said, &broken.range).map(|holding| holding.origin);
            if copies.all(|origin| self.is_copy(&broken.origin, &origin)) {
                return true;
            }
            let mut expected = within(&older, &broken.range).map(|holding| {
                let mut holding = holding.carried();
                let object = holding.origin.object();
                if object.is_some_and(|object| is_unreadable(object.name)) {
                    holding.origin = Origin::Seed;
                }
                holding
            });
            expected.all(|expected| agree(&[expected], &said))
        };
        let broken = holdings(Some(broken), self.stage_elements);
        (!broken.into_iter().all(fits)).then_some(Discrepancy::FromNowhere { epoch, stage })
    }

    /// Whether this is another object of the same cell with the same bits.
    fn is_copy(&self, lost: &Origin, other: &Origin) -> bool {
        let (Origin::Cell { object: lost, .. }, Origin::Cell { object, .. }) = (lost, other) else {
            return false;
        };
        let object = *object;
        let same_cell = self.made(lost).zip(self.made(&object));
        let same_cell = same_cell.filter(|_| {
            let cell = |object: &ObjectRef| self.cell_of.get(&object.name);
            cell(lost) == cell(&object)
        });
        same_cell.is_some_and(|(lost, made)| {
            // What it changed is named as before: the bits are the same.
            let origin = match made.origin(object) {
                Origin::Cell {
                    object,
                    begins,
                    elements,
                    ..
                } => Origin::Cell {
                    object,
                    begins,
                    elements,
                    delta: lost.delta,
                },
                Origin::Seed => Origin::Seed,
            };
            lost.output != made.output && lost.seal == made.seal && origin == *other
        })
    }

    /// Counts what of each session's work is in a checkpoint.
    pub(crate) fn count_elements(&mut self, checkpoint: &Checkpoint) {
        let mut elements = BTreeMap::new();
        for holding in holdings(Some(checkpoint), self.stage_elements) {
            let object = holding.origin.object();
            let made = object.and_then(|object| self.made(object));
            let length = holding.range.end.saturating_sub(holding.range.start);
            for session in made.iter().flat_map(|made| &made.from) {
                *elements.entry(*session).or_default() += length;
            }
        }
        self.elements = Some(elements);
    }
}
