//! Certificates and keys as text.

use std::path::Path;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Error;

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// All certificates in a text, at least one.
pub(crate) fn certificates(
    text: &[u8],
    origin: &str,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates = read.map_err(|error| Error::unusable(origin, malformed(&error)))?;
    if certificates.is_empty() {
        return Err(Error::unusable(origin, "it holds no certificate in PEM"));
    }
    Ok(certificates)
}

/// The first private key in a text.
pub(crate) fn private_key(text: &[u8], origin: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| {
        let problem = match error {
            _ if is_encrypted(text) => {
                "its key is encrypted, and nobody is there to ask for the passphrase; `openssl pkey` takes it off"
                    .to_owned()
            }
            pem::Error::NoItemsFound => "it holds no private key in PEM".to_owned(),
            error => malformed(&error),
        };
        Error::unusable(origin, problem)
    })
}

/// What is wrong with a text, in words of our own. The library's quote the line that it could not read, and that is the key
/// where somebody has put all of it on one line.
fn malformed(error: &pem::Error) -> String {
    let problem = match error {
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line does not end as it should",
        pem::Error::MissingSectionEnd { .. } => {
            "a section does not end, or BEGIN and END do not stand on lines of their own"
        }
        pem::Error::Base64Decode(_) => "what is between BEGIN and END is not base64",
        _ => "it cannot be read",
    };
    format!("it is not well-formed PEM: {problem}")
}

/// In PKCS #8, or as OpenSSL wrote it before there was that.
fn is_encrypted(text: &[u8]) -> bool {
    let says = |label: &[u8]| text.windows(label.len()).any(|window| window == label);
    says(b"BEGIN ENCRYPTED PRIVATE KEY") || says(b"Proc-Type: 4,ENCRYPTED")
}
