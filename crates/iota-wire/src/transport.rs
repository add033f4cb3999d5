//! What calls travel over: TCP, encrypted or not, or whatever a program brings instead of it.
//!
//! ```text
//!   Client ── Connector ──► Connection ~~~~~~~~ Connection ◄── Incoming ── serve
//! ```
//!
//! Whether a connection is encrypted, the address says: `https://` or `http://`. A port that listens for TLS answers calls that
//! come without it, each with [`ApiError::OnlyTls`](crate::ApiError::OnlyTls), and nothing else.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, Stream, StreamExt as _};
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use iota_tls::{Accepted, Protocol, ServerCertificate, TlsAcceptor, TlsConnector, Trust};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt as _;
use tracing::{debug, warn};

/// Bytes in both directions.
pub struct Connection {
    stream: Box<dyn Duplex>,
    way: Way,
}

/// How a caller has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As it should.
    Open,
    /// Without TLS, to a port for TLS.
    Unencrypted,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connection {
    /// A connection over `stream`.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            way: Way::Open,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    /// Who calls, its signature says; where from does not matter.
    type ConnectInfo = Way;

    fn connect_info(&self) -> Way {
        self.way
    }
}

/// Connections that peers make, and the address that they make them to.
pub struct Incoming {
    address: SocketAddr,
    connections: BoxStream<'static, io::Result<Connection>>,
}

impl Incoming {
    /// What comes in on a socket.
    ///
    /// # Errors
    /// If the operating system does not say what it listens on.
    pub fn tcp(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let connections = sockets(listener)
            .map(|accepted| accepted.map(Connection::new))
            .boxed();
        Ok(Self {
            address,
            connections,
        })
    }

    /// What comes in on a socket by TLS, under this certificate.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp).
    pub fn tls(listener: TcpListener, certificate: &ServerCertificate) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let acceptor = certificate.acceptor(Protocol::Http2);
        let connections = sockets(listener)
            .map(move |accepted| encrypted(acceptor.clone(), accepted))
            // Whoever is slow to agree on keys holds nobody up.
            .buffer_unordered(HANDSHAKES_MAX)
            .filter_map(std::future::ready)
            .boxed();
        Ok(Self {
            address,
            connections,
        })
    }

    /// What comes in by other means.
    pub fn new(
        address: SocketAddr,
        connections: impl Stream<Item = io::Result<Connection>> + Send + 'static,
    ) -> Self {
        Self {
            address,
            connections: connections.boxed(),
        }
    }

    /// Where peers call.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn into_connections(self) -> BoxStream<'static, io::Result<Connection>> {
        self.connections
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Callers that agree on keys at a time; more wait. A handshake that comes to nothing ends after
/// [`HANDSHAKE_TIMEOUT`](iota_tls::accept::HANDSHAKE_TIMEOUT).
const HANDSHAKES_MAX: usize = 1024;

/// Pause after the operating system could not give us a connection (out of file descriptors, mostly). The server asks for the
/// next one at once, for as long as it takes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

fn sockets(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> + Send {
    let sockets = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(Duration::from_secs(30)));
    unhurried(sockets)
}

fn unhurried<T: Send>(
    accepted: impl Stream<Item = io::Result<T>> + Send,
) -> impl Stream<Item = io::Result<T>> + Send {
    accepted.then(async |accepted| {
        if let Err(error) = &accepted {
            warn!(%error, "no connection accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        accepted
    })
}

/// A connection whose caller has agreed on keys, or speaks no TLS. None if it went away meanwhile, or does not like our
/// certificate: it knows why.
async fn encrypted(
    acceptor: TlsAcceptor,
    accepted: io::Result<TcpStream>,
) -> Option<io::Result<Connection>> {
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => return Some(Err(error)),
    };
    match acceptor.accept(stream).await {
        Ok(Accepted::Encrypted(stream)) => Some(Ok(Connection::new(stream))),
        Ok(Accepted::Plain(stream)) => Some(Ok(Connection {
            way: Way::Unencrypted,
            ..Connection::new(stream)
        })),
        Err(error) => {
            debug!(%error, "no keys agreed on with a caller");
            None
        }
    }
}

/// How a client reaches the orchestrator: over TCP, by TLS where the address says `https`, unless a program brings something
/// else. Cheap to clone.
#[derive(Clone)]
pub struct Connector(Means);

#[derive(Clone)]
enum Means {
    /// Without a trust of the program's own, the system's.
    Tcp(Option<Trust>),
    Brought(Arc<dyn Fn(Uri) -> Connecting + Send + Sync>),
}

type Connecting = BoxFuture<'static, io::Result<Connection>>;

impl Connector {
    /// TCP, and TLS with servers whose certificates `trust` believes, where the address says `https`.
    pub const fn trusting(trust: Trust) -> Self {
        Self(Means::Tcp(Some(trust)))
    }

    /// A connector that asks `connect` for each connection to an address. Whether that is encrypted is its program's
    /// business, whatever the address says.
    pub fn new<F>(connect: impl Fn(Uri) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Connection>> + Send + 'static,
    {
        Self(Means::Brought(Arc::new(move |address| {
            connect(address).boxed()
        })))
    }

    /// A channel that connects when it is first used, and again when a connection is lost.
    pub(crate) fn channel(&self, endpoint: &Endpoint) -> Channel {
        match &self.0 {
            Means::Tcp(_) if endpoint.uri().scheme_str() != Some("https") => {
                endpoint.connect_lazy()
            }
            Means::Tcp(trust) => {
                let trust = trust.clone().unwrap_or_else(Trust::system);
                let tls = trust.connector(Protocol::Http2);
                endpoint.connect_with_connector_lazy(tower::service_fn(move |address| {
                    by_tls(tls.clone(), address)
                }))
            }
            Means::Brought(connect) => {
                let connect = Arc::clone(connect);
                endpoint.connect_with_connector_lazy(tower::service_fn(move |address| {
                    connect(address).map(|connected| connected.map(TokioIo::new))
                }))
            }
        }
    }
}

/// A connection over TCP, and over it an encrypted one.
async fn by_tls(tls: TlsConnector, address: Uri) -> io::Result<TokioIo<Connection>> {
    let host = address.host().unwrap_or_default().to_owned();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let stream = tcp.oneshot(address).await.map_err(io::Error::other)?;
    let stream = tls.connect(&host, stream.into_inner()).await?;
    Ok(TokioIo::new(Connection::new(stream)))
}

impl Default for Connector {
    fn default() -> Self {
        Self(Means::Tcp(None))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            Means::Tcp(_) => "TCP",
            Means::Brought(_) => "its program's own",
        };
        f.debug_tuple("Connector").field(&name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_the_system_cannot_give_is_not_asked_for_without_a_pause() {
        let out_of_files = || io::Error::other("too many open files");
        let asked = [Err(out_of_files()), Err(out_of_files()), Ok(())];
        let began = tokio::time::Instant::now();
        let given: Vec<_> = unhurried(futures::stream::iter(asked)).collect().await;
        assert_eq!(given.iter().filter(|it| it.is_ok()).count(), 1);
        assert_eq!(began.elapsed(), 2 * ACCEPT_PAUSE);
    }
}
