//! The books of small runs, true and tampered with.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod books;
mod network;
mod stories;
