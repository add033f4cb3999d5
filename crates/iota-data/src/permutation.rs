//! A shuffled order of `0..len` that takes no memory, whatever `len` is.
//!
//! A Feistel network turns a round function, however lossy, into a permutation of all numbers of an even count of bits.
//! The fewest such numbers that cover `0..len` are up to four times as many; a result outside is fed in again until one
//! is inside ("cycle walking"). It ends, because the walk follows a cycle that began inside, and after four steps on
//! average at most.
//!
//! This is for spreading samples, not for secrets. Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains"
//! (2002), the generalised-Feistel construction with cycle walking.

/// Rounds of the network. Four are the least that mix both halves into both; a few more keep very short orders, where a
/// half is one or two bits, from being alike.
const ROUNDS: usize = 8;

/// A permutation of `0..len`.
#[derive(Debug, Clone)]
pub(crate) struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation that these labels choose. Equal labels give equal permutations on every platform.
    pub(crate) fn new(len: u64, labels: [u64; 3]) -> Self {
        let mut hasher =
            blake3::Hasher::new_derive_key("iota-data 2026 order of windows and samples");
        for label in labels {
            hasher.update(&label.to_le_bytes());
        }
        let mut output = hasher.finalize_xof();
        let keys = std::array::from_fn(|_| {
            let mut key = [0; 8];
            output.fill(&mut key);
            u64::from_le_bytes(key)
        });
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys,
        }
    }

    /// Where the permutation puts `index`.
    ///
    /// # Panics
    /// If `index` is not below the length.
    pub(crate) fn get(&self, index: u64) -> u64 {
        assert!(
            index < self.len,
            "index {index} of a permutation of {}",
            self.len
        );
        let mut walked = self.encrypt(index);
        while walked >= self.len {
            walked = self.encrypt(walked);
        }
        walked
    }

    fn encrypt(&self, number: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// Spreads every bit over all others: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(len: u64, labels: [u64; 3]) -> Vec<u64> {
        let permutation = Permutation::new(len, labels);
        (0..len).map(|index| permutation.get(index)).collect()
    }

    proptest! {
        #[test]
        fn every_number_comes_up_once(len in 1..3000_u64, labels in any::<[u64; 3]>()) {
            let mut order = order(len, labels);
            order.sort_unstable();
            prop_assert!(order.into_iter().eq(0..len));
        }

        #[test]
        fn numbers_stay_inside_at_any_length(len in 1..=u64::MAX, index in any::<u64>(), labels in any::<[u64; 3]>()) {
            prop_assert!(Permutation::new(len, labels).get(index % len) < len);
        }
    }

    #[test]
    fn all_orders_of_three_come_up_about_equally_often() {
        let mut counts = std::collections::BTreeMap::new();
        for label in 0..6000 {
            *counts.entry(order(3, [label, 0, 0])).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(
            counts.values().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn neighbours_do_not_stay_neighbours() {
        let order = order(10_000, [1, 2, 3]);
        let together = order
            .windows(2)
            .filter(|pair| pair[0].abs_diff(pair[1]) == 1)
            .count();
        assert!(together < 15, "{together} of 10,000 pairs; 2 are expected");
    }

    /// All who take part must agree on the order, so it must never change. Recorded when it was first fixed.
    #[test]
    fn the_order_is_pinned() {
        assert_eq!(order(10, [1, 2, 3]), [2, 6, 0, 4, 7, 1, 5, 3, 9, 8]);
    }
}
