//! Grants: permission to read or write exactly one object, for a short time, without credentials.
//!
//! A grant is a presigned URL (AWS Signature Version 4) and the headers that were signed with it. What a stranger can
//! do with one is as little as S3 can express:
//!
//! * one method on one key, which the orchestrator chose;
//! * a write of exactly so many bytes (signed `content-length`; tensor lengths are known before their contents);
//! * a write of something new only (signed `if-none-match: *`, so that a replay changes nothing);
//! * until it expires.
//!
//! What the bytes are is the reader's check: it gets the writer's [`Seal`] and verifies it.

use std::fmt;
use std::time::Duration;

use iota_protocol::Timestamp;
use iota_protocol::id::Digest;
use iota_protocol::work::Seal;
use rusty_s3::{Bucket, S3Action as _, UrlStyle};
use url::Url;

use crate::error::{Error, Result};
use crate::key::ObjectKey;

/// What a grant permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// To read the object.
    Get,
    /// To create the object.
    Put,
}

impl Method {
    /// `GET` or `PUT`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// Permission to read or create one object until it expires.
///
/// Whoever has it can use it, so its [`Debug`](fmt::Debug) form leaves out the signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    /// What it permits.
    pub method: Method,
    /// The presigned URL.
    pub url: Url,
    /// Headers that must be sent as they are; their names are in lower case.
    pub headers: Vec<(String, String)>,
    /// Length of the object in bytes.
    pub length_bytes: u64,
    /// BLAKE3 of the object, if it is known: always for reading.
    pub digest: Option<Digest>,
    /// When it stops working, in milliseconds since the Unix epoch by the signer's clock.
    pub expires_at_ms: u64,
}

impl Grant {
    /// The URL without its signature: what may go into a log.
    pub fn public_url(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        url.into()
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("method", &self.method)
            .field("url", &self.public_url())
            .field("length_bytes", &self.length_bytes)
            .field("digest", &self.digest)
            .field("expires_at_ms", &self.expires_at_ms)
            .finish_non_exhaustive()
    }
}

/// The storage's own keys. They stay with the orchestrator.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    access_key: String,
    secret_key: String,
}

impl Credentials {
    /// A pair of keys.
    pub fn new(access_key: impl Into<String>, secret_key: impl Into<String>) -> Self {
        Self {
            access_key: access_key.into(),
            secret_key: secret_key.into(),
        }
    }

    /// The public half.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    #[cfg(any(feature = "server", feature = "s3"))]
    pub(crate) fn secret_key(&self) -> &str {
        &self.secret_key
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

/// Signs grants. A pure function of its arguments: it reads no clock and asks no server.
#[derive(Debug, Clone)]
pub struct Grants {
    bucket: Bucket,
    credentials: rusty_s3::Credentials,
}

impl Grants {
    /// A signer for `bucket` of the S3 service at `endpoint`, addressed by path (`endpoint/bucket/key`).
    ///
    /// `endpoint` is the address that the peers will use, which may differ from the orchestrator's. `region` is part of
    /// the signature; services without regions accept any name.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if the URL is not HTTP or has no host.
    pub fn new(
        endpoint: &Url,
        bucket: &str,
        region: &str,
        credentials: &Credentials,
    ) -> Result<Self> {
        let bucket = Bucket::new(
            endpoint.clone(),
            UrlStyle::Path,
            bucket.to_owned(),
            region.to_owned(),
        )
        .map_err(|error| Error::Endpoint {
            endpoint: endpoint.to_string(),
            reason: error.to_string(),
        })?;
        let credentials = rusty_s3::Credentials::new(
            credentials.access_key.clone(),
            credentials.secret_key.clone(),
        );
        Ok(Self {
            bucket,
            credentials,
        })
    }

    /// Permission to create `key` with exactly `length_bytes` bytes.
    ///
    /// `now` is rounded down and `ttl` up to whole seconds; `ttl` is kept between a second and a week, as S3 wants it.
    pub fn put(&self, key: &ObjectKey, length_bytes: u64, ttl: Duration, now: Timestamp) -> Grant {
        let key = key.to_string();
        let headers = [
            ("content-length", length_bytes.to_string()),
            ("if-none-match", "*".to_owned()),
        ];
        let mut action = self.bucket.put_object(Some(&self.credentials), &key);
        for (name, value) in &headers {
            action.headers_mut().insert(*name, value.clone());
        }
        let lifetime = Lifetime::new(now, ttl);
        Grant {
            method: Method::Put,
            url: action.sign_with_time(lifetime.ttl, &lifetime.signed_at),
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            length_bytes,
            digest: None,
            expires_at_ms: lifetime.expires_at_ms,
        }
    }

    /// Permission to read `key`, which should hold what `seal` says. Times are rounded as for [`put`](Self::put).
    pub fn get(&self, key: &ObjectKey, seal: &Seal, ttl: Duration, now: Timestamp) -> Grant {
        Grant {
            length_bytes: seal.length,
            digest: Some(seal.digest),
            ..self.read(key, ttl, now)
        }
    }

    /// Permission to read `key`, whatever it holds.
    pub(crate) fn read(&self, key: &ObjectKey, ttl: Duration, now: Timestamp) -> Grant {
        let key = key.to_string();
        let action = self.bucket.get_object(Some(&self.credentials), &key);
        let lifetime = Lifetime::new(now, ttl);
        Grant {
            method: Method::Get,
            url: action.sign_with_time(lifetime.ttl, &lifetime.signed_at),
            headers: Vec::new(),
            length_bytes: 0,
            digest: None,
            expires_at_ms: lifetime.expires_at_ms,
        }
    }
}

/// From when and for how long a signature is good, in the whole seconds that it is made of.
struct Lifetime {
    signed_at: jiff::Timestamp,
    ttl: Duration,
    expires_at_ms: u64,
}

impl Lifetime {
    fn new(now: Timestamp, ttl: Duration) -> Self {
        let ttl_seconds = (ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).clamp(1, 7 * 86_400);
        // jiff ends in the year 9999; a clock that is beyond it has other troubles.
        let signed_at = i64::try_from(now.as_millis() / 1000)
            .ok()
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
            .unwrap_or(jiff::Timestamp::MAX);
        Self {
            signed_at,
            ttl: Duration::from_secs(ttl_seconds),
            expires_at_ms: (now.as_millis() / 1000)
                .saturating_add(ttl_seconds)
                .saturating_mul(1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iota_protocol::id::{Epoch, RunId, StageIndex};

    const KEY: ObjectKey = ObjectKey::checkpoint(
        RunId::from_bytes([1; 16]),
        Epoch::new(2),
        StageIndex::new(3),
    );

    fn grants() -> Grants {
        let endpoint = "http://store.example:9000".parse().unwrap();
        let credentials = Credentials::new("the-access-key", "the-secret-key");
        Grants::new(&endpoint, "iota", "us-east-1", &credentials).unwrap()
    }

    #[test]
    fn a_write_is_bound_to_length_and_newness() {
        let now = Timestamp::from_millis(1_700_000_000_999);
        let grant = grants().put(&KEY, 1234, Duration::from_millis(59_001), now);
        assert_eq!(grant.url.path(), format!("/iota/{KEY}"));
        let signed = grant
            .url
            .query_pairs()
            .find(|(name, _)| name == "X-Amz-SignedHeaders")
            .unwrap();
        assert_eq!(signed.1, "content-length;host;if-none-match");
        assert_eq!(
            grant.headers,
            [
                ("content-length".to_owned(), "1234".to_owned()),
                ("if-none-match".to_owned(), "*".to_owned())
            ]
        );
        assert_eq!(grant.expires_at_ms, 1_700_000_060_000);
    }

    #[test]
    fn the_same_arguments_give_the_same_grant() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let put = |length_bytes| grants().put(&KEY, length_bytes, Duration::from_secs(60), now);
        assert_eq!(put(1), put(1));
        assert_ne!(
            put(1).url,
            put(2).url,
            "the length must be part of the signature"
        );
    }

    #[test]
    fn neither_signature_nor_secret_key_shows_in_debug_output() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let grant = grants().put(&KEY, 1, Duration::from_secs(60), now);
        let text = format!("{grant:?}");
        assert!(
            text.contains("stage_3.json") && !text.contains("X-Amz"),
            "{text}"
        );
        let text = format!(
            "{:?} {:?}",
            grants(),
            Credentials::new("a", "the-secret-key")
        );
        assert!(!text.contains("the-secret-key"), "{text}");
    }

    #[test]
    fn an_address_that_is_not_http_is_refused() {
        let credentials = Credentials::new("a", "b");
        for endpoint in ["ftp://store.example", "unix:/run/store"] {
            let error = Grants::new(&endpoint.parse().unwrap(), "iota", "r", &credentials);
            assert!(matches!(error, Err(Error::Endpoint { .. })), "{endpoint}");
        }
    }
}
