//! Copies for tests.

use iota_merge::{Clip, Rule, WeightedCopy};
use proptest::prelude::*;

pub(crate) type Owned = (Vec<f32>, u64);

/// Every rule.
pub(crate) const RULES: [Rule; 7] = [
    Rule::WeightedMean,
    Rule::GeometricMean,
    Rule::Median,
    Rule::TRIMMED,
    Rule::TrimmedMean { trim_percent: 30 },
    Rule::CLIPPED,
    Rule::Radial,
];

pub(crate) const CLIPS: [Clip; 2] = [Clip::None, Clip::MedianNorm];

/// Several copies of several tiles and a piece of one. Values are derived from a seed, which is much faster than drawing
/// each: of every eight one is a zero of either sign, and one is tiny.
pub(crate) fn copies() -> impl Strategy<Value = Vec<Owned>> {
    let weights = prop::collection::vec(1..1000_u64, 1..20);
    (weights, 0..300_usize, any::<u64>()).prop_map(|(weights, elements, seed)| {
        let copy = |(nth, weight)| (tensor(seed ^ (nth << 40), elements), weight);
        (0_u64..).zip(weights).map(copy).collect()
    })
}

/// The values of one of [`copies`].
pub(crate) fn tensor(seed: u64, elements: usize) -> Vec<f32> {
    let value = |x: f32| match x.to_bits() % 16 {
        0 => 0.0,
        1 => -0.0,
        2 | 3 => x * 1e-6,
        _ => x,
    };
    noise(seed, elements).into_iter().map(value).collect()
}

pub(crate) fn borrowed(copies: &[Owned]) -> Vec<WeightedCopy<'_>> {
    copies
        .iter()
        .map(|(elements, weight)| WeightedCopy {
            elements,
            weight: *weight,
        })
        .collect()
}

/// Equality of bits, which `==` is not: it takes the two zeros for one.
pub(crate) fn bits(elements: &[f32]) -> Vec<u32> {
    elements.iter().map(|x| x.to_bits()).collect()
}

/// Numbers that look like noise, the same on every machine: nearly normal, with deviation 1.
pub(crate) fn noise(seed: u64, elements: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5
    };
    (0..elements)
        .map(|_| (0..12).map(|_| uniform()).sum())
        .collect()
}

/// The Euclidean distance.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    squares.sum::<f64>().sqrt()
}
