//! Authorities and certificates that a test makes for itself.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use crate::{ServerCertificate, Trust};

/// Why making one does not fail.
const MADE: &str = "names that a test gives make a certificate";

/// An authority that nobody else trusts.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate, without the authority's.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// If the operating system gives no randomness.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect(MADE);
        let mut parameters = CertificateParams::new(Vec::new()).expect(MADE);
        parameters
            .distinguished_name
            .push(DnType::CommonName, "an authority of tests");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = parameters.self_signed(&key).expect(MADE).pem();
        Self {
            issuer: Issuer::new(parameters, key),
            pem,
        }
    }

    /// Its certificate, in PEM: what peers are given.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The trust of whoever believes the system's authorities and this one.
    ///
    /// # Panics
    /// Never: it is an authority.
    pub fn trust(&self) -> Trust {
        Trust::and_pem(self.pem.as_bytes()).expect("an authority can be trusted")
    }

    /// A certificate for a server of these names and addresses.
    ///
    /// # Panics
    /// If one of them is no name.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_until(names, 4096)
    }

    /// A certificate that expired long ago.
    ///
    /// # Panics
    /// If one of the names is none.
    pub fn issue_expired(&self, names: &[&str]) -> Issued {
        self.issue_until(names, 1999)
    }

    /// What a server shows that has a certificate for these names and addresses.
    ///
    /// # Panics
    /// If one of them is no name.
    pub fn server(&self, names: &[&str]) -> ServerCertificate {
        let Issued { certificate, key } = self.issue(names);
        ServerCertificate::from_pem(certificate.as_bytes(), key.as_bytes()).expect(MADE)
    }

    fn issue_until(&self, names: &[&str], year: i32) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect(MADE);
        let mut parameters = CertificateParams::new(names).expect(MADE);
        parameters.not_after = date_time_ymd(year, 1, 1);
        let certificate = parameters.signed_by(&key, &self.issuer).expect(MADE);
        Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
