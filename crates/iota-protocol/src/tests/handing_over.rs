//! What a miner keeps for itself: sealed by all, stored by those who are drawn.

use std::collections::BTreeSet;

use super::world::{World, peer, settings};
use crate::command::{Command, Role};
use crate::event::{AbandonReason, Event, Phase};
use crate::id::{Epoch, Session};
use crate::rejection::Rejection;
use crate::settings::{Merging, ObjectSize, RunSettings};
use crate::state::Coverage;
use crate::testing::{kept, seal};
use crate::work::{Failure, Lease, ObjectRef, Outcome, Purpose, Seal, Work, WorkKind};

const SIZE: ObjectSize = ObjectSize {
    overhead_bytes: 5,
    ..ObjectSize::per_element(2)
};

/// Four miners of one stage that keep something, two of which are audited after each epoch.
fn keeping() -> RunSettings {
    RunSettings {
        validators: vec![peer(9)],
        audit_every_epochs: 4,
        epochs: 4,
        samples_per_epoch: 8,
        merging: Merging {
            kept: Some(SIZE),
            ..Merging::default()
        },
        ..settings(1)
    }
}

/// As the time to upload begins in the second epoch, which everybody began with what it had kept.
fn second_uploading(settings: RunSettings) -> (World, Vec<Session>) {
    let mut world = World::new(settings);
    let sessions = world.gather(1..5);
    world.work_until(Phase::Uploading, &[]);
    world.work_until(Phase::Training, &[]);
    world.work_until(Phase::Uploading, &[]);
    assert_eq!(world.epoch(), Epoch::new(1));
    (world, sessions)
}

fn sealed(epoch: u64) -> Seal {
    seal(kept(Epoch::new(epoch)), SIZE.bytes(12))
}

/// Whose work of the present epoch is to be replayed.
fn drawn(world: &World) -> BTreeSet<Session> {
    let audits = world.state.audits_pending();
    let of_now = audits.filter(|(_, audit)| audit.epoch == world.epoch());
    of_now.map(|(_, audit)| audit.subject).collect()
}

/// What the replay of a session's present work begins with.
fn begins_with(world: &World, session: Session) -> Option<ObjectRef> {
    let mut audits = world.state.audits_pending();
    let own = audits.find(|(_, audit)| audit.subject == session && audit.epoch == world.epoch());
    match own.expect("it was drawn").1.work {
        Work::Replay { kept, .. } => kept,
        ref other => panic!("{other:?}"),
    }
}

/// Uploads what a session is leased. Returns what else it is asked for then.
fn upload(world: &mut World, session: Session) -> Option<Lease> {
    world.offer(session, 1);
    let lease = world.lease(session);
    assert_eq!(lease.work.kind(), WorkKind::Upload);
    world.work(&lease);
    world.offer(session, 1);
    asked(world, session)
}

/// What a session is asked to hand over.
fn asked(world: &World, session: Session) -> Option<Lease> {
    let leases = world.leases(session).into_iter();
    let mut handed_over = leases.filter(|lease| lease.work.kind() == WorkKind::HandOver);
    handed_over.next()
}

fn abandoned(world: &World, session: Session, reason: AbandonReason) -> usize {
    world.saw(|event| matches!(event, Event::AuditAbandoned { subject, why, .. } if *subject == session && *why == reason))
}

#[test]
fn exactly_the_drawn_are_asked_for_what_they_began_with_and_nobody_knows_before_its_upload() {
    let (mut world, sessions) = second_uploading(keeping());
    let drawn = drawn(&world);
    assert_eq!(drawn.len(), 2);
    let mut were_asked = BTreeSet::new();
    for session in &sessions {
        world.offer(*session, 1);
        // The same for everybody, but for its names.
        let lease = world.lease(*session);
        let Work::Upload { seals_kept, .. } = &lease.work else {
            panic!("{lease:?}")
        };
        assert!(seals_kept);
        world.work(&lease);
        world.offer(*session, 1);
        let Some(lease) = asked(&world, *session) else {
            continue;
        };
        let Work::HandOver { began_with, keeps } = &lease.work else {
            panic!("{lease:?}")
        };
        let object = began_with.expect("it went on with what it had");
        assert_eq!((object.seal, *keeps), (sealed(0), None));
        assert_eq!(object.name.purpose, Purpose::Kept);
        assert_eq!(begins_with(&world, *session), None);
        were_asked.insert(*session);
        // The last of them ends the phase.
        world.work(&lease);
        assert_eq!(begins_with(&world, *session), Some(object));
    }
    assert_eq!(were_asked, drawn);
    assert_eq!(world.state.phase(), Phase::Merging);
    let handed_over = 2 * SIZE.bytes(12);
    world.work_until(Phase::Installing, &[]);
    let merges = world.state.merges();
    assert_eq!(merges[1].bytes_up, merges[0].bytes_up + handed_over);
}

#[test]
fn a_replay_waits_for_what_it_begins_with() {
    let (mut world, sessions) = second_uploading(keeping());
    let validator = world.join_as(9, Role::Validator, 4);
    let subject = *drawn(&world).first().unwrap();
    let lease = upload(&mut world, subject).unwrap();
    world.offer(validator, 4);
    let of_subject = |world: &World| {
        let leases = world.leases(validator);
        let replays = leases.into_iter().map(|lease| lease.work);
        let mut own = replays.filter(|work| work.subject() == Some(subject));
        own.find_map(|work| match work {
            Work::Replay { kept, .. } if kept.is_some() => kept,
            _ => None,
        })
    };
    assert_eq!(of_subject(&world), None);
    world.work(&lease);
    assert_eq!(of_subject(&world).map(|it| it.seal), Some(sealed(0)));
    assert!(sessions.contains(&subject));
}

#[test]
fn whoever_began_an_epoch_with_nothing_is_asked_for_nothing() {
    let mut world = World::new(keeping());
    let sessions = world.gather(1..5);
    world.work_until(Phase::Uploading, &[]);
    for session in &sessions {
        assert_eq!(upload(&mut world, *session), None);
    }
    assert_eq!(world.state.phase(), Phase::Merging);
    let subject = *drawn(&world).first().unwrap();
    assert_eq!(begins_with(&world, subject), None);
}

#[test]
fn another_object_than_the_sealed_one_is_no_answer() {
    let (mut world, _) = second_uploading(keeping());
    let subject = *drawn(&world).first().unwrap();
    let lease = upload(&mut world, subject).unwrap();
    let another = Outcome::Upload {
        cells: Vec::new(),
        optimizer_steps: 0,
        kept: Some(sealed(1)),
    };
    let refused = world.complete(subject, lease.id, another);
    assert_eq!(refused, Err(Rejection::WrongOutcome));
    world.work(&lease);
    assert_eq!(
        begins_with(&world, subject).map(|it| it.seal),
        Some(sealed(0))
    );
}

#[test]
fn who_cannot_store_it_is_asked_again_under_another_name() {
    let (mut world, _) = second_uploading(keeping());
    let subject = *drawn(&world).first().unwrap();
    let first = upload(&mut world, subject).unwrap();
    world
        .fail(subject, first.id, Failure::StoreUnavailable)
        .unwrap();
    world.offer(subject, 1);
    let second = world.lease(subject);
    let name = |lease: &Lease| match &lease.work {
        Work::HandOver {
            began_with: Some(object),
            ..
        } => object.name,
        other => panic!("{other:?}"),
    };
    assert_ne!(name(&first), name(&second));
    world.work(&second);
    assert_eq!(
        begins_with(&world, subject).map(|it| it.name),
        Some(name(&second))
    );
}

#[test]
fn a_subject_that_leaves_takes_its_audit_along_and_the_epochs_pay_stays_behind() {
    let (mut world, _) = second_uploading(keeping());
    let subject = *drawn(&world).first().unwrap();
    let lease = upload(&mut world, subject).unwrap();
    assert!(matches!(lease.work, Work::HandOver { .. }));
    let before = world.state.score(subject.peer);
    world.command(&Command::Leave { session: subject }).unwrap();
    assert_eq!(abandoned(&world, subject, AbandonReason::NotHandedOver), 1);
    assert!(!drawn(&world).contains(&subject));
    assert!(world.state.score(subject.peer) < before);
    assert_eq!(world.state.cheaters().count(), 0);
}

#[test]
fn who_withholds_it_begins_anew_ever_after_and_is_the_next_to_be_looked_at() {
    let (mut world, sessions) = second_uploading(keeping());
    let subject = *drawn(&world).first().unwrap();
    for session in &sessions {
        if let Some(lease) = upload(&mut world, *session)
            && *session != subject
        {
            world.work(&lease);
        }
    }
    // It is there, and lets the time to upload go by.
    assert_eq!(world.state.phase(), Phase::Uploading);
    world.pass(world.settings().timing.phase_max, &sessions);
    assert_eq!(abandoned(&world, subject, AbandonReason::NotHandedOver), 1);
    assert_eq!(world.state.cheaters().count(), 0);
    let uploads = &world.state.merge_of(world.stage_of(subject)).uploads;
    assert!(uploads.contains_key(&subject));
    for _ in 2..4 {
        world.work_until(Phase::Installing, &[]);
        world.work_until(Phase::Training, &[]);
        let began_with = world.state.session(subject).unwrap().began_with;
        assert_eq!(began_with, None);
        world.work_until(Phase::Uploading, &[]);
        if world.epoch() == Epoch::new(2) {
            assert!(drawn(&world).contains(&subject));
            assert_eq!(upload(&mut world, subject), None);
        }
    }
    // Whoever was not drawn, or handed over, goes on with what it has.
    let went_on = sessions.iter().filter(|session| {
        let state = world.state.session(**session);
        state.is_some_and(|it| it.began_with.is_some())
    });
    assert_eq!(went_on.count(), 3);
}

#[test]
fn an_upload_that_never_comes_hands_nothing_over_either() {
    let (mut world, sessions) = second_uploading(keeping());
    let subject = *drawn(&world).first().unwrap();
    for session in sessions.iter().filter(|session| **session != subject) {
        if let Some(lease) = upload(&mut world, *session) {
            world.work(&lease);
        }
    }
    world.pass(world.settings().timing.phase_max, &sessions);
    assert_eq!(abandoned(&world, subject, AbandonReason::NotHandedOver), 1);
}

#[test]
fn a_restored_run_holds_nothing_against_those_who_were_to_hand_over() {
    let (mut world, _) = second_uploading(keeping());
    let subject = *drawn(&world).first().unwrap();
    upload(&mut world, subject).unwrap();
    let commands = world.commands();
    world.restore(commands);
    assert_eq!(abandoned(&world, subject, AbandonReason::Restored), 1);
    let record = world.state.peer(subject.peer).unwrap();
    assert!(!record.ledger.withheld);
}

#[test]
fn where_values_are_compared_a_replay_of_everything_reads_what_is_kept_at_its_end_too() {
    let mut wholes = 0;
    for secret in 0..16 {
        let mut settings = RunSettings {
            secret: [secret; 32],
            ..keeping()
        };
        settings.merging.compares_kept = true;
        let mut world = World::new(settings);
        let sessions = world.gather(1..5);
        world.work_until(Phase::Uploading, &[]);
        for session in sessions {
            let whole = |event: &Event| matches!(event, Event::AuditDrawn { subject, operations, of, .. } if *subject == session && operations == of);
            let is_whole = world.saw(whole) == 1;
            wholes += usize::from(is_whole);
            let asked = upload(&mut world, session);
            assert_eq!(asked.is_some(), is_whole);
            let Some(lease) = asked else { continue };
            let Work::HandOver { began_with, keeps } = lease.work else {
                panic!("{lease:?}")
            };
            assert_eq!(
                (began_with, keeps.map(|it| it.seal)),
                (None, Some(sealed(0)))
            );
            world.work(&lease);
            let mut audits = world.state.audits_pending();
            let (_, audit) = audits.find(|(_, it)| it.subject == session).unwrap();
            let Work::Replay {
                upload: Some(upload),
                ..
            } = &audit.work
            else {
                panic!("{audit:?}")
            };
            assert_eq!(upload.kept(), keeps);
        }
    }
    assert!(wholes > 0);
}

#[test]
fn an_upload_that_does_not_seal_what_the_miner_keeps_is_refused() {
    let mut world = World::new(keeping());
    let sessions = world.gather(1..5);
    world.work_until(Phase::Uploading, &[]);
    world.offer(sessions[0], 1);
    let lease = world.lease(sessions[0]);
    let Outcome::Upload {
        cells,
        optimizer_steps,
        ..
    } = world.honest(&lease)
    else {
        panic!("{lease:?}")
    };
    let mut with = |kept| {
        let cells = cells.clone();
        let outcome = Outcome::Upload {
            cells,
            optimizer_steps,
            kept,
        };
        world.complete(sessions[0], lease.id, outcome).map(drop)
    };
    assert_eq!(with(None), Err(Rejection::WrongOutcome));
    assert_eq!(with(Some(seal("", 1))), Err(Rejection::WrongLength));
    assert_eq!(with(Some(seal("", SIZE.bytes(12)))), Ok(()));
}

#[test]
fn nobody_reads_what_is_kept_by_a_peer_that_will_not_go_on_with_it() {
    let mut asked = [0, 0];
    for secret in 0..32 {
        let mut settings = RunSettings {
            secret: [secret; 32],
            ..keeping()
        };
        settings.merging.compares_kept = true;
        let mut world = World::new(settings);
        world.gather(1..5);
        world.work_until(Phase::Uploading, &[]);
        let mut audits = world.state.audits_pending();
        let whole = audits.find(|(_, audit)| audit.awaits == Some(Coverage::Everything));
        let Some((audit, state)) = whole else {
            continue;
        };
        let (subject, stage) = (state.subject, state.stage);
        let last = audits.map(|(other, _)| other).fold(audit, Ord::max);
        let withholds = secret % 2 == 0;
        if withholds {
            // As if it had for another audit than this.
            let why = AbandonReason::NotHandedOver;
            world.happen(Event::AuditAbandoned {
                audit,
                subject,
                why,
            });
            world.happen(Event::AuditDrawn {
                audit: last.next(),
                subject,
                stage,
                operations: 2,
                of: 2,
            });
        }
        let is_asked = upload(&mut world, subject).is_some();
        assert_eq!(is_asked, !withholds);
        asked[usize::from(withholds)] += 1;
    }
    assert!(asked[0] > 0 && asked[1] > 0, "{asked:?}");
}
