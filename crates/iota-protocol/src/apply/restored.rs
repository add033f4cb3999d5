//! What happened after the state as it is known is lost, and some of it may still be under way among the peers.

use std::time::Duration;

use crate::event::Phase;
use crate::id::LeaseId;
use crate::state::State;
use crate::state::merging::StageMerge;
use crate::state::samples::Preference;

/// More than anybody waits between two tries to restore one backup by clocks that differ.
const MARGIN: Duration = Duration::from_secs(3600);
/// Leases that an orchestrator gives in a second, at most: twenty times what it can decide (docs/BENCHES.md).
const LEASES_PER_SECOND_MAX: u64 = 1_000_000;

/// Seconds that a leap may be longer by chance, so that two restorations of one state hardly ever leap as far, whatever
/// their clocks show. A run can be restored thousands of times before the numbers of stays run out.
pub(crate) const LEAP_FURTHER_MAX: u32 = 1 << 20;

impl State {
    /// Leaps over every number that was given out in the time that is lost, and goes back to what the epoch began with.
    ///
    /// Names of objects derive from the numbers of leases, so they are new as well: nothing that is granted from now on
    /// exists already. Should the same state be restored a second time, later, the leap is longer by more than the numbers
    /// that were given out between; should a clock say that it is not later, it is as long only once in a million times. A
    /// peer does not begin more than a stay per second; if it did, it would confuse nobody
    /// but itself.
    pub(super) fn apply_restored(&mut self, away: Duration, further: u32) {
        let leap_s = (away + MARGIN).as_secs() + 1 + u64::from(further);
        let lease = self.leases.next.get();
        let leap = leap_s.saturating_mul(LEASES_PER_SECOND_MAX);
        self.leases.next = LeaseId::new(lease.saturating_add(leap));
        self.leases.stale_below = self.leases.next;
        let latest = self
            .sessions
            .peers
            .values()
            .map(|record| record.generations);
        let latest = latest.fold(self.sessions.generations_before, u32::max);
        self.sessions.generations_before =
            latest.saturating_add(u32::try_from(leap_s).unwrap_or(u32::MAX));
        let found = if self.is_learning() {
            self.samples.found_ahead = None;
            self.samples.found.clone()
        } else if let Some(ahead) = &self.samples.found_ahead {
            // Nobody has any more what was done ahead of the checkpoint that is being installed.
            ahead.clone()
        } else {
            return;
        };
        if matches!(self.phase, Phase::Uploading | Phase::Merging) {
            // While it trains this is the merge that the checkpoint came from, whose other copies may have to mend it.
            self.merging.fill(StageMerge::default());
        }
        let at = self.clock;
        for sample in self.samples.rewind(found, self.settings.tail()) {
            self.wait(sample, Preference::default(), at);
        }
    }
}
