//! Tests about the repository itself. There is nothing to link here: everything is in `tests/tidy`.
//!
//! ```text
//!   Cargo.toml, Cargo.lock ──▶ layers     who may depend on whom
//!   */Cargo.toml           ──▶ manifests  versions, lints and metadata in one place
//!   *.rs                   ──▶ sources    opening docs, lengths, unfinished code, words
//!   docs/ARCHITECTURE.md   ──▶ map        the map shows what `ls` shows
//! ```
//!
//! A rule that nobody checks is a wish. These are the rules of the repository that the compiler cannot check, each a
//! test whose failure says what to do. A rule that has become wrong is changed in the same commit as the code that
//! shows it.
//!
//! What this crate does *not* know: anything that the code does. It reads files.
