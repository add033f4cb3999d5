//! Arbitrary values of everything that travels.

use std::ops::Range;
use std::time::Duration;

use iota_protocol::event::Phase;
use iota_protocol::work::{
    CellUpload, Checkpoint, Difference, Failure, Lease, LogEntry, MergeInput, ObjectName,
    ObjectRef, Outcome, Purpose, Seal, Segment, SegmentSource, UploadRecord, Verdict, Work,
};
use iota_protocol::{
    CellIndex, Digest, Epoch, LeaseId, ObjectId, PeerId, SampleId, Session, StageIndex, Timestamp,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use crate::message::{Grant, GrantMethod, GrantTarget, RunStatus, WorkStatus};

pub(super) fn session() -> impl Strategy<Value = Session> {
    (any::<[u8; 32]>(), any::<u32>()).prop_map(|(peer, generation)| Session {
        peer: PeerId::from_bytes(peer),
        generation,
    })
}

pub(super) fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}

pub(super) fn stage() -> impl Strategy<Value = StageIndex> {
    any::<u16>().prop_map(StageIndex::new)
}

pub(super) fn time() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp::from_millis)
}

pub(super) fn phase() -> impl Strategy<Value = Phase> {
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

pub(super) fn name() -> impl Strategy<Value = ObjectName> {
    let purposes = vec![
        Purpose::Activation,
        Purpose::Gradient,
        Purpose::Upload,
        Purpose::Merged,
        Purpose::Delta,
        Purpose::Kept,
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

pub(super) fn seal() -> impl Strategy<Value = Seal> {
    (digest(), any::<u64>()).prop_map(|(digest, length)| Seal { digest, length })
}

pub(super) fn object() -> impl Strategy<Value = ObjectRef> {
    (name(), seal()).prop_map(|(name, seal)| ObjectRef { name, seal })
}

pub(super) fn range() -> impl Strategy<Value = Range<u64>> {
    any::<(u64, u64)>().prop_map(|(a, b)| a.min(b)..a.max(b))
}

pub(super) fn number() -> impl Strategy<Value = f32> {
    // Numbers that are equal to themselves; that others travel too is a test of its own.
    prop::num::f32::ANY.prop_filter("equal to itself", |number| !number.is_nan())
}

pub(super) fn cell_upload() -> impl Strategy<Value = CellUpload> {
    (any::<u32>(), range(), name()).prop_map(|(cell, range, output)| CellUpload {
        cell: CellIndex::new(cell),
        range,
        output,
    })
}

pub(super) fn segment() -> impl Strategy<Value = Segment> {
    let merged = (object(), any::<u64>(), any::<u64>(), of(object())).prop_map(
        |(object, offset, cell_elements, delta)| SegmentSource::Merged {
            object,
            offset,
            cell_elements,
            delta,
        },
    );
    (range(), prop_oneof![Just(SegmentSource::Genesis), merged])
        .prop_map(|(range, source)| Segment { range, source })
}

pub(super) fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    (stage(), any::<u64>(), any::<u64>(), vec(segment(), 0..4)).prop_map(
        |(stage, epoch, optimizer_steps, segments)| Checkpoint {
            stage,
            epoch: Epoch::new(epoch),
            optimizer_steps,
            segments,
        },
    )
}

pub(super) fn plain_work() -> impl Strategy<Value = Work> {
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
        (vec(cell_upload(), 0..4), number(), any::<bool>()).prop_map(
            |(cells, learning_rate, seals_kept)| Work::Upload {
                cells,
                learning_rate,
                seals_kept,
            }
        ),
        (of(object()), of(object()))
            .prop_map(|(began_with, keeps)| Work::HandOver { began_with, keeps }),
        (
            any::<u32>(),
            range(),
            vec(merge_input, 0..4),
            name(),
            of(name()),
            any::<bool>(),
            vec(segment(), 0..3)
        )
            .prop_map(|(cell, range, inputs, output, delta, stores, base)| {
                Work::Merge {
                    cell: CellIndex::new(cell),
                    range,
                    inputs,
                    output,
                    delta,
                    stores,
                    base,
                }
            }),
        vec(segment(), 0..3).prop_map(|segments| Work::Fetch { segments }),
        (checkpoint(), any::<bool>()).prop_map(|(checkpoint, goes_on)| Work::Install {
            checkpoint,
            goes_on
        }),
        (object(), session(), session()).prop_map(|(object, producer, accuser)| Work::Inspect {
            object,
            producer,
            accuser
        }),
    ]
}

pub(super) fn work() -> impl Strategy<Value = Work> {
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
        (of(seal()), of(name())),
    )
        .prop_map(
            |(cells, seals, learning_rate, optimizer_steps, (keeps, keeps_at))| UploadRecord {
                cells,
                seals,
                learning_rate,
                optimizer_steps,
                keeps,
                keeps_at,
            },
        );
    let replay = (
        session(),
        checkpoint(),
        of(object()),
        (vec(entry, 0..4), any::<u32>()),
        of(upload),
    )
        .prop_map(
            |(subject, checkpoint, kept, (entries, ahead), upload)| Work::Replay {
                subject,
                checkpoint,
                kept,
                entries,
                ahead,
                upload,
            },
        );
    prop_oneof![6 => plain_work(), 2 => replay]
}

pub(super) fn lease() -> impl Strategy<Value = Lease> {
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

pub(super) fn difference() -> impl Strategy<Value = Difference> {
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

pub(super) fn outcome() -> impl Strategy<Value = Outcome> {
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
        (vec(seal(), 0..4), any::<u64>(), of(seal())).prop_map(|(cells, optimizer_steps, kept)| {
            Outcome::Upload {
                cells,
                optimizer_steps,
                kept,
            }
        }),
        (seal(), vec(session(), 0..4), of(seal())).prop_map(|(merged, quarantined, delta)| {
            Outcome::Merge {
                merged,
                quarantined,
                delta,
            }
        }),
        vec(session(), 0..4).prop_map(|quarantined| Outcome::Unmergeable { quarantined }),
        Just(Outcome::HandedOver),
        Just(Outcome::Fetched),
        (digest(), any::<u32>())
            .prop_map(|(state, operations)| Outcome::Install { state, operations }),
        verdict.prop_map(|verdict| Outcome::Audit { verdict }),
    ]
}

pub(super) fn failure() -> impl Strategy<Value = Failure> {
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

pub(super) fn grant() -> impl Strategy<Value = Grant> {
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

pub(super) fn work_status() -> impl Strategy<Value = WorkStatus> {
    (phase(), any::<u64>(), any::<bool>(), of(any::<u64>())).prop_map(
        |(phase, epoch, run_over, remaining)| WorkStatus {
            phase,
            epoch: Epoch::new(epoch),
            run_over,
            phase_deadline_remaining: remaining.map(Duration::from_millis),
        },
    )
}

pub(super) fn run_status() -> impl Strategy<Value = RunStatus> {
    (
        phase(),
        any::<[u64; 11]>(),
        any::<[u32; 3]>(),
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
                work_finished: counts[9],
                work_wasted: counts[10],
                tokens_trained: counts[5],
                tokens_per_second,
                loss,
                miners_per_stage,
                registration_is_open: peers[2] % 2 == 0,
                waiting: peers[2],
                validators: peers[0],
                audits_passed: counts[6],
                audits_failed: counts[7],
                banned: peers[1],
                elapsed: Duration::from_millis(counts[8]),
                phase_deadline_remaining: loss.map(|_| Duration::from_millis(counts[0])),
            },
        )
}
