//! Which instructions a processor has changes no bit.

use proptest::prelude::*;

use crate::vector::{Instructions, with_at_most};
use crate::{Clip, Codec, Element, Feedback, Outer, Rule, WeightedCopy, norm, weighted_mean};

const ELEMENTS: usize = 5000;

/// Numbers of many magnitudes, of both signs, the same on every machine.
fn numbers(seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bits = (state >> 32) as u32;
        // Exponents from -31 to 32.
        f32::from_bits((bits & 0x9fff_ffff) | 0x3000_0000)
    };
    (0..ELEMENTS).map(|_| next()).collect()
}

fn bits(elements: &[f32]) -> Vec<u32> {
    elements.iter().map(|x| x.to_bits()).collect()
}

/// The same for every limit.
fn check<T: PartialEq + std::fmt::Debug>(what: &str, work: impl Fn() -> T) {
    let portable = with_at_most(Instructions::Portable, &work);
    for limit in [Instructions::Avx2, Instructions::Avx512] {
        assert!(
            with_at_most(limit, &work) == portable,
            "{what}, {limit:?}: other bits than without"
        );
    }
}

fn check_rules<E: Element>(what: &str, copies: &[Vec<E>]) {
    // Up to 13 copies and weights of up to 40 bits: groups of eight, of four, single ones; exact products and rounded ones.
    for (count, shift) in [(1, 0), (5, 0), (13, 0), (13, 37)] {
        let copies: Vec<WeightedCopy<'_, E>> = copies[..count]
            .iter()
            .zip(1..)
            .map(|(elements, weight)| WeightedCopy {
                elements,
                weight: (weight << shift) | 1,
            })
            .collect();
        for rule in [
            Rule::WeightedMean,
            Rule::GeometricMean,
            Rule::Median,
            Rule::TRIMMED,
            Rule::CLIPPED,
            Rule::Radial,
        ] {
            for clip in [Clip::None, Clip::MedianNorm] {
                check(&format!("{rule:?} {clip:?} of {count} {what}"), || {
                    bits(&rule.merge(&copies, clip).unwrap().elements)
                });
            }
        }
    }
}

#[test]
fn every_rule_gives_the_same_bits_with_any_instructions() {
    let values: Vec<Vec<f32>> = (0..13).map(numbers).collect();
    let halves: Vec<Vec<[u8; 2]>> = values
        .iter()
        .map(|copy| {
            let half = |x: &f32| ((x.to_bits() >> 16) as u16).to_le_bytes();
            copy.iter().map(half).collect()
        })
        .collect();
    check_rules("f32", &values);
    check_rules("bf16", &halves);
    check("norm", || norm(&values[3]).to_bits());
}

#[test]
fn every_codec_gives_the_same_bytes_with_any_instructions() {
    let values = numbers(3);
    for codec in [
        Codec::F32,
        Codec::Bf16,
        Codec::Int8,
        Codec::LowRank {
            rank: 3,
            columns: 70,
        },
        Codec::TOP_64,
        Codec::Sparse,
        Codec::SIGNS,
        Codec::Ternary,
    ] {
        check(&codec.to_string(), || {
            let mut residual = numbers(4);
            let feedback = Feedback {
                residual: &mut residual,
                decay: 0.95,
            };
            let bytes = codec.encode(&values, Some(feedback)).unwrap();
            let decoded = codec.decode(&bytes, ELEMENTS).unwrap();
            (bits(&decoded), bits(&residual), bytes)
        });
    }
}

#[test]
fn an_outer_step_gives_the_bits_that_are_written_down() {
    let outer = Outer::Nesterov {
        learning_rate: 0.7,
        momentum: 0.9,
        warmup_from: 0.5,
        warmup_rounds: 20,
    };
    let mut momentum = numbers(1);
    let stepped = outer.step(&numbers(2), &numbers(3), &mut momentum, 7);
    let (anchor, delta, before) = (numbers(2), numbers(3), numbers(1));
    let factor = 0.5 + (f64::from(0.9_f32) - 0.5) * (7.0 / 20.0);
    for (index, found) in stepped.unwrap().into_iter().enumerate() {
        let g = f64::from(delta[index]);
        let b = (factor * f64::from(before[index]) + g) as f32;
        let step = f64::from(0.7_f32) * (g + factor * f64::from(b));
        assert_eq!(momentum[index].to_bits(), b.to_bits());
        let expected = (f64::from(anchor[index]) - step) as f32;
        assert_eq!(found.to_bits(), expected.to_bits());
    }
}

/// Below and above the weight from which on a product with an f32 may be rounded, just there, and all others.
fn weights() -> impl Strategy<Value = Vec<u64>> {
    let count = 1..12_usize;
    prop_oneof![
        prop::collection::vec((1_u64 << 29) - 3..(1 << 29) + 3, count.clone()),
        prop::collection::vec(1_u64 << 28..1 << 31, count.clone()),
        prop::collection::vec(1..1000_u64, count.clone()),
        prop::collection::vec(1..=u64::MAX, count),
    ]
}

/// Finite f32 of every exponent; one of eight is zero or subnormal, with either sign, and so is its upper half.
fn elements(seed: u64, length: usize) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bits = (state >> 32) as u32;
        match (state >> 29) & 15 {
            0 => bits & 0x8000_0000,
            1 => bits & 0x807f_ffff,
            _ if bits & 0x7f80_0000 == 0x7f80_0000 => bits ^ 0x4000_0000,
            _ => bits,
        }
    };
    (0..length).map(|_| next()).collect()
}

/// The formula, without a group, block, tile, fused product or chosen instruction.
fn naive<E: Element>(copies: &[WeightedCopy<'_, E>]) -> Vec<u32> {
    let total = copies
        .iter()
        .map(|copy| u128::from(copy.weight))
        .sum::<u128>() as f64;
    let mean = |index: usize| {
        let products = copies
            .iter()
            .map(|copy| copy.weight as f64 * f64::from(copy.elements[index].to_f32()));
        let sum = products.reduce(|sum, product| sum + product).unwrap();
        ((sum / total) as f32).to_bits()
    };
    (0..copies[0].elements.len()).map(mean).collect()
}

fn check_mean<E: Element>(chosen: &[(Vec<u32>, u64)], element: impl Fn(u32) -> E) {
    let elements: Vec<Vec<E>> = chosen
        .iter()
        .map(|(bits, _)| bits.iter().map(|bits| element(*bits)).collect())
        .collect();
    let weighted: Vec<WeightedCopy<'_, E>> = elements
        .iter()
        .zip(chosen)
        .map(|(elements, (_, weight))| WeightedCopy {
            elements,
            weight: *weight,
        })
        .collect();
    let expected = naive(&weighted);
    for limit in [
        Instructions::Portable,
        Instructions::Avx2,
        Instructions::Avx512,
    ] {
        let merged = with_at_most(limit, || weighted_mean(&weighted).unwrap());
        assert!(merged.left_out.is_empty(), "{limit:?}: all are finite");
        assert_eq!(bits(&merged.elements), expected, "{limit:?}");
    }
}

proptest! {
    /// Up to 22 copies, so that there are groups of eight, of four and single ones; lengths around those of blocks and tiles.
    /// Half of the time the second half of the copies is the first one with other signs: what is left of their sum is what
    /// was rounded, and a product that was fused although it is not exact shows.
    #[test]
    fn the_weighted_mean_has_the_bits_of_a_plain_loop_in_f64_with_any_instructions(
        weights in weights(),
        seed in any::<u64>(),
        length in prop_oneof![1..70_usize, 1000..1100_usize, 2040..2100_usize],
        cancels in any::<bool>(),
    ) {
        let copies = weights.into_iter().enumerate().map(|(copy, weight)| (elements(seed ^ copy as u64, length), weight));
        let mut copies: Vec<_> = copies.collect();
        if cancels {
            let negated = |(bits, weight): &(Vec<u32>, u64)| (bits.iter().map(|bits| bits ^ 0x8000_0000).collect(), *weight);
            copies.extend(copies.iter().map(negated).collect::<Vec<_>>());
        }
        check_mean(&copies, |bits| ((bits >> 16) as u16).to_le_bytes());
        check_mean(&copies, f32::from_bits);
    }
}
