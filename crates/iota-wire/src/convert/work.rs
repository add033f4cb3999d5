//! Leases and what they ask for.

use iota_protocol::work::{
    CellUpload, Checkpoint, Lease, LogEntry, MergeInput, Segment, SegmentSource, UploadRecord, Work,
};
use iota_protocol::{CellIndex, Epoch, LeaseId, SampleId, Timestamp};

use super::id::stage;
use super::{ConversionError, optional, repeated, required};
use crate::limits::{CELLS_MAX, LOG_ENTRIES_MAX, SEGMENTS_MAX, UPLOADERS_MAX};
use crate::proto;
use crate::proto::work::Kind;

impl From<Lease> for proto::Lease {
    fn from(lease: Lease) -> Self {
        Self {
            id: lease.id.get(),
            session: Some(lease.session.into()),
            stage: lease.stage.get().into(),
            epoch: lease.epoch.get(),
            work: Some(lease.work.into()),
            issued_at_ms: lease.issued_at.as_millis(),
            deadline_ms: lease.deadline.as_millis(),
        }
    }
}

impl TryFrom<proto::Lease> for Lease {
    type Error = ConversionError;

    fn try_from(message: proto::Lease) -> Result<Self, Self::Error> {
        Ok(Self {
            id: LeaseId::new(message.id),
            session: required("session", message.session)?,
            stage: stage("stage", message.stage)?,
            epoch: Epoch::new(message.epoch),
            work: required("work", message.work)?,
            issued_at: Timestamp::from_millis(message.issued_at_ms),
            deadline: Timestamp::from_millis(message.deadline_ms),
        })
    }
}

impl From<Work> for proto::Work {
    fn from(work: Work) -> Self {
        let kind = match work {
            Work::Forward {
                sample,
                input,
                output,
            } => Kind::Forward(proto::ForwardWork {
                sample: sample.get(),
                input: input.map(Into::into),
                output: Some(output.into()),
            }),
            Work::Backward {
                sample,
                input,
                output_gradient,
                gradient,
                learning_rate,
            } => Kind::Backward(proto::BackwardWork {
                sample: sample.get(),
                input: input.map(Into::into),
                output_gradient: output_gradient.map(Into::into),
                gradient: gradient.map(Into::into),
                learning_rate,
            }),
            Work::Upload {
                cells,
                learning_rate,
                seals_kept,
            } => Kind::Upload(proto::UploadWork {
                cells: into_all(cells),
                learning_rate,
                seals_kept,
            }),
            Work::HandOver { began_with, keeps } => Kind::HandOver(proto::HandOverWork {
                began_with: began_with.map(Into::into),
                keeps: keeps.map(Into::into),
            }),
            Work::Merge {
                cell,
                range,
                inputs,
                output,
                delta,
                stores,
                base,
            } => Kind::Merge(proto::MergeWork {
                cell: cell.get(),
                range: Some(range.into()),
                inputs: into_all(inputs),
                output: Some(output.into()),
                delta: delta.map(Into::into),
                stores,
                base: into_all(base),
            }),
            Work::Fetch { segments } => Kind::Fetch(proto::FetchWork {
                segments: into_all(segments),
            }),
            Work::Install {
                checkpoint,
                goes_on,
            } => Kind::Install(proto::InstallWork {
                checkpoint: Some(checkpoint.into()),
                goes_on,
            }),
            Work::Replay {
                subject,
                checkpoint,
                kept,
                entries,
                ahead,
                upload,
            } => Kind::Replay(proto::ReplayWork {
                subject: Some(subject.into()),
                checkpoint: Some(checkpoint.into()),
                kept: kept.map(Into::into),
                entries: into_all(entries),
                ahead,
                upload: upload.map(Into::into),
            }),
            Work::Inspect {
                object,
                producer,
                accuser,
            } => Kind::Inspect(proto::InspectWork {
                object: Some(object.into()),
                producer: Some(producer.into()),
                accuser: Some(accuser.into()),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::Work> for Work {
    type Error = ConversionError;

    fn try_from(message: proto::Work) -> Result<Self, Self::Error> {
        let within = |field: &'static str| move |error: ConversionError| error.within(field);
        match message.kind {
            None => Err(ConversionError::new("kind", "is missing")),
            Some(Kind::Forward(work)) => forward(work).map_err(within("forward")),
            Some(Kind::Backward(work)) => backward(work).map_err(within("backward")),
            Some(Kind::Upload(work)) => upload(work).map_err(within("upload")),
            Some(Kind::HandOver(work)) => hand_over(work).map_err(within("hand_over")),
            Some(Kind::Merge(work)) => merge(work).map_err(within("merge")),
            Some(Kind::Fetch(work)) => repeated("segments", work.segments, SEGMENTS_MAX)
                .map(|segments| Self::Fetch { segments })
                .map_err(within("fetch")),
            Some(Kind::Install(work)) => required("checkpoint", work.checkpoint)
                .map(|checkpoint| Self::Install {
                    checkpoint,
                    goes_on: work.goes_on,
                })
                .map_err(within("install")),
            Some(Kind::Replay(work)) => replay(work).map_err(within("replay")),
            Some(Kind::Inspect(work)) => inspect(work).map_err(within("inspect")),
        }
    }
}

fn forward(work: proto::ForwardWork) -> Result<Work, ConversionError> {
    Ok(Work::Forward {
        sample: SampleId::new(work.sample),
        input: optional("input", work.input)?,
        output: required("output", work.output)?,
    })
}

fn backward(work: proto::BackwardWork) -> Result<Work, ConversionError> {
    Ok(Work::Backward {
        sample: SampleId::new(work.sample),
        input: optional("input", work.input)?,
        output_gradient: optional("output_gradient", work.output_gradient)?,
        gradient: optional("gradient", work.gradient)?,
        learning_rate: work.learning_rate,
    })
}

fn upload(work: proto::UploadWork) -> Result<Work, ConversionError> {
    Ok(Work::Upload {
        cells: repeated("cells", work.cells, CELLS_MAX)?,
        learning_rate: work.learning_rate,
        seals_kept: work.seals_kept,
    })
}

fn hand_over(work: proto::HandOverWork) -> Result<Work, ConversionError> {
    Ok(Work::HandOver {
        began_with: optional("began_with", work.began_with)?,
        keeps: optional("keeps", work.keeps)?,
    })
}

fn merge(work: proto::MergeWork) -> Result<Work, ConversionError> {
    Ok(Work::Merge {
        cell: CellIndex::new(work.cell),
        range: required("range", work.range)?,
        inputs: repeated("inputs", work.inputs, UPLOADERS_MAX)?,
        output: required("output", work.output)?,
        delta: optional("delta", work.delta)?,
        stores: work.stores,
        base: repeated("base", work.base, SEGMENTS_MAX)?,
    })
}

fn replay(work: proto::ReplayWork) -> Result<Work, ConversionError> {
    Ok(Work::Replay {
        subject: required("subject", work.subject)?,
        checkpoint: required("checkpoint", work.checkpoint)?,
        kept: optional("kept", work.kept)?,
        entries: repeated("entries", work.entries, LOG_ENTRIES_MAX)?,
        ahead: work.ahead,
        upload: optional("upload", work.upload)?,
    })
}

fn inspect(work: proto::InspectWork) -> Result<Work, ConversionError> {
    Ok(Work::Inspect {
        object: required("object", work.object)?,
        producer: required("producer", work.producer)?,
        accuser: required("accuser", work.accuser)?,
    })
}

impl From<CellUpload> for proto::CellUpload {
    fn from(upload: CellUpload) -> Self {
        Self {
            cell: upload.cell.get(),
            range: Some(upload.range.into()),
            output: Some(upload.output.into()),
        }
    }
}

impl TryFrom<proto::CellUpload> for CellUpload {
    type Error = ConversionError;

    fn try_from(message: proto::CellUpload) -> Result<Self, Self::Error> {
        Ok(Self {
            cell: CellIndex::new(message.cell),
            range: required("range", message.range)?,
            output: required("output", message.output)?,
        })
    }
}

impl From<MergeInput> for proto::MergeInput {
    fn from(input: MergeInput) -> Self {
        Self {
            session: Some(input.session.into()),
            object: Some(input.object.into()),
            weight: input.weight,
        }
    }
}

impl TryFrom<proto::MergeInput> for MergeInput {
    type Error = ConversionError;

    fn try_from(message: proto::MergeInput) -> Result<Self, Self::Error> {
        Ok(Self {
            session: required("session", message.session)?,
            object: required("object", message.object)?,
            weight: message.weight,
        })
    }
}

impl From<Checkpoint> for proto::Checkpoint {
    fn from(checkpoint: Checkpoint) -> Self {
        Self {
            stage: checkpoint.stage.get().into(),
            epoch: checkpoint.epoch.get(),
            optimizer_steps: checkpoint.optimizer_steps,
            segments: into_all(checkpoint.segments),
        }
    }
}

impl TryFrom<proto::Checkpoint> for Checkpoint {
    type Error = ConversionError;

    fn try_from(message: proto::Checkpoint) -> Result<Self, Self::Error> {
        Ok(Self {
            stage: stage("stage", message.stage)?,
            epoch: Epoch::new(message.epoch),
            optimizer_steps: message.optimizer_steps,
            segments: repeated("segments", message.segments, SEGMENTS_MAX)?,
        })
    }
}

impl From<Segment> for proto::Segment {
    fn from(segment: Segment) -> Self {
        let merged = match segment.source {
            SegmentSource::Genesis => None,
            SegmentSource::Merged {
                object,
                offset,
                cell_elements,
                delta,
            } => Some(proto::MergedSource {
                object: Some(object.into()),
                offset_elements: offset,
                cell_elements,
                delta: delta.map(Into::into),
            }),
        };
        Self {
            range: Some(segment.range.into()),
            merged,
        }
    }
}

impl TryFrom<proto::Segment> for Segment {
    type Error = ConversionError;

    fn try_from(message: proto::Segment) -> Result<Self, Self::Error> {
        let source = match message.merged {
            None => SegmentSource::Genesis,
            Some(merged) => SegmentSource::Merged {
                object: required("object", merged.object)
                    .map_err(|error| error.within("merged"))?,
                offset: merged.offset_elements,
                cell_elements: merged.cell_elements,
                delta: optional("delta", merged.delta).map_err(|error| error.within("merged"))?,
            },
        };
        Ok(Self {
            range: required("range", message.range)?,
            source,
        })
    }
}

impl From<LogEntry> for proto::LogEntry {
    fn from(entry: LogEntry) -> Self {
        Self {
            ordinal: entry.ordinal,
            lease: entry.lease.get(),
            work: Some(entry.work.into()),
            outcome: Some(entry.outcome.into()),
            credited: entry.credited,
        }
    }
}

impl TryFrom<proto::LogEntry> for LogEntry {
    type Error = ConversionError;

    fn try_from(message: proto::LogEntry) -> Result<Self, Self::Error> {
        if matches!(
            message.work,
            Some(proto::Work {
                kind: Some(Kind::Replay(_))
            })
        ) {
            return Err(ConversionError::new("work", "is a replay inside a replay"));
        }
        Ok(Self {
            ordinal: message.ordinal,
            lease: LeaseId::new(message.lease),
            work: required("work", message.work)?,
            outcome: required("outcome", message.outcome)?,
            credited: message.credited,
        })
    }
}

impl From<UploadRecord> for proto::UploadRecord {
    fn from(record: UploadRecord) -> Self {
        Self {
            cells: into_all(record.cells),
            seals: into_all(record.seals),
            learning_rate: record.learning_rate,
            optimizer_steps: record.optimizer_steps,
            keeps: record.keeps.map(Into::into),
            keeps_at: record.keeps_at.map(Into::into),
        }
    }
}

impl TryFrom<proto::UploadRecord> for UploadRecord {
    type Error = ConversionError;

    fn try_from(message: proto::UploadRecord) -> Result<Self, Self::Error> {
        Ok(Self {
            cells: repeated("cells", message.cells, CELLS_MAX)?,
            seals: repeated("seals", message.seals, CELLS_MAX)?,
            learning_rate: message.learning_rate,
            optimizer_steps: message.optimizer_steps,
            keeps: optional("keeps", message.keeps)?,
            keeps_at: optional("keeps_at", message.keeps_at)?,
        })
    }
}

fn into_all<Value, Message: From<Value>>(values: Vec<Value>) -> Vec<Message> {
    values.into_iter().map(Message::from).collect()
}
