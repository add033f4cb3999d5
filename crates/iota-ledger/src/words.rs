//! Events and their reasons in words.

use std::fmt::Display;
use std::time::Duration;

use iota_protocol::event::{
    AbandonReason, BanReason, CellResult, Direction, ExclusionReason, LeaseEnd, PhaseReason,
    Repair, RestartReason, SessionEnd, Unmergeable,
};
use iota_protocol::registration::{PlaceEnd, WaitReason};
use iota_protocol::work::{Difference, Failure, Verdict, Work};
use iota_protocol::{Event, Role, Session};

use crate::account::Loss;

/// An event that is about no lease, in a sentence. Those about leases are for whoever remembers the lease.
pub(crate) fn event(event: &Event) -> String {
    match event {
        Event::Resumed { away } => format!(
            "the orchestrator is back after {}; every deadline moved by that",
            seconds(*away)
        ),
        Event::FinishedInVain {
            lease,
            session,
            why,
            ..
        } => format!("{session:?} finished {lease}, too late for any use: {why}"),
        Event::Restored { away, .. } => format!(
            "the run is restored from an older state: what happened in the {} since is lost",
            seconds(*away)
        ),
        Event::SessionJoined {
            session,
            role,
            stage,
            capacity,
        } => match (role, stage) {
            (Role::Miner, Some(stage)) => {
                format!("{session:?} joined as a miner of {stage}, for {capacity} leases at a time")
            }
            _ => format!("{session:?} joined as a validator, for {capacity} leases at a time"),
        },
        Event::SessionEnded { session, why } => {
            format!("{session:?} is gone: {}", session_end(*why))
        }
        Event::WaitBegan { peer, ticket, why } => format!(
            "{} has to wait for a place, with {ticket}: {}",
            peer.short(),
            match why {
                WaitReason::Full => "every place is taken, or kept for a miner that may come back",
                WaitReason::Closed => "registration is closed for now",
                WaitReason::InLine => "others were there first",
            }
        ),
        Event::WaiterHeard { peer } => format!("{} still waits for a place", peer.short()),
        Event::WaitEnded { peer, ticket, why } => format!(
            "{} no longer waits with {ticket}: {}",
            peer.short(),
            place_end(*why)
        ),
        Event::PlaceLapsed { peer, why } => format!(
            "the place that was kept for {} is given up: {}",
            peer.short(),
            place_end(*why)
        ),
        Event::RegistrationChanged { is_open: true, .. } => "newcomers are taken".to_owned(),
        Event::RegistrationChanged { is_open: false, .. } => {
            "newcomers are no longer taken".to_owned()
        }
        Event::RoomOffered { session, room } => format!("{session:?} has room for {room} leases"),
        Event::SampleOpened { sample } => format!("{sample} set out"),
        Event::Leased(lease) => format!("{:?} was given {}", lease.session, lease.id),
        Event::LeaseEnded {
            lease,
            session,
            why,
        } => {
            format!("{lease} of {session:?} ended: {}", lease_end(why))
        }
        Event::Completed {
            lease,
            session,
            credited,
            ..
        } => {
            let counts = if *credited {
                ""
            } else {
                ", which does not count"
            };
            format!("{session:?} did {lease}{counts}")
        }
        Event::PreferenceLapsed { sample } => {
            format!("{sample} no longer waits for the miner that kept its forward pass")
        }
        Event::PieceUndone {
            sample,
            piece,
            producer,
            accuser,
            difference,
        } => format!(
            "the {} pass of {sample} at {} is done again: what {producer:?} made {}, says {accuser:?}",
            direction(piece.direction),
            piece.stage,
            self::difference(*difference)
        ),
        Event::SampleCompleted { sample, loss, path } => format!(
            "{sample} is complete with a loss of {loss:.3}: from the head, {} learned from it",
            list(path)
        ),
        Event::SampleRestarted { sample, why } => {
            format!("{sample} goes back to its tokens: {}", restart(*why))
        }
        Event::SampleDropped { sample } => {
            format!("{sample} is given up: no epoch follows in which it could be finished")
        }
        Event::PhaseChanged {
            phase, epoch, why, ..
        } => format!("{} in {epoch}: {}", phase.name(), phase_reason(*why)),
        Event::RosterFixed { stage, roster } if roster.is_empty() => {
            format!("nobody uploads {stage}: none of its miners did a backward pass")
        }
        Event::RosterFixed { stage, roster } => {
            format!(
                "{} of {stage} are to upload: {}",
                roster.len(),
                list(roster)
            )
        }
        Event::OwnersRelaxed => {
            "owners that have not begun to merge are no longer waited for".to_owned()
        }
        Event::UploadAccused {
            stage,
            producer,
            accuser,
            difference,
        } => format!(
            "{accuser:?} cannot merge the upload of {producer:?} for {stage}: an object {}",
            self::difference(*difference)
        ),
        Event::UploadExcluded {
            stage,
            session,
            why,
        } => format!(
            "the upload of {session:?} is left out of the merge of {stage}: {}; its cells are merged again",
            match why {
                ExclusionReason::Banned => "its author is banned",
                ExclusionReason::Accused => "owners cannot read it and no validator can be asked",
            }
        ),
        Event::UploadQuarantined {
            stage,
            cell,
            session,
        } => format!(
            "{cell} of {stage} does without the copy of {session:?}, which holds values that are not finite; it earns nothing in this epoch"
        ),
        Event::CellSettled {
            stage,
            cell,
            result,
            ..
        } => format!("{cell} of {stage} is settled: {}", cell_result(*result)),
        Event::CheckpointCommitted(checkpoint) => format!(
            "{} starts {} from {} segments, with {} optimizer steps behind it",
            checkpoint.stage,
            checkpoint.epoch,
            checkpoint.segments.len(),
            checkpoint.optimizer_steps
        ),
        Event::CheckpointAccused {
            stage,
            object,
            accuser,
            difference,
        } => format!(
            "{accuser:?} cannot install the checkpoint of {stage}: {} {}",
            object.id,
            self::difference(*difference)
        ),
        Event::CheckpointRepaired {
            checkpoint,
            object,
            how,
        } => format!(
            "the checkpoint of {} for {} does without {}, which nobody can read: {}",
            checkpoint.stage,
            checkpoint.epoch,
            object.id,
            match how {
                Repair::AnotherCopy => "another owner's object with the same bits takes its place",
                Repair::OlderValues => "the values from before the merge take its place",
            }
        ),
        Event::Installed {
            session,
            stage,
            epoch,
            ..
        } => format!("{session:?} holds what {stage} starts {epoch} from"),
        Event::ReplicasDiffer { stage, epoch, odd } if odd.is_empty() => {
            format!("miners of {stage} hold different bits of {epoch}, as many of either")
        }
        Event::ReplicasDiffer { stage, epoch, odd } => format!(
            "{} hold other bits of {stage} for {epoch} than most and have to install again",
            list(odd)
        ),
        Event::AuditDrawn {
            audit,
            subject,
            stage,
            operations,
            of,
        } => format!(
            "{audit} is drawn: {operations} of {of} operations of {subject:?} at {stage} are to be redone"
        ),
        Event::DisputeOpened {
            audit,
            object,
            producer,
            accuser,
            ..
        } => format!(
            "{audit} is to say who is right about {}: {producer:?}, who wrote it, or {accuser:?}, who complained",
            object.name.id
        ),
        Event::AuditSettled {
            audit,
            subject,
            verdict,
            auditor,
        } => format!(
            "{audit} of {subject:?} is settled by {auditor:?}: {}",
            self::verdict(*verdict)
        ),
        Event::AuditAbandoned {
            audit,
            subject,
            why,
        } => format!("{audit} of {subject:?} has no verdict: {}", abandon(*why)),
        Event::PeerBanned { peer, why } => format!("{} is banned: {}", peer.short(), ban(why)),
    }
}

/// A piece of work, without its stage.
pub(crate) fn work(work: &Work) -> String {
    match work {
        Work::Forward { sample, .. } => format!("the forward pass of {sample}"),
        Work::Backward { sample, .. } => format!("the backward pass of {sample}"),
        Work::Upload { cells, .. } => format!("the upload of {} cells", cells.len()),
        Work::Merge { cell, inputs, .. } => {
            format!("the merge of {cell} over {} copies", inputs.len())
        }
        Work::HandOver { began_with, .. } if began_with.is_some() => {
            "handing over what it began the epoch with, for an audit".to_owned()
        }
        Work::HandOver { .. } => "handing over what it keeps, for an audit".to_owned(),
        Work::Fetch { segments } => format!("fetching {} merged cells", segments.len()),
        Work::Install { checkpoint, .. } => {
            format!("installing the checkpoint of {}", checkpoint.epoch)
        }
        Work::Replay {
            subject, entries, ..
        } => format!("redoing {} operations of {subject:?}", entries.len()),
        Work::Inspect {
            object, producer, ..
        } => format!("looking at {} of {producer:?}", object.name.id),
    }
}

pub(crate) fn lease_end(end: &LeaseEnd) -> String {
    match end {
        LeaseEnd::Expired => "its deadline passed".to_owned(),
        LeaseEnd::Failed { failure } => format!("given back, {}", self::failure(*failure)),
        LeaseEnd::SessionOver => "its holder's session ended".to_owned(),
        LeaseEnd::EpochClosed => "its phase or epoch closed".to_owned(),
        LeaseEnd::Superseded => "another's late result came first".to_owned(),
        LeaseEnd::Withdrawn => {
            "what it was to read is bad, or its holder's weights are not those of its stage, so its result would be worth nothing".to_owned()
        }
    }
}

fn failure(failure: Failure) -> String {
    match failure {
        Failure::Leaving => "the peer is leaving".to_owned(),
        Failure::BadInput { object, difference } => {
            format!("{} {}", object.id, self::difference(difference))
        }
        Failure::OutOfMemory => "out of memory".to_owned(),
        Failure::StoreUnavailable => "the store could not be reached".to_owned(),
        Failure::NotFinite => "the result was not finite".to_owned(),
        Failure::Internal => "trouble of the peer's own".to_owned(),
    }
}

/// Completes "an object …".
pub(crate) const fn difference(difference: Difference) -> &'static str {
    match difference {
        Difference::Output => "holds another output than committed to",
        Difference::Loss => "came with another loss",
        Difference::Upload => "holds another upload than committed to",
        Difference::Missing => "is not in the store",
        Difference::Digest => "is not the bytes that were committed to",
        Difference::Malformed => "is not a tensor of the right shape",
        Difference::NotFinite => "holds values that are not finite",
    }
}

const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Backward => "backward",
    }
}

const fn session_end(end: SessionEnd) -> &'static str {
    match end {
        SessionEnd::Left => "it left",
        SessionEnd::Silent => "it was not heard of for too long",
        SessionEnd::Replaced => "its peer joined anew",
        SessionEnd::Banned => "its peer was banned",
        SessionEnd::CannotInstall => {
            "it was leased the checkpoint again and again and did not install it"
        }
        SessionEnd::Idle => {
            "others wait for its place, and it has not installed the checkpoint and takes no lease for it"
        }
        SessionEnd::RunOver => "the run is over",
        SessionEnd::Restored => "what it did since is lost, it has to join again",
    }
}

const fn place_end(end: PlaceEnd) -> &'static str {
    match end {
        PlaceEnd::Admitted => "it has a place in the run now",
        PlaceEnd::Expired => "it was not heard of for as long as a place is kept",
        PlaceEnd::Banned => "its peer was found cheating",
        PlaceEnd::RunOver => "the run is over",
    }
}

const fn restart(reason: RestartReason) -> &'static str {
    match reason {
        RestartReason::TooManyAttempts => "one piece of it failed too often",
        RestartReason::Carried => "the epoch ended without it, the next one takes it over",
    }
}

const fn phase_reason(reason: PhaseReason) -> &'static str {
    match reason {
        PhaseReason::Gathered => "every stage has enough miners with its checkpoint",
        PhaseReason::QuotaTrained => "the epoch's samples are all trained on",
        PhaseReason::DrainTimedOut => "the epoch's last samples took too long",
        PhaseReason::AllDone => "everybody who was waited for is done",
        PhaseReason::Quorum => "enough are done for the time that has passed",
        PhaseReason::TimedOut => "its time was up",
        PhaseReason::LastEpochMerged => "every merge of the run is done",
        PhaseReason::AuditsSettled => "no audit is left",
        PhaseReason::Stopped => "the operator said so",
        PhaseReason::Restored => "what the epoch had learned is lost, and it trains anew",
    }
}

fn cell_result(result: CellResult) -> String {
    match result {
        CellResult::Agreed => "its owners agree".to_owned(),
        CellResult::Arbitrated { liar } => format!("owners differed, and {liar:?} was wrong"),
        CellResult::Single => "one owner delivered".to_owned(),
        CellResult::CarriedForward => {
            "nobody delivered or could decide, the old values stay".to_owned()
        }
        CellResult::Unmergeable {
            why: Unmergeable::EveryCopyQuarantined,
        } => "no copy of it is finite, the old values stay".to_owned(),
        CellResult::Unmergeable {
            why: Unmergeable::ResultNotFinite,
        } => "its copies have no finite merge, the old values stay".to_owned(),
    }
}

fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Agrees { operations } => format!("all of {operations} operations are as reported"),
        Verdict::Differs {
            ordinal: Some(ordinal),
            difference,
        } => format!("operation {ordinal} {}", self::difference(difference)),
        Verdict::Differs {
            ordinal: None,
            difference,
        } => format!("the object {}", self::difference(difference)),
    }
}

const fn abandon(reason: AbandonReason) -> &'static str {
    match reason {
        AbandonReason::SubjectBanned => "its subject is banned already",
        AbandonReason::TooOld => "no validator took it while its objects were kept",
        AbandonReason::TooManyAttempts => "validators gave it back too often",
        AbandonReason::NotHandedOver => {
            "its subject did not hand over what it had begun the epoch with"
        }
        AbandonReason::NothingToRedo => "nothing of its subject's log can be redone",
        AbandonReason::RunOver => "the run is over",
        AbandonReason::Restored => {
            "what it would look at may have been deleted in the time that is lost"
        }
    }
}

fn ban(reason: &BanReason) -> String {
    match reason {
        BanReason::Audit {
            audit,
            epoch,
            ordinal: Some(ordinal),
            difference,
        } => format!(
            "{audit} redid its work of {epoch}, and operation {ordinal} {}",
            self::difference(*difference)
        ),
        BanReason::Audit {
            audit,
            epoch,
            ordinal: None,
            difference,
        } => format!(
            "{audit} redid its work of {epoch}, and the upload {}",
            self::difference(*difference)
        ),
        BanReason::Merge { epoch, stage, cell } => format!(
            "what it made of {cell} of {stage} in {epoch} is not what two others made of the same uploads"
        ),
        BanReason::Inspection {
            audit,
            object,
            difference,
        } => format!(
            "{audit} found that {}, which it committed to, {}",
            object.id,
            self::difference(*difference)
        ),
    }
}

/// Completes "it is in no merge: …".
pub(crate) const fn loss(loss: Loss) -> &'static str {
    match loss {
        Loss::Left => "the miner left before it uploaded",
        Loss::Silent => "the miner fell silent before it uploaded",
        Loss::Replaced => "the miner started anew before it uploaded",
        Loss::Banned => "the miner was banned before it uploaded",
        Loss::CannotInstall => "the miner was let go, since it could not install a checkpoint",
        Loss::Idle => "the miner kept a place that others waited for, and was let go",
        Loss::RunOver => "the run ended before the merge",
        Loss::Restored => "the run was restored from an older state",
        Loss::BeganAnew => "the miner installed the epoch's checkpoint a second time",
        Loss::Odd => "the miner held other bits than its stage's other replicas",
        Loss::CheckpointRepaired => "what the miner had started from was repaired",
        Loss::NotInstalled => {
            "the miner trained on while its stage merged, and did not install what came of that in time"
        }
        Loss::NotUploaded => "the miner did not upload in time",
        Loss::ExcludedBanned => "the miner was banned before its upload was merged",
        Loss::ExcludedUnreadable => "owners could not read the upload",
        Loss::NothingMerged => "all cells that it went into kept older values or left it out",
    }
}

impl Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(loss(*self))
    }
}

/// A duration as people say it: `250 ms`, `12.3 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

pub(crate) fn list(sessions: &[Session]) -> String {
    let names: Vec<String> = sessions
        .iter()
        .map(|session| format!("{session:?}"))
        .collect();
    names.join(", ")
}
