//! What the loop tells the machine and the worker of what comes in.

use std::sync::Mutex;

use iota_protocol::work::{ObjectName, Purpose, Seal, Work};
use iota_protocol::{Digest, ObjectId, PeerId, Phase, SampleId, StageIndex};
use iota_wire::WorkStatus;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_000);
const LEASE: LeaseId = LeaseId::new(7);

/// Notes what it is told.
#[derive(Default)]
struct Noting {
    reported: Mutex<Vec<(LeaseId, bool)>>,
}

impl Worker for Noting {
    async fn reset(&self, _: &Joined) -> Result<(), Error> {
        Ok(())
    }

    async fn work(&self, _: Arc<LeasedWork>, _: watch::Receiver<bool>) -> Result<Outcome, Undone> {
        Err(Undone::Broken)
    }

    fn reported(&self, lease: &Lease, logged: bool) {
        self.reported.lock().unwrap().push((lease.id, logged));
    }
}

fn session(generation: u32) -> Session {
    Session {
        peer: PeerId::from_bytes([7; 32]),
        generation,
    }
}

fn leased(work: Work) -> LeasedWork {
    LeasedWork {
        lease: Lease {
            id: LEASE,
            session: session(1),
            stage: StageIndex::new(0),
            epoch: Epoch::new(3),
            work,
            issued_at: NOW,
            deadline: NOW,
        },
        grants: Vec::new(),
    }
}

fn forward() -> Work {
    Work::Forward {
        sample: SampleId::new(1),
        input: None,
        output: ObjectName {
            purpose: Purpose::Activation,
            epoch: Epoch::new(3),
            id: ObjectId::from_bytes([1; 16]),
        },
    }
}

fn backward() -> Work {
    Work::Backward {
        sample: SampleId::new(1),
        input: None,
        output_gradient: None,
        gradient: None,
        learning_rate: 0.1,
    }
}

fn outcome() -> Outcome {
    let output = Seal {
        digest: Digest::of(b"activation"),
        length: 10,
    };
    Outcome::Forward { ordinal: 0, output }
}

fn reply(epoch: u64, leases: Vec<LeasedWork>, revoked: Vec<LeaseId>) -> WorkReply {
    WorkReply {
        leases,
        revoked,
        status: WorkStatus {
            phase: Phase::Training,
            epoch: Epoch::new(epoch),
            run_over: false,
            phase_deadline_remaining: None,
        },
    }
}

/// In the first session, at work on one lease of epoch 3.
fn at_work(work: Work) -> Inbox<Noting> {
    let mut inbox = Inbox {
        worker: Arc::new(Noting::default()),
        peer: Peer::new(2, 1),
        leases: BTreeMap::new(),
        epoch: Epoch::default(),
        waits: None,
    };
    inbox.peer.handle_joined(session(1));
    handle(
        &mut inbox,
        Input::Polled(session(1), Ok(reply(3, vec![leased(work)], vec![]))),
    );
    inbox
}

/// As [`at_work`], with the outcome on its way.
fn reporting(work: Work) -> Inbox<Noting> {
    let mut inbox = at_work(work);
    handle(&mut inbox, Input::Finished(LEASE, Ok(outcome())));
    inbox
}

/// Hands in what came and returns the effects.
fn handle(inbox: &mut Inbox<Noting>, input: Input) -> Vec<Effect> {
    while inbox.peer.poll_effect().is_some() {}
    inbox.handle(input, NOW).unwrap();
    std::iter::from_fn(|| inbox.peer.poll_effect()).collect()
}

fn reported(inbox: &Inbox<Noting>) -> Vec<(LeaseId, bool)> {
    inbox.worker.reported.lock().unwrap().clone()
}

fn refused(rejection: Rejection) -> Input {
    Input::Reported(session(1), LEASE, Err(CallError::Rejected(rejection)))
}

fn begins_again(effects: &[Effect]) -> bool {
    effects.contains(&Effect::Join)
}

#[test]
fn a_repeated_report_of_superseded_work_is_in_the_log() {
    let mut inbox = reporting(backward());
    let effects = handle(&mut inbox, refused(Rejection::Superseded));
    assert!(!begins_again(&effects), "{effects:?}");
    assert_eq!(reported(&inbox), [(LEASE, true)]);
    assert!(inbox.leases.is_empty() && !inbox.peer.holds(LEASE));
}

#[test]
fn a_refused_backward_pass_begins_the_session_again_while_its_epoch_lasts() {
    for rejection in [
        Rejection::StaleEpoch,
        Rejection::UnknownLease,
        Rejection::OrdinalUsed,
    ] {
        let mut inbox = reporting(backward());
        let effects = handle(&mut inbox, refused(rejection));
        assert!(begins_again(&effects), "{rejection}");
        assert_eq!(reported(&inbox), [(LEASE, false)]);
    }
    let mut inbox = reporting(backward());
    handle(
        &mut inbox,
        Input::Polled(session(1), Ok(reply(4, vec![], vec![]))),
    );
    let effects = handle(&mut inbox, refused(Rejection::StaleEpoch));
    assert!(!begins_again(&effects), "{effects:?}");
}

#[test]
fn a_refused_forward_pass_is_given_back_unless_it_is_gone() {
    let given_back = Effect::Report {
        session: session(1),
        lease: LEASE,
        result: Err(Failure::Internal),
    };
    for (rejection, wanted) in [
        (Rejection::WrongLength, true),
        (Rejection::NotStored, true),
        (Rejection::UnknownLease, false),
    ] {
        let mut inbox = reporting(forward());
        let effects = handle(&mut inbox, refused(rejection));
        assert_eq!(effects.contains(&given_back), wanted, "{rejection}");
        assert_eq!(reported(&inbox), [(LEASE, false)]);
        assert_eq!(inbox.peer.holds(LEASE), wanted);
        handle(&mut inbox, Input::GivenBack(session(1), LEASE, Ok(())));
        assert!(!inbox.peer.holds(LEASE));
        assert_eq!(reported(&inbox).len(), 1);
    }
}

#[test]
fn an_abandoned_lease_that_fails_is_forgotten() {
    let mut inbox = at_work(forward());
    handle(
        &mut inbox,
        Input::Polled(session(1), Ok(reply(3, vec![], vec![LEASE]))),
    );
    assert_eq!(inbox.leases.len(), 1);
    let failed = Err(Undone::Failed(Failure::Internal));
    handle(&mut inbox, Input::Finished(LEASE, failed));
    assert!(inbox.leases.is_empty());
}

#[test]
fn work_that_is_given_back_leaves_nothing_to_log() {
    let mut inbox = at_work(backward());
    let failed = Err(Undone::Failed(Failure::StoreUnavailable));
    handle(&mut inbox, Input::Finished(LEASE, failed));
    let gone = Err(CallError::Rejected(Rejection::UnknownLease));
    let effects = handle(&mut inbox, Input::GivenBack(session(1), LEASE, gone));
    assert!(!begins_again(&effects), "{effects:?}");
    assert_eq!(reported(&inbox), [(LEASE, true)]);
}

#[test]
fn what_an_old_session_left_behind_does_not_touch_the_new_one() {
    let mut inbox = at_work(backward());
    inbox
        .peer
        .handle_poll_failed(session(1), CallFailure::Rejoin, NOW);
    inbox.peer.handle_joined(session(2));
    inbox.leases.clear();
    let late = [
        Input::Finished(LEASE, Err(Undone::Tainted)),
        refused(Rejection::NotRegistered),
        Input::Polled(
            session(1),
            Err(CallError::Rejected(Rejection::NotRegistered)),
        ),
        Input::Polled(session(1), Ok(reply(9, vec![leased(forward())], vec![]))),
    ];
    for input in late {
        assert_eq!(handle(&mut inbox, input), []);
    }
    assert!(inbox.leases.is_empty());
    assert_eq!(inbox.epoch, Epoch::new(3));
    assert_eq!(inbox.peer.session(), Some(session(2)));
}

#[test]
fn a_broken_worker_ends_the_participation() {
    let mut inbox = at_work(forward());
    let broken = Input::Finished(LEASE, Err(Undone::Broken));
    assert!(matches!(inbox.handle(broken, NOW), Err(Error::StageGone)));
}

#[test]
fn whoever_waits_for_a_place_asks_again_no_later_than_it_was_told_to() {
    let mut inbox = Inbox {
        worker: Arc::new(Noting::default()),
        peer: Peer::new(2, 1),
        leases: BTreeMap::new(),
        epoch: Epoch::default(),
        waits: None,
    };
    let place = Place {
        ticket: Ticket::new(4),
        place: 2,
        line: 5,
        why: WaitReason::Full,
        moved: None,
        come_back_after: Duration::from_secs(2),
    };
    let effects = handle(&mut inbox, Input::Joined(Err(CallError::Waiting(place))));
    assert_eq!(effects, []);
    let at = inbox.peer.poll_timeout().unwrap();
    assert!(at > NOW && at <= NOW + place.come_back_after, "{at:?}");
    inbox.peer.handle_timeout(at);
    assert_eq!(inbox.peer.poll_effect(), Some(Effect::Join));
}

#[test]
fn a_certificate_that_is_not_good_any_more_ends_no_session_and_loses_no_report() {
    let expired = || CallError::Tls(iota_tls::Refusal::Certificate("it has expired".to_owned()));
    let mut inbox = reporting(backward());
    for input in [
        Input::Polled(session(1), Err(expired())),
        Input::Reported(session(1), LEASE, Err(expired())),
    ] {
        let effects = handle(&mut inbox, input);
        assert!(!begins_again(&effects), "{effects:?}");
    }
    assert!(inbox.peer.holds(LEASE));
    assert!(reported(&inbox).is_empty());
    assert!(inbox.peer.poll_timeout().is_some(), "both are made again");
}
