//! What is always true of a run, as functions: numbered in docs/INVARIANTS.md, checked after every command by the tests
//! and by whoever simulates a run.
//!
//! P2 and P4 speak of two states and are functions of two: a command refused for its session leaves the state equal,
//! and a replay of the events gives an equal one.

use std::collections::{BTreeMap, BTreeSet};

use crate::cells::Cells;
use crate::checkpoint::covers;
use crate::event::{CellResult, Phase};
use crate::id::{LeaseId, PeerId, SampleId};
use crate::index::Index;
use crate::registration::is_alive;
use crate::state::State;
use crate::state::merging::Slot;
use crate::state::samples::Holder;
use crate::state::sessions::{INSTALLS_MAX, PEERS_MAX, REMEMBERED_LEASES};
use crate::state::vain::IN_VAIN_MAX;
use crate::time::Timestamp;
use crate::work::{Work, WorkKind};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant} is violated: {what}")]
pub struct Violation {
    /// Its number in docs/INVARIANTS.md.
    pub invariant: &'static str,
    /// What was found.
    pub what: String,
}

/// One invariant: its number and its function.
pub type Invariant = (&'static str, fn(&State) -> Result<(), String>);

/// Every invariant of one state.
pub const ALL: [Invariant; 18] = [
    ("P1", a_piece_waits_or_is_leased_once_or_is_done),
    ("P2", only_live_sessions_hold_anything),
    ("P3", a_deadline_moves_the_phase),
    ("P5", answers_are_remembered_once),
    ("A1", samples_are_in_flight_or_completed_never_both),
    ("A2", credit_equals_what_was_done),
    ("A4", finished_work_is_of_use_or_wasted),
    ("B1", everything_is_bounded),
    ("L1", leases_and_holders_know_each_other),
    ("M1", cells_and_checkpoints_cover_their_stage),
    ("M2", a_cell_has_distinct_owners),
    ("M5", a_settled_cell_is_explained),
    ("V2", the_banned_are_out),
    ("V3", audits_wait_only_for_their_subjects),
    ("V6", an_audit_begins_with_what_was_sealed_before),
    ("W1", a_place_is_one_peers_and_the_line_has_no_gaps),
    ("W2", nobody_waits_while_there_is_a_place),
    ("X1", the_index_is_what_a_recount_gives),
];

/// Checks every invariant of one state.
///
/// # Errors
/// The first that does not hold.
pub fn check_all(state: &State) -> Result<(), Violation> {
    ALL.iter().try_for_each(|(invariant, check)| {
        check(state).map_err(|what| Violation { invariant, what })
    })
}

/// P1: each sample on its way has one piece, and that waits in one index or is leased to one session.
pub fn a_piece_waits_or_is_leased_once_or_is_done(state: &State) -> Result<(), String> {
    let tail = state.settings.tail();
    let mut leased: BTreeMap<SampleId, LeaseId> = BTreeMap::new();
    for lease in state.leases() {
        if let Some(sample) = lease.work.sample()
            && let Some(other) = leased.insert(sample, lease.id)
        {
            return Err(format!(
                "{sample} is leased twice, as {other} and {}",
                lease.id
            ));
        }
    }
    let mut indexed: BTreeMap<SampleId, usize> = BTreeMap::new();
    for sample in state
        .samples
        .open
        .values()
        .chain(state.samples.bound.values())
        .flatten()
    {
        *indexed.entry(*sample).or_default() += 1;
    }
    for (sample, flying) in &state.samples.flying {
        let piece = flying
            .next_piece(tail)
            .ok_or_else(|| format!("{sample} is complete and still on its way"))?;
        let (places, lease) = (indexed.remove(sample).unwrap_or(0), leased.remove(sample));
        match &flying.holder {
            Holder::Leased { lease: held } => {
                require(lease == Some(*held) && places == 0, || {
                    format!("{sample} is leased as {held} or waits")
                })?;
            }
            Holder::Waits {
                preference,
                lapses_at,
            } => {
                let filed = match preference.only {
                    Some(session) => state.samples.bound.get(&session),
                    None => state.samples.open.get(&piece),
                };
                require(
                    filed.is_some_and(|samples| samples.contains(sample)),
                    || format!("{sample} waits where nobody looks"),
                )?;
                require(places == 1 && lease.is_none(), || {
                    format!("{sample} waits in {places} places or is leased too")
                })?;
                let timed =
                    lapses_at.is_none_or(|at| state.samples.lapses.contains(&(at, *sample)));
                require(timed, || format!("{sample} prefers somebody for ever"))?;
            }
            Holder::Done => return Err(format!("{sample} has a piece to do and nobody may do it")),
        }
    }
    require(indexed.is_empty() && leased.is_empty(), || {
        format!("work for samples that are gone: {indexed:?} {leased:?}")
    })
}

/// P2: leases, bindings and remembered leases belong to live sessions; a peer has one at most.
pub fn only_live_sessions_hold_anything(state: &State) -> Result<(), String> {
    let live = |session| state.session(session).is_some();
    for lease in state
        .leases
        .held
        .values()
        .chain(state.leases.lapsed.values())
    {
        require(live(lease.session), || {
            format!("{} is held by {}, which is gone", lease.id, lease.session)
        })?;
    }
    for session in state.samples.bound.keys() {
        require(live(*session), || {
            format!("pieces wait for {session}, which is gone")
        })?;
    }
    for (session, _) in state.sessions() {
        let record = state
            .peer(session.peer)
            .ok_or_else(|| format!("{session} is of no known peer"))?;
        require(
            record.live == Some(session) && record.generations == session.generation,
            || format!("{session} is not its peer's latest stay"),
        )?;
    }
    Ok(())
}

/// P3: every phase that has begun something ends by itself: there is a deadline, or somebody is missing or at work.
pub fn a_deadline_moves_the_phase(state: &State) -> Result<(), String> {
    let bounded = matches!(
        state.phase,
        Phase::Uploading | Phase::Merging | Phase::Installing | Phase::Settling
    );
    require(bounded == state.phase_deadline.is_some(), || {
        format!("{:?} until {:?}", state.phase, state.phase_deadline)
    })?;
    require(
        state.phase != Phase::Over || state.next_deadline().is_none(),
        || "a deadline after the end".into(),
    )?;
    let draining = state.samples.opened_in_epoch >= state.settings.samples_per_epoch;
    let timed = state.phase != Phase::Training || !draining || state.samples.drains_since.is_some();
    require(timed, || {
        "the epoch's last samples are waited for without end".into()
    })?;
    require(state.epoch.get() <= state.settings.epochs, || {
        format!("{} of {}", state.epoch, state.settings.epochs)
    })
}

/// P5: a lease that was answered neither runs nor can be answered again.
pub fn answers_are_remembered_once(state: &State) -> Result<(), String> {
    for (session, own) in state.sessions() {
        for lease in own.answered.keys() {
            let open =
                state.leases.held.contains_key(lease) || state.leases.lapsed.contains_key(lease);
            require(!open, || {
                format!("{session} answered {lease}, which is still open")
            })?;
        }
        let ordinals: BTreeSet<u32> = own.log.iter().map(|entry| entry.ordinal).collect();
        require(
            ordinals.len() == own.log.len() && ordinals == own.ordinals,
            || format!("{session} did one ordinal twice"),
        )?;
        let logged: BTreeSet<LeaseId> = own.log.iter().map(|entry| entry.lease).collect();
        require(logged.len() == own.log.len(), || {
            format!("{session} did one lease twice")
        })?;
    }
    Ok(())
}

/// A1: a sample's tokens count once: it is in flight, completed or lost, and the counts add up.
pub fn samples_are_in_flight_or_completed_never_both(state: &State) -> Result<(), String> {
    let samples = &state.samples;
    let counts = samples.counts;
    require(
        counts.opened == counts.completed + counts.lost + samples.flying.len() as u64,
        || format!("{counts:?} with {} on their way", samples.flying.len()),
    )?;
    require(samples.next.get() == counts.opened, || {
        format!("{} opened, next is {}", counts.opened, samples.next)
    })?;
    if let Some(sample) = samples
        .completed
        .keys()
        .find(|sample| samples.flying.contains_key(sample))
    {
        return Err(format!("{sample} is completed and on its way"));
    }
    for (sample, completed) in &samples.completed {
        require(
            completed.path.len() == usize::from(state.settings.stages())
                && completed.loss.is_finite(),
            || {
                format!(
                    "{sample} came by {:?} to a loss of {}",
                    completed.path, completed.loss
                )
            },
        )?;
    }
    let quota = state.settings.samples_per_epoch;
    require(samples.completed.len() as u64 <= quota, || {
        format!("{} of {quota} samples", samples.completed.len())
    })?;
    let epoch_sum = samples.completed.len() + samples.flying.len();
    require(
        state.phase != Phase::Training || epoch_sum as u64 == samples.opened_in_epoch,
        || {
            format!(
                "{epoch_sum} samples in an epoch that has {}",
                samples.opened_in_epoch
            )
        },
    )
}

/// A2: a session's credit is in its log, and a peer's verified work is work that it did.
pub fn credit_equals_what_was_done(state: &State) -> Result<(), String> {
    for (session, own) in state.sessions() {
        let backward = |entry: &&crate::work::LogEntry| {
            entry.credited && entry.work.kind() == WorkKind::Backward
        };
        let logged = own.log.iter().filter(backward).count() as u64;
        require(own.backwards == logged, || {
            format!("{session} has credit for {} of {logged}", own.backwards)
        })?;
    }
    let backwards: u64 = state
        .peers()
        .map(|(_, record)| record.ledger.backwards)
        .sum();
    let least = state.samples.counts.completed * u64::from(state.settings.stages());
    require(backwards >= least, || {
        format!("{backwards} backward passes for {least} sample stages")
    })
}

/// A4: every pass that was finished is one of a sample's that is completed or on its way, or is counted as wasted.
pub fn finished_work_is_of_use_or_wasted(state: &State) -> Result<(), String> {
    let passes = 2 * u64::from(state.settings.stages()) - 1;
    let flying: u64 = state.samples.flying.values().map(|it| it.done()).sum();
    let useful = state.samples.counts.completed * passes + flying;
    let work = state.work_counts();
    require(work.finished == useful + work.wasted(), || {
        format!("{work:?}, and {useful} passes are of use")
    })
}

/// B1: what peers can make grow has a bound.
pub fn everything_is_bounded(state: &State) -> Result<(), String> {
    require(
        state.samples.flying.len() <= state.settings.samples_in_flight as usize,
        || "too many samples".into(),
    )?;
    require(state.sessions.peers.len() <= PEERS_MAX, || {
        "too many peers".into()
    })?;
    for (session, own) in state.sessions() {
        let load = own.held.len() + own.room as usize;
        require(load <= own.capacity as usize, || {
            format!("{session} holds or takes {load} of {}", own.capacity)
        })?;
        require(own.installs <= INSTALLS_MAX, || {
            format!("{session} was leased {} installations", own.installs)
        })?;
        let remembered = own.answered.len().max(own.lapsed.len());
        require(remembered <= REMEMBERED_LEASES, || {
            format!("{remembered} leases of {session} are remembered")
        })?;
    }
    let in_vain = &state.leases.in_vain;
    require(in_vain.leases().len() <= IN_VAIN_MAX, || {
        "too many passes are done in vain".into()
    })?;
    let registration = &state.settings.registration;
    require(
        state.places.line.len() <= registration.waiting_max as usize,
        || "too many wait".into(),
    )?;
    let places = state.miners_live() + state.places.kept.len();
    require(places <= state.places_in_all(), || {
        format!("{places} of {} places", state.places_in_all())
    })?;
    for miners in &state.sessions.miners {
        require(
            miners.len() <= state.settings.miners_per_stage_max as usize,
            || "too many miners".into(),
        )?;
    }
    Ok(())
}

/// L1: leases, their holders and what they are for name each other; no stage work without the epoch's checkpoint.
pub fn leases_and_holders_know_each_other(state: &State) -> Result<(), String> {
    let held: usize = state.sessions().map(|(_, own)| own.held.len()).sum();
    require(
        held == state.leases.held.len() && held == state.leases.due.len(),
        || format!("{held} leases are held"),
    )?;
    let lapsed: usize = state.sessions().map(|(_, own)| own.lapsed.len()).sum();
    require(lapsed == state.leases.lapsed.len(), || {
        format!("{lapsed} lapsed leases are remembered")
    })?;
    for lease in state.leases.in_vain.leases() {
        let leases = &state.leases;
        let waited_for = leases.held.contains_key(&lease) || leases.lapsed.contains_key(&lease);
        require(!waited_for, || {
            format!("{lease} is given up, and its result is waited for")
        })?;
    }
    for lease in state.leases() {
        let Some(holder) = state.session(lease.session) else {
            return Err(format!("{} is nobody's", lease.id));
        };
        require(holder.held.contains(&lease.id), || {
            format!("{} does not know {}", lease.session, lease.id)
        })?;
        require(lease.id < state.leases.next, || {
            format!("{} was never given", lease.id)
        })?;
        let audits = matches!(lease.work, Work::Replay { .. } | Work::Inspect { .. });
        let is_pass = lease.work.sample().is_some();
        let epoch = if is_pass {
            state.trains_for()
        } else {
            state.epoch
        };
        require(audits || lease.epoch == epoch, || {
            format!("{} is of a closed epoch", lease.id)
        })?;
        let phase_fits = match lease.work.kind() {
            WorkKind::Forward | WorkKind::Backward => state.is_training(),
            WorkKind::Upload | WorkKind::HandOver => state.phase == Phase::Uploading,
            WorkKind::Merge | WorkKind::Fetch => state.phase == Phase::Merging,
            WorkKind::Install | WorkKind::Replay | WorkKind::Inspect => true,
        };
        require(phase_fits, || format!("{} in {:?}", lease.id, state.phase))?;
        let ready = match lease.work.kind() {
            WorkKind::Forward | WorkKind::Backward => state.may_train(holder),
            WorkKind::Upload | WorkKind::Fetch => holder.is_installed(state.epoch),
            WorkKind::Install => !holder.is_installed(state.epoch),
            WorkKind::HandOver | WorkKind::Merge | WorkKind::Replay | WorkKind::Inspect => true,
        };
        require(ready, || {
            format!(
                "{} does {:?} with {:?}",
                lease.session,
                lease.work.kind(),
                holder.installation
            )
        })?;
        let at_home = holder.stage.is_none_or(|stage| stage == lease.stage);
        require(at_home, || {
            format!("{} works for {}", lease.session, lease.stage)
        })?;
    }
    for (id, audit) in state.audits_pending() {
        let known = audit.lease.is_none_or(|lease| {
            state
                .lease(lease)
                .is_some_and(|lease| lease.work == audit.work)
        });
        require(known, || format!("{id} is leased as {:?}", audit.lease))?;
    }
    Ok(())
}

/// M1: the cells of a stage are disjoint and cover it exactly, and so do the segments of its checkpoint.
pub fn cells_and_checkpoints_cover_their_stage(state: &State) -> Result<(), String> {
    for stage in state.stages() {
        let elements = state.settings.stage_parameters[usize::from(stage.get())];
        let checkpoint = state.checkpoint(stage);
        require(covers(checkpoint, elements), || {
            format!("{stage}: {checkpoint:?}")
        })?;
        let mut next = 0;
        for cell in &state.merge_of(stage).cells {
            require(cell.range.start == next && cell.range.end > next, || {
                format!("{stage}: a cell at {:?}", cell.range)
            })?;
            next = cell.range.end;
        }
        require(next == elements || next == 0, || {
            format!("{stage}: cells end at {next} of {elements}")
        })?;
    }
    Ok(())
}

/// M2: each cell is planned for distinct members of the roster: two, or as many as the settings say, or all there are.
pub fn a_cell_has_distinct_owners(state: &State) -> Result<(), String> {
    let wanted = match state.settings.merging.cells {
        Cells::Butterfly => 2,
        Cells::Grid { owners, .. } => owners as usize,
    };
    for merge in &state.merging {
        let owners = merge.roster.len().min(wanted);
        for cell in &merge.cells {
            let distinct: BTreeSet<_> = cell
                .planned
                .iter()
                .filter(|owner| merge.roster.contains(owner))
                .collect();
            require(
                distinct.len() == owners && cell.planned.len() == owners,
                || format!("owners {:?}", cell.planned),
            )?;
        }
    }
    Ok(())
}

/// M5: a settled cell says truly how: agreed means two equal results, of which one is stored; carried forward means none is
/// used; unmergeable, that somebody came to nothing.
pub fn a_settled_cell_is_explained(state: &State) -> Result<(), String> {
    for cell in state.merging.iter().flat_map(|merge| &merge.cells) {
        let Some(settled) = &cell.settled else {
            continue;
        };
        let results: Vec<_> = cell.results().map(|(_, result)| result).collect();
        let seal = settled.merged.map(|object| object.seal);
        let made = results.iter().filter_map(|result| result.made);
        let used = made.filter(|made| Some(made.object.seal) == seal).count();
        let mut stored = cell.stored();
        let is_stored = stored.any(|made| Some(made.object) == settled.merged);
        let fits = match settled.result {
            CellResult::Agreed => used >= 2 && is_stored,
            CellResult::Arbitrated { .. } | CellResult::Single => is_stored,
            CellResult::CarriedForward => settled.merged.is_none(),
            CellResult::Unmergeable { .. } => {
                settled.merged.is_none() && results.iter().any(|result| result.made.is_none())
            }
        };
        require(fits, || format!("{settled:?} from {results:?}"))?;
        let leased = cell
            .slots
            .values()
            .filter_map(Slot::lease)
            .any(|lease| state.lease(lease).is_none());
        require(!leased, || {
            format!("a slot under a lease that ended: {:?}", cell.slots)
        })?;
    }
    Ok(())
}

/// V2: a banned peer has no session and no score, and its upload is in no merge.
pub fn the_banned_are_out(state: &State) -> Result<(), String> {
    for (peer, _) in state.cheaters() {
        require(state.session_of(peer).is_none(), || {
            format!("{peer} is banned and there")
        })?;
        require(state.score(peer) == 0.0, || {
            format!("{peer} is banned and paid")
        })?;
        let merging = matches!(state.phase, Phase::Uploading | Phase::Merging);
        let included = state
            .merging
            .iter()
            .flat_map(|merge| &merge.uploads)
            .any(|(session, upload)| session.peer == peer && !upload.excluded);
        require(!merging || !included, || {
            format!("{peer} is banned and merged")
        })?;
    }
    Ok(())
}

/// V3: an audit waits only for a live session that may still upload, or hand over what the audit needs; nobody audits what
/// is not complete.
pub fn audits_wait_only_for_their_subjects(state: &State) -> Result<(), String> {
    for (id, audit) in state.audits_pending() {
        let Some(coverage) = audit.awaits else {
            continue;
        };
        let uploads = &state.merge_of(audit.stage).uploads;
        let may_grow = !uploads.contains_key(&audit.subject);
        let subject_is_at_it = state.phase == Phase::Uploading
            && state.session(audit.subject).is_some()
            && (may_grow || state.owed_for(audit).is_some());
        require(subject_is_at_it && audit.lease.is_none(), || {
            format!("{id} awaits {coverage:?} of {}", audit.subject)
        })?;
    }
    Ok(())
}

/// V6: a replay begins with what its subject had sealed before the epoch that it did, and so before anybody was drawn.
pub fn an_audit_begins_with_what_was_sealed_before(state: &State) -> Result<(), String> {
    for (session, own) in state.sessions() {
        let drawn = own.drawn.and_then(|id| state.audits.pending.get(&id));
        // It may have begun another epoch since, or this one anew.
        let (Some(audit), Some(sealed)) = (drawn, own.began_with) else {
            continue;
        };
        if own.ahead.is_some_and(|ahead| ahead.epoch != audit.epoch) {
            continue;
        }
        let (Work::Replay { kept, .. }, None) = (&audit.work, audit.awaits) else {
            continue;
        };
        let begins = kept.map(|object| object.seal);
        require(audit.epoch != state.epoch || begins == Some(sealed), || {
            format!("an audit of {session} begins with {begins:?}")
        })?;
    }
    Ok(())
}

/// W1: who waits is counted from one in the order of the tickets, and a miner has one place: it is there, or a place is kept
/// for it, or it waits.
pub fn a_place_is_one_peers_and_the_line_has_no_gaps(state: &State) -> Result<(), String> {
    let places = &state.places;
    let mut absent: BTreeSet<(Timestamp, PeerId)> = BTreeSet::new();
    for ((ticket, waiting), place) in places.line.iter().zip(1_u32..) {
        require(waiting.place == place && *ticket < places.next, || {
            format!("{ticket} is number {place} and has place {}", waiting.place)
        })?;
        require(places.tickets.get(&waiting.peer) == Some(ticket), || {
            format!("{} does not know {ticket}", waiting.peer)
        })?;
        absent.insert((waiting.heard_of, waiting.peer));
    }
    absent.extend(places.kept.iter().map(|(peer, at)| (*at, *peer)));
    let places_held = places.line.len() + places.kept.len();
    require(
        places.tickets.len() == places.line.len()
            && absent.len() == places_held
            && absent == places.heard,
        || format!("{places_held} places, {} are known of", places.heard.len()),
    )?;
    let mut peers: Vec<PeerId> = absent.iter().map(|(_, peer)| *peer).collect();
    peers.sort_unstable();
    let twice = peers.windows(2).find(|pair| pair[0] == pair[1]);
    require(twice.is_none(), || format!("{twice:?} have two places"))?;
    for peer in peers {
        let session = state.session_of(peer).and_then(|it| state.session(it));
        let trains = session.is_some_and(|it| it.stage.is_some());
        require(!trains, || format!("{peer} is there and has a place"))?;
        require(!state.sessions.is_banned(peer), || {
            format!("{peer} is banned and has a place")
        })?;
    }
    require(state.phase != Phase::Over || absent.is_empty(), || {
        "places in a run that is over".into()
    })
}

/// W2: while there is a place in the run that may be given, nobody waits who was heard of lately.
pub fn nobody_waits_while_there_is_a_place(state: &State) -> Result<(), String> {
    let free = state.free_places();
    let in_vain = free > 0 && state.somebody_alive_waits(state.clock);
    require(!in_vain, || format!("somebody waits for {free} places"))
}

/// W3, of the states before and after a command: a place on the waiting list never gets worse, and whoever gets a place in
/// the run has not overtaken anybody who was heard of lately.
///
/// # Errors
/// Says who lost a place.
pub fn a_place_never_gets_worse(before: &State, after: &State) -> Result<(), String> {
    let (earlier, later) = (&before.places.line, &after.places.line);
    for (ticket, waiting) in later {
        if let Some(was) = earlier.get(ticket) {
            require(
                was.peer == waiting.peer && waiting.place <= was.place,
                || format!("{ticket} fell from {} to {}", was.place, waiting.place),
            )?;
        } else {
            require(*ticket >= before.places.next, || {
                format!("{ticket} is given a second time")
            })?;
        }
    }
    let holds = |state: &State, peer: &PeerId| {
        let miner = |session| state.session(session).is_some_and(|it| it.stage.is_some());
        state.places.kept.contains_key(peer) || state.session_of(*peer).is_some_and(miner)
    };
    let absent = after.places.kept.keys().copied();
    let there = after.sessions.miners.iter().flatten();
    let new = absent
        .chain(there.map(|session| session.peer))
        .filter(|peer| !holds(before, peer));
    for peer in new {
        let ticket = before.places.tickets.get(&peer);
        let ahead = later.range(..ticket.copied().unwrap_or(before.places.next));
        let mut alive = ahead.filter(|(_, waiting)| is_alive(waiting, after.clock));
        if let Some((ticket, waiting)) = alive.next() {
            return Err(format!("{peer} overtook {} with {ticket}", waiting.peer));
        }
    }
    Ok(())
}

/// X1: what is kept at hand to find things by is what the facts say.
pub fn the_index_is_what_a_recount_gives(state: &State) -> Result<(), String> {
    let recount = Index::of(state);
    require(state.index == recount, || {
        let session = state.index.first_difference(&recount);
        format!("a recount differs, of sessions first at {session:?}")
    })
}

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
