//! Why a command is refused: an ordinary answer, with a stable code.

use serde::{Deserialize, Serialize};

/// Why a command changed nothing. Codes are stable: they travel in errors, logs and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum Rejection {
    /// The session is over or never was; join again.
    #[error("the session is over; join again")]
    NotRegistered,
    /// The peer was found cheating in this run.
    #[error("the peer is banned from this run")]
    Banned,
    /// Only listed peers may join as validators.
    #[error("the peer is not among the run's validators")]
    NotAValidator,
    /// There is no place in the run and none on the waiting list, or the run has seen as many peers as it can remember.
    #[error("the run is full, and so is its waiting list")]
    Full,
    /// There is no place in the run for the peer yet; it has one on the waiting list.
    #[error("the peer waits for a place in the run")]
    Waiting,
    /// The run is complete or was stopped.
    #[error("the run is over")]
    RunOver,
    /// The work's epoch is closed. It costs nothing.
    #[error("the work's epoch is closed")]
    StaleEpoch,
    /// There is no such lease, or it is another session's.
    #[error("no such lease in this session")]
    UnknownLease,
    /// The lease ran out and somebody else has done the work. It costs nothing but the credit.
    #[error("the work was done by another session after the lease ran out")]
    Superseded,
    /// The outcome is not one of the leased work.
    #[error("the outcome does not fit the leased work")]
    WrongOutcome,
    /// A length differs from what the work asks for.
    #[error("an object's length differs from what the work asks for")]
    WrongLength,
    /// Another operation of this session has the same ordinal.
    #[error("the ordinal was used for another operation")]
    OrdinalUsed,
    /// A number that should be finite is not.
    #[error("a reported number is not finite")]
    NotFinite,
    /// A bound that the settings give was exceeded.
    #[error("a bound of the run's settings was exceeded")]
    OutOfBounds,
    /// An object that the report commits to is not in the store, or not with these bytes. The rules do not look into the
    /// store: whoever runs them says this.
    #[error("an object that the report commits to is not in the store")]
    NotStored,
}

impl Rejection {
    /// Every reason, for tables and tests.
    pub const ALL: [Self; 15] = [
        Self::NotRegistered,
        Self::Banned,
        Self::NotAValidator,
        Self::Full,
        Self::Waiting,
        Self::RunOver,
        Self::StaleEpoch,
        Self::UnknownLease,
        Self::Superseded,
        Self::WrongOutcome,
        Self::WrongLength,
        Self::OrdinalUsed,
        Self::NotFinite,
        Self::OutOfBounds,
        Self::NotStored,
    ];

    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotRegistered => "NOT_REGISTERED",
            Self::Banned => "BANNED",
            Self::NotAValidator => "NOT_A_VALIDATOR",
            Self::Full => "FULL",
            Self::Waiting => "WAITING",
            Self::RunOver => "RUN_OVER",
            Self::StaleEpoch => "STALE_EPOCH",
            Self::UnknownLease => "UNKNOWN_LEASE",
            Self::Superseded => "SUPERSEDED",
            Self::WrongOutcome => "WRONG_OUTCOME",
            Self::WrongLength => "WRONG_LENGTH",
            Self::OrdinalUsed => "ORDINAL_USED",
            Self::NotFinite => "NOT_FINITE",
            Self::OutOfBounds => "OUT_OF_BOUNDS",
            Self::NotStored => "NOT_STORED",
        }
    }

    /// The reason with this code.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_is_its_reasons_own_and_names_it_in_journals_too() {
        let codes: BTreeSet<&str> = Rejection::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Rejection::ALL.len());
        assert!(codes.contains("NOT_STORED"));
        for reason in Rejection::ALL {
            assert_eq!(Rejection::from_code(reason.code()), Some(reason));
            let written = serde_json::to_value(reason).unwrap();
            assert_eq!(written, reason.code());
        }
    }
}
