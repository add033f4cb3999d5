//! Why an encrypted connection is not made, when trying again would not help.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// What keeps a client from a server that answers.
///
/// None of it goes away by itself in a moment, as a refused connection does: somebody has to correct an address, a
/// certificate or a list of authorities.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The certificate leads to no authority that the client trusts.
    #[error(
        "the server's certificate is signed by nobody whom this machine trusts; --ca names an authority of one's own"
    )]
    UnknownIssuer,
    /// The certificate is another server's.
    #[error("the server's certificate is not for {asked}, only for {names}")]
    OtherName {
        /// Whom the client has called.
        asked: String,
        /// Whom the certificate names.
        names: String,
    },
    /// The certificate is no good for anybody.
    #[error("the server's certificate cannot be accepted: {0}")]
    Certificate(String),
    /// What answers is not TLS.
    #[error("the server does not speak TLS at this address: http:// or another port is meant")]
    NoTls,
    /// What answers is TLS, and the client called without.
    #[error("the server speaks only TLS at this address: https:// is meant")]
    OnlyTls,
    /// What answers is TLS with something else in it.
    #[error("the server speaks another protocol at this address: another port is meant")]
    OtherProtocol,
}

impl Refusal {
    /// What an error comes from, if it comes from one of these. Looks through whatever libraries have wrapped it in.
    pub fn of(error: &(dyn StdError + 'static)) -> Option<Self> {
        let error = tls_error(error)?;
        match error {
            // A bad signature is that of somebody who bears the name of one that is trusted: of last year's authority, mostly.
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => Some(Self::UnknownIssuer),
            rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                expected,
                presented,
            }) => Some(Self::OtherName {
                asked: expected.to_str().into_owned(),
                names: names(presented),
            }),
            rustls::Error::InvalidCertificate(error) => Some(Self::Certificate(problem(error))),
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Some(Self::NoTls),
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
            | rustls::Error::NoApplicationProtocol => Some(Self::OtherProtocol),
            // Something on the way may have broken it off.
            _ => None,
        }
    }
}

/// The error of the TLS library in a chain of errors.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an io::Error wraps is not its source: that is the source of what it wraps.
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// The names in a certificate, which the library gives with their kinds: `DnsName("orchestrator.example")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest);
        inner.trim_end_matches(')').trim_matches('"').to_owned()
    };
    let names: Vec<String> = presented.iter().map(bare).collect();
    if names.is_empty() {
        return "nobody by name (it needs a subjectAltName)".to_owned();
    }
    names.join(", ")
}

/// What is wrong with a certificate, for people.
pub(crate) fn problem(error: &CertificateError) -> String {
    match error {
        CertificateError::Other(other)
            if matches!(
                other.0.downcast_ref(),
                Some(webpki::Error::CaUsedAsEndEntity)
            ) =>
        {
            "it is an authority's, not a server's: `openssl req -x509` makes such unless it is told \
             `-extensions usr_cert`"
                .to_owned()
        }
        error => error.to_string(),
    }
}
