//! Numbers of a world, from its seed.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// A stream of numbers: the same one for the same seed and name, on every machine.
#[derive(Debug)]
pub(crate) struct Chance(ChaCha8Rng);

impl Chance {
    /// The stream of `name`: what one part of a world draws moves nothing that another part draws.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let named = format!("iota-turmoil {seed} {name}");
        let digest = iota_protocol::Digest::of(named.as_bytes());
        Self(ChaCha8Rng::from_seed(*digest.as_bytes()))
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from `low` to below `high`, which must be larger.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.number() % (high - low)
    }

    /// Whether something happens that does so in `percent` of all cases.
    pub(crate) fn happens(&mut self, percent: u64) -> bool {
        self.between(0, 100) < percent
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let place = self.between(0, from.len() as u64);
        from[usize::try_from(place).expect("below a length")]
    }

    /// So many milliseconds, from `low` to below `high`.
    pub(crate) fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }
}
