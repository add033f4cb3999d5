//! Why a journal cannot be used, and what to do about it.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a journal cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is none.
    #[error("there is no journal at {path}: nothing was begun here that could be resumed")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// There is one already.
    #[error(
        "{place} is the journal of a run already; resume that run, or begin one in another folder"
    )]
    Exists {
        /// Where.
        place: String,
    },
    /// Another process writes to it.
    #[error("another process is using the journal {path}; stop that orchestrator first")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The file is a database of something else.
    #[error("{path} is not the journal of a run")]
    NotAJournal {
        /// Which.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error(
        "the journal {path} has format {found}, this program knows formats up to {known}; use the program that wrote it, or \
         a newer one"
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this program knows.
        known: u32,
    },
    /// It is not as it was written.
    #[error(
        "the journal {place} is damaged: {what}; leave the file as it is, see with `iota-orchestrator fsck` how far it is \
         good, and resume from a backup"
    )]
    Damaged {
        /// Which.
        place: String,
        /// What was found.
        what: String,
    },
    /// There is no room for more.
    #[error(
        "there is no room for the journal {place}; make some and resume: what was acknowledged is safe"
    )]
    Full {
        /// Which.
        place: String,
        /// What the database said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file or folder cannot be used.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The database failed for another reason.
    #[error("cannot use the journal {path}")]
    Database {
        /// Which.
        path: PathBuf,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A journal in memory has died, as it was told to.
    #[error("the journal in memory died at write {write}, as it was told to")]
    Crashed {
        /// At which write, counting from 0.
        write: u64,
    },
}
