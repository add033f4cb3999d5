//! What can go wrong with an orchestrator itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use iota_protocol::PeerId;

use crate::SetupError;

/// Trouble of the orchestrator's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run folder cannot be used.
    #[error("cannot use {path}")]
    Folder {
        /// What could not be read or written.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The folder holds no run, or one that had not begun when its process ended.
    #[error("{folder} holds no run that could be resumed; name another folder with --out")]
    NoRun {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder holds a run already.
    #[error(
        "{folder} holds a run already, which `iota-orchestrator resume --out {folder}` goes on with; name another folder \
         with --out"
    )]
    Occupied {
        /// The folder.
        folder: PathBuf,
    },
    /// The store holds no run that could be restored.
    #[error("there is nothing to restore in {store}: {problem}")]
    NothingToRestore {
        /// The store's folder or URL.
        store: String,
        /// What is missing.
        problem: String,
    },
    /// A file of the run is not as this program writes it.
    #[error("{path} cannot be used: {problem}")]
    RunFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The key is not the one that the run's peers know.
    #[error(
        "the run is that of orchestrator {expected}, whose key has to be given; this one is {found}"
    )]
    AnotherKey {
        /// Whose run it is.
        expected: PeerId,
        /// Whose key it was.
        found: PeerId,
    },
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] iota_tls::Error),
    /// The run was encrypted by a certificate that a program brought along, and nobody brings one now.
    #[error(
        "the run is encrypted, and its certificate has to be given again (--tls-certificate, --tls-key)"
    )]
    NoCertificate,
    /// A key file cannot be used.
    #[error(transparent)]
    Key(#[from] iota_identity::KeyFileError),
    /// The journal failed. What was acknowledged is in it.
    #[error(transparent)]
    Journal(#[from] iota_journal::Error),
    /// The address for calls cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] iota_store::Error),
    /// The run cannot be set up like this.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Something that should be JSON is not.
    #[error("writing JSON")]
    Json(#[source] serde_json::Error),
    /// The service for calls failed.
    #[error("serving calls: {0}")]
    Serve(String),
    /// A task died; the message says of what.
    #[error("a task of the orchestrator panicked: {0}")]
    Panicked(String),
}
