//! Leased work and its grants.

use iota_protocol::Timestamp;

use super::id::digest;
use super::{ConversionError, at_most, chosen, enumeration, repeated, required};
use crate::limits::{
    GRANTS_MAX, HEADER_NAME_BYTES_MAX, HEADER_VALUE_BYTES_MAX, HEADERS_MAX, URL_BYTES_MAX,
};
use crate::message::{Grant, GrantMethod, GrantTarget, LeasedWork};
use crate::proto;
use crate::proto::grant::Target;

enumeration!(proto::GrantMethod, GrantMethod, { Get, Put });

impl From<LeasedWork> for proto::LeasedWork {
    fn from(work: LeasedWork) -> Self {
        Self {
            lease: Some(work.lease.into()),
            grants: work.grants.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<proto::LeasedWork> for LeasedWork {
    type Error = ConversionError;

    fn try_from(message: proto::LeasedWork) -> Result<Self, Self::Error> {
        Ok(Self {
            lease: required("lease", message.lease)?,
            grants: repeated("grants", message.grants, GRANTS_MAX)?,
        })
    }
}

impl From<Grant> for proto::Grant {
    fn from(grant: Grant) -> Self {
        let target = match grant.target {
            GrantTarget::Object(name) => Target::Object(name.into()),
            GrantTarget::Shard { index } => Target::Shard(proto::ShardTarget { index }),
        };
        let header = |(name, value)| proto::GrantHeader { name, value };
        Self {
            target: Some(target),
            method: proto::GrantMethod::from(grant.method).into(),
            url: grant.url,
            headers: grant.headers.into_iter().map(header).collect(),
            length_bytes: grant.length_bytes,
            digest: grant.digest.map(|digest| digest.as_bytes().to_vec()),
            expires_at_ms: grant.expires_at.as_millis(),
        }
    }
}

impl TryFrom<proto::Grant> for Grant {
    type Error = ConversionError;

    fn try_from(message: proto::Grant) -> Result<Self, Self::Error> {
        let target = match message.target {
            None => return Err(ConversionError::new("target", "is missing")),
            Some(Target::Object(name)) => GrantTarget::Object(required("object", Some(name))?),
            Some(Target::Shard(shard)) => GrantTarget::Shard { index: shard.index },
        };
        at_most("url", message.url.len(), URL_BYTES_MAX, "bytes")?;
        at_most("headers", message.headers.len(), HEADERS_MAX, "entries")?;
        for (index, header) in message.headers.iter().enumerate() {
            at_most(
                &format!("headers[{index}].name"),
                header.name.len(),
                HEADER_NAME_BYTES_MAX,
                "bytes",
            )?;
            at_most(
                &format!("headers[{index}].value"),
                header.value.len(),
                HEADER_VALUE_BYTES_MAX,
                "bytes",
            )?;
        }
        Ok(Self {
            target,
            method: chosen::<proto::GrantMethod, _>("method", message.method)?,
            url: message.url,
            headers: message
                .headers
                .into_iter()
                .map(|header| (header.name, header.value))
                .collect(),
            length_bytes: message.length_bytes,
            digest: message
                .digest
                .map(|bytes| digest("digest", &bytes))
                .transpose()?,
            expires_at: Timestamp::from_millis(message.expires_at_ms),
        })
    }
}
