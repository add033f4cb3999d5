//! The loops of the weighted mean.
//!
//! ```text
//!                  block
//!                 ├─────┤
//!   copy 0   ▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░     ▓ read       ▒ asked for, on its way from memory
//!   copy 1   ▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░
//!     ...
//!   copy 7   ▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░
//!                   │ sums stay in registers; a further group of copies finds them in the tile
//!                   ▼
//!   merged   ▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░░░     written once, and not read again
//! ```
//!
//! The compiler makes good vectors of this. What took the time was memory: a processor guesses what is read next, but not
//! well enough for eight copies at once; it does not go on when too many of its stores wait for their lines; and it waits
//! for all of them if what was just stored is read back, as a look at whether the mean is finite did. Hence the requests
//! for lines of copies and of the mean, and the largest magnitudes that are kept beside it.

use crate::element::Element;
use crate::mean::NOTHING;
use crate::quarantine::{EXPONENT, SIGN, is_all_finite};
use crate::rule::Part;
use crate::vector::{Kernel, dispatch, fetch_early, fused};

/// Elements whose sums are made side by side. Their sums (8 KiB) and a copy's elements stay in L1, so that the copies are
/// streamed through once and nothing else moves.
const COLUMNS: usize = 1024;

/// Elements between two requests for memory: a cache line of a bf16 copy, two of an f32 copy.
const BLOCK: usize = 32;

/// How far ahead of the sums memory is asked for. In trials with bf16 one and two KiB did best; half and four gained less.
const AHEAD_BYTES: usize = 1024;

/// Weights below this have at most 29 bits; with the 24 of an f32 their product fits into the 53 of an f64.
const EXACT: f64 = (1_u32 << 29) as f64;

/// Writes the mean of what takes part. `total` is the sum of the weights. `false` if it is not finite: finite f32 never
/// overflow the sums, and a NaN or infinity in a sum never leaves it, so it is finite if and only if all copies are.
pub(crate) fn mean_of_parts<E: Element>(
    parts: &[Part<'_, E>],
    total: f64,
    merged: &mut [f32],
) -> bool {
    dispatch(Mean {
        parts,
        is_unclipped: parts.iter().all(|part| part.factor == 1.0),
        total,
        merged,
    })
}

struct Mean<'a, E> {
    parts: &'a [Part<'a, E>],
    is_unclipped: bool,
    total: f64,
    merged: &'a mut [f32],
}

impl<E: Element> Kernel for Mean<'_, E> {
    type Output = bool;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> bool {
        let fused = FUSED && self.parts.iter().all(|part| part.weight < EXACT);
        match (fused, self.is_unclipped) {
            (true, true) => self.unclipped::<true>(),
            (false, true) => self.unclipped::<false>(),
            (true, false) => self.clipped::<true>(),
            (false, false) => self.clipped::<false>(),
        }
    }
}

impl<E: Element> Mean<'_, E> {
    #[inline(always)]
    fn unclipped<const FUSED: bool>(self) -> bool {
        let (eights, rest) = self.parts.as_chunks::<8>();
        let (fours, ones) = rest.as_chunks::<4>();
        let (ones, _) = ones.as_chunks::<1>();
        let groups = eights.len() + fours.len() + ones.len();
        let mut sums = [0.0; COLUMNS];
        let mut largest = [0; BLOCK];
        for (tile, merged) in self.merged.chunks_mut(COLUMNS).enumerate() {
            let mut tile = Tile {
                start: tile * COLUMNS,
                sums: &mut sums[..merged.len()],
                merged,
                largest: &mut largest,
            };
            let mut turns = (0..groups).map(|group| Turn {
                is_first: group == 0,
                // The last copies are divided at once: a division takes its time beside sums, and on its own after them.
                total: (group + 1 == groups).then_some(self.total),
            });
            for (eight, turn) in eights.iter().zip(&mut turns) {
                tile.add::<FUSED, E, 8>(eight, turn);
            }
            for (four, turn) in fours.iter().zip(&mut turns) {
                tile.add::<FUSED, E, 4>(four, turn);
            }
            for (one, turn) in ones.iter().zip(&mut turns) {
                tile.add::<FUSED, E, 1>(one, turn);
            }
        }
        largest.iter().all(|magnitude| *magnitude < EXPONENT)
    }

    #[inline(always)]
    fn clipped<const FUSED: bool>(self) -> bool {
        let mut sums = [0.0; COLUMNS];
        let mut values = [0.0; COLUMNS];
        let mut is_finite = true;
        for (tile, merged) in self.merged.chunks_mut(COLUMNS).enumerate() {
            let sums = &mut sums[..merged.len()];
            let values = &mut values[..merged.len()];
            sums.fill(NOTHING);
            for part in self.parts {
                part.read(tile * COLUMNS, values);
                add_one::<FUSED, f32>(sums, values, part.weight);
            }
            for (mean, sum) in merged.iter_mut().zip(&*sums) {
                *mean = (sum / self.total) as f32;
            }
            is_finite &= is_all_finite(merged);
        }
        is_finite
    }
}

/// Elements that all copies are added up for before the next ones.
struct Tile<'a> {
    /// Where it starts in the copies.
    start: usize,
    /// From one group of copies to the next.
    sums: &'a mut [f64],
    merged: &'a mut [f32],
    /// The largest magnitudes among all means so far, as bits; of every 32nd element each.
    largest: &'a mut [u32; BLOCK],
}

/// Which of the groups of copies is being added.
#[derive(Clone, Copy)]
struct Turn {
    /// There are no sums yet.
    is_first: bool,
    /// With what the last ones are divided. Then the mean is written in place of the sums.
    total: Option<f64>,
}

impl Tile<'_> {
    /// Adds several unclipped copies, one after the other. The sums are fetched once for all of them, and memory is read at
    /// as many places at once, as it likes to be.
    #[inline(always)]
    fn add<const FUSED: bool, E: Element, const COPIES: usize>(
        &mut self,
        parts: &[Part<'_, E>; COPIES],
        turn: Turn,
    ) {
        let weights = parts.map(|part| part.weight);
        let end = self.start + self.sums.len();
        let copies = parts.map(|part| part.elements[self.start..end].as_chunks::<BLOCK>());
        let (sums, rest_of_sums) = self.sums.as_chunks_mut::<BLOCK>();
        let start_of_merged = self.merged.as_ptr();
        let (merged, rest_of_merged) = self.merged.as_chunks_mut::<BLOCK>();
        for (index, (sums, merged)) in sums.iter_mut().zip(merged).enumerate() {
            let done = index * BLOCK;
            for part in parts {
                let read = part.elements.as_ptr().wrapping_add(self.start + done);
                fetch_early(read.wrapping_byte_add(AHEAD_BYTES), BLOCK);
            }
            if turn.total.is_some() {
                let written = start_of_merged.wrapping_add(done);
                fetch_early(written.wrapping_byte_add(AHEAD_BYTES), BLOCK);
            }
            let copies = copies.map(|(blocks, _)| &blocks[index]);
            add_block::<FUSED, E, COPIES, BLOCK>(sums, copies, weights, turn, merged, self.largest);
        }
        let [largest, ..] = self.largest;
        let rest = rest_of_sums.iter_mut().zip(rest_of_merged);
        for (index, (sum, merged)) in rest.enumerate() {
            add_block::<FUSED, E, COPIES, 1>(
                std::array::from_mut(sum),
                copies.map(|(_, rest)| std::array::from_ref(&rest[index])),
                weights,
                turn,
                std::array::from_mut(merged),
                std::array::from_mut(largest),
            );
        }
    }
}

#[inline(always)]
fn add_block<const FUSED: bool, E: Element, const COPIES: usize, const WIDTH: usize>(
    sums: &mut [f64; WIDTH],
    copies: [&[E; WIDTH]; COPIES],
    weights: [f64; COPIES],
    turn: Turn,
    merged: &mut [f32; WIDTH],
    largest: &mut [u32; WIDTH],
) {
    if turn.is_first {
        *sums = [NOTHING; WIDTH];
    }
    let sum_of = |index: usize, sum: f64| {
        let add = |sum, copy: usize| {
            let x = f64::from(copies[copy][index].to_f32());
            fused::<FUSED>(weights[copy], x, sum)
        };
        (0..COPIES).fold(sum, add)
    };
    if let Some(total) = turn.total {
        // Not into `merged` at once: that it is none of the copies would have to be found out for each block.
        let mut means = [0.0; WIDTH];
        for index in 0..WIDTH {
            let mean = (sum_of(index, sums[index]) / total) as f32;
            means[index] = mean;
            largest[index] = largest[index].max(mean.to_bits() & !SIGN);
        }
        *merged = means;
    } else {
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = sum_of(index, *sum);
        }
    }
}

/// `sums += weight * copy`. The lengths are equal.
pub(super) fn add<E: Element>(sums: &mut [f64], copy: &[E], weight: f64) {
    dispatch(Add { sums, copy, weight });
}

struct Add<'a, E> {
    sums: &'a mut [f64],
    copy: &'a [E],
    weight: f64,
}

impl<E: Element> Kernel for Add<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        add_one::<false, E>(self.sums, self.copy, self.weight);
    }
}

#[inline(always)]
fn add_one<const FUSED: bool, E: Element>(sums: &mut [f64], copy: &[E], weight: f64) {
    for (sum, x) in sums.iter_mut().zip(copy) {
        *sum = fused::<FUSED>(weight, f64::from(x.to_f32()), *sum);
    }
}
