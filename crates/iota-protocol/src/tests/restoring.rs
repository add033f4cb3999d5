//! Runs that go on from an older state than the one that was told.

use std::collections::BTreeSet;
use std::time::Duration;

use super::chaos::outputs_of;
use super::world::{World, peer, settings};
use crate::command::{Command, Role};
use crate::event::{AbandonReason, Event, Phase, SessionEnd};
use crate::id::{SampleId, Session};
use crate::rejection::Rejection;
use crate::settings::RunSettings;
use crate::work::{Difference, Failure, ObjectName, Work};

/// Two stages with two miners each, in training, with an epoch behind them.
fn in_second_epoch() -> World {
    let mut world = World::new(RunSettings {
        epochs: 3,
        ..settings(2)
    });
    world.gather(1..5);
    world.work_until(Phase::Installing, &[]);
    world.work_until(Phase::Training, &[]);
    world
}

fn completed(world: &World) -> u64 {
    world.state.sample_counts().completed
}

/// What happened in an epoch whose checkpoint never came about is in no weights any more: it is counted as it is learned
/// again, and once.
#[test]
fn samples_that_no_checkpoint_has_learned_are_trained_again_and_counted_once() {
    for phase in [Phase::Training, Phase::Uploading, Phase::Merging] {
        let mut world = in_second_epoch();
        let learned = completed(&world);
        assert_eq!(learned, 4);
        while completed(&world) < learned + 2 {
            let sessions: Vec<_> = world.state.sessions().map(|(session, _)| session).collect();
            for session in sessions {
                world.offer(session, 2);
                if let Some(lease) = world.leases(session).first().cloned() {
                    world.work(&lease);
                }
            }
        }
        world.work_until(phase, &[]);
        assert!(completed(&world) > learned);
        world.restore(world.commands());
        assert_eq!(
            (world.state.phase(), world.epoch().get()),
            (Phase::Training, 1)
        );
        assert_eq!(completed(&world), learned, "{phase:?}");

        world.gather(1..5);
        world.work_until(Phase::Over, &[]);
        let counts = world.state.sample_counts();
        assert_eq!((counts.completed, counts.lost), (12, 0), "{phase:?}");
        let trained: BTreeSet<SampleId> = since_restored(&world)
            .filter_map(|event| match event {
                Event::SampleCompleted { sample, .. } => Some(*sample),
                _ => None,
            })
            .collect();
        assert_eq!(trained, (4..12).map(SampleId::new).collect(), "{phase:?}");
    }
}

fn since_restored(world: &World) -> impl Iterator<Item = &Event> {
    let at = |event: &Event| matches!(event, Event::Restored { .. });
    let place = world.events.iter().rposition(at).unwrap();
    world.events[place..].iter()
}

#[test]
fn what_a_checkpoint_has_learned_is_kept() {
    let mut world = World::new(settings(1));
    world.gather(1..3);
    world.work_until(Phase::Installing, &[]);
    assert_eq!(world.epoch().get(), 1);
    let checkpoint = world
        .state
        .checkpoint(crate::id::StageIndex::new(0))
        .clone();
    world.restore(world.commands());
    assert_eq!(completed(&world), 4);
    assert_eq!(world.state.checkpoint(checkpoint.stage), &checkpoint);
    // Nobody is there who could install it; whoever comes does so while training waits.
    assert_eq!(world.state.phase(), Phase::Training);
    world.gather(1..3);
    world.work_until(Phase::Over, &[]);
    assert_eq!(completed(&world), 8);
}

/// The sessions that went on in the lost history are unknown; so is what they would report. They join again.
#[test]
fn sessions_of_a_lost_history_are_told_to_join_again_and_get_new_numbers() {
    let mut world = World::new(settings(1));
    let [known] = world.gather(1..2)[..] else {
        unreachable!("one was gathered");
    };
    let kept = world.commands();
    let newer = world.join(1);
    let stranger = world.join(2);
    world.offer(newer, 1);
    let lease = world.lease(newer);

    world.now = world.now + Duration::from_secs(60);
    let events = world.restore(kept);
    let ended = Event::SessionEnded {
        session: known,
        why: SessionEnd::Restored,
    };
    assert!(events.contains(&ended), "{events:?}");
    for session in [known, newer, stranger] {
        let refused = world.command(&Command::OfferRoom { session, room: 1 });
        assert_eq!(refused, Err(Rejection::NotRegistered));
        let late = world.fail(session, lease.id, Failure::Internal);
        assert_eq!(late, Err(Rejection::NotRegistered));
    }
    for name in [1, 2] {
        let again = world.join(name);
        assert!(again.generation > newer.generation + 60);
        world.offer(again, 1);
        assert!(world.lease(again).id > lease.id);
    }
}

/// The same state restored twice: the second time nobody knows of the first.
#[test]
fn no_object_is_granted_twice_however_often_a_state_is_restored() {
    for between in [30, 0] {
        let mut world = in_second_epoch();
        restore_again_and_again(&mut world, Duration::from_secs(between));
    }
}

/// `between` two restorations so much time passes by the clock: none if each is done by a machine whose clock is late.
fn restore_again_and_again(world: &mut World, between: Duration) {
    let kept = world.commands();
    let began = world.now;
    let mut granted: BTreeSet<ObjectName> = BTreeSet::new();
    let mut stays: BTreeSet<Session> = BTreeSet::new();
    for _ in 0..3 {
        world.work_until(Phase::Merging, &[]);
        let leased: Vec<ObjectName> = world.events[world.kept_events(kept)..]
            .iter()
            .filter_map(|event| match event {
                Event::Leased(lease) => Some(outputs_of(&lease.work)),
                _ => None,
            })
            .flatten()
            .collect();
        assert!(leased.len() > 8, "{leased:?}");
        for name in leased {
            assert!(granted.insert(name), "{name:?} is granted twice");
        }
        world.now = if between.is_zero() {
            began
        } else {
            world.now + between
        };
        world.restore(kept);
        for session in world.gather(1..5) {
            assert!(stays.insert(session), "{session:?} is a stay twice");
        }
    }
}

#[test]
fn nobody_is_blamed_for_an_object_that_may_have_been_deleted_meanwhile() {
    let mut world = World::new(RunSettings {
        validators: vec![peer(99)],
        ..settings(2)
    });
    world.gather(1..5);
    let accused = loop {
        let sessions: Vec<_> = world.state.sessions().map(|(session, _)| session).collect();
        let mut reader = None;
        for session in sessions {
            world.offer(session, 1);
            let lease = world.lease(session);
            match lease.work {
                Work::Backward {
                    input: Some(input), ..
                } => reader = Some((lease, input)),
                _ => drop(world.work(&lease)),
            }
        }
        if let Some(found) = reader {
            break found;
        }
    };
    let (lease, input) = accused;
    let failure = Failure::BadInput {
        object: input.name,
        difference: Difference::Missing,
    };
    world.fail(lease.session, lease.id, failure).unwrap();
    assert_eq!(world.state.audits_pending().count(), 1);
    let validator = world.join_as(99, Role::Validator, 1);
    world.offer(validator, 1);
    assert!(matches!(world.lease(validator).work, Work::Inspect { .. }));

    let events = world.restore(world.commands());
    let abandoned = |event: &Event| {
        matches!(
            event,
            Event::AuditAbandoned {
                why: AbandonReason::Restored,
                ..
            }
        )
    };
    assert!(events.iter().any(abandoned), "{events:?}");
    assert_eq!(world.state.audits_pending().count(), 0);
    assert_eq!(world.state.cheaters().count(), 0);
}

#[test]
fn a_run_that_is_over_stays_over() {
    let mut world = World::new(settings(1));
    world.gather(1..2);
    world.work_until(Phase::Over, &[]);
    let before = world.state.clone();
    assert_eq!(world.restore(world.commands()), []);
    assert_eq!(world.state, before);
}
