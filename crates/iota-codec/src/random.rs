//! Chance that everybody can repeat: a hash of a seed and a position.
//!
//! Whoever encodes the same values with the same seed must get the same bytes, in whatever order, on however many lanes
//! it goes through them. So there is no state that is carried from one value to the next: every value's chance is a
//! function of where it stands. Per row two words are made with care, once; per value some six instructions follow that
//! every vector unit has for 32-bit lanes.

/// Where the rounding of a tensor gets its chance from. Tensors that are encoded with the same seed round alike, so each
/// should have its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seed(u64);

impl Seed {
    /// A seed; every number is as good as any other.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
}

/// The chance of one row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowChance {
    start: u32,
    twist: u32,
}

impl RowChance {
    /// Source: the output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), here over seed and row.
    pub(crate) const fn new(seed: Seed, row: usize) -> Self {
        let mut word = seed
            .0
            .wrapping_add((row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        Self {
            start: word as u32,
            twist: (word >> 32) as u32,
        }
    }

    /// 32 bits for the value at `position`.
    ///
    /// A Weyl sequence through the finaliser of MurmurHash3 (Appleby). The twist between its two rounds keeps rows apart
    /// whose sequences happen to overlap.
    #[inline(always)]
    pub(crate) const fn bits(self, position: u32) -> u32 {
        let mut word = self.start.wrapping_add(position.wrapping_mul(0x9e37_79b9));
        word = (word ^ word >> 16).wrapping_mul(0x85eb_ca6b) ^ self.twist;
        word = (word ^ word >> 13).wrapping_mul(0xc2b2_ae35);
        word ^ word >> 16
    }
}

/// `value` rounded to one of its two neighbouring whole numbers, to the upper one with a probability that is the
/// fraction: the mean over all `chance` is `value`, to 2^-16. Magnitudes of at most 127.
///
/// In fixed point with 15 bits after the point. Between 256 and 512 neighbouring f32 are 2^-15 apart: a sum that lies there
/// has the fixed-point number in its lowest bits. (Every vector unit adds; not every compiler makes vectors of
/// conversions that have to mind infinities.)
#[inline(always)]
pub(crate) const fn round(value: f32, chance: u32) -> i32 {
    const MIDDLE: f32 = 384.0;
    let fixed = (value + MIDDLE).to_bits().wrapping_sub(MIDDLE.to_bits());
    fixed.wrapping_add(chance >> 17).cast_signed() >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_stays_itself_whatever_the_chance() {
        for value in -127..=127_i32 {
            for chance in [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                assert_eq!(round(value as f32, chance), value);
            }
        }
    }

    #[test]
    fn a_fraction_is_the_share_of_chances_that_round_up() {
        for (value, up) in [(3.25, 4), (-3.25, -3), (126.25, 127), (-0.25, 0)] {
            let share = (0..1000_u32)
                .filter(|&step| round(value, step * (u32::MAX / 1000)) == up)
                .count();
            let expected = f64::from(value - (value.floor())) * 1000.0;
            assert!((share as f64 - expected).abs() <= 1.0, "{value}: {share}");
        }
    }

    #[test]
    fn every_bit_of_chance_is_set_half_of_the_time_and_rows_are_unlike() {
        let rows = [0, 1, 2, 1 << 20].map(|row| RowChance::new(Seed::new(7), row));
        for row in rows {
            for bit in 0..32 {
                let set = (0..10_000).filter(|&at| row.bits(at) >> bit & 1 == 1);
                // Six standard deviations, which are 50 each.
                assert!(set.count().abs_diff(5_000) < 300, "bit {bit}");
            }
        }
        for pair in rows.windows(2) {
            for bit in 0..32 {
                let alike =
                    (0..10_000).filter(|&at| (pair[0].bits(at) ^ pair[1].bits(at)) >> bit & 1 == 0);
                assert!(alike.count().abs_diff(5_000) < 300, "bit {bit}");
            }
        }
    }

    #[test]
    fn neighbours_are_independent() {
        let row = RowChance::new(Seed::new(3), 5);
        for distance in [1, 2, 8, 64] {
            for bit in 8..32 {
                let alike = (0..10_000)
                    .filter(|&at| (row.bits(at) ^ row.bits(at + distance)) >> bit & 1 == 0);
                assert!(alike.count().abs_diff(5_000) < 300, "{distance}, bit {bit}");
            }
        }
    }
}
