//! The wire through its public interface, over real sockets on the loopback.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, in its helpers too"
)]

/// An orchestrator that records what it is asked, and what the other modules need to talk to it.
mod stub;

/// What honest callers get.
mod calls;

/// Who gets an encrypted connection, and what is said to everybody else.
mod encrypted;

/// What everybody else gets.
mod refusals;

/// How `proto/` is written.
mod style;
