//! All chance of a world, from its seed.

/// SplitMix64 (Steele, Lea and Flood, 2014): a counter that is mixed. Every seed gives another sequence, and the same one
/// on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

/// How often something happens, of so many times.
pub(crate) const OFTEN: u64 = 10_000;

impl Chance {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` to below `high`, which must be larger.
    pub(crate) const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    /// Whether something happens that does so `times` times of [`OFTEN`].
    pub(crate) const fn happens(&mut self, times: u64) -> bool {
        // Nothing is drawn for what cannot happen, so a kind of trouble that is switched off leaves the rest as it was.
        times > 0 && self.between(0, OFTEN) < times
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let place = self.between(0, from.len() as u64);
        from[usize::try_from(place).expect("below a length")]
    }
}
