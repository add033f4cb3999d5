//! What a server shows.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, RootCertStore, ServerConfig};

use crate::refusal::problem;
use crate::renewal::Shown;
use crate::trust::server_name;
use crate::{Error, Protocol, TlsAcceptor, VERSIONS, pem, provider};

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain in PEM: the server's own certificate first, then whoever signed it, up to the authority that peers know.
    pub certificate: PathBuf,
    /// The key of the first certificate, in PEM, without a passphrase.
    pub key: PathBuf,
}

/// A certificate chain and its key. Cheap to clone.
#[derive(Clone)]
pub struct ServerCertificate(Arc<Shown>);

impl ServerCertificate {
    /// Reads both files. When they are written again, what is in them then is shown from the next connection on; if it cannot
    /// be used, a warning says so, and the one before stays.
    ///
    /// # Errors
    /// Names the file and says why nobody could accept it: it is not there, it is not PEM, the key is another's, or the
    /// certificate has expired or is not one of a server. Whether peers trust whoever signed it, and which names it has
    /// to bear, cannot be known here.
    pub fn from_files(files: &CertificateFiles) -> Result<Self, Error> {
        Ok(Self(Arc::new(Shown::of(files)?)))
    }

    /// Of two texts in PEM, as they would be in files.
    ///
    /// # Errors
    /// As [`from_files`](Self::from_files).
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, Error> {
        let key = read(
            (certificate, "the certificate that was given"),
            (key, "the key that was given"),
        )?;
        Ok(Self(Arc::new(Shown::always(key))))
    }

    /// The files that it was read from, if it was.
    pub fn files(&self) -> Option<&CertificateFiles> {
        self.0.files()
    }

    /// Whether it names a host: whoever calls `host`, a name or an IP address, accepts it for no other.
    pub fn names(&self, host: &str) -> bool {
        let key = self.0.current();
        let own = key.cert.first().map(ParsedCertificate::try_from);
        match (own, server_name(host)) {
            (Some(Ok(own)), Ok(name)) => rustls::client::verify_server_name(&own, &name).is_ok(),
            _ => false,
        }
    }

    /// A server's side of connections that carry `protocol`.
    pub fn acceptor(&self, protocol: Protocol) -> TlsAcceptor {
        let shown: Arc<Shown> = Arc::clone(&self.0);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect(VERSIONS)
            .with_no_client_auth()
            .with_cert_resolver(shown);
        config.alpn_protocols = protocol.names();
        TlsAcceptor::new(config)
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("files", &self.files())
            .finish_non_exhaustive()
    }
}

impl CertificateFiles {
    pub(crate) fn read(&self) -> Result<CertifiedKey, Error> {
        let certificate = self.certificate.display().to_string();
        let key = self.key.display().to_string();
        let texts = (pem::read(&self.certificate)?, pem::read(&self.key)?);
        read((&texts.0, &certificate), (&texts.1, &key))
    }
}

/// A certificate and its key of texts, each with where it comes from.
fn read(certificate: (&[u8], &str), key: (&[u8], &str)) -> Result<CertifiedKey, Error> {
    let (certificate, certificate_origin) = certificate;
    let (key, key_origin) = key;
    let chain = pem::certificates(certificate, certificate_origin)?;
    let key = pem::private_key(key, key_origin)?;
    check(&chain, UnixTime::now())
        .map_err(|problem| Error::unusable(certificate_origin, problem))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Error::unusable(
            key_origin,
            format!("it is not the key of {certificate_origin}"),
        ),
        error => Error::unusable(key_origin, error.to_string()),
    })
}

/// Whether a peer could accept a chain, if it trusted whoever signed its last certificate.
fn check(chain: &[CertificateDer<'static>], now: UnixTime) -> Result<(), String> {
    let (own, others) = chain
        .split_first()
        .expect("a text without certificates is refused");
    let unreadable = |_| "it is no X.509 certificate".to_owned();
    let parsed = ParsedCertificate::try_from(own).map_err(unreadable)?;
    let mut roots = RootCertStore::empty();
    roots
        .add(others.last().unwrap_or(own).clone())
        .map_err(unreadable)?;
    let algorithms = provider().signature_verification_algorithms.all;
    match rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed, &roots, others, now, algorithms,
    ) {
        // A certificate alone, without the authority that signed it: for peers who know that one.
        Ok(()) | Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Ok(()),
        Err(rustls::Error::InvalidCertificate(error)) => Err(problem(&error)),
        Err(error) => Err(error.to_string()),
    }
}
