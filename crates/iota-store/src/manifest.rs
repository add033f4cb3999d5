//! Manifests: small JSON documents that make other objects count.
//!
//! A checkpoint *is* its manifest. It is written last, after everything that it refers to has been found in the
//! store, so a reader that sees it can rely on the rest. It names its format and ends with the digest of its body:
//!
//! ```json
//! {"version":1,"body":{"stage":0},"digest":"b3_…"}
//! ```

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use iota_protocol::id::Digest;
use iota_protocol::work::Seal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::key::ObjectKey;
use crate::seal;
use crate::store::Store;

/// The version that this crate writes and reads.
const VERSION: u32 = 1;

/// Look-ups in flight while references are checked: enough to hide latency, few enough for any store.
const CONCURRENT_CHECKS: usize = 16;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    version: u32,
    #[serde(borrow)]
    body: &'a RawValue,
    digest: Digest,
}

/// The one field that every version has.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

impl Store {
    /// Writes a manifest, once everything that it refers to is there.
    ///
    /// Existence and length of each reference are checked, not its bytes: whoever merged or uploaded it committed to
    /// them, and whoever reads it verifies them.
    ///
    /// # Errors
    /// [`Error::Dangling`] if a reference is missing or has another length, and then nothing was written;
    /// [`Error::Exists`] if another manifest is there already.
    ///
    /// # Panics
    /// If `manifest` cannot be JSON, which is a property of its type (a map whose keys are not texts).
    pub async fn put_manifest<T: Serialize + Sync>(
        &self,
        key: &ObjectKey,
        manifest: &T,
        references: &[(ObjectKey, Seal)],
    ) -> Result<Seal> {
        self.check_references(key, references).await?;
        self.put(key, encode(manifest)).await
    }

    /// Writes a manifest in the place of another, once everything that it refers to is there.
    ///
    /// # Errors
    /// As [`put_manifest`](Self::put_manifest), but for [`Error::Exists`].
    ///
    /// # Panics
    /// As [`put_manifest`](Self::put_manifest).
    pub async fn replace_manifest<T: Serialize + Sync>(
        &self,
        key: &ObjectKey,
        manifest: &T,
        references: &[(ObjectKey, Seal)],
    ) -> Result<Seal> {
        self.check_references(key, references).await?;
        self.replace(key, encode(manifest)).await
    }

    async fn check_references(
        &self,
        key: &ObjectKey,
        references: &[(ObjectKey, Seal)],
    ) -> Result<()> {
        // By value: a closure over borrowed items makes a future that is Send for one lifetime only.
        stream::iter(references.iter().copied())
            .map(|(object, seal)| async move {
                let found_bytes = self.length(&object).await?;
                seal::check_length(&object, seal.length, found_bytes)
            })
            .buffer_unordered(CONCURRENT_CHECKS)
            .try_collect::<()>()
            .await
            .map_err(|source| match source {
                Error::Missing { .. } | Error::Length { .. } => Error::Dangling {
                    manifest: key.to_string(),
                    source: Box::new(source),
                },
                other => other,
            })
    }

    /// Reads a manifest and verifies it.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::MalformedManifest`], [`Error::ManifestVersion`] or [`Error::Digest`] if it is not
    /// what [`put_manifest`](Self::put_manifest) wrote.
    pub async fn get_manifest<T: DeserializeOwned>(&self, key: &ObjectKey) -> Result<T> {
        decode(key, &self.get_unverified(key).await?)
    }
}

fn encode<T: Serialize>(manifest: &T) -> Bytes {
    let body = serde_json::value::to_raw_value(manifest).expect("a manifest can be JSON");
    let envelope = Envelope {
        version: VERSION,
        digest: Digest::of(body.get().as_bytes()),
        body: &body,
    };
    serde_json::to_vec(&envelope)
        .expect("an envelope can be JSON")
        .into()
}

fn decode<T: DeserializeOwned>(key: &ObjectKey, bytes: &[u8]) -> Result<T> {
    let malformed = |source| Error::MalformedManifest {
        key: key.to_string(),
        source,
    };
    let AnyVersion { version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version != VERSION {
        return Err(Error::ManifestVersion {
            key: key.to_string(),
            expected: VERSION,
            found: version,
        });
    }
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(malformed)?;
    let found = Digest::of(envelope.body.get().as_bytes());
    if found != envelope.digest {
        return Err(Error::Digest {
            key: key.to_string(),
            expected: envelope.digest,
            found,
        });
    }
    serde_json::from_str(envelope.body.get()).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iota_protocol::id::{Epoch, ObjectId, RunId, StageIndex};
    use iota_protocol::work::{ObjectName, Purpose};

    const RUN: RunId = RunId::from_bytes([7; 16]);
    const KEY: ObjectKey = ObjectKey::checkpoint(RUN, Epoch::new(1), StageIndex::new(0));

    fn merged(id: u8) -> ObjectKey {
        ObjectKey::object(
            RUN,
            ObjectName {
                purpose: Purpose::Merged,
                epoch: Epoch::new(0),
                id: ObjectId::from_bytes([id; 16]),
            },
        )
    }

    #[tokio::test]
    async fn a_manifest_reads_back() {
        let store = Store::in_memory();
        let object = merged(1);
        let seal = store
            .put(&object, Bytes::from_static(b"cell"))
            .await
            .unwrap();
        let references = [(object, seal)];
        store
            .put_manifest(&KEY, &vec![seal], &references)
            .await
            .unwrap();
        assert_eq!(store.get_manifest::<Vec<Seal>>(&KEY).await.unwrap(), [seal]);
        // The orchestrator may have crashed after writing it: writing it again is no error, another one is.
        store
            .put_manifest(&KEY, &vec![seal], &references)
            .await
            .unwrap();
        let error = store.put_manifest(&KEY, &"other", &[]).await.unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error:?}");
        store.replace_manifest(&KEY, &"other", &[]).await.unwrap();
        assert_eq!(store.get_manifest::<String>(&KEY).await.unwrap(), "other");
    }

    #[tokio::test]
    async fn a_manifest_is_not_written_before_what_it_refers_to() {
        let store = Store::in_memory();
        let present = merged(1);
        let seal = store
            .put(&present, Bytes::from_static(b"cell"))
            .await
            .unwrap();
        let longer = Seal { length: 5, ..seal };
        for reference in [(merged(2), seal), (present, longer)] {
            let error = store
                .put_manifest(&KEY, &0, &[(present, seal), reference])
                .await
                .unwrap_err();
            assert!(matches!(error, Error::Dangling { .. }), "{error:?}");
            let error = store.get_manifest::<u8>(&KEY).await.unwrap_err();
            assert!(matches!(error, Error::Missing { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_damaged_manifest_is_refused_wherever_the_damage_is() {
        let sound = encode(&("stage", 17_u64));
        assert_eq!(
            decode::<(String, u64)>(&KEY, &sound).unwrap(),
            ("stage".to_owned(), 17)
        );
        for at in 0..sound.len() {
            let mut damaged = sound.to_vec();
            damaged[at] ^= 1;
            assert!(
                decode::<(String, u64)>(&KEY, &damaged).is_err(),
                "byte {at} is not covered"
            );
            assert!(decode::<(String, u64)>(&KEY, &sound[..at]).is_err());
        }
    }

    #[test]
    fn a_manifest_of_a_later_version_is_named_as_such() {
        let error = decode::<u8>(&KEY, br#"{"version":2,"something":"else"}"#).unwrap_err();
        assert!(
            matches!(
                error,
                Error::ManifestVersion {
                    expected: 1,
                    found: 2,
                    ..
                }
            ),
            "{error:?}"
        );
    }
}
