//! A store that serves grants itself, without HTTP and without S3: for simulations, which have neither.
//!
//! It holds a grant to all that a presigned URL is held to, in the same way: it signs what the grant claims once more and
//! compares.

use std::time::Duration;

use bytes::Bytes;
use iota_protocol::Timestamp;

use crate::error::{Error, Result};
use crate::grant::{Grant, Grants, Method};
use crate::key::ObjectKey;
use crate::store::Store;

/// Where holders of grants are served.
#[derive(Debug, Clone)]
pub struct Counter {
    store: Store,
    signer: Grants,
}

/// What S3 answers to whoever may not do what they ask for.
const FORBIDDEN: u16 = 403;

impl Counter {
    /// Serves from `store` what `signer` has granted.
    pub const fn new(store: Store, signer: Grants) -> Self {
        Self { store, signer }
    }

    /// The object that the grant is for.
    ///
    /// # Errors
    /// [`Error::Refused`] if the grant is not the signer's, is no grant to read, or has expired at `now`;
    /// [`Error::Missing`].
    pub async fn get(&self, grant: &Grant, now: Timestamp) -> Result<Bytes> {
        let key = self.check(grant, Method::Get, now)?;
        self.store.get_unverified(&key).await
    }

    /// Creates the object that the grant is for.
    ///
    /// # Errors
    /// [`Error::Refused`] if the grant is not the signer's, is no grant to write just these bytes, or has expired at `now`;
    /// [`Error::Exists`] if there is an object, whichever it is.
    pub async fn put(&self, grant: &Grant, bytes: Bytes, now: Timestamp) -> Result<()> {
        let key = self.check(grant, Method::Put, now)?;
        let length = bytes.len().to_string();
        let header = ("content-length".to_owned(), length);
        if !grant.headers.contains(&header) {
            return Err(Error::Refused { status: FORBIDDEN });
        }
        self.store.create(&key, bytes).await
    }

    /// The key that a grant is for, if it is good for `method`.
    fn check(&self, grant: &Grant, method: Method, now: Timestamp) -> Result<ObjectKey> {
        let refused = Error::Refused { status: FORBIDDEN };
        let Some((key, signed_at, ttl)) = claims(grant) else {
            return Err(refused);
        };
        let length = grant
            .headers
            .iter()
            .find(|(name, _)| name == "content-length");
        let length = length.and_then(|(_, value)| value.parse().ok());
        let ours = match (method, length) {
            (Method::Get, _) => self.signer.read(&key, ttl, signed_at),
            (Method::Put, Some(length_bytes)) => {
                self.signer.put(&key, length_bytes, ttl, signed_at)
            }
            (Method::Put, None) => return Err(refused),
        };
        let is_ours =
            grant.method == method && grant.url == ours.url && grant.headers == ours.headers;
        if is_ours && now.as_millis() < ours.expires_at_ms {
            Ok(key)
        } else {
            Err(refused)
        }
    }
}

/// The key that a presigned URL names, and from when and for how long it says it is good.
fn claims(grant: &Grant) -> Option<(ObjectKey, Timestamp, Duration)> {
    // The first part of the path is the bucket.
    let (_, key) = grant.url.path().strip_prefix('/')?.split_once('/')?;
    let claim = |name: &str| {
        let mut pairs = grant.url.query_pairs();
        pairs.find_map(|(it, value)| (it == name).then(|| value.into_owned()))
    };
    let signed_at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", claim("X-Amz-Date")?).ok()?;
    let signed_at = signed_at
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()?
        .timestamp();
    let signed_at = u64::try_from(signed_at.as_millisecond()).ok()?;
    let ttl = claim("X-Amz-Expires")?.parse().ok()?;
    Some((
        key.parse().ok()?,
        Timestamp::from_millis(signed_at),
        Duration::from_secs(ttl),
    ))
}

#[cfg(test)]
mod tests {
    use iota_protocol::id::{Epoch, RunId, StageIndex};

    use super::*;
    use crate::{Credentials, seal};

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_999);
    const TTL: Duration = Duration::from_secs(60);

    fn key(stage: u16) -> ObjectKey {
        let run = RunId::from_bytes([1; 16]);
        ObjectKey::checkpoint(run, Epoch::new(2), StageIndex::new(stage))
    }

    fn signer(secret: &str) -> Grants {
        let endpoint = "http://store.example:9000".parse().unwrap();
        Grants::new(
            &endpoint,
            "iota",
            "us-east-1",
            &Credentials::new("iota", secret),
        )
        .unwrap()
    }

    fn counter() -> Counter {
        Counter::new(Store::in_memory(), signer("secret"))
    }

    fn is_refused<T>(result: Result<T>) -> bool {
        matches!(result, Err(Error::Refused { status: FORBIDDEN }))
    }

    #[tokio::test]
    async fn what_is_granted_is_served_once_for_writing_and_again_for_reading() {
        let (counter, bytes) = (counter(), Bytes::from_static(b"four"));
        let put = signer("secret").put(&key(1), 4, TTL, NOW);
        counter.put(&put, bytes.clone(), NOW).await.unwrap();
        let again = counter.put(&put, bytes.clone(), NOW).await;
        assert!(matches!(again, Err(Error::Exists { .. })));
        let get = signer("secret").get(&key(1), &seal(&bytes), TTL, NOW);
        for _ in 0..2 {
            assert_eq!(counter.get(&get, NOW).await.unwrap(), bytes);
        }
        let other = signer("secret").get(&key(2), &seal(&bytes), TTL, NOW);
        let missing = counter.get(&other, NOW).await;
        assert!(matches!(missing, Err(Error::Missing { .. })));
    }

    #[tokio::test]
    async fn a_grant_is_good_for_nothing_else_and_not_for_ever() {
        let (counter, bytes) = (counter(), Bytes::from_static(b"four"));
        let put = signer("secret").put(&key(1), 4, TTL, NOW);
        assert!(is_refused(counter.get(&put, NOW).await));
        let longer = Bytes::from_static(b"five!");
        assert!(is_refused(counter.put(&put, longer, NOW).await));
        let late = Timestamp::from_millis(put.expires_at_ms);
        assert!(is_refused(counter.put(&put, bytes.clone(), late).await));
        let strangers = signer("guess").put(&key(1), 4, TTL, NOW);
        assert!(is_refused(
            counter.put(&strangers, bytes.clone(), NOW).await
        ));
        let mut another = put.clone();
        another.url.set_path(&format!("/iota/{}", key(3)));
        assert!(is_refused(counter.put(&another, bytes.clone(), NOW).await));
        let mut longer_lived = put.clone();
        let url = put
            .url
            .as_str()
            .replace("X-Amz-Expires=60", "X-Amz-Expires=600");
        longer_lived.url = url.parse().unwrap();
        assert_ne!(longer_lived, put);
        assert!(is_refused(
            counter.put(&longer_lived, bytes.clone(), NOW).await
        ));
        counter.put(&put, bytes, NOW).await.unwrap();
    }
}
