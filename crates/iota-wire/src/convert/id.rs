//! Sessions, digests, stages, roles, phases.

use iota_protocol::event::Phase;
use iota_protocol::{Digest, LeaseId, PeerId, Role, RunId, Session, StageIndex};

use super::{ConversionError, enumeration, exact};
use crate::proto;

impl From<Session> for proto::Session {
    fn from(session: Session) -> Self {
        Self {
            peer: session.peer.as_bytes().to_vec(),
            generation: session.generation,
        }
    }
}

impl TryFrom<proto::Session> for Session {
    type Error = ConversionError;

    fn try_from(message: proto::Session) -> Result<Self, Self::Error> {
        Ok(Self {
            peer: peer("peer", &message.peer)?,
            generation: message.generation,
        })
    }
}

enumeration!(proto::Role, Role, { Miner, Validator });
enumeration!(
    proto::Phase,
    Phase,
    { Gathering, Training, Uploading, Merging, Installing, Settling, Over }
);

pub(super) fn peer(field: &str, bytes: &[u8]) -> Result<PeerId, ConversionError> {
    exact(field, bytes).map(PeerId::from_bytes)
}

pub(super) fn run(field: &str, bytes: &[u8]) -> Result<RunId, ConversionError> {
    exact(field, bytes).map(RunId::from_bytes)
}

pub(super) fn digest(field: &str, bytes: &[u8]) -> Result<Digest, ConversionError> {
    exact(field, bytes).map(Digest::from_bytes)
}

/// Stage indices have 16 bits; the smallest number on the wire has 32.
pub(super) fn stage(field: &str, number: u32) -> Result<StageIndex, ConversionError> {
    u16::try_from(number)
        .map(StageIndex::new)
        .map_err(|_| ConversionError::new(field, format!("{number} is not below 65536")))
}

pub(super) fn leases(numbers: Vec<u64>) -> Vec<LeaseId> {
    numbers.into_iter().map(LeaseId::new).collect()
}

pub(super) fn lease_numbers(leases: Vec<LeaseId>) -> Vec<u64> {
    leases.into_iter().map(LeaseId::get).collect()
}
