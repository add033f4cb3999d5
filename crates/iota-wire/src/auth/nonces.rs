//! Which requests were here before.

use std::collections::BTreeSet;

use iota_protocol::{PeerId, Timestamp};

/// Requests that were accepted and could still pass for fresh.
///
/// Always true: every accepted request is either in `seen` or not after `floor`, and `seen` has at most `max` entries.
/// So none is accepted twice, however little memory there is.
#[derive(Debug)]
pub(super) struct Nonces {
    /// By time, so that the oldest go first. A replay bears the time of the original: it is signed.
    seen: BTreeSet<(Timestamp, PeerId, [u8; 16])>,
    floor: Timestamp,
    max: usize,
}

impl Nonces {
    pub(super) fn new(max: usize, floor: Timestamp) -> Self {
        Self {
            seen: BTreeSet::new(),
            floor,
            max,
        }
    }

    /// Requests made at this time or before are refused.
    pub(super) const fn floor(&self) -> Timestamp {
        self.floor
    }

    pub(super) fn contains(&self, issued_at: Timestamp, peer: PeerId, nonce: [u8; 16]) -> bool {
        self.seen.contains(&(issued_at, peer, nonce))
    }

    pub(super) fn remember(&mut self, issued_at: Timestamp, peer: PeerId, nonce: [u8; 16]) {
        self.seen.insert((issued_at, peer, nonce));
        while self.seen.len() > self.max {
            self.forget_first();
        }
    }

    /// Makes room: what was made before `horizon` does not count as fresh any more.
    ///
    /// Should the clock be set back later, it is not taken for fresh then either.
    pub(super) fn forget_before(&mut self, horizon: Timestamp) {
        while self
            .seen
            .first()
            .is_some_and(|(issued_at, ..)| *issued_at < horizon)
        {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((issued_at, ..)) = self.seen.pop_first() {
            self.floor = self.floor.max(issued_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_request_is_accepted_twice_however_small_the_memory(
            requests in prop::collection::vec((0..50_u64, 0..4_u8), 0..200),
            horizons in prop::collection::vec(0..50_u64, 200),
            max in 1..8_usize,
        ) {
            let peer = PeerId::from_bytes([0; 32]);
            let mut nonces = Nonces::new(max, Timestamp::from_millis(0));
            let mut accepted = BTreeSet::new();
            for (request, horizon) in requests.into_iter().zip(horizons) {
                nonces.forget_before(Timestamp::from_millis(horizon));
                let (issued_at, nonce) = (Timestamp::from_millis(request.0), [request.1; 16]);
                if issued_at > nonces.floor() && !nonces.contains(issued_at, peer, nonce) {
                    nonces.remember(issued_at, peer, nonce);
                    prop_assert!(accepted.insert(request), "accepted a second time");
                }
                prop_assert!(nonces.seen.len() <= max);
            }
        }
    }
}
