//! Who merges which cell, and what their results amount to.
//!
//! A cell is leased to its planned owners. One that is gone, failed or idle is replaced by another uploader of the stage.
//! What more than half of as many owners as were planned agree on settles the cell; different results call for one owner
//! more, and those whom the others outvote are banned. What stays undecided keeps its old values: a merge never guesses.
//!
//! ```text
//!   first owner   merges ─► stores ─► says what it is ─┐
//!                                                      ├─ the same, and one has stored it: settled
//!   second owner  merges ───────────► says what it is ─┘
//!                                                      └─ not the same: a third merges and stores, the odd one is banned
//!   the first gone, or its objects not there: the second is asked for them
//! ```
//!
//! Owners come to the same bits, so one of them stores what both commit to (or more: `copies` of the settings). What an
//! owner says it stored is compared with what is in the store before these rules hear of it.
//!
//! Which cells can be settled and which want an owner is kept at hand (`index`): of a stage of fifty miners there are
//! 1,225 cells, and every result of every owner is a command.

mod owners;

use crate::checkpoint;
use crate::event::{
    BanReason, CellResult, Event, ExclusionReason, LeaseEnd, Phase, SessionEnd, Unmergeable,
};
use crate::id::{CellIndex, PeerId, Session, StageIndex};
use crate::registration::PlaceEnd;
use crate::state::State;
use crate::state::merging::{Cell, MergedCell, Slot, StageMerge};
use crate::time::Timestamp;
use crate::work::{Lease, Purpose, Work, WorkKind};

use owners::{Ending, Votes};
pub(crate) use owners::{Uploaders, Wants};

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
            let merge = self.index.merge(stage);
            let ripe = merge.ripe.first();
            let next = ripe.or_else(|| merge.unsettled().filter(|_| self.is_due(now)))?;
            self.settle(stage, *next, now)
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
        if merge.accusations.is_empty() && self.index.merge(stage).banned.is_empty() {
            return None;
        }
        let included = merge.uploads.iter().filter(|(_, upload)| !upload.excluded);
        let (session, why) = included.map(|(session, _)| *session).find_map(|session| {
            if self.sessions.is_banned(session.peer) {
                return Some((session, ExclusionReason::Banned));
            }
            let accusers = merge
                .accusations
                .get(&session)
                .map_or(0, |accusers| accusers.len());
            let enough = if self.uploaders(merge).live.len() > 1 {
                2
            } else {
                1
            };
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

    /// Whose uploads go into a stage's cells, and who of them may merge.
    pub(crate) fn uploaders(&self, merge: &StageMerge) -> Uploaders {
        let included = merge.uploads.iter().filter(|(_, upload)| !upload.excluded);
        let sessions: Vec<Session> = included.map(|(session, _)| *session).collect();
        let is_live = |session: &Session| self.session(*session).is_some();
        Uploaders {
            included: sessions.len(),
            live: sessions.into_iter().filter(is_live).collect(),
        }
    }

    /// How a cell ends, if its results (or the lack of time or of owners) say so.
    pub(crate) fn ending<'a>(
        &self,
        cell: &'a Cell,
        uploaders: &Uploaders,
        due: bool,
    ) -> Option<Ending<'a>> {
        if uploaders.included == 0 {
            return Some(Ending::CarriedForward);
        }
        let results: Vec<(Session, &MergedCell)> = cell.results().collect();
        let is_validator = |session: &Session| self.settings.validators.contains(&session.peer);
        if let Some((_, decided)) = results.iter().find(|(session, _)| is_validator(session)) {
            return Some(Ending::Decided(decided));
        }
        let at_work = cell.slots.values().any(|slot| slot.lease().is_some());
        let nobody_else = !at_work && !uploaders.any_for(cell);
        let has_validators = !self.settings.validators.is_empty();
        let votes = Votes::of(&results);
        let (ending, word): (fn(&'a MergedCell) -> Ending<'a>, _) = match results.as_slice() {
            _ if votes.most > cell.owners_wanted() / 2 => (Ending::Decided, votes.leader),
            _ if !nobody_else && !due => return None,
            [(_, only)] => (Ending::Single, Some(*only)),
            _ if votes.most > 1 && !votes.tied => (Ending::Decided, votes.leader),
            // Somebody may still come: a validator, who decides, or whose verdict leaves out what nobody could read.
            _ if !due && has_validators => return None,
            _ => return Some(Ending::CarriedForward),
        };
        let at_hand = word.and_then(|word| cell.at_hand(word));
        match at_hand {
            Some(result) => Some(ending(result)),
            // Whoever could still store it will be asked.
            None if !due && (!nobody_else || has_validators || uploaders.any_to_store(cell)) => {
                None
            }
            None => Some(Ending::CarriedForward),
        }
    }

    /// The end of a cell, if it has come to one.
    fn settle(&self, stage: StageIndex, index: CellIndex, now: Timestamp) -> Option<Vec<Event>> {
        let merge = self.merge_of(stage);
        let cell = merge.cells.get(index.get() as usize)?;
        let uploaders = self.index.merge(stage).uploaders();
        let ending = self.ending(cell, uploaders, self.is_due(now))?;
        let settled = |merged: &MergedCell, result| {
            let every_copy = merged.quarantined.len() == uploaders.included;
            let unmergeable = CellResult::Unmergeable {
                why: if every_copy {
                    Unmergeable::EveryCopyQuarantined
                } else {
                    Unmergeable::ResultNotFinite
                },
            };
            Event::CellSettled {
                stage,
                cell: index,
                result: merged.made.map_or(unmergeable, |_| result),
                merged: merged.made.map(|made| made.object),
            }
        };
        let decided = match ending {
            Ending::CarriedForward => {
                return Some(vec![Event::CellSettled {
                    stage,
                    cell: index,
                    result: CellResult::CarriedForward,
                    merged: None,
                }]);
            }
            Ending::Single(only) => return Some(vec![settled(only, CellResult::Single)]),
            Ending::Decided(decided) => decided,
        };
        let dissent = cell.results().filter(|(_, result)| !result.agrees(decided));
        let dissenters: Vec<Session> = dissent.map(|(session, _)| session).collect();
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
        events.push(settled(decided, result));
        let why = BanReason::Merge {
            epoch: self.epoch,
            stage,
            cell: index,
        };
        for liar in dissenters {
            events.extend(self.ban(liar.peer, why));
        }
        Some(events)
    }

    /// The next cell to merge, and who does it.
    pub(crate) fn next_merge(&self, now: Timestamp) -> Option<Lease> {
        let awaited = self.index.to_merge.first();
        let (stage, cell, owner) = awaited
            .and_then(|(stage, owner)| {
                Some((*stage, self.index.merge(*stage).first_of(*owner)?, *owner))
            })
            .or_else(|| {
                self.stages().find_map(|stage| {
                    let mut open = self.index.merge(stage).open.iter();
                    open.find_map(|cell| Some((stage, *cell, self.replacement(stage, *cell)?)))
                })
            })?;
        let merge = self.merge_of(stage);
        let state = &merge.cells[cell.get() as usize];
        let range = state.range.clone();
        let is_miner = self
            .session(owner)
            .is_some_and(|state| state.stage.is_some());
        let wants_delta = self.settings.merging.delta.is_some();
        let work = Work::Merge {
            cell,
            inputs: merge.inputs(cell),
            output: self.object_name(Purpose::Merged, 0),
            delta: wants_delta.then(|| self.object_name(Purpose::Delta, 1)),
            // A validator's word decides, so what it comes to is needed.
            stores: !is_miner || state.is_to_be_stored_by(owner, self.settings.merging.copies),
            base: if is_miner {
                Vec::new()
            } else {
                checkpoint::within(self.checkpoint(stage), &range)
            },
            range,
        };
        Some(self.lease_for(owner, stage, work, now))
    }

    /// Merged cells that somebody with nothing to merge could fetch meanwhile.
    pub(crate) fn next_fetch(&self, now: Timestamp) -> Option<Lease> {
        let (stage, session) = *self.index.to_fetch.first()?;
        let merge = self.merge_of(stage);
        let cells = merge.to_fetch(session).iter();
        let cells = cells.filter_map(|cell| merge.cells.get(cell.get() as usize));
        let merged = cells.map(|cell| (cell.range.clone(), cell.merged()));
        let segments = merged.filter_map(|(range, merged)| Some(checkpoint::whole(range, merged?)));
        let work = Work::Fetch {
            segments: segments.collect(),
        };
        Some(self.lease_for(session, stage, work, now))
    }

    /// Who is to merge a cell that does not wait for those who were planned: of those with room whoever was planned,
    /// then who failed least, then who has least to do.
    fn replacement(&self, stage: StageIndex, index: CellIndex) -> Option<Session> {
        let cell = &self.merge_of(stage).cells[index.get() as usize];
        let uploaders = self.index.merge(stage).uploaders();
        let has_room =
            |session: &Session| self.session(*session).is_some_and(|state| state.room > 0);
        let lacks_objects = cell.lacks_objects();
        if lacks_objects && let Some(holder) = uploaders.to_store(cell).find(has_room) {
            return Some(holder);
        }
        if !uploaders.any_for(cell) && (lacks_objects || cell.results().count() >= 2) {
            let unasked = |session: &Session| !cell.slots.contains_key(session);
            let mut validators = self.sessions.validators.iter().copied().filter(unasked);
            return validators.find(has_room);
        }
        let candidates = uploaders.live.iter().copied();
        candidates
            .filter(|session| cell.may_be_asked(session) && has_room(session))
            .min_by_key(|session| {
                let failures = cell.failures.get(session).copied().unwrap_or(0);
                let held = self.session(*session).map_or(0, |state| state.held.len());
                let planned = cell.planned.contains(session) && failures == 0;
                (!planned, failures, held, *session)
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
