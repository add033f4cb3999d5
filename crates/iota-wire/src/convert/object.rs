//! Objects: names, seals, references, and ranges of elements.

use std::ops::Range;

use iota_protocol::work::{ObjectName, ObjectRef, Purpose, Seal};
use iota_protocol::{Epoch, ObjectId};

use super::id::digest;
use super::{ConversionError, chosen, enumeration, exact, required};
use crate::proto;

enumeration!(proto::Purpose, Purpose, { Activation, Gradient, Upload, Merged, Delta, Kept });

impl From<ObjectName> for proto::ObjectName {
    fn from(name: ObjectName) -> Self {
        Self {
            purpose: proto::Purpose::from(name.purpose).into(),
            epoch: name.epoch.get(),
            id: name.id.as_bytes().to_vec(),
        }
    }
}

impl TryFrom<proto::ObjectName> for ObjectName {
    type Error = ConversionError;

    fn try_from(message: proto::ObjectName) -> Result<Self, Self::Error> {
        Ok(Self {
            purpose: chosen::<proto::Purpose, _>("purpose", message.purpose)?,
            epoch: Epoch::new(message.epoch),
            id: ObjectId::from_bytes(exact("id", &message.id)?),
        })
    }
}

impl From<Seal> for proto::Seal {
    fn from(seal: Seal) -> Self {
        Self {
            digest: seal.digest.as_bytes().to_vec(),
            length_bytes: seal.length,
        }
    }
}

impl TryFrom<proto::Seal> for Seal {
    type Error = ConversionError;

    fn try_from(message: proto::Seal) -> Result<Self, Self::Error> {
        Ok(Self {
            digest: digest("digest", &message.digest)?,
            length: message.length_bytes,
        })
    }
}

impl From<ObjectRef> for proto::ObjectRef {
    fn from(object: ObjectRef) -> Self {
        Self {
            name: Some(object.name.into()),
            seal: Some(object.seal.into()),
        }
    }
}

impl TryFrom<proto::ObjectRef> for ObjectRef {
    type Error = ConversionError;

    fn try_from(message: proto::ObjectRef) -> Result<Self, Self::Error> {
        Ok(Self {
            name: required("name", message.name)?,
            seal: required("seal", message.seal)?,
        })
    }
}

impl From<Range<u64>> for proto::ElementRange {
    fn from(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            end: range.end,
        }
    }
}

impl TryFrom<proto::ElementRange> for Range<u64> {
    type Error = ConversionError;

    fn try_from(message: proto::ElementRange) -> Result<Self, Self::Error> {
        if message.start > message.end {
            return Err(ConversionError::new(
                "end",
                format!("{} is below start {}", message.end, message.start),
            ));
        }
        Ok(message.start..message.end)
    }
}
