//! Which values of a chunk are kept, and a few bits about each of them.
//!
//! ```text
//!      upper bits of the places, a bitmap │ for each place: its lower bits │ what is known about its value
//! ```
//!
//! Places ascend, so their upper bits do, and are written in unary: of places with `l` lower bits, the `i`-th place `p` sets
//! bit `i + p / 2^l` of the bitmap. Of `n` values `k` are kept with the lowest `log2(n / k)` bits of each place as they are,
//! which takes `2 + log2(n / k)` bits a place where no code of any length can take less than `1.44 + log2(n / k)`; it always
//! takes as many, so that the length of an upload is known before there is one. (Elias-Fano.) Bits are counted from the lowest
//! up, and the last byte of the bitmap and of the entries is filled with zeros.
//!
//! Source: Elias, *Efficient storage and retrieval by content and address of static files* (1974).

use super::{CHUNK, Refused};

const SIGN: u32 = 1 << 31;

/// How the places of one chunk are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    elements: usize,
    /// Places, at least 1.
    pub(super) kept: usize,
    /// Bits of a place that are written as they are: 0 to 12.
    lower_bits: u32,
    /// Bits about each value.
    value_bits: u32,
}

impl Layout {
    /// For a chunk of so many elements, at least one; of a whole chunk `keep` are kept, of a shorter one the same share, rounded
    /// up.
    pub(super) const fn new(elements: usize, keep: u16, value_bits: u32) -> Self {
        let kept = (elements * keep as usize).div_ceil(CHUNK);
        Self {
            elements,
            kept,
            lower_bits: (elements / kept).ilog2(),
            value_bits,
        }
    }

    const fn bitmap_bytes(self) -> usize {
        (self.kept + ((self.elements - 1) >> self.lower_bits)).div_ceil(8)
    }

    const fn entry_bytes(self) -> usize {
        (self.kept * (self.lower_bits + self.value_bits) as usize).div_ceil(8)
    }

    pub(super) const fn length(self) -> usize {
        self.bitmap_bytes() + self.entry_bytes()
    }

    /// Appends these places, ascending, with what `value_at` says about each.
    #[inline(always)]
    pub(super) fn write(
        self,
        places: &[u64],
        bytes: &mut Vec<u8>,
        value_at: impl Fn(usize) -> u64,
    ) {
        let lower = self.lower_bits;
        let bitmap = bytes.len();
        bytes.resize(bitmap + self.bitmap_bytes(), 0);
        let (mut packed, mut filled) = (0_u64, 0);
        for (nth, &place) in places.iter().enumerate() {
            let bit = nth + (place >> lower) as usize;
            bytes[bitmap + bit / 8] |= 1 << (bit % 8);
            let value = value_at(place as usize);
            packed |= (value << lower | place & ((1 << lower) - 1)) << filled;
            filled += lower + self.value_bits;
            while filled >= 8 {
                bytes.push(packed as u8);
                packed >>= 8;
                filled -= 8;
            }
        }
        if filled > 0 {
            bytes.push(packed as u8);
        }
    }

    /// Calls `found` with each place and what is known about its value. There are as many bytes as [`Layout::length`] says, or
    /// more.
    #[inline(always)]
    pub(super) fn read(
        self,
        bytes: &[u8],
        mut found: impl FnMut(usize, u64),
    ) -> Result<(), Refused> {
        let (lower, entry_bits) = (self.lower_bits, self.lower_bits + self.value_bits);
        let (bitmap, entries) = bytes[..self.length()].split_at(self.bitmap_bytes());
        let mut entries = entries.iter();
        let (mut packed, mut filled) = (0_u64, 0);
        let (mut nth, mut next) = (0, 0);
        for (index, bits) in bitmap.iter().enumerate() {
            let mut bits = *bits;
            while bits != 0 {
                if nth == self.kept {
                    return Err(Refused::Malformed("the bitmap"));
                }
                let upper = 8 * index + bits.trailing_zeros() as usize - nth;
                bits &= bits - 1;
                while filled < entry_bits {
                    let byte = entries.next().expect("as many as were counted");
                    packed |= u64::from(*byte) << filled;
                    filled += 8;
                }
                let place = upper << lower | (packed & ((1 << lower) - 1)) as usize;
                let value = packed >> lower & ((1 << self.value_bits) - 1);
                packed >>= entry_bits;
                filled -= entry_bits;
                if place < next || place >= self.elements {
                    return Err(Refused::Malformed("a place"));
                }
                found(place, value);
                next = place + 1;
                nth += 1;
            }
        }
        if nth < self.kept {
            return Err(Refused::Malformed("the bitmap"));
        }
        if packed != 0 {
            return Err(Refused::Malformed("the last byte"));
        }
        Ok(())
    }
}

/// Where the `count` largest magnitudes are, ascending; of equal ones the first are taken.
#[inline(always)]
pub(super) fn largest<'a>(
    values: &[f32],
    count: usize,
    room: &'a mut [u64; CHUNK],
) -> &'a mut [u64] {
    /// The values are dealt to so many groups.
    const GROUPS: usize = 64;
    let key = |value: f32| value.to_bits() & !SIGN;

    // If `count` groups have a maximum of at least so much, `count` values are at least so much, and whatever is less can
    // be forgotten. That leaves about a tenth of the values, found without a branch.
    let mut maxima = [0_u32; GROUPS];
    for row in values.chunks(GROUPS) {
        for (maximum, &value) in maxima.iter_mut().zip(row) {
            *maximum = (*maximum).max(key(value));
        }
    }
    let least = if count <= GROUPS {
        maxima.sort_unstable();
        maxima[GROUPS - count]
    } else {
        0
    };
    let mut candidates = 0;
    for (place, &value) in values.iter().enumerate() {
        // Ordered by magnitude, of equal ones the first ahead.
        room[candidates] = u64::from(key(value)) << 32 | (CHUNK - 1 - place) as u64;
        candidates += usize::from(key(value) >= least);
    }
    let candidates = &mut room[..candidates];
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    }
    let places = &mut candidates[..count];
    for place in &mut *places {
        *place = (CHUNK - 1) as u64 - (*place & (CHUNK - 1) as u64);
    }
    places.sort_unstable();
    places
}
