//! A certificate that is renewed while it is shown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};

use crate::{CertificateFiles, Error};

/// What is shown now.
///
/// Certificates last for weeks, runs may last longer, and whoever renews a certificate writes it over the one before. So the
/// files are looked at, not read, whenever somebody connects: that is two calls to the system in a handshake of a
/// thousand times as long.
#[derive(Debug)]
pub(crate) struct Shown {
    files: Option<CertificateFiles>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    /// When the files were written that it was read from, or whatever came after them and cannot be used.
    written: Written,
}

/// Certificate, then key. None if that cannot be said.
type Written = [Option<SystemTime>; 2];

impl Shown {
    /// What never changes.
    pub(crate) fn always(key: CertifiedKey) -> Self {
        Self {
            files: None,
            current: Mutex::new(Current {
                key: Arc::new(key),
                written: Written::default(),
            }),
        }
    }

    /// What is in files, and will be.
    pub(crate) fn of(files: &CertificateFiles) -> Result<Self, Error> {
        // Before they are read: what is written meanwhile is newer than what was read.
        let written = written(files);
        let key = Arc::new(files.read()?);
        Ok(Self {
            files: Some(files.clone()),
            current: Mutex::new(Current { key, written }),
        })
    }

    pub(crate) const fn files(&self) -> Option<&CertificateFiles> {
        self.files.as_ref()
    }

    pub(crate) fn current(&self) -> Arc<CertifiedKey> {
        // Nothing is done under the lock that could leave it half done.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &self.files {
            let written = written(files);
            if written != current.written {
                // Said once for each change, such as the first of two files.
                current.written = written;
                let certificate = files.certificate.display();
                match files.read() {
                    Ok(key) => {
                        info!(%certificate, "the certificate was renewed");
                        current.key = Arc::new(key);
                    }
                    Err(error) => warn!(
                        %certificate,
                        %error,
                        "the certificate was changed and cannot be used; the one before is shown on"
                    ),
                }
            }
        }
        Arc::clone(&current.key)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn written(files: &CertificateFiles) -> Written {
    [&files.certificate, &files.key].map(|path| {
        let metadata = std::fs::metadata(path);
        metadata.and_then(|metadata| metadata.modified()).ok()
    })
}
