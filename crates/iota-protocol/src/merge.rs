//! Who merges which cell, and what their results amount to.
//!
//! A cell is leased to its two planned owners. One that is gone, failed or idle is replaced by another uploader of the
//! stage. Equal results settle the cell; different ones call for a third owner, and the one whom nobody confirms is
//! banned. What stays undecided keeps its old values: a merge never guesses.

use crate::event::{BanReason, CellResult, Event, ExclusionReason, LeaseEnd, Phase, SessionEnd};
use crate::id::{CellIndex, PeerId, Session, StageIndex};
use crate::registration::PlaceEnd;
use crate::state::State;
use crate::state::merging::{Cell, MergedCell, Slot, StageMerge};
use crate::time::Timestamp;
use crate::work::{Lease, Purpose, Work, WorkKind};

/// How often one owner may fail one cell.
const FAILURES_MAX: u32 = 3;

impl State {
    /// Whatever the merges need besides leases: relaxing, exclusions, settled cells.
    pub(crate) fn next_merge_step(&self, now: Timestamp) -> Option<Vec<Event>> {
        if !matches!(self.phase, Phase::Uploading | Phase::Merging) {
            return None;
        }
        if let Some(events) = self.stages().find_map(|stage| self.exclusion(stage)) {
            return Some(events);
        }
        if self.phase != Phase::Merging {
            return None;
        }
        let relaxes = self.phase_since + self.settings.timing.quorum_relaxes_after;
        if now >= relaxes && self.merging.iter().any(|merge| !merge.relaxed) {
            return Some(vec![Event::OwnersRelaxed]);
        }
        self.stages().find_map(|stage| {
            let cells = self.merge_of(stage).cells.iter().zip(0_u32..);
            let mut unsettled = cells.filter(|(cell, _)| cell.settled.is_none());
            unsettled.find_map(|(cell, index)| self.settle(stage, CellIndex::new(index), cell, now))
        })
    }

    /// Bans a peer and ends its session. Nothing if it is banned already.
    pub(crate) fn ban(&self, peer: PeerId, why: BanReason) -> Vec<Event> {
        if self.sessions.is_banned(peer) {
            return Vec::new();
        }
        let mut events = vec![Event::PeerBanned { peer, why }];
        events.extend(self.end_place(peer, PlaceEnd::Banned));
        if let Some(session) = self.session_of(peer) {
            events.extend(self.end_session(session, SessionEnd::Banned));
        }
        events
    }

    /// An upload that is to be left out: its author is banned, or owners cannot read it and nobody can be asked.
    fn exclusion(&self, stage: StageIndex) -> Option<Vec<Event>> {
        let merge = self.merge_of(stage);
        let included = merge.uploads.iter().filter(|(_, upload)| !upload.excluded);
        let (session, why) = included.map(|(session, _)| *session).find_map(|session| {
            if self.sessions.is_banned(session.peer) {
                return Some((session, ExclusionReason::Banned));
            }
            let accusers = merge
                .accusations
                .get(&session)
                .map_or(0, |accusers| accusers.len());
            let enough = if self.owners(merge).count() > 1 { 2 } else { 1 };
            (self.sessions.validators.is_empty() && accusers >= enough)
                .then_some((session, ExclusionReason::Accused))
        })?;
        let merging = self
            .leases()
            .filter(|lease| lease.stage == stage && lease.work.kind() == WorkKind::Merge);
        let mut events: Vec<Event> = merging
            .map(|lease| Event::LeaseEnded {
                lease: lease.id,
                session: lease.session,
                why: LeaseEnd::Withdrawn,
            })
            .collect();
        events.push(Event::UploadExcluded {
            stage,
            session,
            why,
        });
        Some(events)
    }

    /// Live uploaders of a stage: whoever may merge its cells.
    fn owners<'a>(&'a self, merge: &'a StageMerge) -> impl Iterator<Item = Session> + 'a {
        let included = merge.uploads.iter().filter(|(_, upload)| !upload.excluded);
        included
            .map(|(session, _)| *session)
            .filter(|session| self.session(*session).is_some())
    }

    /// Owners that could still be asked to merge this cell.
    fn candidates<'a>(
        &'a self,
        merge: &'a StageMerge,
        cell: &'a Cell,
    ) -> impl Iterator<Item = Session> + 'a {
        self.owners(merge).filter(|session| {
            !cell.slots.contains_key(session)
                && cell
                    .failures
                    .get(session)
                    .is_none_or(|failures| *failures < FAILURES_MAX)
        })
    }

    /// The end of a cell, if its results (or the lack of time or of owners) allow one.
    fn settle(
        &self,
        stage: StageIndex,
        index: CellIndex,
        cell: &Cell,
        now: Timestamp,
    ) -> Option<Vec<Event>> {
        let merge = self.merge_of(stage);
        let inputs = merge.inputs(index);
        if inputs.is_empty() {
            return Some(vec![carried_forward(stage, index)]);
        }
        let results: Vec<(Session, &MergedCell)> = cell.results().collect();
        if let Some(decided) = self.decided(&results) {
            let dissenters: Vec<Session> = results
                .iter()
                .filter(|(_, result)| !result.agrees(decided))
                .map(|(session, _)| *session)
                .collect();
            let result = match dissenters.first() {
                Some(liar) => CellResult::Arbitrated { liar: *liar },
                None => CellResult::Agreed,
            };
            let newly = decided
                .quarantined
                .iter()
                .filter(|session| !merge.quarantined.contains(session));
            let mut events: Vec<Event> = newly
                .map(|session| Event::UploadQuarantined {
                    stage,
                    cell: index,
                    session: *session,
                })
                .collect();
            events.push(if decided.quarantined.len() == inputs.len() {
                carried_forward(stage, index)
            } else {
                Event::CellSettled {
                    stage,
                    cell: index,
                    result,
                    merged: Some(decided.object),
                }
            });
            let why = BanReason::Merge {
                epoch: self.epoch,
                stage,
                cell: index,
            };
            for liar in dissenters {
                events.extend(self.ban(liar.peer, why));
            }
            return Some(events);
        }
        let at_work = cell.slots.len() > results.len();
        let others = at_work || self.candidates(merge, cell).next().is_some();
        match results.as_slice() {
            [(_, only)] if !others || self.is_due(now) => {
                let whole = only.quarantined.len() < inputs.len();
                let single = Event::CellSettled {
                    stage,
                    cell: index,
                    result: CellResult::Single,
                    merged: Some(only.object),
                };
                Some(vec![if whole {
                    single
                } else {
                    carried_forward(stage, index)
                }])
            }
            // Nobody can be asked who is right, now or later.
            [_, _, ..] if !others && self.settings.validators.is_empty() => {
                Some(vec![carried_forward(stage, index)])
            }
            _ => self
                .is_due(now)
                .then(|| vec![carried_forward(stage, index)]),
        }
    }

    /// The result that decides a cell: a validator's, or one that two owners came to; the first of them in session order.
    fn decided<'a>(&self, results: &[(Session, &'a MergedCell)]) -> Option<&'a MergedCell> {
        let by_validator = results
            .iter()
            .find(|(session, _)| self.settings.validators.contains(&session.peer));
        let confirmed = || {
            results.iter().enumerate().find(|(place, (_, one))| {
                results
                    .iter()
                    .skip(place + 1)
                    .any(|(_, other)| one.agrees(other))
            })
        };
        by_validator
            .or_else(|| confirmed().map(|(_, result)| result))
            .map(|(_, result)| *result)
    }

    /// The next cell to merge, and who does it.
    pub(crate) fn next_merge(&self, now: Timestamp) -> Option<Lease> {
        self.stages().find_map(|stage| {
            let merge = self.merge_of(stage);
            let cells = merge
                .cells
                .iter()
                .zip(0_u32..)
                .filter(|(cell, _)| cell.settled.is_none());
            let mut wanting = cells
                .filter_map(|(cell, index)| Some((cell, index, self.next_owner(merge, cell)?)));
            let (cell, index, owner) = wanting.next()?;
            let index = CellIndex::new(index);
            let work = Work::Merge {
                cell: index,
                range: cell.range.clone(),
                inputs: merge.inputs(index),
                output: self.object_name(Purpose::Merged, 0),
            };
            Some(self.lease_for(owner, stage, work, now))
        })
    }

    fn next_owner(&self, merge: &StageMerge, cell: &Cell) -> Option<Session> {
        let results = cell.results().count();
        // Two results that settled nothing differ: another has to decide.
        let wanted = if results >= 2 { results + 1 } else { 2 };
        let missing = wanted.saturating_sub(cell.slots.len());
        if missing == 0 {
            return None;
        }
        let has_room =
            |session: &Session| self.session(*session).is_some_and(|state| state.room > 0);
        let unused: Vec<Session> = self.candidates(merge, cell).collect();
        if unused.is_empty() && results >= 2 {
            let unasked = |session: &Session| !cell.slots.contains_key(session);
            return self
                .sessions
                .validators
                .iter()
                .copied()
                .filter(unasked)
                .find(has_room);
        }
        let awaited = |session: &Session| {
            cell.planned.contains(session) && !cell.failures.contains_key(session)
        };
        let planned_are_awaited =
            !merge.relaxed && unused.iter().filter(|session| awaited(session)).count() >= missing;
        unused
            .into_iter()
            .filter(has_room)
            .filter(|session| !planned_are_awaited || awaited(session))
            .min_by_key(|session| {
                let failures = cell.failures.get(session).copied().unwrap_or(0);
                let held = self.session(*session).map_or(0, |state| state.held.len());
                (!awaited(session), failures, held, *session)
            })
    }

    /// Whether a late result of this merge can still count.
    pub(crate) fn merge_is_open(&self, lease: &Lease) -> bool {
        let Work::Merge { cell, inputs, .. } = &lease.work else {
            return false;
        };
        let merge = self.merge_of(lease.stage);
        self.phase == Phase::Merging
            && merge.cells.get(cell.get() as usize).is_some_and(|state| {
                state.settled.is_none()
                    && !matches!(state.slots.get(&lease.session), Some(Slot::Done { .. }))
            })
            && merge.inputs(*cell) == *inputs
    }
}

fn carried_forward(stage: StageIndex, cell: CellIndex) -> Event {
    Event::CellSettled {
        stage,
        cell,
        result: CellResult::CarriedForward,
        merged: None,
    }
}
