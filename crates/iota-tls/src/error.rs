//! What can be wrong with a file.

use std::path::PathBuf;

/// A certificate, a key or a list of authorities that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// What was read is of no use.
    #[error("{origin} cannot be used: {problem}")]
    Unusable {
        /// The file, or what it was given as.
        origin: String,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    pub(crate) fn unusable(origin: &str, problem: impl Into<String>) -> Self {
        Self::Unusable {
            origin: origin.to_owned(),
            problem: problem.into(),
        }
    }
}
