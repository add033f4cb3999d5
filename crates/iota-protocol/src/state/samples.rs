//! Samples on their way, and where each of them waits.
//!
//! A sample has exactly one piece of work at any time: the next one of its chain. The piece waits, is leased to one
//! session, or is done, which makes the next piece the sample's (P1). Waiting pieces are indexed by whom they wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::{Direction, Piece};
use crate::id::{LeaseId, SampleId, Session, StageIndex};
use crate::time::Timestamp;
use crate::work::ObjectRef;

/// One done piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hop {
    /// By whom.
    pub(crate) session: Session,
    /// What came out; none from the last backward pass.
    pub(crate) object: Option<ObjectRef>,
}

/// Whom a waiting piece waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Preference {
    /// Only this one, because it keeps what the piece needs.
    pub(crate) only: Option<Session>,
    /// Anybody but these, because they failed it.
    pub(crate) avoid: BTreeSet<Session>,
}

/// Where a sample's present piece is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "holder")]
pub(crate) enum Holder {
    /// It waits; until `lapses_at` for whom it prefers.
    Waits {
        preference: Preference,
        lapses_at: Option<Timestamp>,
    },
    /// It is leased.
    Leased { lease: LeaseId },
    /// Nothing is left to do.
    Done,
}

/// A sample on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SampleState {
    /// Done forward passes, from the head.
    pub(crate) forwards: Vec<Hop>,
    /// Done backward passes, from the tail.
    pub(crate) backwards: Vec<Hop>,
    pub(crate) loss: Option<f32>,
    pub(crate) holder: Holder,
    /// How often the present piece was leased in vain.
    pub(crate) attempts: u32,
    /// Who leased it in vain.
    pub(crate) failed_by: BTreeSet<Session>,
}

impl SampleState {
    /// The piece to do next; none if the gradient has reached the head.
    pub(crate) fn next_piece(&self, tail: StageIndex) -> Option<Piece> {
        let (forwards, backwards) = (self.forwards.len() as u16, self.backwards.len() as u16);
        if forwards < tail.get() && backwards == 0 {
            return Some(Piece {
                stage: StageIndex::new(forwards),
                direction: Direction::Forward,
            });
        }
        let stage = tail.get().checked_sub(backwards)?;
        Some(Piece {
            stage: StageIndex::new(stage),
            direction: Direction::Backward,
        })
    }

    /// Passes that are done.
    pub(crate) const fn done(&self) -> u64 {
        (self.forwards.len() + self.backwards.len()) as u64
    }

    /// What the forward pass of this stage reads.
    pub(crate) fn input_of(&self, stage: StageIndex) -> Option<ObjectRef> {
        self.forwards
            .get(usize::from(stage.get()).checked_sub(1)?)?
            .object
    }
}

/// A sample that every stage has learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletedSample {
    /// Mean loss over its tokens, in nats.
    pub loss: f32,
    /// Who did the backward pass, by stage from the head.
    pub path: Vec<Session>,
}

/// How many samples went which way, over the whole run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleCounts {
    /// Begun.
    pub opened: u64,
    /// Trained on by every stage.
    pub completed: u64,
    /// Pieces that were leased again after a lease ended in vain.
    pub re_leased: u64,
    /// Samples that went back to their tokens.
    pub restarted: u64,
    /// Samples that were on their way when the run ended.
    pub lost: u64,
}

/// How much work was finished and what became of it, over the whole run, in passes of one stage over one sample.
///
/// A backward pass whose miner lacked what the forward pass had kept counts as two, because it did both. At the tail the
/// forward pass is part of the backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkCounts {
    /// Passes that were reported as done, in time or not.
    pub finished: u64,
    /// Of those, forward passes that had been done before, by a miner that was gone or too late for the backward pass.
    pub redone: u64,
    /// Of those, done when somebody else had done the same, or training had closed.
    pub superseded: u64,
    /// Of those, refused as too late even to be logged: the session was over, had uploaded, or the epoch was closed. Of what
    /// is reported after the end of the run nothing is known.
    #[serde(default)]
    pub refused: u64,
    /// Of those, thrown away afterwards: made from what turned out bad, of a sample that began anew or was given up, or
    /// forgotten when the run was restored from an older state.
    pub undone: u64,
}

impl WorkCounts {
    /// Passes that no completed sample needed.
    pub const fn wasted(&self) -> u64 {
        self.redone + self.superseded + self.refused + self.undone
    }

    /// Of the finished passes, the share that was wasted: between 0 and 1, 0 if nothing is finished.
    pub fn wasted_share(&self) -> f64 {
        if self.finished == 0 {
            return 0.0;
        }
        self.wasted() as f64 / self.finished as f64
    }

    /// A report of passes came in that cannot be logged.
    pub(crate) fn refuse(&mut self, passes: u32) {
        self.finished += u64::from(passes);
        self.refused += u64::from(passes);
    }

    /// A report of a pass came in.
    pub(crate) fn finish(&mut self, redone: bool, credited: bool) {
        let passes = 1 + u64::from(redone);
        self.finished += passes;
        if credited {
            self.redone += u64::from(redone);
        } else {
            self.superseded += passes;
        }
    }
}

/// How far the samples had come when an epoch began to train: all before `next` but the carried ones were completed, so
/// this is what the checkpoint that it trains from has learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) next: SampleId,
    pub(crate) carried: BTreeSet<SampleId>,
}

/// All samples of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Samples {
    pub(crate) flying: BTreeMap<SampleId, SampleState>,
    /// Waiting pieces that anybody (or anybody but a few) may take, oldest first.
    #[serde(with = "crate::pairs")]
    pub(crate) open: BTreeMap<Piece, BTreeSet<SampleId>>,
    /// Waiting pieces that wait for one session.
    #[serde(with = "crate::pairs")]
    pub(crate) bound: BTreeMap<Session, BTreeSet<SampleId>>,
    /// When waiting pieces stop preferring.
    pub(crate) lapses: BTreeSet<(Timestamp, SampleId)>,
    pub(crate) next: SampleId,
    /// Opened in this epoch or carried into it.
    pub(crate) opened_in_epoch: u64,
    /// What the epoch found when it began to train.
    #[serde(default)]
    pub(crate) found: Found,
    /// What the next one found, if some train for it already; what is counted in an epoch is of that then.
    #[serde(default)]
    pub(crate) found_ahead: Option<Found>,
    /// Completed in this epoch.
    pub(crate) completed: BTreeMap<SampleId, CompletedSample>,
    /// Since when the epoch's last samples are being waited for.
    pub(crate) drains_since: Option<Timestamp>,
    pub(crate) counts: SampleCounts,
    #[serde(default)]
    pub(crate) work: WorkCounts,
}

impl Samples {
    /// Puts a sample's next piece among the waiting ones.
    pub(crate) fn wait(
        &mut self,
        sample: SampleId,
        tail: StageIndex,
        preference: Preference,
        at: Timestamp,
        patience: Duration,
    ) {
        self.unindex(sample, tail);
        let Some(state) = self.flying.get_mut(&sample) else {
            return;
        };
        let Some(piece) = state.next_piece(tail) else {
            state.holder = Holder::Done;
            return;
        };
        let picky = preference.only.is_some() || !preference.avoid.is_empty();
        let lapses_at = picky.then(|| at + patience);
        match preference.only {
            Some(session) => self.bound.entry(session).or_default().insert(sample),
            None => self.open.entry(piece).or_default().insert(sample),
        };
        if let Some(lapses_at) = lapses_at {
            self.lapses.insert((lapses_at, sample));
        }
        state.holder = Holder::Waits {
            preference,
            lapses_at,
        };
    }

    /// An epoch begins to train with the samples that are on their way, if it has not begun ahead of its phase.
    pub(crate) fn begin_epoch(&mut self) {
        // The last samples may have been opened long ago; from now on all can work on the rest.
        self.drains_since = None;
        self.found = match self.found_ahead.take() {
            Some(found) => found,
            None => self.count_anew(),
        };
    }

    /// Some begin to train for the next epoch.
    pub(crate) fn begin_ahead(&mut self) {
        self.drains_since = None;
        self.found_ahead = Some(self.count_anew());
    }

    fn count_anew(&mut self) -> Found {
        self.completed.clear();
        self.opened_in_epoch = self.flying.len() as u64;
        Found {
            next: self.next,
            carried: self.flying.keys().copied().collect(),
        }
    }

    /// Goes back to how things were when training began from a checkpoint. Returns the samples that wait to begin anew.
    ///
    /// Nothing is lost before the run ends (A1), so the counts of then follow from what was found.
    pub(crate) fn rewind(&mut self, to: Found, tail: StageIndex) -> BTreeSet<SampleId> {
        let Found { next, carried } = to;
        let passes = 2 * u64::from(tail.get()) + 1;
        let flying: u64 = self.flying.values().map(SampleState::done).sum();
        let completed = self.counts.completed - (next.get() - carried.len() as u64);
        self.work.undone += completed * passes + flying;
        self.open.clear();
        self.bound.clear();
        self.lapses.clear();
        self.completed.clear();
        self.flying = carried
            .iter()
            .map(|sample| (*sample, SampleState::fresh()))
            .collect();
        self.counts.opened = next.get();
        self.counts.completed = next.get() - carried.len() as u64;
        self.counts.lost = 0;
        self.opened_in_epoch = carried.len() as u64;
        self.drains_since = None;
        self.next = next;
        carried
    }

    /// Takes a sample's piece from the waiting ones: it is leased now.
    pub(crate) fn lease(&mut self, sample: SampleId, tail: StageIndex, lease: LeaseId) {
        self.unindex(sample, tail);
        if let Some(state) = self.flying.get_mut(&sample) {
            self.counts.re_leased += u64::from(state.attempts > 0);
            state.holder = Holder::Leased { lease };
        }
    }

    /// The one session that a sample's piece waits for, if it does.
    pub(crate) fn waits_for(&self, sample: SampleId) -> Option<Session> {
        match &self.flying.get(&sample)?.holder {
            Holder::Waits { preference, .. } => preference.only,
            Holder::Leased { .. } | Holder::Done => None,
        }
    }

    /// Forgets where a sample waits, before its chain or its holder changes.
    pub(crate) fn unindex(&mut self, sample: SampleId, tail: StageIndex) {
        let Some(state) = self.flying.get_mut(&sample) else {
            return;
        };
        let piece = state.next_piece(tail);
        let holder = std::mem::replace(&mut state.holder, Holder::Done);
        let Holder::Waits {
            preference,
            lapses_at,
        } = holder
        else {
            return;
        };
        if let Some(lapses_at) = lapses_at {
            self.lapses.remove(&(lapses_at, sample));
        }
        match preference.only {
            Some(session) => remove(&mut self.bound, &session, sample),
            None => {
                let piece = piece.expect("what waits has a piece to do");
                remove(&mut self.open, &piece, sample);
            }
        }
    }
}

/// Takes a sample out of an index, and the index's entry with its last sample.
fn remove<K: Ord>(index: &mut BTreeMap<K, BTreeSet<SampleId>>, key: &K, sample: SampleId) {
    if let Some(samples) = index.get_mut(key) {
        samples.remove(&sample);
        if samples.is_empty() {
            index.remove(key);
        }
    }
}
