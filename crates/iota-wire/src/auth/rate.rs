//! How often a peer calls: a token bucket each.

use std::collections::HashMap;
use std::time::Duration;

use iota_protocol::{PeerId, Timestamp};

use crate::auth::RateSettings;
use crate::error::ApiError;

/// A bucket per peer that has called lately.
///
/// A full bucket says nothing that the settings do not say, so it is dropped when room is needed. Always true: there are
/// at most `peers_max` buckets.
#[derive(Debug)]
pub(super) struct Buckets {
    settings: RateSettings,
    by_peer: HashMap<PeerId, Bucket>,
    /// Buckets are looked through for full ones at most once in the time that an empty one takes to fill.
    next_sweep: Timestamp,
}

/// What is left is kept in thousandths of a request: one millisecond adds `requests_per_second` of them.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    thousandths: u64,
    at: Timestamp,
}

impl Buckets {
    pub(super) fn new(settings: RateSettings) -> Self {
        let settings = RateSettings {
            requests_per_second: settings.requests_per_second.max(1),
            burst: settings.burst.max(1),
            ..settings
        };
        Self {
            settings,
            by_peer: HashMap::new(),
            next_sweep: Timestamp::default(),
        }
    }

    /// Counts one request of `peer`.
    pub(super) fn take(&mut self, now: Timestamp, peer: PeerId) -> Result<(), ApiError> {
        let full = Bucket {
            thousandths: self.capacity(),
            at: now,
        };
        if !self.by_peer.contains_key(&peer) && self.by_peer.len() >= self.settings.peers_max {
            self.sweep(now)?;
        }
        let refilled = self
            .by_peer
            .get(&peer)
            .map_or(full, |bucket| self.refill(*bucket, now));
        let left = refilled.thousandths.checked_sub(PER_REQUEST);
        self.by_peer.insert(
            peer,
            Bucket {
                thousandths: left.unwrap_or(refilled.thousandths),
                ..refilled
            },
        );
        if left.is_some() {
            return Ok(());
        }
        let missing = PER_REQUEST - refilled.thousandths;
        let wait_ms = missing.div_ceil(self.settings.requests_per_second.into());
        Err(ApiError::RateLimited {
            retry_after: Duration::from_millis(wait_ms),
        })
    }

    fn refill(&self, bucket: Bucket, now: Timestamp) -> Bucket {
        // A clock that is set back adds nothing and takes nothing.
        let elapsed_ms = now.as_millis().saturating_sub(bucket.at.as_millis());
        let gained = elapsed_ms.saturating_mul(self.settings.requests_per_second.into());
        Bucket {
            thousandths: bucket
                .thousandths
                .saturating_add(gained)
                .min(self.capacity()),
            at: now,
        }
    }

    fn sweep(&mut self, now: Timestamp) -> Result<(), ApiError> {
        if now >= self.next_sweep {
            let capacity = self.capacity();
            let mut by_peer = std::mem::take(&mut self.by_peer);
            by_peer.retain(|_, bucket| self.refill(*bucket, now).thousandths < capacity);
            self.by_peer = by_peer;
            self.next_sweep = now + self.time_to_fill();
        }
        if self.by_peer.len() < self.settings.peers_max {
            return Ok(());
        }
        Err(ApiError::RateLimited {
            retry_after: self.time_to_fill(),
        })
    }

    fn capacity(&self) -> u64 {
        u64::from(self.settings.burst) * PER_REQUEST
    }

    fn time_to_fill(&self) -> Duration {
        Duration::from_millis(
            self.capacity()
                .div_ceil(self.settings.requests_per_second.into()),
        )
    }
}

const PER_REQUEST: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: PeerId = PeerId::from_bytes([1; 32]);
    const BOB: PeerId = PeerId::from_bytes([2; 32]);
    const CAROL: PeerId = PeerId::from_bytes([3; 32]);

    fn buckets(peers_max: usize) -> Buckets {
        Buckets::new(RateSettings {
            requests_per_second: 10,
            burst: 3,
            peers_max,
        })
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn wait(millis: u64) -> Result<(), ApiError> {
        Err(ApiError::RateLimited {
            retry_after: Duration::from_millis(millis),
        })
    }

    #[test]
    fn after_a_burst_a_peer_waits_for_its_next_request() {
        let mut buckets = buckets(9);
        for _ in 0..3 {
            assert_eq!(buckets.take(at(0), ALICE), Ok(()));
        }
        assert_eq!(buckets.take(at(40), ALICE), wait(60));
        assert_eq!(
            buckets.take(at(40), BOB),
            Ok(()),
            "another peer is not held up"
        );
        assert_eq!(
            buckets.take(at(100), ALICE),
            Ok(()),
            "exactly as long as it was told to wait"
        );
        assert_eq!(buckets.take(at(100), ALICE), wait(100));
    }

    #[test]
    fn asking_too_early_does_not_put_the_next_request_off() {
        let mut buckets = buckets(9);
        for _ in 0..3 {
            assert_eq!(buckets.take(at(0), ALICE), Ok(()));
        }
        for millis in 0..100 {
            assert_eq!(buckets.take(at(millis), ALICE), wait(100 - millis));
        }
        assert_eq!(buckets.take(at(100), ALICE), Ok(()));
    }

    #[test]
    fn strangers_wait_when_there_is_no_room_but_known_peers_go_on() {
        let mut buckets = buckets(2);
        assert_eq!(buckets.take(at(0), ALICE), Ok(()));
        assert_eq!(buckets.take(at(0), BOB), Ok(()));
        assert_eq!(buckets.take(at(10), CAROL), wait(300));
        assert_eq!(buckets.take(at(10), ALICE), Ok(()));
        assert_eq!(buckets.by_peer.len(), 2);
        assert_eq!(
            buckets.take(at(310), CAROL),
            Ok(()),
            "idle peers are forgotten"
        );
    }
}
