//! What a replay is given: the log as it is when nothing can come to it any more.

use super::world::{World, peer, settings};
use crate::command::Role;
use crate::event::{AbandonReason, Event, Phase};
use crate::id::Session;
use crate::settings::RunSettings;
use crate::work::{Failure, LogEntry, UploadRecord, Work};

/// Two stages with a miner each, training, under one of many secrets: they differ in what is audited. Returns the miners
/// of the head and of the tail.
fn chain(secret: u8) -> (World, Session, Session) {
    let mut world = World::new(RunSettings {
        validators: vec![peer(9)],
        secret: [secret; 32],
        ..settings(2)
    });
    world.gather(1..3);
    let (head, tail) = (world.miners(0)[0], world.miners(1)[0]);
    (world, head, tail)
}

/// The head computes a forward pass that cannot be stored: its ordinal is spent and never reported.
fn lose_a_forward(world: &mut World, head: Session) {
    world.offer(head, 1);
    let lease = world.lease(head);
    assert!(matches!(lease.work, Work::Forward { .. }));
    world.honest(&lease);
    world
        .fail(head, lease.id, Failure::StoreUnavailable)
        .unwrap();
}

/// What the replay of a session's work redoes, and the upload that it compares.
fn replay(world: &World, session: Session) -> (Vec<LogEntry>, Option<UploadRecord>) {
    let mut audits = world.state.audits_pending();
    let (_, audit) = audits
        .find(|(_, audit)| audit.subject == session)
        .expect("everybody is audited");
    assert_eq!(audit.awaits, None);
    let Work::Replay {
        entries, upload, ..
    } = &audit.work
    else {
        panic!("{audit:?}")
    };
    (entries.clone(), upload.clone())
}

fn ordinals(entries: &[LogEntry]) -> Vec<u32> {
    entries.iter().map(|entry| entry.ordinal).collect()
}

/// Whether the audit of a session was drawn to redo everything.
fn is_drawn_whole(world: &World, session: Session) -> bool {
    let whole = |event: &Event| matches!(event, Event::AuditDrawn { subject, operations, of, .. } if *subject == session && operations == of);
    world.saw(whole) == 1
}

#[test]
fn a_gap_that_a_forward_pass_left_does_not_end_a_replay() {
    let mut wholes = 0;
    for secret in 0..16 {
        let (mut world, head, _) = chain(secret);
        lose_a_forward(&mut world, head);
        world.work_until(Phase::Merging, &[]);
        let (entries, upload) = replay(&world, head);
        let log = world.state.session(head).unwrap().log().len();
        let whole = is_drawn_whole(&world, head);
        assert_eq!(ordinals(&entries)[0], 1);
        assert!(ordinals(&entries).is_sorted());
        assert_eq!(upload.is_some(), whole);
        assert_eq!(entries.len() == log, whole);
        wholes += usize::from(whole);
    }
    assert!((1..16).contains(&wholes), "{wholes} of 16");
}

#[test]
fn what_comes_after_a_gap_is_neither_held_against_a_miner_that_did_not_upload_nor_paid() {
    let (mut world, head, tail) = chain(1);
    lose_a_forward(&mut world, head);
    world.work_until(Phase::Uploading, &[]);
    assert!(world.state.score(head.peer) > 0.0);
    let silent = world.settings().timing.phase_max;
    world.pass(silent, &[head, tail]);
    assert_eq!(
        world.saw(|event| matches!(event, Event::AuditAbandoned { subject, why: AbandonReason::NothingToRedo, .. } if *subject == head)),
        1
    );
    assert_eq!(world.state.score(head.peer), 0.0);
    let (entries, upload) = replay(&world, tail);
    assert_eq!((ordinals(&entries)[0], upload), (0, None));
    assert!(world.state.score(tail.peer) > 0.0);
}

#[test]
fn nobody_begins_a_replay_before_the_log_is_closed() {
    let (mut world, head, tail) = chain(1);
    let validator = world.join_as(9, Role::Validator, 4);
    world.work_until(Phase::Uploading, &[validator]);
    world.offer(validator, 4);
    assert_eq!(world.leases(validator), []);
    world.offer(tail, 1);
    let upload = world.lease(tail);
    world.work(&upload);
    let subjects: Vec<Session> = world
        .leases(validator)
        .into_iter()
        .map(|lease| match lease.work {
            Work::Replay { subject, .. } => subject,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(subjects, [tail], "{head} has not uploaded");
}

#[test]
fn a_miner_that_leaves_after_its_upload_is_audited_all_the_same() {
    let (mut world, head, _) = chain(1);
    world.work_until(Phase::Uploading, &[]);
    world.offer(head, 1);
    let upload = world.lease(head);
    world.work(&upload);
    world
        .command(&crate::Command::Leave { session: head })
        .unwrap();
    let (entries, upload) = replay(&world, head);
    assert!(!entries.is_empty());
    assert_eq!(upload.is_some(), is_drawn_whole(&world, head));
}

#[test]
fn work_of_an_epoch_before_is_not_compared_with_a_later_checkpoint() {
    let mut world = World::new(RunSettings {
        validators: vec![peer(99)],
        miners_to_start: 2,
        samples_per_epoch: 6,
        ..settings(1)
    });
    let sessions = world.gather(1..3);
    let validator = world.join_as(99, Role::Validator, 2);
    world.work_until(Phase::Installing, &[]);
    let straggler = sessions[0];
    assert!(!world.state.session(straggler).unwrap().log().is_empty());
    // The other one installs, and trains all of the second epoch alone.
    world.offer(sessions[1], 1);
    let install = world.lease(sessions[1]);
    world.work(&install);
    world.pass(
        world.settings().timing.phase_max,
        &[straggler, sessions[1], validator],
    );
    assert_eq!(world.state.phase(), Phase::Training);
    let before = world.events.len();
    world.work_until(Phase::Uploading, &[straggler]);
    let drawn: Vec<Session> = world.events[before..]
        .iter()
        .filter_map(|event| match event {
            Event::AuditDrawn { subject, .. } => Some(*subject),
            _ => None,
        })
        .collect();
    assert_eq!(drawn, [sessions[1]]);
}
