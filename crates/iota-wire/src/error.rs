//! Why a call did not do what it should, on either side of the wire.
//!
//! A handler answers with an [`ApiError`]; the caller gets a [`CallError`], which has the same reasons and a few that
//! only a caller can see. `error/status.rs` is the one table between them and
//! gRPC.

mod status;

use std::time::Duration;

use iota_protocol::registration::{Place, WaitReason};
use iota_protocol::{Rejection, Timestamp};
use tonic::Code;

use crate::convert::ConversionError;

/// Why the server refuses a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The rules of the run say no.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// There is no place in the run for the peer yet.
    #[error("{}", waits(.0))]
    Waiting(Place),
    /// The request does not show who sent it.
    #[error(transparent)]
    Unauthenticated(#[from] AuthFailure),
    /// The request is not one of this protocol.
    #[error("invalid request")]
    Invalid(#[from] ConversionError),
    /// The request is too long.
    #[error("the request has more than {bytes_max} bytes")]
    TooLarge {
        /// What may be sent.
        bytes_max: u64,
    },
    /// The peer, or everybody together, asks too much.
    #[error("too many requests; retry after {} ms", retry_after.as_millis())]
    RateLimited {
        /// When to try again.
        retry_after: Duration,
    },
    /// The orchestrator is starting, stopping or cannot reach its store.
    #[error("the orchestrator is not available; retry after {} ms", retry_after.as_millis())]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// The call has come without TLS, to a port where nothing else is spoken.
    #[error("{}", iota_tls::Refusal::OnlyTls)]
    OnlyTls,
    /// The orchestrator's own trouble; its log says more.
    #[error("internal error of the orchestrator")]
    Internal,
}

/// How a request fails to show who sent it. Codes are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum AuthFailure {
    /// It carries no signature, or more than one.
    #[error("the request carries no single iota-auth-bin entry")]
    Missing,
    /// What it carries is not a `RequestAuth`.
    #[error("the request's iota-auth-bin entry is malformed")]
    Malformed,
    /// It was signed for another method.
    #[error("the request was signed for another method")]
    WrongMethod,
    /// It was signed for another run.
    #[error("the request was signed for another run")]
    WrongRun,
    /// It was signed for another orchestrator.
    #[error("the request was signed for another orchestrator")]
    WrongAudience,
    /// It was made too long ago, or in the future, or before the orchestrator started.
    #[error("the request was not made just now; the orchestrator's clock says {} ms", server_time.as_millis())]
    Stale {
        /// The orchestrator's clock, to correct the sender's by.
        server_time: Timestamp,
    },
    /// It was here before.
    #[error("the request's nonce was used before")]
    Replayed,
    /// The signature is not the sender's.
    #[error("the request's signature is not the sender's")]
    BadSignature,
    /// The message is not the one that was signed.
    #[error("the request's message is not the one that was signed")]
    WrongBody,
}

impl AuthFailure {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Missing => "AUTH_MISSING",
            Self::Malformed => "AUTH_MALFORMED",
            Self::WrongMethod => "AUTH_WRONG_METHOD",
            Self::WrongRun => "AUTH_WRONG_RUN",
            Self::WrongAudience => "AUTH_WRONG_AUDIENCE",
            Self::Stale { .. } => "AUTH_STALE",
            Self::Replayed => "AUTH_REPLAYED",
            Self::BadSignature => "AUTH_BAD_SIGNATURE",
            Self::WrongBody => "AUTH_WRONG_BODY",
        }
    }

    /// Every failure; `server_time` goes into the one that has it.
    pub(crate) const fn all(server_time: Timestamp) -> [Self; 9] {
        [
            Self::Missing,
            Self::Malformed,
            Self::WrongMethod,
            Self::WrongRun,
            Self::WrongAudience,
            Self::Stale { server_time },
            Self::Replayed,
            Self::BadSignature,
            Self::WrongBody,
        ]
    }

    /// The failure with this code; `server_time` goes into the one that has it.
    pub(crate) fn from_code(code: &str, server_time: Timestamp) -> Option<Self> {
        Self::all(server_time)
            .into_iter()
            .find(|failure| failure.code() == code)
    }
}

/// Why a call failed, as the caller sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The rules of the run say no.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// There is no place in the run yet; we have one on the waiting list.
    #[error("{}", waits(.0))]
    Waiting(Place),
    /// The orchestrator does not accept who we say we are.
    #[error(transparent)]
    Unauthenticated(AuthFailure),
    /// The orchestrator could make nothing of the request.
    #[error("the orchestrator calls the request invalid: {problem}")]
    Invalid {
        /// In its words.
        problem: String,
    },
    /// The request is too long.
    #[error("the request has more than {bytes_max} bytes")]
    TooLarge {
        /// What may be sent.
        bytes_max: u64,
    },
    /// We ask too much.
    #[error("too many requests; retry after {} ms", retry_after.as_millis())]
    RateLimited {
        /// When to try again.
        retry_after: Duration,
    },
    /// The orchestrator cannot be reached or is not ready.
    #[error("the orchestrator is not available: {problem}")]
    Unavailable {
        /// When to try again, if it said so.
        retry_after: Option<Duration>,
        /// What the transport or the orchestrator said.
        problem: String,
    },
    /// There is an answer, but no secure connection to whom the address names: a certificate or the address has to be
    /// corrected. Of a run that one has been in, it may mean that a certificate has expired, or that somebody stands between:
    /// neither is for ever.
    #[error("no secure connection to the orchestrator: {0}")]
    Tls(iota_tls::Refusal),
    /// No answer came in time. Whether the request had its effect is not known; repeating it is safe.
    #[error("no answer came in time")]
    TimedOut,
    /// The orchestrator has trouble of its own.
    #[error("internal error of the orchestrator")]
    Internal,
    /// The orchestrator does not know this method.
    #[error("the orchestrator does not know this method")]
    Unsupported,
    /// The answer is not one of this protocol.
    #[error("cannot make sense of the answer")]
    Unintelligible(#[source] ConversionError),
    /// The orchestrator speaks another version of the protocol.
    #[error(
        "the orchestrator speaks version {theirs} of the protocol, this program version {ours}"
    )]
    OtherVersion {
        /// The orchestrator's version.
        theirs: u32,
        /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).
        ours: u32,
    },
    /// Another orchestrator answers at this address than the caller expects.
    #[error("orchestrator {found} answers instead of {expected}")]
    OtherOrchestrator {
        /// Who should.
        expected: iota_protocol::PeerId,
        /// Who does.
        found: iota_protocol::PeerId,
    },
    /// The address cannot be used.
    #[error("not a usable address: {url:?}: {problem}")]
    BadUrl {
        /// The address.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Anything else, with gRPC's code.
    #[error("{code:?}: {problem}")]
    Other {
        /// gRPC's code.
        code: Code,
        /// What came with it.
        problem: String,
    },
}

/// A place on the waiting list, in words.
fn waits(place: &Place) -> String {
    let why = match place.why {
        WaitReason::Full => "every place in the run is taken",
        WaitReason::Closed => "registration is closed for now",
        WaitReason::InLine => "others were there first",
    };
    format!(
        "{why}: place {} of {} on the waiting list; ask again within {} ms",
        place.place,
        place.line,
        place.come_back_after.as_millis()
    )
}

/// What to do about a [`CallError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallErrorKind {
    /// Repeat the call, after [`CallError::retry_after`] or with growing pauses.
    Retry,
    /// The session is over: join again, then go on.
    Rejoin,
    /// The piece of work is gone and costs nothing: drop it and go on with the next.
    Drop,
    /// The request is wrong, and repeating it does not help: a fault of this program or its settings.
    Fix,
    /// The run has no place for this peer: stop.
    GiveUp,
}

impl CallError {
    /// What to do about it.
    pub const fn kind(&self) -> CallErrorKind {
        use CallErrorKind::{Drop, Fix, GiveUp, Rejoin, Retry};
        match self {
            Self::Rejected(rejection) => match rejection {
                Rejection::NotRegistered => Rejoin,
                Rejection::Full | Rejection::Waiting => Retry,
                Rejection::StaleEpoch | Rejection::UnknownLease | Rejection::Superseded => Drop,
                Rejection::Banned | Rejection::NotAValidator | Rejection::RunOver => GiveUp,
                // Wrong outcomes, lengths, ordinals, numbers, objects that are not there, and whatever a later version adds.
                _ => Fix,
            },
            // The client corrects its clock by the answer, and draws a nonce for every attempt.
            Self::Unauthenticated(AuthFailure::Stale { .. } | AuthFailure::Replayed) => Retry,
            Self::Unauthenticated(AuthFailure::WrongRun | AuthFailure::WrongAudience) => GiveUp,
            Self::Waiting(_)
            | Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::TimedOut
            | Self::Internal => Retry,
            Self::OtherVersion { .. } | Self::OtherOrchestrator { .. } => GiveUp,
            Self::Other {
                code: Code::Unknown | Code::Aborted,
                ..
            } => Retry,
            Self::Unauthenticated(_)
            | Self::Invalid { .. }
            | Self::TooLarge { .. }
            | Self::Unsupported
            | Self::Tls(_)
            | Self::Unintelligible(_)
            | Self::BadUrl { .. }
            | Self::Other { .. } => Fix,
        }
    }

    /// When to try again, if the orchestrator said so.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Waiting(place) => Some(place.come_back_after),
            Self::RateLimited { retry_after } => Some(*retry_after),
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The rule that was broken, if that is what it is.
    pub const fn rejection(&self) -> Option<Rejection> {
        match self {
            Self::Rejected(rejection) => Some(*rejection),
            _ => None,
        }
    }
}
