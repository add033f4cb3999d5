//! Every sample's tokens are counted once: shown from the journal alone, by books that do not know the rules' state.

use iota_ledger::Ledger;
use iota_protocol::{Event, State, Timestamp};

/// Goes through a run's journal and compares with what its state says.
///
/// # Errors
/// Says what does not add up.
pub(crate) fn audit(journal: &[(Timestamp, Event)], state: &State) -> Result<(), String> {
    let mut ledger = Ledger::new(state.settings());
    for (_, event) in journal {
        ledger.follow(event);
    }
    match ledger.check(state).first() {
        Some(discrepancy) => Err(format!("A3: {discrepancy}")),
        None => Ok(()),
    }
}
