//! The orchestrator was away, and nobody could be served: time that nobody could use counts against nobody.

use std::time::Duration;

use crate::state::State;
use crate::state::samples::Holder;

impl State {
    /// Moves everything that is being waited for by so long. What is past stays.
    pub(super) fn apply_resumed(&mut self, away: Duration) {
        self.phase_since = self.phase_since + away;
        self.phase_deadline = self.phase_deadline.map(|deadline| deadline + away);
        for session in self.sessions.live.values_mut() {
            session.last_contact = session.last_contact + away;
            // A place that others wait for is lost by who does nothing for it since then.
            session.joined_at = session.joined_at + away;
        }
        // Also when leases were issued: what a miner is measured by is how long it took while it could report.
        let leases = &mut self.leases;
        for lease in leases.held.values_mut().chain(leases.lapsed.values_mut()) {
            lease.issued_at = lease.issued_at + away;
            lease.deadline = lease.deadline + away;
        }
        let due = std::mem::take(&mut leases.due);
        leases.due = due
            .into_iter()
            .map(|(at, lease)| (at + away, lease))
            .collect();
        let samples = &mut self.samples;
        let lapses = std::mem::take(&mut samples.lapses);
        samples.lapses = lapses
            .into_iter()
            .map(|(at, sample)| (at + away, sample))
            .collect();
        for sample in samples.flying.values_mut() {
            if let Holder::Waits { lapses_at, .. } = &mut sample.holder {
                *lapses_at = lapses_at.map(|at| at + away);
            }
        }
        samples.drains_since = samples.drains_since.map(|since| since + away);
        self.places.shift(away);
    }
}
