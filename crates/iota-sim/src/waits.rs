//! The waiting list as those on it see it, and as the journal has it.

use std::collections::BTreeMap;

use iota_protocol::registration::{Place, PlaceEnd};
use iota_protocol::{Event, PeerId, Ticket, Timestamp};

/// What each peer was last told of its place, over all its processes and those of the orchestrator.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeMap<PeerId, (Ticket, u32)>);

impl Told {
    /// An answer has reached a peer.
    ///
    /// # Errors
    /// If its place is worse than it was told before.
    pub(crate) fn note(&mut self, peer: PeerId, place: Place) -> Result<(), String> {
        let now = (place.ticket, place.place);
        match self.0.insert(peer, now) {
            Some(before) if before.0 == now.0 && before.1 < now.1 || before.0 > now.0 => {
                Err(format!("W3: {peer} was told {before:?}, and then {now:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// What became of places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Places {
    /// Peers that had to wait.
    pub waited: u64,
    /// Those of them that got a place in the run.
    pub admitted: u64,
    /// Places, on the waiting list or kept in the run, that nobody came for.
    pub expired: u64,
    /// Windows of registration that opened, but for the first.
    pub windows: u64,
}

impl Places {
    pub(crate) fn of(journal: &[(Timestamp, Event)]) -> Self {
        let mut places = Self::default();
        for (_, event) in journal {
            match event {
                Event::WaitBegan { .. } => places.waited += 1,
                Event::WaitEnded { why, .. } | Event::PlaceLapsed { why, .. } => match why {
                    PlaceEnd::Admitted => places.admitted += 1,
                    PlaceEnd::Expired => places.expired += 1,
                    PlaceEnd::Banned | PlaceEnd::RunOver => {}
                },
                Event::RegistrationChanged { is_open: true, .. } => places.windows += 1,
                _ => {}
            }
        }
        places
    }
}

impl std::ops::AddAssign for Places {
    fn add_assign(&mut self, other: Self) {
        self.waited += other.waited;
        self.admitted += other.admitted;
        self.expired += other.expired;
        self.windows += other.windows;
    }
}
