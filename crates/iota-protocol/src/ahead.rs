//! Training that goes on while a stage merges, for runs that want it.
//!
//! ```text
//!   epoch n                        │ epoch n + 1
//!   phase   Training    Uploading  │  Merging           Installing        Training
//!                                  │
//!   one     passes ───► upload ──► passes ahead ──────► install ──► passes ───► upload
//!   who keeps up          │          on what it has       │           on merged + (now - then)
//!                         └ then: what it uploaded        └ now: what has become of that
//! ```
//!
//! Whoever has uploaded works for the next epoch on the weights that it has, and puts what it learns meanwhile on top of
//! what was merged (Streaming DiLoCo, arXiv 2501.18512, applies a merge late in the same way). Everything counts towards the
//! epoch for which it is done: leases, objects, credit, quota. Samples on their way stay on their way while their stages
//! install, one after the other, so nothing is done twice for it.
//!
//! Such an epoch of a miner runs from its upload to its next one, with the installation among its operations: the miner says
//! after how many. It began with what it had sealed when it uploaded, and that is where a replay begins. Who was drawn for an
//! audit of the epoch before hands over what that takes meanwhile. Who does not in time has gone ahead in vain: from then on
//! it begins every epoch with a checkpoint and nothing else.
//!
//! Nobody goes ahead of the last merge: nothing would come of it.

use serde::{Deserialize, Serialize};

use crate::event::{Event, LeaseEnd, Phase};
use crate::id::{Epoch, Session};
use crate::state::{SessionState, State};
use crate::work::Lease;

/// Of a session that trained on after its upload: what comes of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ahead {
    /// The epoch that it works for.
    pub(crate) epoch: Epoch,
    /// Operations that it had done when it installed that epoch's checkpoint; none: it has not yet.
    pub(crate) installed_after: Option<u32>,
}

impl State {
    /// Whether this epoch is followed by another whose training may begin before this one is merged.
    const fn may_go_ahead(&self) -> bool {
        self.settings.merging.overlaps && self.epoch.get() + 1 < self.settings.epochs
    }

    /// The epoch that samples are trained for now.
    pub(crate) const fn trains_for(&self) -> Epoch {
        if matches!(self.phase, Phase::Uploading | Phase::Merging) && self.may_go_ahead() {
            self.epoch.next()
        } else {
            self.epoch
        }
    }

    /// Whether samples may be opened and leased.
    pub(crate) fn is_training(&self) -> bool {
        match self.phase {
            Phase::Training => true,
            Phase::Uploading | Phase::Merging => self.may_go_ahead(),
            Phase::Installing => {
                self.settings.merging.overlaps && self.epoch.get() < self.settings.epochs
            }
            Phase::Gathering | Phase::Settling | Phase::Over => false,
        }
    }

    /// Whether a session does its stage's passes now.
    pub(crate) fn may_train(&self, session: &SessionState) -> bool {
        let is_ready = match self.phase {
            Phase::Uploading | Phase::Merging => self.is_ahead(session),
            Phase::Installing => self.is_ahead(session) || session.is_installed(self.epoch),
            // Who has not installed by now would learn more and more about what nobody else has.
            _ => session.is_installed(self.epoch),
        };
        is_ready && self.is_training()
    }

    /// Whether a session works for the present epoch on what it had when the last one ended.
    pub(crate) fn is_ahead(&self, session: &SessionState) -> bool {
        // A checkpoint that was repaired counts as installed by nobody; what was done ahead of it stays.
        let is_odd = session.installation.is_some_and(|it| it.odd);
        let ahead = session.ahead.filter(|_| !is_odd);
        ahead.is_some_and(|ahead| {
            ahead.epoch == self.trains_for() && ahead.installed_after.is_none()
        })
    }

    /// A session has uploaded: what it does from now on is of the next epoch. Saying so twice changes nothing.
    pub(crate) fn go_ahead(&mut self, session: Session) {
        let is_uploading = self.phase == Phase::Uploading;
        let is_ahead = self.session(session).is_some_and(|it| self.is_ahead(it));
        if !is_uploading || is_ahead || !self.may_go_ahead() || !self.goes_on(session) {
            return;
        }
        // What comes late of the epoch before is in no upload.
        self.forget_lapsed_samples(session);
        let ahead = Ahead {
            epoch: self.epoch.next(),
            installed_after: None,
        };
        if let Some(state) = self.sessions.get_mut(session) {
            let began_before = state.began_with;
            state.begin_epoch(true);
            state.ahead = Some(ahead);
            state.began_before = began_before;
        }
    }

    /// Takes the passes back from a session whose work on them would be worth nothing.
    pub(crate) fn recall_passes_of(&self, session: Session) -> impl Iterator<Item = Event> {
        recall_passes(self.leases_of(session))
    }

    /// Takes the passes back from those who have not installed what the others train on from now on.
    pub(crate) fn recall_passes_of_late_installers(&self) -> impl Iterator<Item = Event> {
        recall_passes(self.leases().filter(|lease| {
            let holder = self.session(lease.session);
            holder.is_some_and(|holder| !holder.is_installed(self.epoch))
        }))
    }
}

fn recall_passes<'a>(leases: impl Iterator<Item = &'a Lease>) -> impl Iterator<Item = Event> {
    let passes = leases.filter(|lease| lease.work.sample().is_some());
    passes.map(|lease| Event::LeaseEnded {
        lease: lease.id,
        session: lease.session,
        why: LeaseEnd::Withdrawn,
    })
}
