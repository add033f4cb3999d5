//! The store as its operator sees it: whole objects by typed keys, written once, verified when read.

use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use iota_protocol::id::RunId;
use iota_protocol::work::Seal;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{
    GetResult, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
};

use crate::error::{Error, Result};
use crate::key::{KeyPrefix, ObjectKey};
use crate::seal;

/// All objects of all runs, for whoever holds the storage itself: the orchestrator, tools, tests.
///
/// Peers never have one; they have [`Grant`](crate::Grant)s. Clones share the same storage.
///
/// Always true: an object's bytes never change (S1), and what [`get`](Self::get) returns matches its seal.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
}

/// One object of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: ObjectKey,
    /// Its length in bytes.
    pub length_bytes: u64,
}

impl Store {
    /// A store over any object store that supports creating without replacing.
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects }
    }

    /// A store that lives as long as this value and its clones.
    pub fn in_memory() -> Self {
        Self::new(Arc::new(InMemory::new()))
    }

    /// A store in a folder, one plain file per object. The folder is created if it is not there.
    ///
    /// # Errors
    /// [`Error::Folder`] if it cannot be created or used.
    pub fn in_folder(root: impl AsRef<FilePath>) -> Result<Self> {
        let root = root.as_ref();
        let folder_error = |source| Error::Folder {
            path: root.to_owned(),
            source,
        };
        std::fs::create_dir_all(root).map_err(folder_error)?;
        let objects = LocalFileSystem::new_with_prefix(root)
            .map_err(|error| folder_error(std::io::Error::other(error)))?;
        Ok(Self::new(Arc::new(objects)))
    }

    /// Writes an object that must not exist yet, or must exist with the same bytes: a retry is harmless.
    ///
    /// # Errors
    /// [`Error::Exists`] if the key holds other bytes; [`Error::Unavailable`] if the store fails.
    pub async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<Seal> {
        let seal = seal::seal_off_thread(bytes.clone()).await;
        let put = self
            .objects
            .put_opts(
                &key.path(),
                PutPayload::from_bytes(bytes),
                PutOptions::from(PutMode::Create),
            )
            .await;
        match put {
            Ok(_) => Ok(seal),
            Err(object_store::Error::AlreadyExists { .. }) => match self.get(key, &seal).await {
                Ok(_) => Ok(seal),
                Err(Error::Length { .. } | Error::Digest { .. }) => Err(Error::Exists {
                    key: key.to_string(),
                }),
                Err(other) => Err(other),
            },
            Err(error) => Err(from_object_store(key, error)),
        }
    }

    /// Writes an object that must not exist yet.
    pub(crate) async fn create(&self, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        let payload = PutPayload::from_bytes(bytes);
        let put = self
            .objects
            .put_opts(&key.path(), payload, PutOptions::from(PutMode::Create))
            .await;
        match put {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => Err(Error::Exists {
                key: key.to_string(),
            }),
            Err(error) => Err(from_object_store(key, error)),
        }
    }

    /// Writes an object, whatever was there.
    pub(crate) async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<Seal> {
        let seal = seal::seal_off_thread(bytes.clone()).await;
        self.objects
            .put(&key.path(), PutPayload::from_bytes(bytes))
            .await
            .map_err(|error| from_object_store(key, error))?;
        Ok(seal)
    }

    /// Reads a whole object and verifies it.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Length`] or [`Error::Digest`] if it is not what `seal` says;
    /// [`Error::Unavailable`] if the store fails.
    pub async fn get(&self, key: &ObjectKey, seal: &Seal) -> Result<Bytes> {
        let found = self.open(key).await?;
        // Before the body: an object of the wrong length is not worth its transfer.
        seal::check_length(key, seal.length, found.meta.size)?;
        let bytes = found
            .bytes()
            .await
            .map_err(|error| from_object_store(key, error))?;
        let found = seal::seal_off_thread(bytes.clone()).await;
        seal::check(key, seal, &found)?;
        Ok(bytes)
    }

    /// Length of an object in bytes, without reading it.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Unavailable`].
    pub async fn length(&self, key: &ObjectKey) -> Result<u64> {
        match self.objects.head(&key.path()).await {
            Ok(meta) => Ok(meta.size),
            Err(error) => Err(from_object_store(key, error)),
        }
    }

    /// The objects under `prefix`, in the order of their printed keys. Files that are no objects of ours are left out.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list(&self, prefix: &KeyPrefix) -> Result<Vec<Listed>> {
        let mut found: Vec<ObjectMeta> = self
            .objects
            .list(Some(&prefix.path()))
            .try_collect()
            .await
            .map_err(|error| from_object_store(prefix, error))?;
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found
            .iter()
            .filter_map(|meta| {
                Some(Listed {
                    key: meta.location.as_ref().parse().ok()?,
                    length_bytes: meta.size,
                })
            })
            .collect())
    }

    /// The runs that have anything in the store, in order. Folders of other names are none of ours.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn runs(&self) -> Result<Vec<RunId>> {
        let top = self
            .objects
            .list_with_delimiter(None)
            .await
            .map_err(|error| from_object_store(&"", error))?;
        let names = top.common_prefixes.iter();
        let mut runs: Vec<RunId> = names
            .filter_map(|prefix| prefix.as_ref().parse().ok())
            .collect();
        runs.sort_unstable();
        Ok(runs)
    }

    /// Deletes an object. One that is not there is gone already.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delete(&self, key: &ObjectKey) -> Result<()> {
        match self.objects.delete(&key.path()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(from_object_store(key, error)),
        }
    }

    /// Deletes everything under `prefix`; says how many objects that were.
    ///
    /// Objects that appear meanwhile may stay, so end whatever writes there first: delete an epoch when its grants
    /// have expired, because a deleted key can be created again by whoever still holds a grant for it.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; some objects may be gone then, and calling again goes on.
    pub async fn delete_prefix(&self, prefix: &KeyPrefix) -> Result<u64> {
        let path = prefix.path();
        let locations = self
            .objects
            .list(Some(&path))
            .map_ok(|meta| meta.location)
            .boxed();
        let deleted: Vec<_> = self
            .objects
            .delete_stream(locations)
            // Somebody else's deletion is as good as ours.
            .filter(|result| {
                let gone = matches!(result, Err(object_store::Error::NotFound { .. }));
                std::future::ready(!gone)
            })
            .try_collect()
            .await
            .map_err(|error| from_object_store(prefix, error))?;
        Ok(deleted.len() as u64)
    }

    /// Reads whatever is under `key`. For objects that carry their own proof, as manifests do.
    pub(crate) async fn get_unverified(&self, key: &ObjectKey) -> Result<Bytes> {
        let found = self.open(key).await?;
        found
            .bytes()
            .await
            .map_err(|error| from_object_store(key, error))
    }

    async fn open(&self, key: &ObjectKey) -> Result<GetResult> {
        self.objects
            .get(&key.path())
            .await
            .map_err(|error| from_object_store(key, error))
    }
}

fn from_object_store(key: &impl ToString, error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::Missing {
            key: key.to_string(),
        },
        object_store::Error::PermissionDenied { .. } => Error::Refused { status: 403 },
        object_store::Error::Unauthenticated { .. } => Error::Refused { status: 401 },
        other => Error::Unavailable {
            source: Box::new(other),
        },
    }
}
