//! A checkpoint that cannot be read does not end a run.

use std::time::Duration;

use super::world::{World, settings};
use crate::event::{Event, Phase, Repair};
use crate::id::Session;
use crate::settings::{Merging, RunSettings};
use crate::work::{Difference, Failure, ObjectName, SegmentSource, Work, WorkKind};

/// One stage with two miners that merged one cell and are to install it.
fn installing() -> (World, Vec<Session>) {
    let mut world = World::new(RunSettings {
        miners_to_start: 2,
        samples_per_epoch: 6,
        merging: Merging {
            copies: 2,
            ..Merging::default()
        },
        ..settings(1)
    });
    let sessions = world.gather(1..3);
    world.work_until(Phase::Installing, &[]);
    (world, sessions)
}

/// The merged cell that a session's installation begins with.
fn object_to_install(world: &mut World, session: Session) -> Option<ObjectName> {
    world.offer(session, 1);
    let lease = world.lease(session);
    let Work::Install { checkpoint, .. } = &lease.work else {
        panic!("{lease:?}")
    };
    match &checkpoint.segments[0].source {
        SegmentSource::Merged { object, .. } => Some(object.name),
        SegmentSource::Genesis => None,
    }
}

fn cannot_read(world: &mut World, session: Session) {
    let object = object_to_install(world, session).unwrap();
    let lease = world.lease(session).id;
    let difference = Difference::Digest;
    let failure = Failure::BadInput { object, difference };
    world.fail(session, lease, failure).unwrap();
}

fn repairs(world: &World) -> Vec<Repair> {
    let events = world.events.iter();
    events
        .filter_map(|event| match event {
            Event::CheckpointRepaired { how, .. } => Some(*how),
            _ => None,
        })
        .collect()
}

#[test]
fn a_cell_that_nobody_can_read_gives_way_to_its_other_copy_and_then_to_older_values() {
    let (mut world, sessions) = installing();
    for session in &sessions {
        cannot_read(&mut world, *session);
    }
    assert_eq!(
        repairs(&world),
        [],
        "there was no time to show that it can be read"
    );
    world.pass(Duration::from_secs(30), &sessions);
    assert_eq!(repairs(&world), [Repair::AnotherCopy]);
    for session in &sessions {
        cannot_read(&mut world, *session);
    }
    assert_eq!(repairs(&world), [Repair::AnotherCopy, Repair::OlderValues]);
    for session in &sessions {
        assert_eq!(object_to_install(&mut world, *session), None);
        let lease = world.lease(*session);
        world.work(&lease);
    }
    assert_eq!(world.state.phase(), Phase::Training);
}

#[test]
fn a_cell_that_somebody_could_read_stays_whatever_others_say() {
    let (mut world, sessions) = installing();
    world.offer(sessions[0], 1);
    let lease = world.lease(sessions[0]);
    world.work(&lease);
    cannot_read(&mut world, sessions[1]);
    world.pass(Duration::from_secs(60), &sessions);
    assert_eq!(repairs(&world), []);
}

#[test]
fn what_was_begun_from_the_broken_checkpoint_does_not_count() {
    let (mut world, sessions) = installing();
    cannot_read(&mut world, sessions[0]);
    world
        .command(&crate::Command::Leave {
            session: sessions[1],
        })
        .unwrap();
    world.offer(sessions[0], 1);
    let broken = world.lease(sessions[0]);
    world.pass(Duration::from_secs(30), &sessions[..1]);
    assert_eq!(
        repairs(&world),
        [Repair::AnotherCopy],
        "one is enough where one is all"
    );
    let outcome = world.honest(&broken);
    let late = world.complete(sessions[0], broken.id, outcome);
    assert!(late.is_err(), "{late:?}");
    let again = world.leases(sessions[0]);
    assert!(
        again
            .iter()
            .all(|lease| lease.work.kind() == WorkKind::Install)
    );
}
