//! The store as a peer sees it: one HTTP request per grant, verified while it streams.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
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
    carrier: Carried,
}

#[derive(Debug, Clone)]
enum Carried {
    Http(reqwest::Client),
    Otherwise(Arc<dyn Carrier>),
}

/// Takes what a grant allows to the store, by other means than HTTP.
///
/// It has the grant checked by whoever keeps the store; what the bytes are is checked by the client.
pub trait Carrier: fmt::Debug + Send + Sync {
    /// The object that the grant is for.
    fn get<'a>(&'a self, grant: &'a Grant) -> BoxFuture<'a, Result<Bytes>>;

    /// Creates the object that the grant is for.
    fn put<'a>(&'a self, grant: &'a Grant, bytes: Bytes) -> BoxFuture<'a, Result<()>>;
}

impl GrantClient {
    /// A client with a pool of connections of its own; clones share it. With the feature `tls` it trusts the system's
    /// authorities.
    ///
    /// # Panics
    /// If the operating system's resolver cannot be used at all.
    pub fn new() -> Self {
        #[cfg(feature = "tls")]
        {
            Self::trusting(&iota_tls::Trust::system())
        }
        #[cfg(not(feature = "tls"))]
        {
            Self::with(reqwest::Client::builder())
        }
    }

    /// The same for stores whose certificates `trust` believes.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[cfg(feature = "tls")]
    pub fn trusting(trust: &iota_tls::Trust) -> Self {
        let config = trust.client_config(iota_tls::Protocol::Http1);
        Self::with(reqwest::Client::builder().tls_backend_preconfigured(config))
    }

    fn with(builder: reqwest::ClientBuilder) -> Self {
        let http = builder
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // A signature is for one host and path; a store that redirects is not the one that was meant.
            .redirect(Policy::none())
            .build()
            .expect("an HTTP client can be set up");
        Self {
            carrier: Carried::Http(http),
        }
    }

    /// A client that does without HTTP.
    pub fn over(carrier: impl Carrier + 'static) -> Self {
        Self {
            carrier: Carried::Otherwise(Arc::new(carrier)),
        }
    }

    /// Reads the granted object; returns it only if it is what `seal` says.
    ///
    /// Never holds more than `seal.length` bytes and one network read, whatever the store sends.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Length`], [`Error::Digest`] if the object is not there or not what it should be;
    /// [`Error::Refused`] if the grant is not accepted (expired, say); [`Error::Unavailable`] if the transfer failed;
    /// `Error::Tls` if whoever answers is not to be trusted; [`Error::WrongGrant`] if it is not a grant to read.
    pub async fn fetch(&self, grant: &Grant, seal: &Seal) -> Result<Bytes> {
        check_method(grant, Method::Get)?;
        let key = grant.url.path();
        let http = match &self.carrier {
            Carried::Http(http) => http,
            Carried::Otherwise(carrier) => {
                let bytes = carrier.get(grant).await?;
                seal::check(key, seal, &seal::seal_off_thread(bytes.clone()).await)?;
                return Ok(bytes);
            }
        };
        let mut response = send(http, grant, None).await?;
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
        check_method(grant, Method::Put)?;
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
        match &self.carrier {
            Carried::Http(http) => drop(send(http, grant, Some(bytes)).await?),
            Carried::Otherwise(carrier) => carrier.put(grant, bytes).await?,
        }
        Ok(seal)
    }
}

impl Default for GrantClient {
    fn default() -> Self {
        Self::new()
    }
}

fn check_method(grant: &Grant, used: Method) -> Result<()> {
    if grant.method == used {
        return Ok(());
    }
    Err(Error::WrongGrant {
        granted: grant.method.as_str(),
        used: used.as_str(),
    })
}

async fn send(http: &reqwest::Client, grant: &Grant, body: Option<Bytes>) -> Result<Response> {
    let mut request = match grant.method {
        Method::Get => http.get(grant.url.clone()),
        Method::Put => http.put(grant.url.clone()),
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

/// What a status other than 200 means for a grant.
fn refusal(grant: &Grant, status: StatusCode) -> Error {
    let key = || grant.url.path().to_owned();
    match (grant.method, status) {
        (Method::Get, StatusCode::NOT_FOUND) => Error::Missing { key: key() },
        (Method::Put, StatusCode::PRECONDITION_FAILED) => Error::Exists { key: key() },
        #[cfg(feature = "tls")]
        (_, StatusCode::UPGRADE_REQUIRED) => Error::Tls(iota_tls::Refusal::OnlyTls),
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
    #[cfg(feature = "tls")]
    if let Some(refusal) = iota_tls::Refusal::of(&error) {
        return Error::Tls(refusal);
    }
    Error::Unavailable {
        // The URL has the signature in it.
        source: Box::new(error.without_url()),
    }
}
