//! Whom a client believes.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Error, Protocol, VERSIONS, pem, provider};

/// A client's encrypted connection over another one.
pub type ClientStream<S> = tokio_rustls::client::TlsStream<S>;

/// Whose word on a server's certificate is believed. Cheap to clone.
#[derive(Clone)]
pub struct Trust {
    /// None on a system that knows no authority: then nobody's is.
    verifier: Option<Arc<dyn ServerCertVerifier>>,
}

impl Trust {
    /// The authorities that the system trusts, as they were when the process first asked.
    pub fn system() -> Self {
        static SYSTEM: OnceLock<Trust> = OnceLock::new();
        let read = || Self {
            // It fails where no authority is installed, as in small containers: no reason not to call without TLS.
            verifier: Verifier::new(provider())
                .ok()
                .map(|verifier| Arc::new(verifier) as Arc<dyn ServerCertVerifier>),
        };
        SYSTEM.get_or_init(read).clone()
    }

    /// The system's authorities, and those in a PEM file.
    ///
    /// # Errors
    /// Names the file and says what is wrong with it.
    pub fn and_file(path: &Path) -> Result<Self, Error> {
        Self::and(&pem::read(path)?, &path.display().to_string())
    }

    /// The system's authorities, and those in a text in PEM.
    ///
    /// # Errors
    /// If it holds no certificate, or one that cannot be an authority's.
    pub fn and_pem(text: &[u8]) -> Result<Self, Error> {
        Self::and(text, "the authority that was given")
    }

    fn and(text: &[u8], origin: &str) -> Result<Self, Error> {
        let authorities: Vec<CertificateDer<'static>> = pem::certificates(text, origin)?;
        let verifier = Verifier::new_with_extra_roots(authorities, provider())
            .map_err(|error| Error::unusable(origin, error.to_string()))?;
        Ok(Self {
            verifier: Some(Arc::new(verifier)),
        })
    }

    /// A client's side of connections that carry `protocol`; its clones resume each other's sessions.
    pub fn connector(&self, protocol: Protocol) -> TlsConnector {
        TlsConnector(Arc::new(self.client_config(protocol)).into())
    }

    /// The same for a library that makes its own connections.
    pub fn client_config(&self, protocol: Protocol) -> ClientConfig {
        let versions = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect(VERSIONS);
        let believing = match &self.verifier {
            Some(verifier) => versions
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(verifier)),
            None => versions.with_root_certificates(RootCertStore::empty()),
        };
        let mut config = believing.with_no_client_auth();
        config.alpn_protocols = protocol.names();
        config
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The verifier would list every authority.
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

/// A client's side of encrypted connections. Cheap to clone.
#[derive(Clone)]
pub struct TlsConnector(tokio_rustls::TlsConnector);

impl TlsConnector {
    /// Encrypts a connection that was made to `host`, a name or an IP address, if who answers shows a certificate for it.
    ///
    /// # Errors
    /// The connection's own, and those that [`Refusal::of`](crate::Refusal::of) makes something of.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<ClientStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = server_name(host)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.0.connect(name, stream).await
    }
}

/// A host as it stands in a URL, which has brackets around IPv6 addresses.
pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    ServerName::try_from(bare.unwrap_or(host).to_owned())
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}
