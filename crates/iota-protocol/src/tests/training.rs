//! Samples, leases, and what becomes of them when something goes wrong.

use std::time::Duration;

use super::world::{World, peer, seal, settings};
use crate::command::{Command, Role};
use crate::event::{Direction, Event, LeaseEnd, Phase, RestartReason, SessionEnd};
use crate::id::{LeaseId, SampleId, Session, StageIndex};
use crate::rejection::Rejection;
use crate::settings::RunSettings;
use crate::work::{Difference, Failure, Lease, Outcome, Verdict, Work, WorkKind};

/// Two stages with two miners each, training. Returns the miners of stage 0, then those of stage 1.
pub(super) fn two_by_two(settings: RunSettings) -> (World, Vec<Session>, Vec<Session>) {
    let mut world = World::new(RunSettings {
        miners_to_start: 2,
        ..settings
    });
    world.gather(1..5);
    assert_eq!(world.state.phase(), Phase::Training);
    let (head, tail) = (world.miners(0), world.miners(1));
    (world, head, tail)
}

fn sample_of(lease: &Lease) -> SampleId {
    lease.work.sample().unwrap()
}

#[test]
fn a_sample_goes_forward_and_back_and_its_path_is_kept() {
    let (mut world, head, tail) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let forward = world.lease(head[0]);
    assert!(matches!(forward.work, Work::Forward { input: None, .. }));
    world.work(&forward);
    world.offer(tail[1], 1);
    let turn = world.lease(tail[1]);
    assert!(matches!(
        turn.work,
        Work::Backward {
            input: Some(_),
            output_gradient: None,
            gradient: Some(_),
            ..
        }
    ));
    world.work(&turn);
    world.offer(head[0], 1);
    let back = world.lease(head[0]);
    assert!(matches!(
        back.work,
        Work::Backward {
            input: None,
            output_gradient: Some(_),
            gradient: None,
            ..
        }
    ));
    let events = world.work(&back);
    assert!(events.contains(&Event::SampleCompleted {
        sample: SampleId::new(0),
        loss: 2.5,
        path: vec![head[0], tail[1]]
    }));
    assert_eq!(world.state.peer(tail[1].peer).unwrap().ledger.backwards, 1);
}

#[test]
fn a_backward_pass_waits_for_the_miner_that_did_the_forward_but_not_for_ever() {
    let (mut world, head, tail) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let forward = world.lease(head[0]);
    world.work(&forward);
    world.offer(tail[0], 1);
    let turn = world.lease(tail[0]);
    world.work(&turn);
    world.offer(head[1], 1);
    let other = world.lease(head[1]);
    assert_eq!(
        other.work.kind(),
        WorkKind::Forward,
        "a new sample, not the other's backward pass"
    );
    world.work(&other);
    world.offer(head[1], 2);
    assert!(
        world
            .leases(head[1])
            .iter()
            .all(|lease| lease.work.kind() == WorkKind::Forward)
    );
    world.pass(
        Duration::from_secs(10),
        &[head[0], head[1], tail[0], tail[1]],
    );
    world.offer(head[1], 2);
    // Both places are taken by forward passes; give one back to make room.
    let lease = world.leases(head[1])[0].clone();
    world.work(&lease);
    world.offer(head[1], 1);
    assert!(
        world
            .leases(head[1])
            .iter()
            .any(|lease| lease.work.kind() == WorkKind::Backward)
    );
}

#[test]
fn a_backward_pass_goes_elsewhere_at_once_if_its_miner_is_gone() {
    let (mut world, head, tail) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let forward = world.lease(head[0]);
    world.work(&forward);
    world.offer(tail[0], 1);
    let turn = world.lease(tail[0]);
    world.work(&turn);
    world.command(&Command::Leave { session: head[0] }).unwrap();
    world.offer(head[1], 1);
    let back = world.lease(head[1]);
    assert_eq!(
        (back.work.kind(), sample_of(&back)),
        (WorkKind::Backward, sample_of(&forward))
    );
}

#[test]
fn an_overdue_piece_goes_to_another_and_a_late_result_that_comes_first_counts() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let first = world.lease(head[0]);
    world.pass(Duration::from_secs(20), &head);
    assert_eq!(world.state.peer(head[0].peer).unwrap().ledger.dropped, 1);
    world.offer(head[1], 1);
    let second = world.lease(head[1]);
    assert_eq!(sample_of(&second), sample_of(&first));
    assert_eq!(world.state.sample_counts().re_leased, 1);

    let late = world.honest(&first);
    let events = world.complete(head[0], first.id, late).unwrap();
    assert!(matches!(
        events[0],
        Event::LeaseEnded {
            why: LeaseEnd::Superseded,
            ..
        }
    ));
    assert!(matches!(events[1], Event::Completed { credited: true, .. }));
    assert_eq!(world.state.peer(head[0].peer).unwrap().ledger.forwards, 1);

    // The other did it too: that is in its weights, so it is logged, and the answer says that it does not count.
    let outcome = world.honest(&second);
    let events = world.complete(head[1], second.id, outcome.clone()).unwrap();
    assert_eq!(events[0].refusal(), Some(Rejection::Superseded));
    let log = world.state.session(head[1]).unwrap().log();
    assert_eq!((log.len(), log[0].credited), (1, false));
    assert_eq!(
        world.complete(head[1], second.id, outcome),
        Err(Rejection::Superseded)
    );
    assert_eq!(world.state.peer(head[1].peer).unwrap().ledger.forwards, 0);
}

/// One stage with two miners. Training ends while the first, which has had one pass credited, has not reported the work
/// of two leases: one that has run out, one that runs.
fn caught_by_the_end_of_training() -> (World, Session, [Lease; 2]) {
    let timing = crate::settings::Timing {
        lease_initial: Duration::from_secs(20),
        phase_max: Duration::from_secs(30),
        ..settings(1).timing
    };
    let mut world = World::new(RunSettings {
        miners_to_start: 2,
        samples_in_flight: 4,
        validators: vec![peer(9)],
        timing,
        ..settings(1)
    });
    let sessions = world.gather(1..3);
    let (late, other) = (sessions[0], sessions[1]);
    world.offer(late, 1);
    let first = world.lease(late);
    world.work(&first);
    world.offer(late, 1);
    let lapsed = world.lease(late);
    world.offer(other, 2);
    let of_other = world.leases(other);
    world.work(&of_other[0]);
    // Both miners' leases run out; the late one gets the other's.
    world.pass(Duration::from_secs(20), &sessions);
    world.offer(late, 1);
    let held = world.lease(late);
    assert_eq!(sample_of(&held), sample_of(&of_other[1]));
    world.pass(Duration::from_secs(10), &sessions);
    assert_eq!(world.state.phase(), Phase::Uploading);
    (world, late, [lapsed, held])
}

#[test]
fn what_was_done_as_training_closed_is_logged_and_audited_but_not_credited() {
    let (mut world, late, [lapsed, held]) = caught_by_the_end_of_training();
    let credit = world.state.peer(late.peer).unwrap().ledger.backwards;
    for lease in [&lapsed, &held] {
        let outcome = world.honest(lease);
        let events = world.complete(late, lease.id, outcome.clone()).unwrap();
        assert_eq!(
            events.iter().find_map(Event::refusal),
            Some(Rejection::Superseded)
        );
        assert_eq!(
            world.complete(late, lease.id, outcome),
            Err(Rejection::Superseded)
        );
    }
    let log = world.state.session(late).unwrap().log();
    assert_eq!(
        log.iter().map(|entry| entry.credited).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert_eq!(
        world.state.peer(late.peer).unwrap().ledger.backwards,
        credit
    );
    let log = log.to_vec();
    world.offer(late, 1);
    let upload = world.lease(late);
    world.work(&upload);
    let (_, audit) = world
        .state
        .audits_pending()
        .find(|(_, audit)| audit.subject == late)
        .unwrap();
    let Work::Replay {
        entries,
        upload: Some(_),
        ..
    } = &audit.work
    else {
        panic!("{audit:?}")
    };
    assert_eq!(*entries, log, "the late results are in the replay");
}

#[test]
fn what_is_reported_after_the_upload_is_refused_and_so_is_what_comes_after_the_epoch() {
    for uploads in [true, false] {
        let (mut world, late, [lapsed, held]) = caught_by_the_end_of_training();
        if uploads {
            world.offer(late, 1);
            let upload = world.lease(late);
            assert_eq!(upload.work.kind(), WorkKind::Upload);
            world.work(&upload);
        } else {
            // Merging is of the same epoch still.
            let other = world.miners(0)[1];
            world.offer(other, 1);
            let upload = world.lease(other);
            world.work(&upload);
            world.pass(Duration::from_secs(30), &[late, other]);
            assert_eq!(world.state.phase(), Phase::Merging);
            let outcome = world.honest(&lapsed);
            world.complete(late, lapsed.id, outcome).unwrap();
            world.pass(Duration::from_secs(30), &[late, other]);
            assert_eq!(world.state.phase(), Phase::Installing);
        }
        let outcome = world.honest(&held);
        assert_eq!(
            world.answer(late, held.id, outcome),
            Err(Rejection::StaleEpoch)
        );
    }
}

#[test]
fn a_repeated_result_changes_nothing_and_a_different_one_is_refused() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    let outcome = world.honest(&lease);
    world.complete(head[0], lease.id, outcome.clone()).unwrap();
    assert_eq!(world.complete(head[0], lease.id, outcome), Ok(Vec::new()));
    let other = Outcome::Forward {
        ordinal: 0,
        output: seal("other", 100),
    };
    assert_eq!(
        world.complete(head[0], lease.id, other),
        Err(Rejection::WrongOutcome)
    );
}

#[test]
fn results_that_do_not_fit_are_refused_with_their_reason() {
    let (mut world, head, tail) = two_by_two(settings(2));
    world.offer(head[0], 2);
    let leases = world.leases(head[0]);
    let forward = |ordinal, length| Outcome::Forward {
        ordinal,
        output: seal("x", length),
    };
    assert_eq!(
        world.complete(head[0], leases[0].id, forward(0, 99)),
        Err(Rejection::WrongLength)
    );
    let install = Outcome::Install {
        state: seal("x", 0).digest,
        operations: 0,
    };
    assert_eq!(
        world.complete(head[0], leases[0].id, install),
        Err(Rejection::WrongOutcome)
    );
    assert_eq!(
        world.complete(head[1], leases[0].id, forward(0, 100)),
        Err(Rejection::UnknownLease)
    );
    assert_eq!(
        world.complete(head[0], LeaseId::new(999), forward(0, 100)),
        Err(Rejection::UnknownLease)
    );
    world
        .complete(head[0], leases[0].id, forward(0, 100))
        .unwrap();
    assert_eq!(
        world.complete(head[0], leases[1].id, forward(0, 100)),
        Err(Rejection::OrdinalUsed)
    );
    world.offer(tail[0], 1);
    let turn = world.lease(tail[0]);
    let backward = |loss, gradient| Outcome::Backward {
        ordinal: 0,
        recomputed: true,
        gradient,
        loss,
    };
    let gradient = Some(seal("g", 150));
    let as_long_as_an_activation = Some(seal("g", 100));
    assert_eq!(
        world.complete(
            tail[0],
            turn.id,
            backward(Some(1.0), as_long_as_an_activation)
        ),
        Err(Rejection::WrongLength)
    );
    assert_eq!(
        world.complete(tail[0], turn.id, backward(Some(f32::NAN), gradient)),
        Err(Rejection::NotFinite)
    );
    assert_eq!(
        world.complete(tail[0], turn.id, backward(None, gradient)),
        Err(Rejection::WrongOutcome)
    );
    assert_eq!(
        world.complete(tail[0], turn.id, backward(Some(1.0), None)),
        Err(Rejection::WrongOutcome)
    );
}

#[test]
fn a_stale_session_changes_nothing() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    let again = world.join_as(head[0].peer.as_bytes()[0], Role::Miner, 2);
    assert_eq!(again.generation, 2);
    assert_eq!(
        world.stage_of(again),
        StageIndex::new(0),
        "it takes the place that it leaves"
    );
    assert_eq!(
        world.saw(|event| *event
            == Event::SessionEnded {
                session: head[0],
                why: SessionEnd::Replaced
            }),
        1
    );
    let outcome = world.honest(&lease);
    assert_eq!(
        world.answer(head[0], lease.id, outcome),
        Err(Rejection::NotRegistered)
    );
    assert_eq!(
        world.command(&Command::OfferRoom {
            session: head[0],
            room: 1
        }),
        Err(Rejection::NotRegistered)
    );
}

#[test]
fn a_silent_session_ends_and_its_work_goes_on_elsewhere() {
    let (mut world, head, tail) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    world.pass(Duration::from_secs(31), &[head[1], tail[0], tail[1]]);
    assert!(world.state.session(head[0]).is_none());
    world.offer(head[1], 1);
    assert_eq!(sample_of(&world.lease(head[1])), sample_of(&lease));
}

#[test]
fn a_bad_input_is_made_again_by_another_and_a_validator_is_asked() {
    let validated = RunSettings {
        validators: vec![peer(9)],
        ..settings(2)
    };
    let (mut world, head, tail) = two_by_two(validated);
    let validator = world.join_as(9, Role::Validator, 1);
    world.offer(head[0], 1);
    let forward = world.lease(head[0]);
    world.work(&forward);
    world.offer(tail[0], 1);
    let turn = world.lease(tail[0]);
    let Work::Backward {
        input: Some(input), ..
    } = turn.work
    else {
        panic!("{turn:?}")
    };
    let failure = Failure::BadInput {
        object: input.name,
        difference: Difference::Missing,
    };
    let events = world.fail(tail[0], turn.id, failure).unwrap();
    assert!(events.iter().any(|event| matches!(event,
        Event::PieceUndone { piece, producer, .. } if piece.direction == Direction::Forward && *producer == head[0])));
    world.offer(head[0], 1);
    assert_ne!(
        sample_of(&world.lease(head[0])),
        sample_of(&forward),
        "the producer gets something else"
    );
    world.offer(head[1], 1);
    assert_eq!(sample_of(&world.lease(head[1])), sample_of(&forward));

    world.offer(validator, 1);
    let inspect = world.lease(validator);
    assert!(
        matches!(inspect.work, Work::Inspect { producer, accuser, .. } if (producer, accuser) == (head[0], tail[0]))
    );
    let verdict = Verdict::Differs {
        ordinal: None,
        difference: Difference::Missing,
    };
    world
        .complete(validator, inspect.id, Outcome::Audit { verdict })
        .unwrap();
    assert_eq!(
        world
            .state
            .cheaters()
            .map(|(peer, _)| peer)
            .collect::<Vec<_>>(),
        [head[0].peer]
    );
    assert_eq!(
        world.command(&Command::Join {
            peer: head[0].peer,
            role: Role::Miner,
            capacity: 1
        }),
        Err(Rejection::Banned)
    );
}

#[test]
fn a_false_accusation_costs_the_accuser() {
    let validated = RunSettings {
        validators: vec![peer(9)],
        ..settings(2)
    };
    let (mut world, head, tail) = two_by_two(validated);
    let validator = world.join_as(9, Role::Validator, 1);
    world.offer(head[0], 1);
    let forward = world.lease(head[0]);
    world.work(&forward);
    world.offer(tail[0], 1);
    let turn = world.lease(tail[0]);
    let Work::Backward {
        input: Some(input), ..
    } = turn.work
    else {
        panic!("{turn:?}")
    };
    let failure = Failure::BadInput {
        object: input.name,
        difference: Difference::Digest,
    };
    world.fail(tail[0], turn.id, failure).unwrap();
    world.offer(validator, 1);
    let inspect = world.lease(validator);
    world.work(&inspect);
    assert_eq!(
        world
            .state
            .peer(tail[0].peer)
            .unwrap()
            .ledger
            .false_accusations,
        1
    );
    assert_eq!(world.state.cheaters().count(), 0);
}

#[test]
fn nobody_is_accused_of_an_object_that_was_not_to_be_read() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 1);
    let lease = world.lease(head[0]);
    let Work::Forward { output, .. } = lease.work else {
        panic!("{lease:?}")
    };
    let failure = Failure::BadInput {
        object: output,
        difference: Difference::Missing,
    };
    assert_eq!(
        world.fail(head[0], lease.id, failure),
        Err(Rejection::OutOfBounds)
    );
}

#[test]
fn a_piece_that_fails_again_and_again_sends_its_sample_back_to_its_tokens() {
    let mut world = World::new(settings(2));
    world.gather(1..3);
    let (head, tail) = (world.miners(0)[0], world.miners(1)[0]);
    world.offer(head, 1);
    let forward = world.lease(head);
    world.work(&forward);
    for _ in 0..8 {
        world.offer(tail, 1);
        let lease = world.lease(tail);
        world.fail(tail, lease.id, Failure::OutOfMemory).unwrap();
    }
    let restarted = Event::SampleRestarted {
        sample: SampleId::new(0),
        why: RestartReason::TooManyAttempts,
    };
    assert_eq!(world.saw(|event| *event == restarted), 1);
    assert_eq!(world.state.peer(tail.peer).unwrap().ledger.dropped, 8);
    world.work_until(Phase::Over, &[]);
    assert_eq!(world.state.sample_counts().completed, 8);
}

#[test]
fn training_pauses_without_loss_while_a_stage_has_nobody() {
    let mut world = World::new(settings(2));
    world.gather(1..3);
    let (head, tail) = (world.miners(0)[0], world.miners(1)[0]);
    world.command(&Command::Leave { session: tail }).unwrap();
    world.pass(Duration::from_secs(1_000), &[head]);
    assert_eq!(world.state.phase(), Phase::Training);
    assert!(world.state.summary(world.now).paused.is_some());
    world.join(7);
    assert_eq!(world.miners(1).len(), 1);
    world.work_until(Phase::Over, &[]);
    assert_eq!(world.state.sample_counts().completed, 8);
}

#[test]
fn samples_that_cannot_be_finished_in_time_are_carried_to_the_next_epoch() {
    let (mut world, head, tail) = two_by_two(settings(2));
    for _ in 0..2 {
        world.offer(head[0], 2);
        for lease in world.leases(head[0]) {
            world.work(&lease);
        }
        for lease in world.leases(tail[0]) {
            world.work(&lease);
        }
        world.offer(tail[0], 1);
        for lease in world.leases(tail[0]) {
            world.work(&lease);
        }
    }
    world.work_until(Phase::Training, &[]);
    while world.state.sample_counts().opened < 4 {
        world.offer(head[0], 2);
        for lease in world.leases(head[0]) {
            world.work(&lease);
        }
        world.offer(tail[0], 1);
        for lease in world.leases(tail[0]) {
            world.work(&lease);
        }
    }
    let everybody = [head.clone(), tail.clone()].concat();
    world.pass(Duration::from_secs(125), &everybody);
    assert_ne!(world.state.phase(), Phase::Training);
    assert!(
        world.saw(|event| matches!(
            event,
            Event::SampleRestarted {
                why: RestartReason::Carried,
                ..
            }
        )) > 0
    );
    world.work_until(Phase::Over, &[]);
    let counts = world.state.sample_counts();
    assert_eq!((counts.completed, counts.lost), (counts.opened, 0));
}

#[test]
fn in_batches_no_sample_sets_out_before_the_last_of_a_batch_is_back() {
    let mut world = World::new(RunSettings {
        samples_per_epoch: 7,
        samples_in_flight: 2,
        in_batches: true,
        ..settings(1)
    });
    let miner = world.gather(1..2)[0];
    let mut opened = Vec::new();
    for batch in [2, 2, 2, 1] {
        world.offer(miner, 8);
        let leases = world.leases(miner);
        assert_eq!(leases.len(), batch, "a batch, and no more");
        for (done, lease) in leases.iter().enumerate() {
            world.offer(miner, 8);
            assert_eq!(world.leases(miner).len(), batch - done, "nothing joins it");
            opened.push(sample_of(lease));
            world.work(lease);
        }
    }
    opened.sort_unstable();
    opened.dedup();
    assert_eq!(opened.len(), 7);
}

#[test]
fn a_faster_miner_gets_more() {
    let (mut world, head, tail) = two_by_two(RunSettings {
        samples_per_epoch: 100,
        samples_in_flight: 50,
        ..settings(2)
    });
    let everybody = [head.clone(), tail.clone()].concat();
    // The first is three times as fast; a turn is a second.
    let mut started: Vec<Option<(Lease, u32)>> = vec![None, None];
    let mut done = [0_u32; 2];
    for _ in 0..90 {
        for place in 0..2 {
            world.offer(head[place], 1);
            if started[place].is_none() {
                started[place] = world
                    .leases(head[place])
                    .first()
                    .map(|lease| (lease.clone(), 0));
            }
        }
        world.pass(Duration::from_secs(1), &everybody);
        for place in 0..2 {
            if let Some((lease, age)) = &mut started[place] {
                *age += 1;
                if *age >= [1, 3][place] {
                    let lease = lease.clone();
                    started[place] = None;
                    world.work(&lease);
                    done[place] += 1;
                }
            }
        }
        // The tail keeps up at once.
        world.offer(tail[0], 2);
        for lease in world.leases(tail[0]) {
            world.work(&lease);
        }
    }
    assert!(done[0] > 2 * done[1], "{done:?}");
}

#[test]
fn no_more_than_the_offered_room_is_leased() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 1);
    assert_eq!(world.leases(head[0]).len(), 1);
    world.offer(head[0], 99);
    assert_eq!(
        world.leases(head[0]).len(),
        2,
        "the capacity it joined with"
    );
    // An answer was lost: the next shows both leases again.
    world.offer(head[0], 2);
    assert_eq!(world.leases(head[0]).len(), 2);
}

#[test]
fn polling_without_news_leaves_no_events() {
    let (mut world, head, _) = two_by_two(settings(2));
    world.offer(head[0], 0);
    for _ in 0..100 {
        assert_eq!(world.offer(head[0], 0), Vec::new());
    }
}
