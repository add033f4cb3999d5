//! Certificates that are good and bad, and connections between those who do and do not get on.

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be set up has failed the test"
)]

/// Who gets a connection, and what everybody else is told.
mod connections;

/// Which certificates, keys and authorities are refused before anybody calls.
mod files;
