//! Places of miners that are not held by a session: on the waiting list, and kept for those who may come back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{PeerId, Ticket};
use crate::registration::{MovedUp, PlaceEnd};
use crate::settings::{Opens, Registration};
use crate::time::Timestamp;

/// The waiting list, kept places, and whether registration is open.
///
/// Always true of it: W1 in docs/INVARIANTS.md.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Places {
    /// Who waits, in order.
    pub(crate) line: BTreeMap<Ticket, Waiting>,
    /// The line by peer.
    pub(crate) tickets: BTreeMap<PeerId, Ticket>,
    /// The next ticket.
    pub(crate) next: Ticket,
    /// Peers that hold a place in the run without a session, and when they were last heard of.
    pub(crate) kept: BTreeMap<PeerId, Timestamp>,
    /// All of these by when they were last heard of.
    pub(crate) heard: BTreeSet<(Timestamp, PeerId)>,
    /// If registration opens in windows.
    pub(crate) window: Option<Window>,
}

/// Somebody on the waiting list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) peer: PeerId,
    /// The first is 1.
    pub(crate) place: u32,
    /// To an eighth of the time for which a place is kept.
    pub(crate) heard_of: Timestamp,
    pub(crate) moved: Option<MovedUp>,
}

/// A time in which registration is open, or one in which it is not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) is_open: bool,
    pub(crate) until: Timestamp,
    /// Counts the open ones.
    pub(crate) number: u64,
}

impl Places {
    /// Nobody waits. The first window begins with the run.
    pub(crate) fn new(registration: &Registration, now: Timestamp) -> Self {
        let window = match registration.opens {
            Opens::Always | Opens::Never => None,
            Opens::Windows { open_for, .. } => Some(Window {
                is_open: true,
                until: now + open_for,
                number: 0,
            }),
        };
        Self {
            window,
            ..Self::default()
        }
    }

    pub(crate) fn begin_waiting(&mut self, peer: PeerId, ticket: Ticket, at: Timestamp) {
        let place = u32::try_from(self.line.len() + 1).unwrap_or(u32::MAX);
        let waiting = Waiting {
            peer,
            place,
            heard_of: at,
            moved: None,
        };
        self.next = ticket.next();
        self.tickets.insert(peer, ticket);
        self.heard.insert((at, peer));
        self.line.insert(ticket, waiting);
    }

    pub(crate) fn hear(&mut self, peer: PeerId, at: Timestamp) {
        let ticket = self.tickets.get(&peer);
        if let Some(waiting) = ticket.and_then(|ticket| self.line.get_mut(ticket)) {
            self.heard.remove(&(waiting.heard_of, peer));
            self.heard.insert((at, peer));
            waiting.heard_of = at;
        }
    }

    /// Somebody leaves the line, and those behind move up. Who is admitted keeps a place in the run, until it comes.
    pub(crate) fn end_waiting(&mut self, ticket: Ticket, why: PlaceEnd) {
        let Some(gone) = self.line.remove(&ticket) else {
            return;
        };
        self.tickets.remove(&gone.peer);
        self.heard.remove(&(gone.heard_of, gone.peer));
        for (_, behind) in self.line.range_mut(ticket..) {
            behind.place -= 1;
            behind.moved = Some(MovedUp {
                because_of: gone.peer,
                why,
            });
        }
        if why == PlaceEnd::Admitted {
            self.keep(gone.peer, gone.heard_of);
        }
    }

    /// A place in the run stays a peer's for a while.
    pub(crate) fn keep(&mut self, peer: PeerId, heard_of: Timestamp) {
        self.kept.insert(peer, heard_of);
        self.heard.insert((heard_of, peer));
    }

    /// The place that was kept is taken, or lapses.
    pub(crate) fn release(&mut self, peer: PeerId) {
        if let Some(heard_of) = self.kept.remove(&peer) {
            self.heard.remove(&(heard_of, peer));
        }
    }

    pub(crate) const fn change_window(&mut self, is_open: bool, until: Timestamp) {
        if let Some(window) = &mut self.window {
            *window = Window {
                is_open,
                until,
                number: window.number + is_open as u64,
            };
        }
    }

    /// Nobody could ask in this time, and no window could be used.
    pub(crate) fn shift(&mut self, by: Duration) {
        for waiting in self.line.values_mut() {
            waiting.heard_of = waiting.heard_of + by;
        }
        for heard_of in self.kept.values_mut() {
            *heard_of = *heard_of + by;
        }
        let heard = std::mem::take(&mut self.heard);
        self.heard = heard
            .into_iter()
            .map(|(at, peer)| (at + by, peer))
            .collect();
        if let Some(window) = &mut self.window {
            window.until = window.until + by;
        }
    }
}
