//! The one table between our errors and gRPC's.
//!
//! | reason | code | also sent |
//! |---|---|---|
//! | `NOT_REGISTERED`, `RUN_OVER`, `STALE_EPOCH`, `NOT_STORED` | `FAILED_PRECONDITION` | |
//! | `BANNED`, `NOT_A_VALIDATOR` | `PERMISSION_DENIED` | |
//! | `FULL` | `RESOURCE_EXHAUSTED` | |
//! | `WAITING` | `RESOURCE_EXHAUSTED` | `RetryInfo`, and the place: see `Join` in the service's definition |
//! | `UNKNOWN_LEASE`, `SUPERSEDED` | `ABORTED` | |
//! | `WRONG_OUTCOME`, `WRONG_LENGTH`, `ORDINAL_USED`, `NOT_FINITE`, `OUT_OF_BOUNDS` | `INVALID_ARGUMENT` | |
//! | `AUTH_..` | `UNAUTHENTICATED` | the server's clock with `AUTH_STALE` |
//! | `INVALID_REQUEST` | `INVALID_ARGUMENT` | `BadRequest`: the field and what is wrong with it |
//! | `REQUEST_TOO_LARGE` | `INVALID_ARGUMENT` | the bound |
//! | `RATE_LIMITED` | `RESOURCE_EXHAUSTED` | `RetryInfo` |
//! | `UNAVAILABLE` | `UNAVAILABLE` | `RetryInfo` |
//! | `ONLY_TLS` | `FAILED_PRECONDITION` | |
//! | `INTERNAL` | `INTERNAL` | |

use std::collections::HashMap;
use std::error::Error as _;
use std::time::Duration;

use iota_protocol::registration::{MovedUp, Place, PlaceEnd, WaitReason};
use iota_protocol::{Rejection, Ticket, Timestamp};
use iota_tls::Refusal;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::error::{ApiError, AuthFailure, CallError};

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let mut metadata = HashMap::new();
        let mut details = ErrorDetails::new();
        let (code, reason) = match &error {
            ApiError::Rejected(rejection) => (rejection_code(*rejection), rejection.code()),
            ApiError::Waiting(place) => {
                details.set_retry_info(Some(place.come_back_after));
                metadata = place_entries(place);
                (
                    rejection_code(Rejection::Waiting),
                    Rejection::Waiting.code(),
                )
            }
            ApiError::Unauthenticated(failure) => {
                if let AuthFailure::Stale { server_time } = failure {
                    metadata.insert(
                        SERVER_TIME_MS.to_owned(),
                        server_time.as_millis().to_string(),
                    );
                }
                (Code::Unauthenticated, failure.code())
            }
            ApiError::Invalid(problem) => {
                details.add_bad_request_violation(problem.path(), problem.problem());
                (Code::InvalidArgument, INVALID_REQUEST)
            }
            ApiError::TooLarge { bytes_max } => {
                metadata.insert(BYTES_MAX.to_owned(), bytes_max.to_string());
                (Code::InvalidArgument, REQUEST_TOO_LARGE)
            }
            ApiError::RateLimited { retry_after } => {
                details.set_retry_info(Some(*retry_after));
                (Code::ResourceExhausted, RATE_LIMITED)
            }
            ApiError::Unavailable { retry_after } => {
                details.set_retry_info(Some(*retry_after));
                (Code::Unavailable, UNAVAILABLE)
            }
            ApiError::OnlyTls => (Code::FailedPrecondition, ONLY_TLS),
            ApiError::Internal => (Code::Internal, INTERNAL),
        };
        details.set_error_info(reason, DOMAIN, metadata);
        Self::with_error_details(code, error.to_string(), details)
    }
}

/// The reason that the server sent; for a status without one (the transport's, a proxy's), by its code.
impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let retry_after = details.retry_info().and_then(|info| info.retry_delay);
        let problem = status.message().to_owned();
        if let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) {
            let number = |key| {
                info.metadata
                    .get(key)
                    .and_then(|text| text.parse().ok())
                    .unwrap_or_default()
            };
            let server_time = Timestamp::from_millis(number(SERVER_TIME_MS));
            match info.reason.as_str() {
                INVALID_REQUEST => {
                    let violation = details
                        .bad_request()
                        .and_then(|bad| bad.field_violations.first());
                    return Self::Invalid {
                        problem: violation.map_or(problem, |field| {
                            format!("{}: {}", field.field, field.description)
                        }),
                    };
                }
                REQUEST_TOO_LARGE => {
                    return Self::TooLarge {
                        bytes_max: number(BYTES_MAX),
                    };
                }
                ONLY_TLS => return Self::Tls(Refusal::OnlyTls),
                reason => {
                    if reason == Rejection::Waiting.code()
                        && let Some(place) = place_in(&info.metadata, retry_after)
                    {
                        return Self::Waiting(place);
                    }
                    if let Some(rejection) = Rejection::from_code(reason) {
                        return Self::Rejected(rejection);
                    }
                    if let Some(failure) = AuthFailure::from_code(reason, server_time) {
                        return Self::Unauthenticated(failure);
                    }
                }
            }
        }
        // No answer at all: perhaps there was no connection to get one by.
        if let Some(refusal) = Refusal::of(&status) {
            return Self::Tls(refusal);
        }
        let problem = with_cause(&status);
        match status.code() {
            Code::Unavailable => Self::Unavailable {
                retry_after,
                problem,
            },
            Code::ResourceExhausted => Self::RateLimited {
                retry_after: retry_after.unwrap_or(RETRY_AFTER_DEFAULT),
            },
            // tonic answers Cancelled when the deadline passes on our side, DeadlineExceeded on the other.
            Code::DeadlineExceeded | Code::Cancelled => Self::TimedOut,
            Code::Internal => Self::Internal,
            Code::Unimplemented => Self::Unsupported,
            Code::InvalidArgument => Self::Invalid { problem },
            code => Self::Other { code, problem },
        }
    }
}

/// What the transport said, and the first thing that it comes from: "transport error" alone helps nobody.
fn with_cause(status: &Status) -> String {
    let message = status.message();
    let first = std::iter::successors(status.source(), |&error| error.source()).last();
    match first.map(ToString::to_string) {
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        _ => message.to_owned(),
    }
}

const fn rejection_code(rejection: Rejection) -> Code {
    match rejection {
        Rejection::Banned | Rejection::NotAValidator => Code::PermissionDenied,
        Rejection::Full | Rejection::Waiting => Code::ResourceExhausted,
        Rejection::UnknownLease | Rejection::Superseded => Code::Aborted,
        Rejection::WrongOutcome
        | Rejection::WrongLength
        | Rejection::OrdinalUsed
        | Rejection::NotFinite
        | Rejection::OutOfBounds => Code::InvalidArgument,
        // NotRegistered, RunOver, StaleEpoch, NotStored, and whatever the rules add: the state of the run is in the way.
        _ => Code::FailedPrecondition,
    }
}

/// A place on the waiting list, as metadata.
fn place_entries(place: &Place) -> HashMap<String, String> {
    let mut entries = vec![
        (TICKET, place.ticket.get().to_string()),
        (PLACE, place.place.to_string()),
        (LINE, place.line.to_string()),
        (WHY, place.why.code().to_owned()),
    ];
    if let Some(MovedUp { because_of, why }) = place.moved {
        entries.push((MOVED_BECAUSE_OF, because_of.to_string()));
        entries.push((MOVED_WHY, why.code().to_owned()));
    }
    let owned = entries.into_iter();
    owned.map(|(key, text)| (key.to_owned(), text)).collect()
}

/// The place that metadata tells of. None if it is not all there: then what is left is that the peer has to wait.
fn place_in(metadata: &HashMap<String, String>, retry_after: Option<Duration>) -> Option<Place> {
    let text = |key| metadata.get(key).map(String::as_str);
    let moved = text(MOVED_BECAUSE_OF).zip(text(MOVED_WHY));
    let moved = moved.and_then(|(peer, why)| {
        Some(MovedUp {
            because_of: peer.parse().ok()?,
            why: PlaceEnd::from_code(why)?,
        })
    });
    Some(Place {
        ticket: Ticket::new(text(TICKET)?.parse().ok()?),
        place: text(PLACE)?.parse().ok()?,
        line: text(LINE)?.parse().ok()?,
        why: WaitReason::from_code(text(WHY)?)?,
        moved,
        come_back_after: retry_after?,
    })
}

/// `google.rpc.ErrorInfo.domain` of all our errors.
const DOMAIN: &str = "iota";

const INVALID_REQUEST: &str = "INVALID_REQUEST";
const REQUEST_TOO_LARGE: &str = "REQUEST_TOO_LARGE";
const RATE_LIMITED: &str = "RATE_LIMITED";
const UNAVAILABLE: &str = "UNAVAILABLE";
const ONLY_TLS: &str = "ONLY_TLS";
const INTERNAL: &str = "INTERNAL";

/// Keys of `google.rpc.ErrorInfo.metadata`.
const SERVER_TIME_MS: &str = "server_time_ms";
const BYTES_MAX: &str = "bytes_max";
const TICKET: &str = "ticket";
const PLACE: &str = "place";
const LINE: &str = "line";
const WHY: &str = "why";
const MOVED_BECAUSE_OF: &str = "moved_because_of";
const MOVED_WHY: &str = "moved_why";

/// When a proxy refuses without saying for how long.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use iota_protocol::PeerId;

    use super::*;
    use crate::ConversionError;
    use crate::error::CallErrorKind;

    fn across(error: impl Into<ApiError>) -> CallError {
        Status::from(error.into()).into()
    }

    #[test]
    fn every_rejection_crosses_the_wire_with_its_code() {
        for rejection in Rejection::ALL {
            let status = Status::from(ApiError::from(rejection));
            let info = status.get_details_error_info().unwrap();
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (rejection.code(), "iota")
            );
            assert_ne!(status.code(), Code::Ok);
            assert_eq!(CallError::from(status).rejection(), Some(rejection));
        }
    }

    #[test]
    fn whoever_waits_is_told_its_place_why_it_moved_and_when_to_come_back() {
        let moved = MovedUp {
            because_of: PeerId::from_bytes([7; 32]),
            why: PlaceEnd::Expired,
        };
        for moved in [None, Some(moved)] {
            let place = Place {
                ticket: Ticket::new(41),
                place: 3,
                line: 9,
                why: WaitReason::Closed,
                moved,
                come_back_after: Duration::from_secs(3),
            };
            let error = across(ApiError::Waiting(place));
            assert_eq!(error, CallError::Waiting(place));
            assert_eq!(error.kind(), CallErrorKind::Retry);
            assert_eq!(error.retry_after(), Some(place.come_back_after));
            let text = error.to_string();
            assert!(text.contains("place 3 of 9"), "{text}");
        }
    }

    #[test]
    fn an_object_that_is_not_stored_is_for_the_reporter_to_fix() {
        let status = Status::from(ApiError::from(Rejection::NotStored));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(CallError::from(status).kind(), CallErrorKind::Fix);
    }

    #[test]
    fn every_authentication_failure_crosses_the_wire() {
        for failure in AuthFailure::all(Timestamp::from_millis(1234)) {
            assert_eq!(across(failure), CallError::Unauthenticated(failure));
        }
    }

    #[test]
    fn the_other_errors_keep_what_the_caller_needs() {
        let retry_after = Duration::from_millis(1500);
        assert_eq!(
            across(ApiError::RateLimited { retry_after }),
            CallError::RateLimited { retry_after }
        );
        assert_eq!(
            across(ApiError::Unavailable { retry_after }).retry_after(),
            Some(retry_after)
        );
        assert_eq!(
            across(ApiError::TooLarge { bytes_max: 9 }),
            CallError::TooLarge { bytes_max: 9 }
        );
        assert_eq!(across(ApiError::OnlyTls), CallError::Tls(Refusal::OnlyTls));
        assert_eq!(across(ApiError::Internal), CallError::Internal);
        let problem = "lease.id: is missing".to_owned();
        assert_eq!(
            across(ConversionError::new("lease.id", "is missing")),
            CallError::Invalid { problem }
        );
    }

    #[test]
    fn a_status_of_another_origin_is_understood_by_its_code() {
        assert_eq!(
            CallError::from(Status::cancelled("Timeout expired")),
            CallError::TimedOut
        );
        assert_eq!(
            CallError::from(Status::unimplemented("")),
            CallError::Unsupported
        );
        let problem = "connection refused".to_owned();
        assert_eq!(
            CallError::from(Status::unavailable(problem.clone())),
            CallError::Unavailable {
                retry_after: None,
                problem
            }
        );
        let foreign = ErrorDetails::with_error_info("BANNED", "example.org", HashMap::new());
        let foreign = Status::with_error_details(Code::NotFound, "", foreign);
        assert_eq!(
            CallError::from(foreign).rejection(),
            None,
            "another domain's reason is not ours"
        );
    }
}
