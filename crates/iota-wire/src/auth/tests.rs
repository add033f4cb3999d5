//! The authenticator alone, where time is a number.

use iota_identity::Keypair;
use prost::Message as _;

use super::header::Header;
use super::*;
use crate::proto;

const METHOD: &str = "iota.v1.OrchestratorService/Join";
const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const RUN: RunId = RunId::from_bytes([1; 16]);
const AUDIENCE: PeerId = PeerId::from_bytes([2; 32]);

fn authenticator(floor: Timestamp) -> Authenticator {
    Authenticator::new(
        AuthSettings {
            nonces_max: 4,
            ..AuthSettings::new(RUN, AUDIENCE)
        },
        floor,
    )
}

fn alice() -> Keypair {
    Keypair::from_seed([7; 32])
}

fn header(issued_at: Timestamp, nonce: u8) -> Header {
    Header {
        peer: alice().peer_id(),
        run: RUN,
        audience: AUDIENCE,
        method: METHOD.to_owned(),
        body_digest: Digest::of(b"body"),
        issued_at,
        nonce: [nonce; 16],
    }
}

fn request(issued_at: Timestamp, nonce: u8) -> Vec<u8> {
    header(issued_at, nonce).sign(&alice())
}

fn refused(failure: AuthFailure) -> Result<Authentic, ApiError> {
    Err(failure.into())
}

const fn stale(server_time: Timestamp) -> AuthFailure {
    AuthFailure::Stale { server_time }
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

#[test]
fn an_authentic_request_is_accepted_once() {
    let authenticator = authenticator(at(0));
    let accepted = Authentic {
        peer: alice().peer_id(),
        body_digest: Digest::of(b"body"),
    };
    assert_eq!(
        authenticator.authenticate(NOW, METHOD, &request(NOW, 1)),
        Ok(accepted)
    );
    // Signed anew, so the bytes differ: the nonce is what counts.
    assert_eq!(
        authenticator.authenticate(NOW, METHOD, &request(NOW, 1)),
        refused(AuthFailure::Replayed)
    );
    assert_eq!(
        authenticator.authenticate(NOW, METHOD, &request(NOW, 2)),
        Ok(accepted)
    );
}

#[test]
fn a_request_may_be_as_old_as_the_skew_and_hardly_ahead() {
    let authenticator = authenticator(at(0));
    for (issued_at, accepted) in [
        (970_000, true),
        (969_999, false),
        (1_000_500, true),
        (1_000_501, false),
    ] {
        let answer = authenticator.authenticate(NOW, METHOD, &request(at(issued_at), 1));
        assert_eq!(answer.is_ok(), accepted, "issued at {issued_at}");
        if !accepted {
            assert_eq!(answer, refused(stale(NOW)));
        }
    }
}

/// Also not for a peer whose clock is ahead: whatever the first accepted before it ended, the second never does.
#[test]
fn a_restart_accepts_nothing_again() {
    let before = authenticator(at(0));
    let captured: Vec<Vec<u8>> = [970_000, 1_000_000, 1_000_500]
        .into_iter()
        .zip(1..)
        .map(|(issued_at, nonce)| request(at(issued_at), nonce))
        .collect();
    for request in &captured {
        assert!(before.authenticate(NOW, METHOD, request).is_ok());
    }
    let floor = Authenticator::floor_after(&AuthSettings::new(RUN, AUDIENCE), NOW);
    let after = authenticator(floor);
    for later in [0, 1, 500, 501, 30_000] {
        let now = NOW + Duration::from_millis(later);
        for request in &captured {
            let answer = after.authenticate(now, METHOD, request);
            assert_eq!(answer, refused(stale(now)));
        }
    }
    let now = floor + Duration::from_millis(1);
    assert!(after.authenticate(now, METHOD, &request(now, 9)).is_ok());
}

#[test]
fn a_full_memory_refuses_old_requests_rather_than_accept_replays() {
    let authenticator = authenticator(at(0));
    let first = request(at(999_000), 0);
    assert!(authenticator.authenticate(NOW, METHOD, &first).is_ok());
    for nonce in 1..=4 {
        assert!(
            authenticator
                .authenticate(NOW, METHOD, &request(NOW, nonce))
                .is_ok()
        );
    }
    assert_eq!(
        authenticator.authenticate(NOW, METHOD, &first),
        refused(stale(NOW))
    );
}

#[test]
fn a_replay_after_its_nonce_was_forgotten_is_stale() {
    let authenticator = authenticator(at(0));
    let captured = request(NOW, 1);
    assert!(authenticator.authenticate(NOW, METHOD, &captured).is_ok());
    let later = NOW + Duration::from_millis(30_001);
    assert_eq!(
        authenticator.authenticate(later, METHOD, &captured),
        refused(stale(later))
    );
    assert!(
        authenticator
            .authenticate(later, METHOD, &request(later, 2))
            .is_ok()
    );
    // Even if the clock is set back.
    assert_eq!(
        authenticator.authenticate(NOW, METHOD, &captured),
        refused(stale(NOW))
    );
}

#[test]
fn a_change_of_any_signed_field_is_found() {
    type Change = fn(&mut Header);
    let changes: [(Change, AuthFailure); 7] = [
        (
            |header| header.peer = Keypair::from_seed([8; 32]).peer_id(),
            AuthFailure::BadSignature,
        ),
        (
            |header| header.body_digest = Digest::of(b"other"),
            AuthFailure::BadSignature,
        ),
        (|header| header.nonce[0] ^= 1, AuthFailure::BadSignature),
        (
            |header| header.issued_at = NOW + Duration::from_millis(1),
            AuthFailure::BadSignature,
        ),
        (|header| header.method.push('x'), AuthFailure::WrongMethod),
        (
            |header| header.run = RunId::from_bytes([9; 16]),
            AuthFailure::WrongRun,
        ),
        (
            |header| header.audience = PeerId::from_bytes([9; 32]),
            AuthFailure::WrongAudience,
        ),
    ];
    for (change, failure) in changes {
        let original = proto::RequestAuth::decode(request(NOW, 1).as_slice()).unwrap();
        let mut changed = header(NOW, 1);
        change(&mut changed);
        // What somebody in between can make: changed fields under the original signature.
        let mut message = proto::RequestAuth::decode(changed.sign(&alice()).as_slice()).unwrap();
        message.signature = original.signature;
        let answer = authenticator(at(0)).authenticate(NOW, METHOD, &message.encode_to_vec());
        assert_eq!(answer, refused(failure));
    }
}

#[test]
fn a_rate_limited_request_may_come_again() {
    let rate = RateSettings {
        requests_per_second: 1,
        burst: 1,
        peers_max: 9,
    };
    let settings = AuthSettings {
        rate,
        ..AuthSettings::new(RUN, AUDIENCE)
    };
    let authenticator = Authenticator::new(settings, at(0));
    assert!(
        authenticator
            .authenticate(NOW, METHOD, &request(NOW, 1))
            .is_ok()
    );
    let retry_after = Duration::from_secs(1);
    let limited = Err(ApiError::RateLimited { retry_after });
    assert_eq!(
        authenticator.authenticate(NOW, METHOD, &request(NOW, 2)),
        limited
    );
    assert!(
        authenticator
            .authenticate(NOW + retry_after, METHOD, &request(NOW, 2))
            .is_ok()
    );
}
