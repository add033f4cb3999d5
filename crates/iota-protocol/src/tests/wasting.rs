//! Work that is done for nothing: kept rare, and counted.

use std::time::Duration;

use super::training::two_by_two;
use super::world::{World, settings};
use crate::command::Command;
use crate::event::{BanReason, Event, Phase};
use crate::id::{CellIndex, Digest, Session};
use crate::rejection::Rejection;
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

/// A pass that is finished when it is of no use to anybody, and cannot even be logged, is work all the same: it is refused,
/// and counted once.
#[test]
fn what_is_refused_as_too_late_for_any_use_is_counted_as_wasted_once() {
    // The session fell silent, and comes back with a result.
    let (mut world, head, tail) = two_by_two(settings(2));
    let others = [head[1], tail[0], tail[1]];
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    let outcome = world.honest(&lease);
    for _ in 0..4 {
        world.pass(Duration::from_secs(10), &others);
    }
    assert!(world.state.session(head[0]).is_none());
    let refused = |world: &mut World, outcome: &Outcome| {
        let answer = world.complete(head[0], lease.id, outcome.clone());
        answer.map(|events| events.iter().find_map(Event::refusal))
    };
    // Nothing of a lease that never was, of another's, or of something else than was leased.
    let other = world.complete(head[1], lease.id, outcome.clone());
    assert!(other.is_err(), "{other:?}");
    let wrong = Outcome::Install {
        state: Digest::of(b"x"),
        operations: 0,
    };
    assert_eq!(refused(&mut world, &wrong), Err(Rejection::NotRegistered));
    assert_eq!(world.state.work_counts().finished, 0);

    let why = Rejection::NotRegistered;
    assert_eq!(refused(&mut world, &outcome), Ok(Some(why)));
    let work = world.state.work_counts();
    assert_eq!((work.finished, work.refused, work.wasted()), (1, 1, 1));
    // Sent again it is refused as it was, and not counted again.
    assert_eq!(refused(&mut world, &outcome), Err(why));
    assert_eq!(world.state.work_counts(), work);
    let dropped = world.state.peer(head[0].peer).unwrap().ledger.dropped;
    world.join(1);
    let again = world.state.peer(head[0].peer).unwrap().ledger.dropped;
    assert_eq!(dropped, again, "a result that comes too late costs nothing");
}

#[test]
fn what_is_refused_because_its_epoch_is_closed_is_counted_as_wasted() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    let outcome = world.honest(&lease);
    // The others train without it, and the next epoch begins.
    let ended =
        |event: &Event| matches!(event, Event::LeaseEnded { lease: id, .. } if *id == lease.id);
    while world.saw(ended) == 0 {
        let others: Vec<Session> = world.state.sessions().map(|(session, _)| session).collect();
        world.pass(Duration::from_secs(5), &others);
    }
    world.work_until(Phase::Installing, &[head[0]]);
    assert!(world.state.session(head[0]).is_some());
    let before = world.state.work_counts();
    let events = world.complete(head[0], lease.id, outcome).unwrap();
    let why = Some(Rejection::StaleEpoch);
    assert_eq!(events.iter().find_map(Event::refusal), why);
    let work = world.state.work_counts();
    assert_eq!(work.refused, before.refused + 1);
    assert_eq!(work.finished, before.finished + 1);
}

#[test]
fn what_a_banned_peer_says_it_did_is_not_counted() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    let outcome = world.honest(&lease);
    let why = BanReason::Merge {
        epoch: world.epoch(),
        stage: lease.stage,
        cell: CellIndex::new(0),
    };
    for event in world.state.ban(head[0].peer, why) {
        world.happen(event);
    }
    let answer = world.complete(head[0], lease.id, outcome);
    assert_eq!(answer, Err(Rejection::Banned));
    assert_eq!(world.state.work_counts().finished, 0);
}
