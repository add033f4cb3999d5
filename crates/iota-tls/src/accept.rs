//! A server's side of a connection.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpStream;

/// A server's encrypted connection.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// How long a client may take to agree on keys. Whoever is slower holds a socket, and nothing else, for so long.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The first byte of whatever a TLS client says first: a record of the handshake. No method of HTTP begins with it.
const HANDSHAKE_RECORD: u8 = 22;

/// A server's side of encrypted connections. Cheap to clone.
#[derive(Clone)]
pub struct TlsAcceptor(tokio_rustls::TlsAcceptor);

/// How somebody has come.
#[derive(Debug)]
pub enum Accepted {
    /// By TLS.
    Encrypted(Box<ServerStream>),
    /// By something else, of which nothing has been read. An answer in the clear that says so is worth more to whoever wrote
    /// `http` for `https` than a connection that breaks off.
    Plain(TcpStream),
}

impl TlsAcceptor {
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self(Arc::new(config).into())
    }

    /// Waits for the client to begin, and agrees on keys with it.
    ///
    /// # Errors
    /// If it goes away, takes longer than [`HANDSHAKE_TIMEOUT`], or does not accept the certificate.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Accepted> {
        let accept = async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if first[0] != HANDSHAKE_RECORD {
                return Ok(Accepted::Plain(stream));
            }
            let encrypted = self.0.accept(stream).await?;
            Ok(Accepted::Encrypted(Box::new(encrypted)))
        };
        let late = |_| Err(io::ErrorKind::TimedOut.into());
        tokio::time::timeout(HANDSHAKE_TIMEOUT, accept)
            .await
            .unwrap_or_else(late)
    }
}

impl fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsAcceptor").finish_non_exhaustive()
    }
}
