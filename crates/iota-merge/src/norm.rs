//! Lengths of copies, and copies scaled down to the usual length.
//!
//! ```text
//!   |x|  =  sqrt( x_0² + x_1² + ... )          squares and sums in f64
//! ```
//!
//! A floating-point sum depends on its order, so the order is part of the definition: in blocks of 4096 elements, 16
//! partial sums take every 16th element each, the 16 are added as a tree (8 pairs at distance 8, 4 at distance 4, ...),
//! and the sums of the blocks are added one after the other. That is the same on every machine, and wide enough for any
//! vector.
//!
//! Unlike an average, a length belongs to a whole range: who merges a range in two pieces clips each by its own length.
//! In a run the range is a cell, so both owners of a cell see the same lengths.

use crate::element::Element;
use crate::rule::Part;
use crate::vector::{Kernel, dispatch};

/// Elements of a block of the sum.
pub(crate) const BLOCK: usize = 4096;
/// Partial sums.
pub(crate) const LANES: usize = 16;

/// The Euclidean length of a copy, in the order that the [module](self) defines. Not finite only if an element is not:
/// the squares of f32 do not overflow in f64.
///
/// ```
/// assert_eq!(iota_merge::norm(&[3.0_f32, 4.0]), 5.0);
/// ```
#[must_use]
pub fn norm<E: Element>(elements: &[E]) -> f64 {
    length_of(&Part::whole(elements))
}

/// The length of a copy after clipping.
pub(crate) fn length_of<E: Element>(part: &Part<'_, E>) -> f64 {
    dispatch(Length(part))
}

struct Length<'a, E>(&'a Part<'a, E>);

impl<E: Element> Kernel for Length<'_, E> {
    type Output = f64;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> f64 {
        let mut values = [0.0; BLOCK];
        let mut total = 0.0;
        for start in (0..self.0.elements.len()).step_by(BLOCK) {
            let length = BLOCK.min(self.0.elements.len() - start);
            let values = &mut values[..length];
            self.0.read(start, values);
            total += sum_of_squares(values);
        }
        total.sqrt()
    }
}

/// The sum of the squares of a block, in the order of the module.
#[inline(always)]
pub(crate) fn sum_of_squares<X: Copy + Into<f64>>(block: &[X]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (rows, rest) = block.as_chunks::<LANES>();
    for row in rows {
        for (lane, x) in lanes.iter_mut().zip(row) {
            let x: f64 = (*x).into();
            *lane += x * x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        let x: f64 = (*x).into();
        *lane += x * x;
    }
    tree(lanes)
}

/// The sum of the lanes, as a tree.
#[inline(always)]
pub(crate) fn tree(mut lanes: [f64; LANES]) -> f64 {
    let mut distance = LANES / 2;
    while distance > 0 {
        for lane in 0..distance {
            lanes[lane] += lanes[lane + distance];
        }
        distance /= 2;
    }
    lanes[0]
}

/// The middle one of finite numbers, or the mean of the middle two. 0 of none.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let (count, half) = (numbers.len(), numbers.len() / 2);
    match count {
        0 => 0.0,
        _ if count % 2 == 1 => numbers[half],
        _ => (numbers[half - 1] + numbers[half]) / 2.0,
    }
}

/// By what each of several lengths is multiplied so that none is longer than `longest`: 1 or less.
pub(crate) fn shrinking(norms: &[f64], longest: f64) -> Vec<f64> {
    norms
        .iter()
        .map(|&norm| if norm > longest { longest / norm } else { 1.0 })
        .collect()
}
