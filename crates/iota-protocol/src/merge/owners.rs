//! The owners of a cell: whom it wants, what they have said, and who of them is to store it.

use std::collections::BTreeSet;

use crate::id::Session;
use crate::state::merging::{Cell, MergedCell};

/// How often one owner may fail one cell.
const FAILURES_MAX: u32 = 3;

/// Whose uploads go into a stage's cells.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Uploaders {
    /// How many they are, the gone included.
    pub(crate) included: usize,
    /// Who of them is there and so may merge.
    pub(crate) live: BTreeSet<Session>,
}

impl Uploaders {
    /// Whether anybody could still be asked to merge this cell.
    pub(crate) fn any_for(&self, cell: &Cell) -> bool {
        let asked = cell.slots.keys();
        let failed = cell.failures.keys();
        let beyond: BTreeSet<&Session> = asked
            .chain(failed)
            .filter(|session| self.live.contains(session) && !cell.may_be_asked(session))
            .collect();
        beyond.len() < self.live.len()
    }

    /// Who has said what most say of this cell and could be asked to store it, those who never failed to first.
    pub(super) fn to_store(&self, cell: &Cell) -> impl Iterator<Item = Session> {
        let results: Vec<(Session, &MergedCell)> = cell.results().collect();
        let leader = Votes::of(&results).leader;
        let agrees = |merged: &MergedCell| leader.is_some_and(|leader| leader.agrees(merged));
        let failures = |session: &Session| cell.failures.get(session).copied().unwrap_or(0);
        let mut holders: Vec<Session> = results
            .into_iter()
            .filter(|(session, merged)| {
                self.live.contains(session) && agrees(merged) && failures(session) < FAILURES_MAX
            })
            .map(|(session, _)| session)
            .collect();
        holders.sort_by_key(failures);
        holders.into_iter()
    }

    pub(super) fn any_to_store(&self, cell: &Cell) -> bool {
        self.to_store(cell).next().is_some()
    }
}

/// How a cell ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ending<'a> {
    /// Enough owners came to this.
    Decided(&'a MergedCell),
    /// There is this one result.
    Single(&'a MergedCell),
    /// The old values stay.
    CarriedForward,
}

/// What the results of a cell's owners amount to.
pub(super) struct Votes<'a> {
    /// The result of most owners: of the first of them in session order.
    pub(super) leader: Option<&'a MergedCell>,
    /// How many came to it.
    pub(super) most: usize,
    /// Whether as many came to another one.
    pub(super) tied: bool,
}

impl<'a> Votes<'a> {
    pub(super) fn of(results: &[(Session, &'a MergedCell)]) -> Self {
        let mut votes: Vec<(&MergedCell, usize)> = Vec::new();
        for (_, result) in results {
            match votes.iter_mut().find(|(other, _)| other.agrees(result)) {
                Some((_, count)) => *count += 1,
                None => votes.push((result, 1)),
            }
        }
        let most = votes.iter().map(|(_, count)| *count).max().unwrap_or(0);
        let mut leading = votes.iter().filter(|(_, count)| *count == most);
        Self {
            leader: leading.next().map(|(result, _)| *result),
            most,
            tied: leading.next().is_some(),
        }
    }
}

impl Cell {
    /// Owners that it is to have, if there are so many: as planned, but nobody's word is taken alone if another's can be had.
    pub(super) fn owners_wanted(&self) -> usize {
        self.planned.len().max(2)
    }

    /// Owners that it lacks.
    fn owners_missing(&self) -> usize {
        let results = self.results().count();
        // As many results as were wanted settled nothing: they differ, and another has to decide.
        let wanted = if results >= self.owners_wanted() {
            results + 1
        } else {
            self.owners_wanted()
        };
        wanted.saturating_sub(self.slots.len())
    }

    /// A result that is the same as this one and can be had.
    pub(super) fn at_hand(&self, word: &MergedCell) -> Option<&MergedCell> {
        let mut same = self.results().map(|(_, result)| result);
        same.find(|result| result.agrees(word) && result.is_at_hand())
    }

    /// Whether it is known what the cell comes to, as far as it is, but nobody has stored that or is about to.
    pub(super) fn lacks_objects(&self) -> bool {
        let results: Vec<(Session, &MergedCell)> = self.results().collect();
        let votes = Votes::of(&results);
        let is_expected = self
            .slots
            .values()
            .any(|slot| slot.lease().is_some() && slot.stores());
        let leader = votes.leader.filter(|_| !votes.tied && !is_expected);
        leader.is_some_and(|leader| self.at_hand(leader).is_none())
    }

    /// Whether an owner that is asked now has to store what it comes to: while fewer than `copies` do; when owners differ,
    /// because what is stored may be wrong; and when it is asked for the second time, because that is what for.
    pub(super) fn is_to_be_stored_by(&self, owner: Session, copies: u32) -> bool {
        let results: Vec<(Session, &MergedCell)> = self.results().collect();
        let differ = results
            .iter()
            .any(|(_, result)| !result.agrees(results[0].1));
        let storing = self.slots.values().filter(|slot| slot.stores()).count();
        storing < copies as usize || differ || self.slots.contains_key(&owner)
    }

    /// Whether a session that may merge could be asked to merge this.
    pub(super) fn may_be_asked(&self, session: &Session) -> bool {
        let failures = self.failures.get(session).copied().unwrap_or(0);
        !self.slots.contains_key(session) && failures < FAILURES_MAX
    }

    /// Whom it waits for to merge it.
    pub(crate) fn wants(&self, uploaders: &Uploaders, relaxed: bool) -> Wants {
        if self.lacks_objects() {
            return Wants::Anybody;
        }
        let missing = self.owners_missing();
        if missing == 0 {
            return Wants::Nobody;
        }
        let is_awaited = |session: &&Session| {
            uploaders.live.contains(session)
                && !self.slots.contains_key(session)
                && !self.failures.contains_key(session)
        };
        let awaited: Vec<Session> = self.planned.iter().filter(is_awaited).copied().collect();
        if relaxed || awaited.len() < missing {
            Wants::Anybody
        } else {
            Wants::Planned(awaited)
        }
    }
}

/// Whom a cell waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Enough are at it or done with it.
    Nobody,
    /// Those of its planned owners who have not begun.
    Planned(Vec<Session>),
    /// Whoever has room: not enough of those that were planned are left, or they have not begun for too long.
    Anybody,
}
