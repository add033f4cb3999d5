//! Work that is done for nothing: kept rare, and counted.

use std::time::Duration;

use super::training::two_by_two;
use super::world::{World, settings};
use crate::command::Command;
use crate::id::Session;
use crate::settings::RunSettings;
use crate::work::{Failure, Outcome, WorkKind};

#[test]
fn work_moves_away_from_a_miner_that_gives_it_back() {
    let mut world = World::new(RunSettings {
        samples_per_epoch: 1_000,
        samples_in_flight: 1,
        ..settings(1)
    });
    let sessions = world.gather(1..3);
    let (reliable, unreliable) = (sessions[0], sessions[1]);
    let (mut done, mut given_back) = (0_u32, 0_u32);
    for _ in 0..200 {
        // Both have room whenever a piece is given, so it is a choice who gets it.
        world.offer(reliable, 2);
        world.offer(unreliable, 1);
        for lease in world.leases(unreliable) {
            given_back += 1;
            world
                .fail(unreliable, lease.id, Failure::StoreUnavailable)
                .unwrap();
        }
        world.now = world.now + Duration::from_secs(1);
        if let Some(lease) = world.leases(reliable).first().cloned() {
            done += 1;
            world.work(&lease);
        }
    }
    assert!(done >= 190, "{done}");
    assert!(given_back <= done / 10, "{given_back} beside {done}");

    // It becomes reliable, and gets its share again.
    let (mut made_good, mut of) = (0_u32, 0_u32);
    for _ in 0..400 {
        for session in &sessions {
            world.offer(*session, 2);
        }
        world.now = world.now + Duration::from_secs(1);
        for session in &sessions {
            if let Some(lease) = world.leases(*session).first().cloned() {
                made_good += u32::from(*session == unreliable);
                of += 1;
                world.work(&lease);
            }
        }
    }
    assert!(made_good > of / 3, "{made_good} of {of}");
}

/// What the share of wasted work is made of: a result that came second, a forward pass done again, and work for a sample
/// that could not be finished.
#[test]
fn finished_work_that_nobody_needed_is_counted() {
    let (mut world, head, tail) = two_by_two(settings(2));
    let all: Vec<Session> = head.iter().chain(&tail).copied().collect();
    world.offer(head[0], 1);
    let overdue = world.lease(head[0]);
    assert_eq!(overdue.work.kind(), WorkKind::Forward);
    world.pass(Duration::from_secs(21), &all);
    world.offer(head[1], 1);
    let again = world.lease(head[1]);
    assert_eq!(again.work.sample(), overdue.work.sample());
    world.work(&again);
    let late = world.honest(&overdue);
    world.complete(head[0], overdue.id, late).unwrap();
    let work = world.state.work_counts();
    assert_eq!((work.finished, work.superseded, work.wasted()), (2, 1, 1));

    // The tail learns from it; whoever did the forward is gone, so another has to redo it.
    world.offer(tail[0], 1);
    let lease = world.lease(tail[0]);
    world.command(&Command::Leave { session: head[1] }).unwrap();
    world.work(&lease);
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    let Outcome::Backward {
        ordinal,
        gradient,
        loss,
        ..
    } = world.honest(&lease)
    else {
        panic!("{lease:?}")
    };
    let redone = Outcome::Backward {
        ordinal,
        recomputed: true,
        gradient,
        loss,
    };
    world.complete(head[0], lease.id, redone).unwrap();
    let work = world.state.work_counts();
    assert_eq!((work.finished, work.redone, work.superseded), (5, 1, 1));
    assert!((work.wasted_share() - 0.4).abs() < 1e-9);

    // What is on its way when the run is stopped was done for nothing.
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    world.work(&lease);
    world.command(&Command::Stop).unwrap();
    let work = world.state.work_counts();
    assert_eq!((work.finished, work.undone, work.wasted()), (6, 1, 3));
}
