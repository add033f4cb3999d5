//! Encrypted connections: whom a peer believes, what a server shows, and why the two do not come together.
//!
//! ```text
//!   peer                                                         orchestrator, embedded store
//!
//!   Trust: the system's authorities,          TLS 1.2 or 1.3     ServerCertificate: a chain and its key
//!          and one's own             ──── TlsConnector ═══════ TlsAcceptor ────
//!                                                │                   └──► Accepted::Plain: whoever speaks no TLS
//!                                                └──► Refusal: what is wrong with the certificate, or with the address
//! ```
//!
//! Who calls is shown by signatures of calls and of grants. A certificate shows the other direction, whom one has called,
//! and keeps grants from being read on the way: whoever reads one can use it.
//!
//! ```
//! use iota_tls::{CertificateFiles, Error, ServerCertificate, Trust};
//!
//! let files = CertificateFiles { certificate: "no-such.pem".into(), key: "key.pem".into() };
//! let error = ServerCertificate::from_files(&files).unwrap_err();
//! assert!(error.to_string().contains("no-such.pem"));
//! let trust = Trust::system();
//! # drop(trust);
//! ```
//!
//! | module | concern |
//! |---|---|
//! | [`certificate`] | what a server shows: read from files, and refused if nobody could accept it |
//! | `renewal` | a certificate that is written anew while it is shown |
//! | [`trust`] | whom a client believes, and its side of a connection |
//! | [`accept`] | a server's side of a connection |
//! | [`refusal`] | why a connection is not made, for people and for whoever would try again |
//! | `testing` | with the feature of that name: authorities and certificates for tests |
//!
//! It is rustls with *ring*; no other TLS and no other cryptography for it is linked. Sessions are resumed, early data is not
//! sent: it could be replayed.
//!
//! It does *not* know what is said over a connection, by which addresses it comes about, or when to try again.

pub mod accept;
pub mod certificate;
mod error;
mod pem;
pub mod refusal;
mod renewal;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trust;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use accept::{Accepted, ServerStream, TlsAcceptor};
pub use certificate::{CertificateFiles, ServerCertificate};
pub use error::Error;
pub use refusal::Refusal;
pub use rustls::ClientConfig;
pub use trust::{ClientStream, TlsConnector, Trust};

/// What is spoken over the connection. Both sides name it (ALPN), so that a client which has come to the wrong port is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, for objects.
    Http1,
    /// HTTP/2, for calls.
    Http2,
}

impl Protocol {
    fn names(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
        }
    }
}

/// Makes *ring* the process's provider of cryptography unless the program has chosen one: for libraries that are not told
/// which to use. The default of the HTTP libraries is aws-lc, whose C and assembly take longer to build than all of ours.
pub fn install_provider() {
    // An error says that there is one already, which is just as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Why versions of the protocol can be chosen without an error.
const VERSIONS: &str = "ring has a cipher for every version that is safe";
