//! What calls travel over: TCP, or whatever a program brings instead of it.
//!
//! ```text
//!   Client ── Connector ──► Connection ~~~~~~~~ Connection ◄── Incoming ── serve
//! ```

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
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::transport::{Channel, Endpoint};

/// Bytes in both directions.
pub struct Connection(Box<dyn Duplex>);

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connection {
    /// A connection over `stream`.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(stream))
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
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Connected for Connection {
    /// Who calls, its signature says; where from does not matter.
    type ConnectInfo = ();

    fn connect_info(&self) {}
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
        let connections = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .with_keepalive(Some(Duration::from_secs(30)))
            .map(|accepted| accepted.map(Connection::new))
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

/// How a client reaches the orchestrator: over TCP, unless a program brings something else. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connector(Option<Arc<dyn Fn(Uri) -> Connecting + Send + Sync>>);

type Connecting = BoxFuture<'static, io::Result<Connection>>;

impl Connector {
    /// A connector that asks `connect` for each connection to an address.
    pub fn new<F>(connect: impl Fn(Uri) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Connection>> + Send + 'static,
    {
        Self(Some(Arc::new(move |address| connect(address).boxed())))
    }

    /// A channel that connects when it is first used, and again when a connection is lost.
    pub(crate) fn channel(&self, endpoint: &Endpoint) -> Channel {
        match self.0.clone() {
            None => endpoint.connect_lazy(),
            Some(connect) => {
                endpoint.connect_with_connector_lazy(tower::service_fn(move |address| {
                    connect(address).map(|connected| connected.map(TokioIo::new))
                }))
            }
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.as_ref().map_or("TCP", |_| "its program's own");
        f.debug_tuple("Connector").field(&name).finish()
    }
}
