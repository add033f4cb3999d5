//! Polls that wait for something to say: found by session, and by when they have waited long enough. Neither takes a look at
//! all of them, of which there is one for every idle peer.

use std::collections::{BTreeMap, BTreeSet};

use iota_protocol::{Session, Timestamp};

/// Values that wait, one per session, each until its time.
#[derive(Debug)]
pub(crate) struct Parked<T> {
    by_session: BTreeMap<Session, (Timestamp, T)>,
    due: BTreeSet<(Timestamp, Session)>,
}

impl<T> Default for Parked<T> {
    fn default() -> Self {
        Self {
            by_session: BTreeMap::new(),
            due: BTreeSet::new(),
        }
    }
}

impl<T> Parked<T> {
    /// Lets a session's value wait. It had none before.
    pub(crate) fn insert(&mut self, session: Session, until: Timestamp, value: T) {
        let earlier = self.by_session.insert(session, (until, value));
        debug_assert!(earlier.is_none(), "{session} waits twice");
        self.due.insert((until, session));
    }

    /// What waits for a session, which waits no longer.
    pub(crate) fn remove(&mut self, session: Session) -> Option<T> {
        let (until, value) = self.by_session.remove(&session)?;
        self.due.remove(&(until, session));
        Some(value)
    }

    /// One that has waited until `now`, which waits no longer.
    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<T> {
        let (_, session) = *self.due.first().filter(|(until, _)| *until <= now)?;
        self.remove(session)
    }

    /// One of those that wait, which waits no longer.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (_, session) = *self.due.first()?;
        self.remove(session)
    }

    /// When the first has waited long enough.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(until, _)| *until)
    }
}

#[cfg(test)]
mod tests {
    use iota_protocol::PeerId;

    use super::*;

    #[test]
    fn those_who_have_waited_longest_come_first_and_each_comes_once() {
        let session = |name| Session {
            peer: PeerId::from_bytes([name; 32]),
            generation: 1,
        };
        let at = Timestamp::from_millis;
        let mut parked = Parked::default();
        for (name, until) in [(1, 30), (2, 10), (3, 20), (4, 10)] {
            parked.insert(session(name), at(until), name);
        }
        assert_eq!(parked.next_due(), Some(at(10)));
        assert_eq!(parked.pop_due(at(9)), None);
        assert_eq!(parked.remove(session(4)), Some(4));
        assert_eq!(parked.remove(session(4)), None);
        assert_eq!(parked.pop_due(at(20)), Some(2));
        assert_eq!(parked.pop_due(at(20)), Some(3));
        assert_eq!(parked.pop_due(at(20)), None);
        assert_eq!(parked.pop(), Some(1));
        assert_eq!((parked.pop(), parked.next_due()), (None, None));
    }
}
