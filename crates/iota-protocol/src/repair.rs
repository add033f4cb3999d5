//! What to do about a checkpoint that nobody can install.
//!
//! A merged cell was read by nobody when it was settled: its owners said the same of it, and still the object may be
//! missing or hold other bytes. Without it a stage has nobody who may work, for ever. So an object that keeps all of a
//! stage from installing is replaced, once there was time for anybody to show that it can be read: by the other owner's
//! object with the same bits, or else by the values from before the merge. Training a range again costs less than the run.

use crate::checkpoint::{mend, objects};
use crate::event::{Event, LeaseEnd, Phase, Repair};
use crate::id::StageIndex;
use crate::state::State;
use crate::time::Timestamp;
use crate::work::{ObjectName, WorkKind};

/// Peers whose word is enough, and that are remembered: as many as it takes to leave out an upload.
pub(crate) const ACCUSERS: usize = 2;

impl State {
    /// When the next repair is due.
    pub(crate) fn repair_at(&self) -> Option<Timestamp> {
        let _ = self.beyond_reading()?;
        Some(self.phase_since + self.settings.timing.quorum_relaxes_after)
    }

    /// The next repair, if it is time.
    pub(crate) fn next_repair(&self, now: Timestamp) -> Option<Vec<Event>> {
        if now < self.phase_since + self.settings.timing.quorum_relaxes_after {
            return None;
        }
        let (stage, object) = self.beyond_reading()?;
        let is_lost = |name| self.accusers(stage, name) > 0;
        let mut copies = self.merge_of(stage).copies(object);
        let copy = copies.find(|copy| !is_lost(copy.name));
        let how = if copy.is_some() {
            Repair::AnotherCopy
        } else {
            Repair::OlderValues
        };
        let previous = &self.previous_checkpoints[usize::from(stage.get())];
        let checkpoint = mend(self.checkpoint(stage), object, copy, previous, is_lost);
        let installing = self
            .leases()
            .filter(|lease| lease.stage == stage && lease.work.kind() == WorkKind::Install);
        let mut events: Vec<Event> = installing
            .map(|lease| Event::LeaseEnded {
                lease: lease.id,
                session: lease.session,
                why: LeaseEnd::Withdrawn,
            })
            .collect();
        events.push(Event::CheckpointRepaired {
            checkpoint,
            object,
            how,
        });
        Some(events)
    }

    /// How many peers, up to [`ACCUSERS`], could not read an object of a stage's checkpoint.
    pub(crate) fn accusers(&self, stage: StageIndex, object: ObjectName) -> usize {
        let accused = self.unreadable.iter();
        accused
            .filter(|(of, name, _)| (*of, *name) == (stage, object))
            .count()
    }

    /// An object that enough miners of a stage could not read while nobody there holds what it is part of.
    fn beyond_reading(&self) -> Option<(StageIndex, ObjectName)> {
        if !matches!(self.phase, Phase::Installing | Phase::Training) {
            return None;
        }
        let accused = self
            .unreadable
            .iter()
            .map(|(stage, name, _)| (*stage, *name));
        accused.into_iter().find(|(stage, name)| {
            let index = self.index.stage(*stage);
            index.installed.is_empty()
                && self.accusers(*stage, *name) >= index.miners.len().clamp(1, ACCUSERS)
                && objects(self.checkpoint(*stage)).any(|named| named == *name)
        })
    }
}
