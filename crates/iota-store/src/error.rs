//! What can go wrong with storage, and what a caller can do about it.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::path::PathBuf;

use iota_protocol::id::Digest;

use crate::tensor::TensorError;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Trouble with an object, a grant or a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text is not a key of this crate.
    #[error("not a valid object key: {text:?}")]
    InvalidKey {
        /// The text.
        text: String,
    },
    /// The key is taken by other bytes; keys are written once (S1).
    ///
    /// From an upload through a grant it only says that the key is taken: whoever repeats its own upload may take it
    /// for success, because nobody else was granted the key.
    #[error("object {key} exists already")]
    Exists {
        /// The key, or the path of the URL.
        key: String,
    },
    /// There is no such object.
    #[error("object {key} is missing")]
    Missing {
        /// The key, or the path of the URL.
        key: String,
    },
    /// The object has another length than it should have.
    #[error("object {key} has {found_bytes} bytes instead of {expected_bytes}")]
    Length {
        /// The key, or the path of the URL.
        key: String,
        /// What it should be.
        expected_bytes: u64,
        /// What it is; of a body that was cut off as too long, what had been read by then.
        found_bytes: u64,
    },
    /// The object has other bytes than it should have.
    #[error("object {key} has digest {found} instead of {expected}")]
    Digest {
        /// The key, or the path of the URL.
        key: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A manifest refers to an object that is not there, or has another length.
    #[error("manifest {manifest} refers to an object that is not there")]
    Dangling {
        /// The manifest's key.
        manifest: String,
        /// What is wrong with the object.
        source: Box<Self>,
    },
    /// A manifest's bytes are not a manifest.
    #[error("manifest {key} is malformed")]
    MalformedManifest {
        /// The manifest's key.
        key: String,
        /// Where the parser gave up.
        source: serde_json::Error,
    },
    /// A manifest was written by a later version of this crate.
    #[error("manifest {key} has version {found}; this program reads version {expected}")]
    ManifestVersion {
        /// The manifest's key.
        key: String,
        /// The version that this crate reads.
        expected: u32,
        /// The version that it has.
        found: u32,
    },
    /// Bytes are not the tensors that they should be.
    #[error("not the expected tensors")]
    Tensor(#[from] TensorError),
    /// A grant was used for what it does not grant.
    #[error("a grant to {granted} was used to {used}")]
    WrongGrant {
        /// What it grants.
        granted: &'static str,
        /// What it was used for.
        used: &'static str,
    },
    /// The store's address or bucket name cannot be used.
    #[error("cannot sign grants for {endpoint}: {reason}")]
    Endpoint {
        /// The address.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// The store refused a request and would refuse it again.
    #[error("the store refused the request with status {status}")]
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// The store could not be reached, broke off, or is overloaded.
    #[error("the store is unavailable")]
    Unavailable {
        /// What happened.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// There is an answer, but no secure connection to whom the grant's URL names.
    #[cfg(feature = "tls")]
    #[error("no secure connection to the store: {0}")]
    Tls(iota_tls::Refusal),
    /// The server's address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the operating system said; `AddrInUse` if another program has the port.
        source: std::io::Error,
    },
    /// The server's folder cannot be used.
    #[error("cannot use folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The same again after a pause may succeed.
    Retry,
    /// The request or the set-up is wrong: get a new grant, correct the call or the settings.
    Fix,
    /// The object is not what it should be, or the key is taken: doing it again changes nothing.
    GiveUp,
}

impl Error {
    /// What a caller can do about it.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable { .. } => ErrorKind::Retry,
            #[cfg(feature = "tls")]
            Self::Tls(_) => ErrorKind::Fix,
            Self::InvalidKey { .. }
            | Self::WrongGrant { .. }
            | Self::Endpoint { .. }
            | Self::Refused { .. }
            | Self::Bind { .. }
            | Self::Folder { .. } => ErrorKind::Fix,
            Self::Exists { .. }
            | Self::Missing { .. }
            | Self::Length { .. }
            | Self::Digest { .. }
            | Self::Dangling { .. }
            | Self::MalformedManifest { .. }
            | Self::ManifestVersion { .. }
            | Self::Tensor(_) => ErrorKind::GiveUp,
        }
    }
}
