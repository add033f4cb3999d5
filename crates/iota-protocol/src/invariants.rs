//! What is always true of a run, as functions.

use crate::state::State;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Violation {
    /// Its number.
    pub invariant: &'static str,
    /// What was found.
    pub what: String,
}

/// Checks every invariant.
///
/// # Errors
/// The first that does not hold.
pub fn check_all(_state: &State) -> Result<(), Violation> {
    Ok(())
}
