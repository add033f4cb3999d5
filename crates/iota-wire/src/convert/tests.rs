//! Round trips of arbitrary values, and refusals of everything else.

mod values;

use std::ops::Range;
use std::time::Duration;

use iota_protocol::work::{Failure, ObjectName, Outcome, Seal, Work};
use iota_protocol::{Digest, Epoch, LeaseId, PeerId, Role, RunId, Session, Timestamp};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use prost::Message;

use self::values::*;
use super::*;
use crate::limits::{HOLD_MAX, LEASES_MAX, URL_BYTES_MAX};
use crate::message::{Grant, Joined, LeasedWork, RunInfo, RunStatus, WorkReply, WorkRequest};
use crate::proto;

/// Through the message and its bytes, and back.
fn across<Value, M>(value: &Value) -> Result<Value, ConversionError>
where
    Value: Clone + TryFrom<M, Error = ConversionError>,
    M: Message + From<Value> + Default,
{
    let bytes = M::from(value.clone()).encode_to_vec();
    Value::try_from(M::decode(bytes.as_slice()).expect("our own encoding decodes"))
}

proptest! {
    #[test]
    fn every_piece_of_work_survives_the_wire(
        lease in lease(),
        grants in vec(grant(), 0..3),
        revoked in vec(any::<u64>().prop_map(LeaseId::new), 0..4),
        status in work_status(),
    ) {
        let reply = WorkReply { leases: vec![LeasedWork { lease, grants }], revoked, status };
        prop_assert_eq!(across::<_, proto::GetWorkResponse>(&reply), Ok(reply));
    }

    #[test]
    fn every_report_survives_the_wire(outcome in outcome(), failure in failure()) {
        prop_assert_eq!(across::<_, proto::Outcome>(&outcome), Ok(outcome));
        prop_assert_eq!(across::<_, proto::Failure>(&failure), Ok(failure));
    }

    #[test]
    fn every_answer_about_the_run_survives_the_wire(
        ids in any::<([u8; 16], [u8; 32], u64, u32)>(),
        config in vec(any::<u8>(), 0..50),
        status in run_status(),
        session in session(),
        stage in of(stage()),
        phase in phase(),
    ) {
        let info = RunInfo {
            run: RunId::from_bytes(ids.0),
            orchestrator: PeerId::from_bytes(ids.1),
            server_time: Timestamp::from_millis(ids.2),
            protocol_version: ids.3,
            config,
        };
        prop_assert_eq!(across::<_, proto::GetRunResponse>(&info), Ok(info));
        prop_assert_eq!(across::<_, proto::RunStatus>(&status), Ok(status));
        let joined = Joined { session, stage, epoch: Epoch::new(ids.2), phase };
        prop_assert_eq!(Joined::from_message(joined.into(), session.peer), Ok(joined));
    }

    #[test]
    fn a_question_for_work_survives_the_wire(
        session in session(),
        room: u32,
        held in vec(any::<u64>().prop_map(LeaseId::new), 0..LEASES_MAX),
        hold_ms in 0..30_000_u64,
    ) {
        let request = WorkRequest { session, room, held, hold: Duration::from_millis(hold_ms) };
        let expected = WorkRequest { hold: request.hold.min(HOLD_MAX), ..request.clone() };
        prop_assert_eq!(WorkRequest::from_message(request.into(), session.peer), Ok(expected));
    }

    /// Damaged messages are more likely to decode than random ones, and reach further into the conversions.
    #[test]
    fn damaged_messages_are_values_or_errors_never_panics(
        lease in lease(),
        grants in vec(grant(), 0..3),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        noise in vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = proto::LeasedWork::from(LeasedWork { lease, grants }).encode_to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for bytes in [&bytes, &noise] {
            convert_as_everything(bytes);
        }
    }
}

fn convert_as_everything(bytes: &[u8]) {
    fn convert<M: Message + Default, Value: TryFrom<M>>(bytes: &[u8]) {
        if let Ok(message) = M::decode(bytes) {
            let _ = Value::try_from(message);
        }
    }
    convert::<proto::LeasedWork, LeasedWork>(bytes);
    convert::<proto::GetWorkResponse, WorkReply>(bytes);
    convert::<proto::GetRunResponse, RunInfo>(bytes);
    convert::<proto::RunStatus, RunStatus>(bytes);
    convert::<proto::Work, Work>(bytes);
    convert::<proto::Outcome, Outcome>(bytes);
    convert::<proto::Failure, Failure>(bytes);
    convert::<proto::Session, Session>(bytes);
}

fn a_name() -> proto::ObjectName {
    proto::ObjectName {
        purpose: proto::Purpose::Upload.into(),
        epoch: 3,
        id: vec![7; 16],
    }
}

fn forward_lease() -> proto::Lease {
    let work = proto::ForwardWork {
        sample: 1,
        input: None,
        output: Some(a_name()),
    };
    proto::Lease {
        id: 1,
        session: Some(proto::Session {
            peer: vec![1; 32],
            generation: 1,
        }),
        stage: 0,
        epoch: 0,
        work: Some(proto::Work {
            kind: Some(proto::work::Kind::Forward(work)),
        }),
        issued_at_ms: 0,
        deadline_ms: 1,
    }
}

#[track_caller]
fn refused<Value: std::fmt::Debug>(result: Result<Value, ConversionError>, path: &str) {
    assert_eq!(result.expect_err("must be refused").path(), path);
}

#[test]
fn a_refusal_names_the_field_from_the_outside_in() {
    let reply = |lease: proto::Lease| {
        let status = proto::WorkStatus {
            phase: proto::Phase::Training.into(),
            ..Default::default()
        };
        let whole = proto::LeasedWork {
            lease: Some(forward_lease()),
            grants: vec![],
        };
        let leases = vec![
            whole,
            proto::LeasedWork {
                lease: Some(lease),
                grants: vec![],
            },
        ];
        WorkReply::try_from(proto::GetWorkResponse {
            leases,
            revoked: vec![],
            status: Some(status),
        })
    };
    assert!(reply(forward_lease()).is_ok());
    refused(
        reply(proto::Lease {
            session: None,
            ..forward_lease()
        }),
        "leases[1].lease.session",
    );
    refused(
        reply(proto::Lease {
            stage: 65_536,
            ..forward_lease()
        }),
        "leases[1].lease.stage",
    );
    refused(
        reply(proto::Lease {
            work: Some(proto::Work { kind: None }),
            ..forward_lease()
        }),
        "leases[1].lease.work.kind",
    );
    let short = proto::Session {
        peer: vec![1; 31],
        generation: 1,
    };
    refused(
        reply(proto::Lease {
            session: Some(short),
            ..forward_lease()
        }),
        "leases[1].lease.session.peer",
    );
    let id = proto::ObjectName {
        id: vec![],
        ..a_name()
    };
    let work = proto::ForwardWork {
        sample: 1,
        input: None,
        output: Some(id),
    };
    let work = Some(proto::Work {
        kind: Some(proto::work::Kind::Forward(work)),
    });
    refused(
        reply(proto::Lease {
            work,
            ..forward_lease()
        }),
        "leases[1].lease.work.forward.output.id",
    );
}

#[test]
fn unknown_and_unspecified_choices_are_refused() {
    for number in [0, 7, -1] {
        refused(
            ObjectName::try_from(proto::ObjectName {
                purpose: number,
                ..a_name()
            }),
            "purpose",
        );
    }
    for number in [0, 3] {
        refused(chosen::<proto::Role, Role>("role", number), "role");
    }
    refused(
        Failure::try_from(proto::Failure {
            reason: 0,
            bad_input: None,
        }),
        "reason",
    );
    let bad_input = proto::FailureReason::BadInput.into();
    refused(
        Failure::try_from(proto::Failure {
            reason: bad_input,
            bad_input: None,
        }),
        "bad_input",
    );
}

#[test]
fn a_range_that_runs_backwards_is_refused() {
    assert_eq!(
        Range::try_from(proto::ElementRange { start: 4, end: 4 }),
        Ok(4..4)
    );
    refused(
        Range::try_from(proto::ElementRange { start: 5, end: 4 }),
        "end",
    );
}

#[test]
fn a_replay_inside_a_replay_is_refused() {
    let replay = |entries| proto::ReplayWork {
        subject: Some(proto::Session {
            peer: vec![1; 32],
            generation: 1,
        }),
        checkpoint: Some(proto::Checkpoint::default()),
        entries,
        upload: None,
        kept: None,
        ahead: 0,
    };
    let work = |replay| proto::Work {
        kind: Some(proto::work::Kind::Replay(replay)),
    };
    let outcome = proto::Outcome::from(Outcome::Install {
        state: Digest::from_bytes([0; 32]),
        operations: 0,
    });
    let entry = proto::LogEntry {
        work: Some(work(replay(vec![]))),
        outcome: Some(outcome),
        ..Default::default()
    };
    assert!(Work::try_from(work(replay(vec![]))).is_ok());
    refused(
        Work::try_from(work(replay(vec![entry]))),
        "replay.entries[0].work",
    );
}

#[test]
fn lists_and_texts_beyond_their_bounds_are_refused() {
    let peer = PeerId::from_bytes([0; 32]);
    let held = |count| proto::GetWorkRequest {
        held: vec![0; count],
        ..Default::default()
    };
    assert!(WorkRequest::from_message(held(LEASES_MAX), peer).is_ok());
    refused(
        WorkRequest::from_message(held(LEASES_MAX + 1), peer),
        "held",
    );

    let grant = |url_bytes| proto::Grant {
        target: Some(proto::grant::Target::Shard(proto::ShardTarget { index: 0 })),
        method: proto::GrantMethod::Get.into(),
        url: "u".repeat(url_bytes),
        ..Default::default()
    };
    assert!(Grant::try_from(grant(URL_BYTES_MAX)).is_ok());
    refused(Grant::try_from(grant(URL_BYTES_MAX + 1)), "url");
}

/// Whether a number makes sense is for the rules to say (`Rejection::NotFinite`); the wire carries it.
#[test]
fn numbers_that_are_not_finite_travel() {
    let outcome = Outcome::Backward {
        ordinal: 0,
        recomputed: true,
        gradient: None,
        loss: Some(f32::NAN),
    };
    let back = across::<_, proto::Outcome>(&outcome);
    assert!(matches!(back, Ok(Outcome::Backward { loss: Some(loss), .. }) if loss.is_nan()));
}

/// The bound on requests must let through the longest honest one.
#[test]
fn the_longest_outcome_fits_into_a_request() {
    let seal = Seal {
        digest: Digest::from_bytes([255; 32]),
        length: u64::MAX,
    };
    let outcome = Outcome::Upload {
        cells: vec![seal; crate::limits::CELLS_MAX],
        optimizer_steps: u64::MAX,
        kept: Some(seal),
    };
    let request = proto::CompleteWorkRequest {
        generation: u32::MAX,
        lease: u64::MAX,
        outcome: Some(outcome.into()),
    };
    assert!(
        request.encoded_len() <= crate::limits::REQUEST_BYTES_MAX,
        "{} bytes",
        request.encoded_len()
    );
    let quarantined = vec![
        Session {
            peer: PeerId::from_bytes([1; 32]),
            generation: u32::MAX
        };
        crate::limits::UPLOADERS_MAX
    ];
    let outcome = Outcome::Merge {
        merged: seal,
        quarantined,
        delta: Some(seal),
    };
    let request = proto::CompleteWorkRequest {
        generation: u32::MAX,
        lease: u64::MAX,
        outcome: Some(outcome.into()),
    };
    assert!(
        request.encoded_len() <= crate::limits::REQUEST_BYTES_MAX,
        "{} bytes",
        request.encoded_len()
    );
}
