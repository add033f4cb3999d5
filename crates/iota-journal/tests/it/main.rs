//! Journals by their public API: crashes at every write, random histories, real files and what can happen to them.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod crashes;
mod damage;
mod files;
mod histories;
mod network;
mod pages;
mod scale;
