//! S3's operations on the folder: what a request must have, and how the folder's faults are told.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::StatusCode;
use s3s::checksum::ChecksumHasher;
use s3s::dto::{
    Checksum, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
    DeletedObject, ETag, ETagCondition, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, Object, PutObjectInput,
    PutObjectOutput, StreamingBlob, Timestamp,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::ServerSettings;
use super::folder::{Fault, Folder, Mode};

/// Bytes moved at a time between network and disk. Larger gains nothing; smaller pays for changing threads.
const BUFFER_BYTES: usize = 1 << 20;

/// Most keys of a page, as S3 has it.
const PAGE_KEYS_MAX: i32 = 1000;

pub(super) struct FolderService {
    folder: Arc<Folder>,
    object_bytes_max: u64,
    idle_timeout: Duration,
}

impl FolderService {
    pub(super) const fn new(folder: Arc<Folder>, settings: &ServerSettings) -> Self {
        Self {
            folder,
            object_bytes_max: settings.object_bytes_max,
            idle_timeout: settings.idle_timeout,
        }
    }

    /// Does something with the folder on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Folder>) -> S3Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let folder = Arc::clone(&self.folder);
        tokio::task::spawn_blocking(move || work(&folder))
            .await
            .map_err(S3Error::internal_error)?
    }
}

#[async_trait]
impl S3 for FolderService {
    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let mode = match input.if_none_match {
            Some(ETagCondition::Any) => Mode::Create,
            None => Mode::Replace,
            Some(ETagCondition::ETag(_)) => return Err(not_checked("If-None-Match with a tag")),
        };
        // Promising what is not checked would be worse than refusing it.
        if input.if_match.is_some() {
            return Err(not_checked("If-Match"));
        }
        if input.content_md5.is_some() {
            return Err(not_checked("Content-MD5"));
        }
        let length_bytes = input
            .content_length
            .and_then(|length| u64::try_from(length).ok())
            .ok_or_else(|| s3_error!(MissingContentLength))?;
        if length_bytes > self.object_bytes_max {
            return Err(s3_error!(EntityTooLarge));
        }
        let mut checksums = Checksums::of(&input);
        let key = input.key;
        let mut upload = self
            .blocking(move |folder| Ok(folder.begin(&key, length_bytes)?))
            .await?;

        let capacity = usize::try_from(length_bytes).unwrap_or(usize::MAX);
        let mut buffer = Vec::with_capacity(capacity.min(BUFFER_BYTES));
        let mut received_bytes = 0;
        if let Some(mut body) = input.body {
            while let Some(chunk) = tokio::time::timeout(self.idle_timeout, body.next())
                .await
                .map_err(|_| s3_error!(RequestTimeout))?
            {
                let chunk = chunk.map_err(|_| s3_error!(IncompleteBody))?;
                received_bytes += chunk.len() as u64;
                if received_bytes > length_bytes {
                    return Err(s3_error!(IncompleteBody));
                }
                buffer.extend_from_slice(&chunk);
                if buffer.len() >= BUFFER_BYTES {
                    (upload, checksums, buffer) = self
                        .blocking(move |_| {
                            checksums.hasher.update(&buffer);
                            upload.write(&buffer)?;
                            buffer.clear();
                            Ok((upload, checksums, buffer))
                        })
                        .await?;
                }
            }
        }
        if received_bytes != length_bytes {
            return Err(s3_error!(IncompleteBody));
        }
        let (metadata, found) = self
            .blocking(move |_| {
                checksums.hasher.update(&buffer);
                let found = checksums.verify()?;
                upload.write(&buffer)?;
                Ok((upload.commit(mode)?, found))
            })
            .await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(e_tag(&metadata)),
            checksum_crc32: found.checksum_crc32,
            checksum_crc32c: found.checksum_crc32c,
            checksum_crc64nvme: found.checksum_crc64nvme,
            checksum_sha1: found.checksum_sha1,
            checksum_sha256: found.checksum_sha256,
            ..PutObjectOutput::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let GetObjectInput { key, range, .. } = request.input;
        let (file, metadata, bytes, first) = self
            .blocking(move |folder| {
                let (file, metadata) = folder.object(&key)?;
                let bytes = match range {
                    Some(range) => range.check(metadata.len())?,
                    None => 0..metadata.len(),
                };
                if range.is_some() && bytes.is_empty() {
                    return Err(s3_error!(InvalidRange, "the object is empty"));
                }
                // Most objects are small: then this is the only change of threads.
                let first = read(&file, &bytes).map_err(Fault::from)?;
                Ok((file, metadata, bytes, first))
            })
            .await?;
        let content_range = range.map(|_| {
            let last = bytes.end - 1;
            format!("bytes {}-{last}/{}", bytes.start, metadata.len())
        });
        let rest = bytes.start + first.len() as u64..bytes.end;
        Ok(S3Response::new(GetObjectOutput {
            body: Some(body(first, file, rest)),
            content_length: Some(signed(bytes.end - bytes.start)?),
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(e_tag(&metadata)),
            last_modified: last_modified(&metadata),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let key = request.input.key;
        let (_, metadata) = self
            .blocking(move |folder| Ok(folder.object(&key)?))
            .await?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(signed(metadata.len())?),
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(e_tag(&metadata)),
            last_modified: last_modified(&metadata),
            ..HeadObjectOutput::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let key = request.input.key;
        self.blocking(move |folder| Ok(folder.delete(&key)?))
            .await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let objects = request.input.delete.objects;
        let deleted = self
            .blocking(move |folder| {
                objects
                    .into_iter()
                    .map(|object| {
                        folder.delete(&object.key)?;
                        Ok(DeletedObject {
                            key: Some(object.key),
                            ..DeletedObject::default()
                        })
                    })
                    .collect::<S3Result<Vec<_>>>()
            })
            .await?;
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        if input
            .delimiter
            .as_deref()
            .is_some_and(|text| !text.is_empty())
        {
            return Err(not_checked("a delimiter"));
        }
        let max_keys = input
            .max_keys
            .unwrap_or(PAGE_KEYS_MAX)
            .clamp(0, PAGE_KEYS_MAX);
        let prefix = input.prefix.clone().unwrap_or_default();
        // The token is the last key of the page before.
        let after = input
            .continuation_token
            .clone()
            .or_else(|| input.start_after.clone())
            .unwrap_or_default();
        let (entries, more) = self
            .blocking(move |folder| {
                let limit = usize::try_from(max_keys).unwrap_or(0);
                Ok(folder.list(&prefix, &after, limit)?)
            })
            .await?;
        let next = entries.last().map(|entry| entry.key.clone());
        let contents = entries
            .into_iter()
            .map(|entry| {
                Ok(Object {
                    size: Some(signed(entry.metadata.len())?),
                    e_tag: Some(e_tag(&entry.metadata)),
                    last_modified: last_modified(&entry.metadata),
                    key: Some(entry.key),
                    ..Object::default()
                })
            })
            .collect::<S3Result<Vec<_>>>()?;
        // A page without keys would have no key to go on after.
        let more = more && next.is_some();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            max_keys: Some(max_keys),
            key_count: i32::try_from(contents.len()).ok(),
            continuation_token: input.continuation_token,
            start_after: input.start_after,
            is_truncated: Some(more),
            next_continuation_token: next.filter(|_| more),
            contents: Some(contents),
            ..ListObjectsV2Output::default()
        }))
    }
}

/// The checksums that a request announces, and those of what came.
struct Checksums {
    announced: Checksum,
    hasher: ChecksumHasher,
}

impl Checksums {
    fn of(input: &PutObjectInput) -> Self {
        fn if_announced<T: Default>(announced: &Option<String>) -> Option<T> {
            announced.as_ref().map(|_| T::default())
        }
        Self {
            hasher: ChecksumHasher {
                crc32: if_announced(&input.checksum_crc32),
                crc32c: if_announced(&input.checksum_crc32c),
                sha1: if_announced(&input.checksum_sha1),
                sha256: if_announced(&input.checksum_sha256),
                crc64nvme: if_announced(&input.checksum_crc64nvme),
            },
            announced: Checksum {
                checksum_crc32: input.checksum_crc32.clone(),
                checksum_crc32c: input.checksum_crc32c.clone(),
                checksum_sha1: input.checksum_sha1.clone(),
                checksum_sha256: input.checksum_sha256.clone(),
                checksum_crc64nvme: input.checksum_crc64nvme.clone(),
                ..Checksum::default()
            },
        }
    }

    fn verify(self) -> S3Result<Checksum> {
        let found = self.hasher.finalize();
        if found == self.announced {
            Ok(found)
        } else {
            Err(s3_error!(BadDigest))
        }
    }
}

impl From<Fault> for S3Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Key => s3_error!(InvalidArgument, "the key is not plain"),
            Fault::Missing => s3_error!(NoSuchKey),
            Fault::Exists => s3_error!(PreconditionFailed),
            Fault::Full => {
                let code = S3ErrorCode::Custom("QuotaExceeded".into());
                let mut error = Self::with_message(code, fault.to_string());
                error.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
                error
            }
            Fault::Io(error) => Self::internal_error(error),
        }
    }
}

fn not_checked(what: &str) -> S3Error {
    s3_error!(NotImplemented, "{what} is not supported")
}

/// Changes whenever the object does, which is all that a tag is for; reading everything to make one would not pay.
fn e_tag(metadata: &Metadata) -> ETag {
    ETag::Strong(format!(
        "{:x}-{:x}.{:x}-{:x}",
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.len()
    ))
}

fn last_modified(metadata: &Metadata) -> Option<Timestamp> {
    metadata.modified().ok().map(Timestamp::from)
}

/// S3's lengths are signed.
fn signed(length_bytes: u64) -> S3Result<i64> {
    i64::try_from(length_bytes).map_err(S3Error::internal_error)
}

/// The start of `range`: all of it or a buffer full.
fn read(file: &File, range: &std::ops::Range<u64>) -> std::io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let mut buffer = vec![0; length.min(BUFFER_BYTES)];
    file.read_exact_at(&mut buffer, range.start)?;
    Ok(buffer.into())
}

/// `first`, then what `rest` names of `file`. If the file cannot be read the answer breaks off, and its reader knows.
fn body(first: Bytes, file: File, rest: std::ops::Range<u64>) -> StreamingBlob {
    let file = Arc::new(file);
    let rest = stream::try_unfold(rest, move |range| {
        let file = Arc::clone(&file);
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let (from, to) = (range.start, range.end);
            let chunk = tokio::task::spawn_blocking(move || read(&file, &range))
                .await
                .map_err(std::io::Error::other)??;
            let next = from + chunk.len() as u64..to;
            Ok(Some((chunk, next)))
        }
    });
    StreamingBlob::wrap(stream::iter([Ok::<_, std::io::Error>(first)]).chain(rest))
}
