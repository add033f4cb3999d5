//! Joining, staying and timers.

use std::time::Duration;

use super::training::two_by_two;
use super::world::{World, peer, settings};
use crate::command::{Command, Role};
use crate::event::{Event, LeaseEnd, Phase, SessionEnd};
use crate::id::Session;
use crate::rejection::Rejection;
use crate::settings::{Registration, RunSettings};
use crate::work::{Failure, WorkKind};

#[test]
fn joining_is_refused_with_a_reason() {
    let mut world = World::new(RunSettings {
        miners_per_stage_max: 1,
        registration: Registration {
            waiting_max: 1,
            ..Registration::default()
        },
        ..settings(1)
    });
    let join = |name, role, capacity| Command::Join {
        peer: peer(name),
        role,
        capacity,
    };
    assert_eq!(
        world.command(&join(1, Role::Validator, 1)),
        Err(Rejection::NotAValidator)
    );
    assert_eq!(
        world.command(&join(1, Role::Miner, 0)),
        Err(Rejection::OutOfBounds)
    );
    assert_eq!(
        world.command(&join(1, Role::Miner, 65)),
        Err(Rejection::OutOfBounds)
    );
    world.command(&join(1, Role::Miner, 64)).unwrap();
    // Who finds no place waits for one; if nobody else may wait either, it is told to come again.
    let waits = world.command(&join(2, Role::Miner, 1)).unwrap();
    assert_eq!(
        waits.iter().find_map(Event::refusal),
        Some(Rejection::Waiting)
    );
    assert_eq!(
        world.command(&join(3, Role::Miner, 1)),
        Err(Rejection::Full)
    );
    world.command(&Command::Stop).unwrap();
    assert_eq!(
        world.command(&join(2, Role::Miner, 1)),
        Err(Rejection::RunOver)
    );
    assert_eq!(world.command(&Command::Stop), Ok(Vec::new()));
}

#[test]
fn early_ticks_do_nothing() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let deadline = world.state.next_deadline().unwrap();
    world.now = crate::Timestamp::from_millis(deadline.as_millis() - 1);
    assert_eq!(world.command(&Command::Tick), Ok(Vec::new()));
    world.now = deadline;
    assert_ne!(world.command(&Command::Tick), Ok(Vec::new()));
}

#[test]
fn a_session_that_cannot_install_is_ended_and_the_count_begins_anew_with_the_epoch() {
    let (mut world, head, _) = two_by_two(settings(2));
    let broken = world.join(7);
    let fail = |world: &mut World| {
        world.offer(broken, 1);
        let lease = world.lease(broken);
        assert_eq!(lease.work.kind(), WorkKind::Install);
        world.fail(broken, lease.id, Failure::OutOfMemory).unwrap();
    };
    for _ in 0..7 {
        fail(&mut world);
    }
    // The epoch ends before the last try.
    world.work_until(Phase::Installing, &[broken]);
    for _ in 0..7 {
        fail(&mut world);
        assert!(world.state.session(broken).is_some());
    }
    fail(&mut world);
    let ended = Event::SessionEnded {
        session: broken,
        why: SessionEnd::CannotInstall,
    };
    assert_eq!(world.saw(|event| *event == ended), 1);
    assert!(world.state.session(broken).is_none());
    assert!(world.state.session(head[0]).is_some());
}

/// As long as nobody can be served, no session falls silent, no lease runs out and no phase ends.
#[test]
fn nothing_runs_out_while_the_orchestrator_is_away() {
    let mut world = World::new(settings(1));
    let session = world.gather(1..2)[0];
    world.offer(session, 1);
    let before = world.lease(session);
    let (phase, away) = (world.state.phase(), Duration::from_secs(24 * 3600));
    let left = before.deadline.since(world.now);

    world.now = world.now + away;
    let events = world.command(&Command::Resume).unwrap();
    assert_eq!(events, [Event::Resumed { away }]);
    let after = world.lease(session);
    assert_eq!((after.id, &after.work), (before.id, &before.work));
    assert_eq!(after.deadline, before.deadline + away);
    assert_eq!(world.state.phase(), phase);
    assert_eq!(world.command(&Command::Tick).unwrap(), []);
    // Coming back again at once moves nothing.
    let events = world.command(&Command::Resume).unwrap();
    let away = Duration::ZERO;
    assert_eq!(events, [Event::Resumed { away }]);

    // Then time counts again.
    world.pass(left, &[session]);
    assert_eq!(
        world.saw(|event| matches!(event, Event::LeaseEnded { lease, .. } if *lease == before.id)),
        1
    );
}

/// A machine that slept, or a clock that leapt by hours: what happened before counts, and what nobody could do does not.
#[test]
fn nothing_runs_out_while_the_orchestrator_sleeps() {
    let mut world = World::new(settings(1));
    let session = world.gather(1..2)[0];
    world.offer(session, 1);
    let before = world.lease(session);
    let quiet = Duration::from_secs(4);
    let left = before.deadline.since(world.now);

    // Nothing happens for four seconds, then it sleeps for five hours: only those do not count.
    let away = Duration::from_secs(5 * 3600);
    world.now = world.now + quiet + away;
    let events = world.command(&Command::Wake { away }).unwrap();
    assert_eq!(events, [Event::Resumed { away }]);
    let after = world.lease(session);
    assert_eq!(after.deadline, before.deadline + away);
    assert_eq!(after.deadline.since(world.now), left.saturating_sub(quiet));
    assert_eq!(world.command(&Command::Tick).unwrap(), []);

    // Nobody sleeps for longer than since the last event, whatever a clock says.
    let away = Duration::from_secs(3600);
    assert_eq!(world.command(&Command::Wake { away }).unwrap(), []);
    world.now = world.now + Duration::from_secs(1);
    let events = world.command(&Command::Wake { away }).unwrap();
    let away = Duration::from_secs(1);
    assert_eq!(events, [Event::Resumed { away }]);
}

#[test]
fn whoever_leaves_in_order_hands_its_work_back_and_it_costs_nothing() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    world.command(&Command::Leave { session: head[0] }).unwrap();
    let back = Event::LeaseEnded {
        lease: lease.id,
        session: head[0],
        why: LeaseEnd::SessionOver,
    };
    assert_eq!(world.saw(|event| *event == back), 1);
    // No time has to pass before somebody else gets it.
    world.offer(head[1], 1);
    assert_eq!(world.lease(head[1]).work.sample(), lease.work.sample());
    let dropped = |session: Session| world.state.peer(session.peer).unwrap().ledger.dropped;
    assert_eq!(dropped(head[0]), 0);
}
