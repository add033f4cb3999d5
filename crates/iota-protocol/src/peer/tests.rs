//! A peer against an orchestrator that answers, refuses, or is not there.

use super::*;
use crate::id::{Digest, PeerId};

fn session(generation: u32) -> Session {
    Session {
        peer: PeerId::from_bytes([7; 32]),
        generation,
    }
}

fn drain(peer: &mut Peer) -> Vec<Effect> {
    std::iter::from_fn(|| peer.poll_effect()).collect()
}

fn inside() -> Peer {
    let mut peer = Peer::new(2, 1);
    assert_eq!(drain(&mut peer), [Effect::Join]);
    peer.handle_joined(session(1));
    assert_eq!(
        drain(&mut peer),
        [
            Effect::Reset,
            Effect::Poll {
                session: session(1),
                room: 2,
                held: vec![]
            }
        ]
    );
    peer
}

const A: LeaseId = LeaseId::new(1);
const B: LeaseId = LeaseId::new(2);

fn done() -> Result<Outcome, Failure> {
    Ok(Outcome::Install {
        state: Digest::of(b"state"),
        operations: 0,
    })
}

#[test]
fn a_poll_is_always_open_and_offers_room_as_soon_as_there_is_some() {
    let mut peer = inside();
    peer.handle_polled(session(1), &[A], &[], false);
    assert_eq!(
        drain(&mut peer),
        [
            Effect::Start { lease: A },
            Effect::Poll {
                session: session(1),
                room: 1,
                held: vec![A]
            }
        ]
    );
    peer.handle_polled(session(1), &[B], &[], false);
    assert_eq!(
        drain(&mut peer),
        [
            Effect::Start { lease: B },
            Effect::Poll {
                session: session(1),
                room: 0,
                held: vec![A, B]
            }
        ]
    );
    peer.handle_finished(A, done());
    assert_eq!(
        drain(&mut peer),
        [Effect::Report {
            session: session(1),
            lease: A,
            result: done()
        }]
    );
    peer.handle_reported(A, Timestamp::default());
    assert_eq!(
        drain(&mut peer),
        [Effect::Poll {
            session: session(1),
            room: 1,
            held: vec![B]
        }]
    );
}

#[test]
fn a_lease_sent_twice_is_started_once() {
    let mut peer = inside();
    peer.handle_polled(session(1), &[A], &[], false);
    peer.handle_polled(session(1), &[A], &[], false);
    let starts = drain(&mut peer)
        .iter()
        .filter(|effect| **effect == Effect::Start { lease: A })
        .count();
    assert_eq!(starts, 1);
}

#[test]
fn a_result_survives_a_lost_connection_and_is_reported_again() {
    let mut peer = inside();
    peer.handle_polled(session(1), &[A], &[], false);
    peer.handle_finished(A, done());
    drain(&mut peer);
    let now = Timestamp::from_millis(1_000);
    peer.handle_report_failed(
        session(1),
        A,
        CallFailure::Retry(Some(Duration::from_secs(3))),
        now,
    );
    assert_eq!(drain(&mut peer), []);
    let at = peer.poll_timeout().expect("a retry is due");
    assert!(at >= now + Duration::from_secs(3));
    peer.handle_timeout(now);
    assert_eq!(drain(&mut peer), [], "early calls do nothing");
    peer.handle_timeout(at);
    assert_eq!(
        drain(&mut peer),
        [Effect::Report {
            session: session(1),
            lease: A,
            result: done()
        }]
    );
}

#[test]
fn a_revoked_lease_is_abandoned_unless_its_result_is_on_its_way() {
    let mut peer = inside();
    peer.handle_polled(session(1), &[A, B], &[], false);
    peer.handle_finished(A, done());
    drain(&mut peer);
    peer.handle_polled(session(1), &[], &[A, B], false);
    assert_eq!(drain(&mut peer)[0], Effect::Abandon { lease: B });
    assert!(peer.leases.contains_key(&A));
}

#[test]
fn an_abandoned_lease_is_reported_if_it_was_done_all_the_same_and_forgotten_otherwise() {
    let mut peer = inside();
    peer.handle_polled(session(1), &[A, B], &[], false);
    peer.handle_polled(session(1), &[], &[A, B], false);
    drain(&mut peer);
    peer.handle_finished(A, Err(Failure::Internal));
    peer.handle_finished(B, done());
    let effects = drain(&mut peer);
    assert!(
        effects.contains(&Effect::Report {
            session: session(1),
            lease: B,
            result: done()
        }),
        "{effects:?}"
    );
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Report { lease: A, .. })),
        "{effects:?}"
    );
    assert!(!peer.leases.contains_key(&A));
}

#[test]
fn when_its_session_is_over_it_joins_again_with_nothing_left_over() {
    let mut peer = inside();
    peer.handle_polled(session(1), &[A], &[], false);
    drain(&mut peer);
    peer.handle_poll_failed(session(1), CallFailure::Rejoin, Timestamp::default());
    assert_eq!(
        drain(&mut peer),
        [Effect::Abandon { lease: A }, Effect::Join]
    );
    peer.handle_finished(A, done());
    assert_eq!(
        drain(&mut peer),
        [],
        "work of the old session is not reported in the new one"
    );
    peer.handle_joined(session(2));
    assert_eq!(
        drain(&mut peer),
        [
            Effect::Reset,
            Effect::Poll {
                session: session(2),
                room: 2,
                held: vec![]
            }
        ]
    );
    peer.handle_polled(session(1), &[B], &[], false);
    assert_eq!(
        drain(&mut peer),
        [],
        "an answer to the old session changes nothing"
    );
}

#[test]
fn shutting_down_reports_what_is_done_gives_back_the_rest_and_leaves() {
    let mut peer = inside();
    peer.handle_polled(session(1), &[A, B], &[], false);
    peer.handle_finished(A, done());
    drain(&mut peer);
    peer.handle_shutdown();
    assert_eq!(drain(&mut peer), [Effect::Abandon { lease: B }]);
    peer.handle_reported(A, Timestamp::default());
    assert_eq!(
        drain(&mut peer),
        [
            Effect::Leave {
                session: session(1)
            },
            Effect::Stop {
                why: Stop::Shutdown
            }
        ]
    );
}

#[test]
fn waits_between_failures_grow_and_stay_bounded() {
    let mut peer = Peer::new(1, 99);
    drain(&mut peer);
    let mut now = Timestamp::default();
    for _ in 0..50 {
        peer.handle_join_failed(CallFailure::Retry(None), now);
        let at = peer.poll_timeout().expect("a retry is due");
        assert!(at.since(now) <= BACKOFF_MAX && !at.since(now).is_zero());
        now = at;
        peer.handle_timeout(now);
        assert_eq!(drain(&mut peer), [Effect::Join]);
    }
}

#[test]
fn an_orchestrator_that_was_there_lately_is_tried_every_second_and_one_long_gone_less_often() {
    let mut peer = inside();
    let mut now = Timestamp::default();
    let (mut soon, mut late) = (Vec::new(), Vec::new());
    while now.since(Timestamp::default()) < LATELY * 2 {
        peer.handle_poll_failed(session(1), CallFailure::Retry(None), now);
        let at = peer.poll_timeout().expect("a retry is due");
        let waits = if now.since(Timestamp::default()) < LATELY {
            &mut soon
        } else {
            &mut late
        };
        waits.push(at.since(now));
        now = at;
        peer.handle_timeout(now);
    }
    assert!(soon.iter().all(|wait| *wait <= BACKOFF_MAX_LATELY));
    assert!(soon.len() < 700, "{} tries in five minutes", soon.len());
    assert!(late.iter().any(|wait| *wait > BACKOFF_MAX_LATELY * 4));
    // It has been there again: that is lately.
    drain(&mut peer);
    peer.handle_polled(session(1), &[], &[], false);
    for _ in 0..20 {
        peer.handle_poll_failed(session(1), CallFailure::Retry(None), now);
        let at = peer.poll_timeout().expect("a retry is due");
        assert!(at.since(now) <= BACKOFF_MAX_LATELY);
        now = at;
        peer.handle_timeout(now);
    }
}

#[test]
fn a_banned_peer_stops() {
    let mut peer = inside();
    peer.handle_poll_failed(session(1), CallFailure::Refused, Timestamp::default());
    assert_eq!(drain(&mut peer), [Effect::Stop { why: Stop::Refused }]);
    assert_eq!(peer.poll_timeout(), None);
}

fn report(generation: u32, lease: LeaseId, result: Result<Outcome, Failure>) -> Effect {
    Effect::Report {
        session: session(generation),
        lease,
        result,
    }
}

#[test]
fn a_lost_session_is_joined_anew_once_however_many_calls_find_out() {
    let now = Timestamp::default();
    let mut peer = inside();
    peer.handle_polled(session(1), &[A, B], &[], false);
    peer.handle_finished(A, done());
    peer.handle_finished(B, done());
    drain(&mut peer);
    peer.handle_poll_failed(session(1), CallFailure::Rejoin, now);
    peer.handle_report_failed(session(1), A, CallFailure::Rejoin, now);
    peer.handle_poll_failed(session(1), CallFailure::Retry(None), now);
    assert_eq!(drain(&mut peer), [Effect::Join]);
    assert_eq!(peer.poll_timeout(), None, "no second join later");
    peer.handle_joined(session(2));
    drain(&mut peer);
    peer.handle_report_failed(session(1), B, CallFailure::Rejoin, now);
    peer.handle_report_failed(session(1), B, CallFailure::RunOver, now);
    peer.handle_poll_failed(session(1), CallFailure::Rejoin, now);
    peer.handle_join_failed(CallFailure::Refused, now);
    peer.handle_tainted(A);
    assert_eq!(drain(&mut peer), []);
    assert_eq!(peer.session(), Some(session(2)));
}

#[test]
fn whoever_waits_for_a_place_asks_again_in_time_however_often_it_was_told_to_wait() {
    let mut peer = Peer::new(2, 1);
    assert_eq!(drain(&mut peer), [Effect::Join]);
    let mut now = Timestamp::default();
    let come_back_after = Duration::from_secs(8);
    for _ in 0..50 {
        peer.handle_waiting(come_back_after, now);
        assert_eq!(drain(&mut peer), []);
        let at = peer.poll_timeout().expect("it will ask again");
        assert!(at.since(now) <= come_back_after && at.since(now) >= come_back_after / 4);
        peer.handle_timeout(at);
        assert_eq!(drain(&mut peer), [Effect::Join]);
        now = at;
    }
    peer.handle_joined(session(1));
    peer.handle_waiting(come_back_after, now);
    assert_eq!(peer.poll_timeout(), None, "an answer that comes too late");
}

#[test]
fn a_result_that_is_refused_for_good_is_given_back_and_then_forgotten() {
    let now = Timestamp::default();
    let mut peer = inside();
    peer.handle_polled(session(1), &[A], &[], false);
    peer.handle_finished(A, done());
    drain(&mut peer);
    peer.handle_report_failed(session(1), A, CallFailure::Refused, now);
    let undone = report(1, A, Err(Failure::Internal));
    assert_eq!(drain(&mut peer), [undone]);
    assert!(peer.holds(A), "until the orchestrator knows");
    peer.handle_reported(A, now);
    assert!(!peer.holds(A));

    // If even that is refused, nobody is told again and again.
    peer.handle_polled(session(1), &[B], &[], false);
    peer.handle_finished(B, Err(Failure::OutOfMemory));
    for _ in 0..2 {
        assert!(peer.holds(B));
        peer.handle_report_failed(session(1), B, CallFailure::Refused, now);
    }
    assert!(!peer.holds(B));
}

#[test]
fn a_result_for_a_lease_that_is_gone_is_dropped_and_makes_room_at_once() {
    let mut peer = inside();
    peer.handle_polled(session(1), &[A, B], &[], false);
    peer.handle_finished(A, done());
    drain(&mut peer);
    peer.handle_report_failed(session(1), A, CallFailure::Gone, Timestamp::default());
    assert_eq!(
        drain(&mut peer),
        [Effect::Poll {
            session: session(1),
            room: 1,
            held: vec![B]
        }]
    );
}

#[test]
fn a_place_whose_work_failed_rests_longer_each_time_until_work_succeeds() {
    let mut peer = Peer::new(1, 5);
    peer.handle_joined(session(1));
    let mut now = Timestamp::default();
    let mut rests = Vec::new();
    let mut try_one = |peer: &mut Peer, lease: u64, result: Result<Outcome, Failure>| {
        let lease = LeaseId::new(lease);
        peer.handle_polled(session(1), &[lease], &[], false);
        peer.handle_finished(lease, result);
        drain(peer);
        peer.handle_reported(lease, now);
        let rest = peer.poll_timeout().map(|at| at.since(now));
        let offers = |effects: &[Effect]| {
            effects.iter().any(
                |effect| matches!(effect, Effect::Poll { room: 1, held, .. } if held.is_empty()),
            )
        };
        assert_eq!(offers(&drain(peer)), rest.is_none());
        if let Some(rest) = rest {
            peer.handle_timeout(now);
            assert_eq!(drain(peer), [], "early calls do nothing");
            now = now + rest;
            peer.handle_timeout(now);
            assert!(offers(&drain(peer)), "rested");
        }
        rest
    };
    for lease in 0..20 {
        rests.extend(try_one(&mut peer, lease, Err(Failure::OutOfMemory)));
    }
    assert_eq!(rests.len(), 20);
    assert!(rests[0] <= BACKOFF_MIN && !rests[0].is_zero());
    assert!(
        rests[10..]
            .iter()
            .all(|rest| *rest >= BACKOFF_MAX / 4 && *rest <= BACKOFF_MAX)
    );
    assert_eq!(try_one(&mut peer, 20, done()), None);
    let again = try_one(&mut peer, 21, Err(Failure::OutOfMemory));
    assert!(again.is_some_and(|rest| rest <= BACKOFF_MIN));
}

#[test]
fn shutting_down_does_not_wait_for_an_orchestrator_that_cannot_be_reached() {
    let now = Timestamp::default();
    let left = [
        Effect::Leave {
            session: session(1),
        },
        Effect::Stop {
            why: Stop::Shutdown,
        },
    ];
    for failure in [CallFailure::Retry(None), CallFailure::Refused] {
        let mut peer = inside();
        peer.handle_polled(session(1), &[A], &[], false);
        peer.handle_finished(A, done());
        drain(&mut peer);
        peer.handle_shutdown();
        assert_eq!(drain(&mut peer), []);
        peer.handle_report_failed(session(1), A, failure, now);
        assert_eq!(drain(&mut peer), left);
    }
    // Nor for a place that rests, nor for a session that would have to begin again.
    let mut peer = inside();
    peer.handle_polled(session(1), &[A, B], &[], false);
    peer.handle_finished(A, Err(Failure::Internal));
    peer.handle_finished(B, done());
    peer.handle_reported(A, now);
    drain(&mut peer);
    peer.handle_shutdown();
    peer.handle_tainted(B);
    assert_eq!(drain(&mut peer), left);
}

#[test]
fn a_lease_sent_again_while_its_result_is_on_its_way_keeps_the_result() {
    let now = Timestamp::default();
    let mut peer = inside();
    peer.handle_polled(session(1), &[A], &[], false);
    peer.handle_finished(A, done());
    drain(&mut peer);
    peer.handle_polled(session(1), &[A], &[], false);
    peer.handle_report_failed(session(1), A, CallFailure::Retry(None), now);
    drain(&mut peer);
    let at = peer.poll_timeout().expect("a retry is due");
    peer.handle_timeout(at);
    assert_eq!(drain(&mut peer), [report(1, A, done())]);
}

#[test]
fn a_lease_that_is_known_to_be_gone_is_not_asked_about_again() {
    let mut peer = inside();
    peer.handle_polled(session(1), &[A, B], &[], false);
    drain(&mut peer);
    // A is still being worked on, and would be revoked at once in every further answer.
    peer.handle_polled(session(1), &[], &[A], false);
    let poll = Effect::Poll {
        session: session(1),
        room: 0,
        held: vec![B],
    };
    assert_eq!(drain(&mut peer), [Effect::Abandon { lease: A }, poll]);
}
