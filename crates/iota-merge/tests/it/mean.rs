//! What holds for the weighted mean, whatever the copies are.

use iota_merge::{
    Accumulator, Error, Merged, Quarantined, WeightedCopy, cut, weighted_mean, weighted_mean_into,
};
use proptest::prelude::*;

/// Any finite f32s: every exponent is as likely as the others, and so both zeros, subnormals and extremes are there.
fn tensor(elements: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(any::<u32>(), elements)
        .prop_map(|bits| bits.into_iter().map(finite).collect())
}

fn finite(bits: u32) -> f32 {
    match f32::from_bits(bits) {
        _ if bits.is_multiple_of(32) => f32::from_bits(bits & 0x8000_0000),
        _ if bits % 32 == 1 => f32::MAX.copysign(f32::from_bits(bits)),
        x if x.is_finite() => x,
        _ => f32::from_bits(bits & 0x807f_ffff),
    }
}

/// Weights that occur (backward passes of an epoch) and all others.
fn weight() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..1000_u64, 1 => 1..=u64::MAX, 1 => Just(u64::MAX), 1 => Just(1_u64 << 53 | 1)]
}

/// Up to 6 copies of up to 5000 elements, which is several of the chunks that the mean is computed in.
fn copies() -> impl Strategy<Value = Vec<(Vec<f32>, u64)>> {
    (1..7_usize, 0..5000_usize).prop_flat_map(|(copies, elements)| {
        prop::collection::vec((tensor(elements), weight()), copies)
    })
}

fn borrowed(copies: &[(Vec<f32>, u64)]) -> Vec<WeightedCopy<'_>> {
    copies
        .iter()
        .map(|(elements, weight)| WeightedCopy {
            elements,
            weight: *weight,
        })
        .collect()
}

fn streamed(copies: &[WeightedCopy<'_>]) -> Result<Merged, Error> {
    let mut accumulator = Accumulator::new(copies[0].elements.len());
    for copy in copies {
        accumulator.add(copy.elements, copy.weight)?;
    }
    accumulator.finish()
}

/// Equality of bits, which `==` is not: it takes the two zeros for one.
fn bits(elements: &[f32]) -> Vec<u32> {
    elements.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The definition, written once more without chunks, slices or shortcuts.
    #[test]
    fn every_element_is_the_weighted_mean_in_f64(copies in copies()) {
        let merged = weighted_mean(&borrowed(&copies)).unwrap();
        let total = copies.iter().map(|(_, weight)| u128::from(*weight)).sum::<u128>() as f64;
        for (index, mean) in merged.elements.iter().enumerate() {
            let sum = copies.iter().map(|(x, weight)| *weight as f64 * f64::from(x[index])).reduce(|sum, term| sum + term);
            prop_assert_eq!(mean.to_bits(), ((sum.unwrap() / total) as f32).to_bits());
        }
    }

    /// M4.
    #[test]
    fn merging_copies_of_one_tensor_gives_that_tensor_back(
        tensor in tensor(0..5000),
        weights in prop::collection::vec(weight(), 1..60),
    ) {
        let copies: Vec<_> = weights.iter().map(|&weight| WeightedCopy { elements: &tensor, weight }).collect();
        let merged = weighted_mean(&copies).unwrap();
        prop_assert_eq!(bits(&merged.elements), bits(&tensor));
    }

    /// M3, as far as one machine can show it: no way of cutting the work changes a bit.
    #[test]
    fn merging_cells_is_merging_the_whole(copies in copies(), mut edges in prop::collection::vec(0..5000_u64, 0..8)) {
        let copies = borrowed(&copies);
        let elements = copies[0].elements.len() as u64;
        edges.iter_mut().for_each(|edge| *edge = (*edge).min(elements));
        edges.extend([0, elements]);
        edges.sort_unstable();
        let mut by_cells = Vec::new();
        for edge in edges.windows(2) {
            let cell: Vec<_> = copies
                .iter()
                .map(|copy| WeightedCopy { elements: cut(copy.elements, edge[0]..edge[1]).unwrap(), ..*copy })
                .collect();
            by_cells.extend(weighted_mean(&cell).unwrap().elements);
        }
        prop_assert_eq!(bits(&by_cells), bits(&weighted_mean(&copies).unwrap().elements));
    }

    #[test]
    fn streaming_copies_is_merging_them_at_once(
        mut copies in copies(), bad in prop::collection::vec((0..6_usize, 0..5000_usize), 0..4), idle in 0..6_usize,
    ) {
        for (copy, element) in bad {
            if let Some(element) = copies.get_mut(copy).and_then(|(elements, _)| elements.get_mut(element)) {
                *element = f32::NAN;
            }
        }
        if let Some((_, weight)) = copies.get_mut(idle) {
            *weight = 0;
        }
        let copies = borrowed(&copies);
        let (at_once, streamed) = (weighted_mean(&copies), streamed(&copies));
        if let (Ok(at_once), Ok(streamed)) = (&at_once, &streamed) {
            prop_assert_eq!(bits(&at_once.elements), bits(&streamed.elements));
        }
        prop_assert_eq!(at_once, streamed);
    }

    #[test]
    fn the_mean_lies_between_the_least_and_the_greatest(copies in copies()) {
        let copies = borrowed(&copies);
        for (index, mean) in weighted_mean(&copies).unwrap().elements.into_iter().enumerate() {
            let values = || copies.iter().map(|copy| copy.elements[index]);
            let least = values().fold(f32::INFINITY, f32::min);
            let greatest = values().fold(f32::NEG_INFINITY, f32::max);
            prop_assert!((least..=greatest).contains(&mean), "{least} <= {mean} <= {greatest}");
        }
    }

    #[test]
    fn a_copy_that_is_not_finite_is_as_if_it_had_not_come(
        copies in copies(), at in any::<prop::sample::Index>(), element in any::<prop::sample::Index>(),
        bad in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), bad_weight in any::<u64>(),
    ) {
        let elements = copies[0].0.len();
        prop_assume!(elements > 0);
        let (at, element) = (at.index(copies.len() + 1), element.index(elements));
        let mut broken = vec![1.0; elements];
        broken[element] = bad;
        let mut with = copies.clone();
        with.insert(at, (broken, bad_weight));

        let merged = weighted_mean(&borrowed(&with)).unwrap();
        prop_assert_eq!(bits(&merged.elements), bits(&weighted_mean(&borrowed(&copies)).unwrap().elements));
        prop_assert_eq!(merged.left_out, [Quarantined { copy: at, element }]);
    }
}

#[test]
fn the_greater_weight_pulls_harder() {
    let copies = [
        WeightedCopy {
            elements: &[0.0, 4.0],
            weight: 3,
        },
        WeightedCopy {
            elements: &[4.0, 0.0],
            weight: 1,
        },
    ];
    assert_eq!(weighted_mean(&copies).unwrap().elements, [1.0, 3.0]);
}

#[test]
fn sums_that_cancel_in_f32_do_not_cancel_here() {
    // In f32, 1e8 + 1 is 1e8 and the mean would be 0.
    let copies = [1e8, 1.0, -1e8].map(|x| [x]);
    let copies: Vec<_> = copies
        .iter()
        .map(|elements| WeightedCopy {
            elements,
            weight: 1,
        })
        .collect();
    assert_eq!(weighted_mean(&copies).unwrap().elements, [1.0 / 3.0]);
}

#[test]
fn a_copy_of_another_length_is_named() {
    let of = |elements| WeightedCopy {
        elements,
        weight: 1,
    };
    let copies = [of(&[1.0, 2.0]), of(&[1.0, 2.0]), of(&[1.0])];
    assert_eq!(
        weighted_mean(&copies),
        Err(Error::Length {
            copy: 2,
            expected: 2,
            found: 1
        })
    );
    assert_eq!(
        weighted_mean_into(&copies, &mut [0.0; 3]),
        Err(Error::Length {
            copy: 0,
            expected: 3,
            found: 2
        })
    );
}

#[test]
fn a_copy_of_another_length_does_not_spoil_the_accumulator() {
    let mut accumulator = Accumulator::new(1);
    accumulator.add(&[2.0], 1).unwrap();
    assert_eq!(
        accumulator.add(&[1.0, 2.0], 1),
        Err(Error::Length {
            copy: 1,
            expected: 1,
            found: 2
        })
    );
    accumulator.add(&[f32::NAN], 1).unwrap();
    let merged = accumulator.finish().unwrap();
    assert_eq!(
        merged,
        Merged {
            elements: vec![2.0],
            left_out: vec![Quarantined {
                copy: 1,
                element: 0
            }]
        }
    );
}

#[test]
fn there_is_no_mean_of_nothing() {
    let check = |copies: &[WeightedCopy<'_>], error: Error| {
        assert_eq!(weighted_mean(copies), Err(error.clone()));
        assert_eq!(streamed(copies), Err(error));
    };
    let left_out = vec![Quarantined {
        copy: 0,
        element: 1,
    }];
    check(
        &[WeightedCopy {
            elements: &[1.0, f32::NAN],
            weight: 1,
        }],
        Error::NoneFinite { left_out },
    );
    check(
        &[WeightedCopy {
            elements: &[1.0],
            weight: 0,
        }],
        Error::ZeroWeight,
    );
    check(
        &[
            WeightedCopy {
                elements: &[1.0],
                weight: 0,
            },
            WeightedCopy {
                elements: &[f32::NAN],
                weight: 1,
            },
        ],
        Error::ZeroWeight,
    );
    assert_eq!(weighted_mean::<f32>(&[]), Err(Error::NoCopies));
    assert_eq!(Accumulator::new(3).finish(), Err(Error::NoCopies));
}

#[test]
fn an_empty_range_merges_to_an_empty_range() {
    let copies: [WeightedCopy<'_>; 1] = [WeightedCopy {
        elements: &[],
        weight: 2,
    }];
    assert_eq!(
        weighted_mean(&copies),
        Ok(Merged {
            elements: vec![],
            left_out: vec![]
        })
    );
}

/// M3 across machines: `tests/mean.py` computes the same merge without this crate and prints this hash.
#[test]
fn the_bits_are_those_of_another_implementation() {
    const ELEMENTS: usize = 5000;
    let weights = [3, 17, 1, (1_u64 << 53) + 1, 250];
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f32::from_bits((state >> 32) as u32 & 0xbfff_ffff)
    };
    let copies =
        weights.map(|weight| ((0..ELEMENTS).map(|_| next()).collect::<Vec<f32>>(), weight));
    let merged = weighted_mean(&borrowed(&copies)).unwrap().elements;
    let fnv = merged
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
    assert_eq!(fnv, 0x3b060b85841ec920);
}
