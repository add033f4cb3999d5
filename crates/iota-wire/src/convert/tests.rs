//! Round trips of arbitrary values, and refusals of everything else.

use std::ops::Range;
use std::time::Duration;

use iota_protocol::event::Phase;
use iota_protocol::work::{
    CellUpload, Checkpoint, Difference, Failure, Lease, LogEntry, MergeInput, ObjectName,
    ObjectRef, Outcome, Purpose, Seal, Segment, SegmentSource, UploadRecord, Verdict, Work,
};
use iota_protocol::{
    CellIndex, Digest, Epoch, LeaseId, ObjectId, PeerId, Role, RunId, SampleId, Session,
    StageIndex, Timestamp,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::limits::{HOLD_MAX, LEASES_MAX, URL_BYTES_MAX};
use crate::message::{
    Grant, GrantMethod, GrantTarget, Joined, LeasedWork, RunInfo, RunStatus, WorkReply,
    WorkRequest, WorkStatus,
};
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

fn session() -> impl Strategy<Value = Session> {
    (any::<[u8; 32]>(), any::<u32>()).prop_map(|(peer, generation)| Session {
        peer: PeerId::from_bytes(peer),
        generation,
    })
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}

fn stage() -> impl Strategy<Value = StageIndex> {
    any::<u16>().prop_map(StageIndex::new)
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp::from_millis)
}

fn phase() -> impl Strategy<Value = Phase> {
    prop::sample::select(vec![
        Phase::Gathering,
        Phase::Training,
        Phase::Uploading,
        Phase::Merging,
        Phase::Installing,
        Phase::Settling,
        Phase::Over,
    ])
}

fn name() -> impl Strategy<Value = ObjectName> {
    let purposes = vec![
        Purpose::Activation,
        Purpose::Gradient,
        Purpose::Upload,
        Purpose::Merged,
    ];
    (
        prop::sample::select(purposes),
        any::<u64>(),
        any::<[u8; 16]>(),
    )
        .prop_map(|(purpose, epoch, id)| ObjectName {
            purpose,
            epoch: Epoch::new(epoch),
            id: ObjectId::from_bytes(id),
        })
}

fn seal() -> impl Strategy<Value = Seal> {
    (digest(), any::<u64>()).prop_map(|(digest, length)| Seal { digest, length })
}

fn object() -> impl Strategy<Value = ObjectRef> {
    (name(), seal()).prop_map(|(name, seal)| ObjectRef { name, seal })
}

fn range() -> impl Strategy<Value = Range<u64>> {
    any::<(u64, u64)>().prop_map(|(a, b)| a.min(b)..a.max(b))
}

fn number() -> impl Strategy<Value = f32> {
    // Numbers that are equal to themselves; that others travel too is a test of its own.
    prop::num::f32::ANY.prop_filter("equal to itself", |number| !number.is_nan())
}

fn cell_upload() -> impl Strategy<Value = CellUpload> {
    (any::<u32>(), range(), name()).prop_map(|(cell, range, output)| CellUpload {
        cell: CellIndex::new(cell),
        range,
        output,
    })
}

fn segment() -> impl Strategy<Value = Segment> {
    let merged =
        (object(), any::<u64>(), any::<u64>()).prop_map(|(object, offset, cell_elements)| {
            SegmentSource::Merged {
                object,
                offset,
                cell_elements,
            }
        });
    (range(), prop_oneof![Just(SegmentSource::Genesis), merged])
        .prop_map(|(range, source)| Segment { range, source })
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    (stage(), any::<u64>(), any::<u64>(), vec(segment(), 0..4)).prop_map(
        |(stage, epoch, optimizer_steps, segments)| Checkpoint {
            stage,
            epoch: Epoch::new(epoch),
            optimizer_steps,
            segments,
        },
    )
}

fn plain_work() -> impl Strategy<Value = Work> {
    let sample = any::<u64>().prop_map(SampleId::new);
    let merge_input =
        (session(), object(), any::<u64>()).prop_map(|(session, object, weight)| MergeInput {
            session,
            object,
            weight,
        });
    prop_oneof![
        (sample.clone(), of(object()), name()).prop_map(|(sample, input, output)| Work::Forward {
            sample,
            input,
            output
        }),
        (sample, of(object()), of(object()), of(name()), number()).prop_map(
            |(sample, input, output_gradient, gradient, learning_rate)| Work::Backward {
                sample,
                input,
                output_gradient,
                gradient,
                learning_rate,
            }
        ),
        (vec(cell_upload(), 0..4), number()).prop_map(|(cells, learning_rate)| Work::Upload {
            cells,
            learning_rate
        }),
        (any::<u32>(), range(), vec(merge_input, 0..4), name()).prop_map(
            |(cell, range, inputs, output)| {
                Work::Merge {
                    cell: CellIndex::new(cell),
                    range,
                    inputs,
                    output,
                }
            }
        ),
        checkpoint().prop_map(|checkpoint| Work::Install { checkpoint }),
        (object(), session(), session()).prop_map(|(object, producer, accuser)| Work::Inspect {
            object,
            producer,
            accuser
        }),
    ]
}

fn work() -> impl Strategy<Value = Work> {
    let entry = (
        any::<u32>(),
        any::<u64>(),
        plain_work(),
        outcome(),
        any::<bool>(),
    )
        .prop_map(|(ordinal, lease, work, outcome, credited)| LogEntry {
            ordinal,
            lease: LeaseId::new(lease),
            work,
            outcome,
            credited,
        });
    let upload = (
        vec(cell_upload(), 0..3),
        vec(seal(), 0..3),
        number(),
        any::<u64>(),
    )
        .prop_map(
            |(cells, seals, learning_rate, optimizer_steps)| UploadRecord {
                cells,
                seals,
                learning_rate,
                optimizer_steps,
            },
        );
    let replay = (session(), checkpoint(), vec(entry, 0..4), of(upload)).prop_map(
        |(subject, checkpoint, entries, upload)| Work::Replay {
            subject,
            checkpoint,
            entries,
            upload,
        },
    );
    prop_oneof![6 => plain_work(), 2 => replay]
}

fn lease() -> impl Strategy<Value = Lease> {
    (
        any::<u64>(),
        session(),
        stage(),
        any::<u64>(),
        work(),
        time(),
        time(),
    )
        .prop_map(
            |(id, session, stage, epoch, work, issued_at, deadline)| Lease {
                id: LeaseId::new(id),
                session,
                stage,
                epoch: Epoch::new(epoch),
                work,
                issued_at,
                deadline,
            },
        )
}

fn difference() -> impl Strategy<Value = Difference> {
    prop::sample::select(vec![
        Difference::Output,
        Difference::Loss,
        Difference::Upload,
        Difference::Missing,
        Difference::Digest,
        Difference::Malformed,
        Difference::NotFinite,
    ])
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let verdict = prop_oneof![
        any::<u32>().prop_map(|operations| Verdict::Agrees { operations }),
        (of(any::<u32>()), difference()).prop_map(|(ordinal, difference)| Verdict::Differs {
            ordinal,
            difference
        }),
    ];
    prop_oneof![
        (any::<u32>(), seal()).prop_map(|(ordinal, output)| Outcome::Forward { ordinal, output }),
        (any::<u32>(), any::<bool>(), of(seal()), of(number())).prop_map(
            |(ordinal, recomputed, gradient, loss)| {
                Outcome::Backward {
                    ordinal,
                    recomputed,
                    gradient,
                    loss,
                }
            }
        ),
        (vec(seal(), 0..4), any::<u64>()).prop_map(|(cells, optimizer_steps)| Outcome::Upload {
            cells,
            optimizer_steps
        }),
        (seal(), vec(session(), 0..4)).prop_map(|(merged, quarantined)| Outcome::Merge {
            merged,
            quarantined
        }),
        digest().prop_map(|state| Outcome::Install { state }),
        verdict.prop_map(|verdict| Outcome::Audit { verdict }),
    ]
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        prop::sample::select(vec![
            Failure::Leaving,
            Failure::OutOfMemory,
            Failure::StoreUnavailable,
            Failure::NotFinite,
            Failure::Internal,
        ]),
        (name(), difference())
            .prop_map(|(object, difference)| Failure::BadInput { object, difference }),
    ]
}

fn grant() -> impl Strategy<Value = Grant> {
    let target = prop_oneof![
        name().prop_map(GrantTarget::Object),
        any::<u32>().prop_map(|index| GrantTarget::Shard { index }),
    ];
    let method = prop::sample::select(vec![GrantMethod::Get, GrantMethod::Put]);
    let headers = vec(("[a-z-]{0,12}", ".{0,12}"), 0..3);
    (
        target,
        method,
        ".{0,40}",
        headers,
        any::<u64>(),
        of(digest()),
        time(),
    )
        .prop_map(
            |(target, method, url, headers, length_bytes, digest, expires_at)| Grant {
                target,
                method,
                url,
                headers,
                length_bytes,
                digest,
                expires_at,
            },
        )
}

fn work_status() -> impl Strategy<Value = WorkStatus> {
    (phase(), any::<u64>(), any::<bool>(), of(any::<u64>())).prop_map(
        |(phase, epoch, run_over, remaining)| WorkStatus {
            phase,
            epoch: Epoch::new(epoch),
            run_over,
            phase_deadline_remaining: remaining.map(Duration::from_millis),
        },
    )
}

fn run_status() -> impl Strategy<Value = RunStatus> {
    (
        phase(),
        any::<[u64; 9]>(),
        any::<[u32; 2]>(),
        -1e9..1e9_f64,
        of(0.0..1e9_f64),
        vec(any::<u32>(), 0..5),
    )
        .prop_map(
            |(phase, counts, peers, tokens_per_second, loss, miners_per_stage)| RunStatus {
                phase,
                epoch: Epoch::new(counts[0]),
                epochs: counts[1],
                samples_completed: counts[2],
                samples_in_flight: counts[3],
                samples_re_leased: counts[4],
                tokens_trained: counts[5],
                tokens_per_second,
                loss,
                miners_per_stage,
                validators: peers[0],
                audits_passed: counts[6],
                audits_failed: counts[7],
                banned: peers[1],
                elapsed: Duration::from_millis(counts[8]),
                phase_deadline_remaining: loss.map(|_| Duration::from_millis(counts[0])),
            },
        )
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
    for number in [0, 5, -1] {
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
    };
    let work = |replay| proto::Work {
        kind: Some(proto::work::Kind::Replay(replay)),
    };
    let outcome = proto::Outcome::from(Outcome::Install {
        state: Digest::from_bytes([0; 32]),
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
