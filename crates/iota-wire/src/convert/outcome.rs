//! What a peer says of its work.

use iota_protocol::Digest;
use iota_protocol::work::{Difference, Failure, Outcome, Verdict};

use super::id::digest;
use super::{ConversionError, chosen, enumeration, optional, repeated, required};
use crate::limits::{CELLS_MAX, UPLOADERS_MAX};
use crate::proto;
use crate::proto::outcome::Kind;

impl From<Outcome> for proto::Outcome {
    fn from(outcome: Outcome) -> Self {
        let kind = match outcome {
            Outcome::Forward { ordinal, output } => Kind::Forward(proto::ForwardOutcome {
                ordinal,
                output: Some(output.into()),
            }),
            Outcome::Backward {
                ordinal,
                recomputed,
                gradient,
                loss,
            } => Kind::Backward(proto::BackwardOutcome {
                ordinal,
                recomputed,
                gradient: gradient.map(Into::into),
                loss,
            }),
            Outcome::Upload {
                cells,
                optimizer_steps,
                kept,
            } => Kind::Upload(proto::UploadOutcome {
                cells: cells.into_iter().map(Into::into).collect(),
                optimizer_steps,
                kept: kept.map(Into::into),
            }),
            Outcome::Merge {
                merged,
                quarantined,
                delta,
            } => Kind::Merge(proto::MergeOutcome {
                merged: Some(merged.into()),
                quarantined: quarantined.into_iter().map(Into::into).collect(),
                delta: delta.map(Into::into),
            }),
            Outcome::Unmergeable { quarantined } => Kind::Unmergeable(proto::UnmergeableOutcome {
                quarantined: quarantined.into_iter().map(Into::into).collect(),
            }),
            Outcome::HandedOver => Kind::HandOver(proto::HandOverOutcome {}),
            Outcome::Fetched => Kind::Fetch(proto::FetchOutcome {}),
            Outcome::Install { state, operations } => Kind::Install(proto::InstallOutcome {
                state: state.as_bytes().to_vec(),
                operations,
            }),
            Outcome::Audit { verdict } => Kind::Audit(verdict.into()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::Outcome> for Outcome {
    type Error = ConversionError;

    fn try_from(message: proto::Outcome) -> Result<Self, Self::Error> {
        let within = |field: &'static str| move |error: ConversionError| error.within(field);
        match message.kind {
            None => Err(ConversionError::new("kind", "is missing")),
            Some(Kind::Forward(done)) => required("output", done.output)
                .map(|output| Self::Forward {
                    ordinal: done.ordinal,
                    output,
                })
                .map_err(within("forward")),
            Some(Kind::Backward(done)) => optional("gradient", done.gradient)
                .map(|gradient| Self::Backward {
                    ordinal: done.ordinal,
                    recomputed: done.recomputed,
                    gradient,
                    loss: done.loss,
                })
                .map_err(within("backward")),
            Some(Kind::Upload(done)) => upload(done).map_err(within("upload")),
            Some(Kind::Merge(done)) => merge(done).map_err(within("merge")),
            Some(Kind::Unmergeable(done)) => {
                repeated("quarantined", done.quarantined, UPLOADERS_MAX)
                    .map(|quarantined| Self::Unmergeable { quarantined })
                    .map_err(within("unmergeable"))
            }
            Some(Kind::HandOver(proto::HandOverOutcome {})) => Ok(Self::HandedOver),
            Some(Kind::Fetch(proto::FetchOutcome {})) => Ok(Self::Fetched),
            Some(Kind::Install(done)) => digest("state", &done.state)
                .map(|state: Digest| Self::Install {
                    state,
                    operations: done.operations,
                })
                .map_err(within("install")),
            Some(Kind::Audit(done)) => Verdict::try_from(done)
                .map(|verdict| Self::Audit { verdict })
                .map_err(within("audit")),
        }
    }
}

fn upload(done: proto::UploadOutcome) -> Result<Outcome, ConversionError> {
    Ok(Outcome::Upload {
        cells: repeated("cells", done.cells, CELLS_MAX)?,
        optimizer_steps: done.optimizer_steps,
        kept: optional("kept", done.kept)?,
    })
}

fn merge(done: proto::MergeOutcome) -> Result<Outcome, ConversionError> {
    Ok(Outcome::Merge {
        merged: required("merged", done.merged)?,
        delta: optional("delta", done.delta)?,
        quarantined: repeated("quarantined", done.quarantined, UPLOADERS_MAX)?,
    })
}

impl From<Verdict> for proto::AuditOutcome {
    fn from(verdict: Verdict) -> Self {
        use proto::audit_outcome::Verdict as Message;
        let verdict = match verdict {
            Verdict::Agrees { operations } => Message::Agrees(proto::AgreesVerdict { operations }),
            Verdict::Differs {
                ordinal,
                difference,
            } => Message::Differs(proto::DiffersVerdict {
                ordinal,
                difference: proto::Difference::from(difference).into(),
            }),
        };
        Self {
            verdict: Some(verdict),
        }
    }
}

impl TryFrom<proto::AuditOutcome> for Verdict {
    type Error = ConversionError;

    fn try_from(message: proto::AuditOutcome) -> Result<Self, Self::Error> {
        use proto::audit_outcome::Verdict as Message;
        match message.verdict {
            None => Err(ConversionError::new("verdict", "is missing")),
            Some(Message::Agrees(verdict)) => Ok(Self::Agrees {
                operations: verdict.operations,
            }),
            Some(Message::Differs(verdict)) => Ok(Self::Differs {
                ordinal: verdict.ordinal,
                difference: difference("differs.difference", verdict.difference)?,
            }),
        }
    }
}

enumeration!(
    proto::Difference,
    Difference,
    { Output, Loss, Upload, Missing, Digest, Malformed, NotFinite }
);

impl From<Failure> for proto::Failure {
    fn from(failure: Failure) -> Self {
        use proto::FailureReason as Reason;
        let plain = |reason: Reason| Self {
            reason: reason.into(),
            bad_input: None,
        };
        match failure {
            Failure::Leaving => plain(Reason::Leaving),
            Failure::BadInput { object, difference } => Self {
                reason: Reason::BadInput.into(),
                bad_input: Some(proto::BadInput {
                    object: Some(object.into()),
                    difference: proto::Difference::from(difference).into(),
                }),
            },
            Failure::OutOfMemory => plain(Reason::OutOfMemory),
            Failure::StoreUnavailable => plain(Reason::StoreUnavailable),
            Failure::NotFinite => plain(Reason::NotFinite),
            Failure::Internal => plain(Reason::Internal),
        }
    }
}

impl TryFrom<proto::Failure> for Failure {
    type Error = ConversionError;

    fn try_from(message: proto::Failure) -> Result<Self, Self::Error> {
        use proto::FailureReason as Reason;
        let reason = Reason::try_from(message.reason).map_err(|_| {
            ConversionError::new(
                "reason",
                format!("{} is not among the known values", message.reason),
            )
        })?;
        let failure = match reason {
            Reason::Unspecified => return Err(super::unspecified().within("reason")),
            Reason::BadInput => {
                let input = message
                    .bad_input
                    .ok_or_else(|| ConversionError::new("bad_input", "is missing"))?;
                return Ok(Self::BadInput {
                    object: required("object", input.object)
                        .map_err(|error| error.within("bad_input"))?,
                    difference: difference("bad_input.difference", input.difference)?,
                });
            }
            Reason::Leaving => Self::Leaving,
            Reason::OutOfMemory => Self::OutOfMemory,
            Reason::StoreUnavailable => Self::StoreUnavailable,
            Reason::NotFinite => Self::NotFinite,
            Reason::Internal => Self::Internal,
        };
        if message.bad_input.is_some() {
            return Err(ConversionError::new(
                "bad_input",
                "is present with another reason",
            ));
        }
        Ok(failure)
    }
}

fn difference(field: &str, number: i32) -> Result<Difference, ConversionError> {
    chosen::<proto::Difference, _>(field, number)
}
