//! Work that is finished when it can count no more, not even in a log: it is counted as wasted.

use crate::event::Phase;
use crate::id::{LeaseId, Session};
use crate::state::State;
use crate::work::Lease;

impl State {
    /// Nobody waits for the result of a pass any more; should it come, it was done in vain.
    pub(super) fn give_up(&mut self, lease: &Lease) {
        let banned = self.sessions.is_banned(lease.session.peer);
        if lease.work.sample().is_some() && !banned && self.phase != Phase::Over {
            self.leases.in_vain.remember(lease);
        }
    }

    pub(super) fn apply_finished_in_vain(&mut self, id: LeaseId, session: Session, passes: u32) {
        self.leases.in_vain.take(id);
        self.leases.lapsed.remove(&id);
        if let Some(state) = self.sessions.get_mut(session) {
            state.lapsed.remove(&id);
        }
        self.samples.work.refuse(passes);
    }
}
