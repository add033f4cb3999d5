//! An S3 server over a folder, inside the orchestrator's process.
//!
//! A testnet on one machine and a run against a cloud store should differ in an address only. So peers get presigned
//! URLs here too, and what they may not do there they may not do here.
//!
//! ```text
//! peers ── presigned HTTP ──▶ connections ──▶ s3s (SigV4, XML) ──▶ access ──▶ service ──▶ folder
//!                             (this module)                                                 │ link, rename
//! orchestrator ── Store::in_folder ─────────────────────────────────────────────────▶ one plain file per object
//! ```
//!
//! The orchestrator reads and writes the same folder directly. Uploads grow in a second folder beside it
//! (`<root>.partial`) and appear in the first one complete or not at all.
//!
//! With a certificate it speaks TLS, and grants are for `https` URLs. Whoever comes without TLS all the same is answered 426
//! (upgrade required), whatever was asked.

mod access;
mod folder;
mod patient;
mod service;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use iota_tls::{Accepted, Protocol, ServerCertificate, TlsAcceptor};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, warn};
use url::Url;

use self::access::Access;
use self::folder::Folder;
use self::patient::Patient;
use self::service::FolderService;
use crate::error::{Error, Result};
use crate::grant::{Credentials, Grants};
use crate::store::Store;

/// The only bucket that the server has.
pub const BUCKET: &str = "iota";

/// The region in its signatures.
pub const REGION: &str = "us-east-1";

/// How much the server gives to strangers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Longest object, in bytes.
    pub object_bytes_max: u64,
    /// Sum of all objects and of the uploads under way, in bytes. What the orchestrator writes into the folder itself
    /// is not held up, and counts from the next time that the server measures the folder.
    pub total_bytes_max: u64,
    /// Connections at a time; more wait to be accepted.
    pub connections_max: usize,
    /// How long a peer may take for the head of a request, and how long it may be silent in its body. Four times as long it
    /// may read nothing of an answer: where much is on its way, a slow line has room for more only now and then.
    pub idle_timeout: Duration,
    /// Whether an upload is on the disk before it is answered. Off, a power cut can lose objects; their digests say so.
    pub sync_writes: bool,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            object_bytes_max: 16 << 30,
            total_bytes_max: 256 << 30,
            connections_max: 1024,
            idle_timeout: Duration::from_secs(30),
            sync_writes: false,
        }
    }
}

/// A running server. Dropping it breaks connections off; [`shutdown`](Self::shutdown) lets them finish.
#[derive(Debug)]
pub struct S3Server {
    local_address: SocketAddr,
    scheme: &'static str,
    root: PathBuf,
    credentials: Credentials,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl S3Server {
    /// Serves the objects in folder `root` at `address` (port 0: any free one). Both folders are created if they are
    /// not there; what an earlier process left of unfinished uploads is deleted.
    ///
    /// # Errors
    /// [`Error::Bind`] if the address is taken or not ours; [`Error::Folder`] if the folder cannot be used.
    pub async fn bind(
        address: SocketAddr,
        root: impl Into<PathBuf>,
        credentials: Credentials,
        settings: ServerSettings,
    ) -> Result<Self> {
        Self::listen(address, root.into(), credentials, settings, None).await
    }

    /// As [`bind`](Self::bind), by TLS under this certificate.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn bind_tls(
        address: SocketAddr,
        root: impl Into<PathBuf>,
        credentials: Credentials,
        settings: ServerSettings,
        certificate: &ServerCertificate,
    ) -> Result<Self> {
        let tls = Some(certificate.acceptor(Protocol::Http1));
        Self::listen(address, root.into(), credentials, settings, tls).await
    }

    async fn listen(
        address: SocketAddr,
        root: PathBuf,
        credentials: Credentials,
        settings: ServerSettings,
        tls: Option<TlsAcceptor>,
    ) -> Result<Self> {
        // The port first: a second server must not clear away the first one's uploads.
        let bind_error = |source| Error::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind_error)?;
        let local_address = listener.local_addr().map_err(bind_error)?;

        let opened = {
            let (root, settings) = (root.clone(), settings.clone());
            tokio::task::spawn_blocking(move || Folder::open(&root, &settings))
        };
        let folder = opened
            .await
            .expect("opening a folder does not panic")
            .map_err(|source| Error::Folder {
                path: root.clone(),
                source,
            })?;
        let mut builder = S3ServiceBuilder::new(FolderService::new(Arc::new(folder), &settings));
        builder.set_auth(SimpleAuth::from_single(
            credentials.access_key(),
            credentials.secret_key(),
        ));
        builder.set_access(Access);
        let (stop, stopped) = watch::channel(false);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let serving = Serving {
            service: builder.build(),
            tls,
            idle_timeout: settings.idle_timeout,
            stopped,
        };
        let accepting = tokio::spawn(accept(listener, serving, settings.connections_max));
        Ok(Self {
            local_address,
            scheme,
            root,
            credentials,
            stop,
            accepting,
        })
    }

    /// Where it listens.
    pub const fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// Signs grants for peers that reach the server at the address where it listens.
    pub fn grants(&self) -> Grants {
        let endpoint = format!("{}://{}", self.scheme, self.local_address)
            .parse()
            .expect("a socket address makes a URL");
        self.grants_at(&endpoint)
            .expect("a socket address can be signed for")
    }

    /// Signs grants for peers that reach the server at another address: by name, or through a proxy.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if the URL is not HTTP or has no host.
    pub fn grants_at(&self, endpoint: &Url) -> Result<Grants> {
        Grants::new(endpoint, BUCKET, REGION, &self.credentials)
    }

    /// The same objects for the process itself, without the network.
    ///
    /// # Errors
    /// [`Error::Folder`] if the folder is gone.
    pub fn store(&self) -> Result<Store> {
        Store::in_folder(&self.root)
    }

    /// Accepts no more connections, lets requests under way finish for at most `grace`, then breaks off the rest.
    pub async fn shutdown(mut self, grace: Duration) {
        self.stop.send_replace(true);
        if tokio::time::timeout(grace, &mut self.accepting)
            .await
            .is_err()
        {
            warn!(grace_ms = grace.as_millis(), "requests broken off");
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // The task owns its connections, so they end with it.
        self.accepting.abort();
    }
}

/// After an answer to a request whose body was not read, what is still coming is read and dropped for so long: closing
/// a socket with unread bytes in it makes the peer's system throw away the answer, and with it the reason.
const LINGER: Duration = Duration::from_secs(2);

/// Pause after the operating system could not give us a connection (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a connection needs to be served.
#[derive(Clone)]
struct Serving {
    service: S3Service,
    tls: Option<TlsAcceptor>,
    idle_timeout: Duration,
    stopped: watch::Receiver<bool>,
}

async fn accept(listener: TcpListener, serving: Serving, connections_max: usize) {
    let mut stop = pin!(until_stopped(serving.stopped.clone()));
    let slots = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            (accepted, slot) = next => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serving.clone().serve(stream, slot));
                }
                Err(error) => {
                    warn!(%error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

impl Serving {
    /// `slot` is given back when the connection is gone.
    async fn serve(self, stream: TcpStream, slot: OwnedSemaphorePermit) {
        // Small answers must not wait for the acknowledgement of what went before them.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.serve_http(stream).await,
            Some(tls) => tokio::select! {
                // Whoever has not agreed on keys yet has asked for nothing.
                () = until_stopped(self.stopped.clone()) => {}
                accepted = tls.accept(stream) => match accepted {
                    Ok(Accepted::Encrypted(stream)) => self.serve_http(stream).await,
                    Ok(Accepted::Plain(stream)) => refuse(stream).await,
                    Err(error) => debug!(%error, "no keys agreed on with a peer"),
                },
            },
        }
        drop(slot);
    }

    async fn serve_http(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let stream = Patient::new(stream, 4 * self.idle_timeout);
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.idle_timeout)
            .serve_connection(TokioIo::new(stream), self.service.clone());
        let mut stop = pin!(until_stopped(self.stopped.clone()));
        let mut stopping = false;
        let result = loop {
            tokio::select! {
                result = poll_fn(|context| connection.poll_without_shutdown(context)) => break result,
                () = &mut stop, if !stopping => {
                    Pin::new(&mut connection).graceful_shutdown();
                    stopping = true;
                }
            }
        };
        match result {
            Ok(()) => linger(connection.into_parts().io.into_inner()).await,
            Err(error) => debug!(%error, "connection broke off"),
        }
    }
}

/// What is said to whoever comes without TLS. Every client of HTTP understands it, whatever it was about to ask.
const ONLY_TLS: &[u8] = b"HTTP/1.1 426 Upgrade Required\r\n\
    upgrade: TLS/1.2\r\n\
    connection: upgrade, close\r\n\
    content-type: text/plain\r\n\
    content-length: 33\r\n\
    \r\n\
    only TLS here: https:// is meant\n";

async fn refuse(mut stream: TcpStream) {
    if stream.write_all(ONLY_TLS).await.is_ok() {
        linger(stream).await;
    }
}

async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone stops the server as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut dropped = vec![0; 64 << 10];
    let drain = async {
        // TLS says farewell, for which there is no room as long as the peer does not read what came before.
        if stream.shutdown().await.is_ok() {
            while matches!(stream.read(&mut dropped).await, Ok(1..)) {}
        }
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}
