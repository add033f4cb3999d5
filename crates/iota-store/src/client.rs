//! The store as a peer sees it: one HTTP request per grant, verified while it streams.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iota_protocol::id::Digest;
use iota_protocol::work::Seal;
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode};

use crate::error::{Error, Result};
use crate::grant::{Grant, Method};
use crate::seal;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the store may be silent in the middle of an answer. There is no limit on the whole transfer: large cells
/// over slow lines take what they take, and the lease's deadline is the caller's to keep.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Memory set aside before the first byte has come: a peer's word on a length is not worth more.
const INITIAL_CAPACITY_BYTES: u64 = 64 << 20;

/// Uses grants. Holds no credentials and knows no S3; it keeps connections open for the next grant.
///
/// It tries once. When to try again is the caller's decision, by [`Error::kind`].
#[derive(Debug, Clone)]
pub struct GrantClient {
    http: reqwest::Client,
}

impl GrantClient {
    /// A client with a pool of connections of its own; clones share it.
    ///
    /// # Panics
    /// If the operating system's resolver or TLS set-up cannot be used at all.
    pub fn new() -> Self {
        #[cfg(feature = "tls")]
        crate::tls::install_provider();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // A signature is for one host and path; a store that redirects is not the one that was meant.
            .redirect(Policy::none())
            .build()
            .expect("an HTTP client can be set up");
        Self { http }
    }

    /// Reads the granted object; returns it only if it is what `seal` says.
    ///
    /// Never holds more than `seal.length` bytes and one network read, whatever the store sends.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Length`], [`Error::Digest`] if the object is not there or not what it should be;
    /// [`Error::Refused`] if the grant is not accepted (expired, say); [`Error::Unavailable`] if the transfer failed;
    /// [`Error::WrongGrant`] if it is not a grant to read.
    pub async fn fetch(&self, grant: &Grant, seal: &Seal) -> Result<Bytes> {
        let mut response = self.send(grant, Method::Get, None).await?;
        let key = grant.url.path();
        if let Some(announced_bytes) = response.content_length() {
            seal::check_length(&key, seal.length, announced_bytes)?;
        }
        let capacity = seal.length.min(INITIAL_CAPACITY_BYTES);
        let mut body = BytesMut::with_capacity(usize::try_from(capacity).unwrap_or(0));
        let mut hasher = blake3::Hasher::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            let length_bytes = (body.len() + chunk.len()) as u64;
            if length_bytes > seal.length {
                seal::check_length(&key, seal.length, length_bytes)?;
            }
            hasher.update(&chunk);
            body.extend_from_slice(&chunk);
        }
        let found = Seal {
            digest: Digest::from_bytes(*hasher.finalize().as_bytes()),
            length: body.len() as u64,
        };
        seal::check(key, seal, &found)?;
        Ok(body.freeze())
    }

    /// Writes the granted object; returns what to report of it.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Digest`] if `bytes` are not what was granted, before anything is sent;
    /// [`Error::Exists`] if the key is taken, which a caller that repeats its own upload takes for success;
    /// [`Error::Refused`], [`Error::Unavailable`], [`Error::WrongGrant`] as for [`fetch`](Self::fetch).
    pub async fn upload(&self, grant: &Grant, bytes: Bytes) -> Result<Seal> {
        let key = grant.url.path();
        seal::check_length(&key, grant.length_bytes, bytes.len() as u64)?;
        let seal = seal::seal_off_thread(bytes.clone()).await;
        if let Some(digest) = grant.digest {
            let granted = Seal {
                digest,
                length: grant.length_bytes,
            };
            seal::check(key, &granted, &seal)?;
        }
        self.send(grant, Method::Put, Some(bytes)).await?;
        Ok(seal)
    }

    async fn send(&self, grant: &Grant, method: Method, body: Option<Bytes>) -> Result<Response> {
        if grant.method != method {
            return Err(Error::WrongGrant {
                granted: grant.method.as_str(),
                used: method.as_str(),
            });
        }
        let mut request = match method {
            Method::Get => self.http.get(grant.url.clone()),
            Method::Put => self.http.put(grant.url.clone()),
        };
        for (name, value) in &grant.headers {
            request = request.header(name, value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await.map_err(unavailable)?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(refusal(grant, status)),
        }
    }
}

impl Default for GrantClient {
    fn default() -> Self {
        Self::new()
    }
}

/// What a status other than 200 means for a grant.
fn refusal(grant: &Grant, status: StatusCode) -> Error {
    let key = || grant.url.path().to_owned();
    match (grant.method, status) {
        (Method::Get, StatusCode::NOT_FOUND) => Error::Missing { key: key() },
        (Method::Put, StatusCode::PRECONDITION_FAILED) => Error::Exists { key: key() },
        // 409 is what S3 says to all but one of several writers at the same moment: by the next try it is a 412.
        (
            _,
            StatusCode::CONFLICT
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT,
        ) => Error::Unavailable {
            source: format!("status {}", status.as_u16()).into(),
        },
        _ => Error::Refused {
            status: status.as_u16(),
        },
    }
}

fn unavailable(error: reqwest::Error) -> Error {
    Error::Unavailable {
        // The URL has the signature in it.
        source: Box::new(error.without_url()),
    }
}
