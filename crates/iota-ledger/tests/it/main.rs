//! The books of small runs, true and tampered with.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod books;
/// What was forged, and by what it is found out.
mod forgeries;
mod network;
mod stories;
