//! What holds for all rules, and what each one is for.

use iota_merge::{Clip, Error, Quarantined, Rule, WeightedCopy, norm, weighted_mean};
use proptest::prelude::*;

use crate::support::{CLIPS, Owned, RULES, bits, borrowed, copies, distance, noise, tensor};

fn merged(rule: Rule, copies: &[Owned], clip: Clip) -> Vec<f32> {
    rule.merge(&borrowed(copies), clip).unwrap().elements
}

proptest! {
    /// M4.
    #[test]
    fn merging_copies_of_one_tensor_gives_that_tensor_back(
        seed in any::<u64>(), elements in 0..300_usize, weights in prop::collection::vec(1..1000_u64, 1..20),
    ) {
        let tensor = tensor(seed, elements);
        let copies: Vec<Owned> = weights.iter().map(|weight| (tensor.clone(), *weight)).collect();
        for rule in RULES {
            for clip in CLIPS {
                let merged = merged(rule, &copies, clip);
                // A direction has no negative zeros.
                let is_same = if rule == Rule::Radial { merged == tensor } else { bits(&merged) == bits(&tensor) };
                prop_assert!(is_same, "{rule:?} {clip:?}: {merged:?} of {tensor:?}");
            }
        }
    }

    #[test]
    fn a_merged_element_lies_between_the_least_and_the_greatest(copies in copies()) {
        // Not the geometric mean, which is 0 where signs differ, nor an average of directions, which can be longer.
        for rule in [Rule::WeightedMean, Rule::Median, Rule::TRIMMED, Rule::CLIPPED] {
            for (index, element) in merged(rule, &copies, Clip::None).into_iter().enumerate() {
                let values = || copies.iter().map(|(elements, _)| elements[index]);
                let (least, greatest) = (values().fold(f32::MAX, f32::min), values().fold(f32::MIN, f32::max));
                prop_assert!((least..=greatest).contains(&element), "{rule:?}: {least} <= {element} <= {greatest}");
            }
        }
    }

    #[test]
    fn a_range_may_be_merged_in_pieces_by_rules_that_look_at_elements(copies in copies(), cut in any::<prop::sample::Index>()) {
        let elements = copies[0].0.len();
        let cut = cut.index(elements + 1);
        let piece = |range: std::ops::Range<usize>| -> Vec<Owned> {
            copies.iter().map(|(copy, weight)| (copy[range.clone()].to_vec(), *weight)).collect()
        };
        for rule in RULES.into_iter().filter(|rule| rule.is_elementwise(Clip::None)) {
            let whole = merged(rule, &copies, Clip::None);
            let mut pieces = merged(rule, &piece(0..cut), Clip::None);
            pieces.extend(merged(rule, &piece(cut..elements), Clip::None));
            prop_assert_eq!(bits(&pieces), bits(&whole), "{:?}", rule);
        }
    }

    #[test]
    fn the_order_of_the_copies_does_not_matter_to_median_and_trimmed_mean(
        copies in copies(), seed in any::<u64>(),
    ) {
        let mut shuffled = copies.clone();
        for last in (1..shuffled.len()).rev() {
            shuffled.swap(last, (seed >> (last % 50)) as usize % (last + 1));
        }
        for rule in [Rule::Median, Rule::TRIMMED] {
            prop_assert_eq!(
                bits(&merged(rule, &shuffled, Clip::None)),
                bits(&merged(rule, &copies, Clip::None))
            );
        }
    }

    #[test]
    fn median_and_trimmed_mean_are_those_of_sorted_columns(copies in copies()) {
        let (median, trimmed) = (merged(Rule::Median, &copies, Clip::None), merged(Rule::TRIMMED, &copies, Clip::None));
        let k = copies.len();
        for index in 0..copies[0].0.len() {
            let mut column: Vec<f32> = copies.iter().map(|(elements, _)| elements[index]).collect();
            column.sort_by(f32::total_cmp);
            let middle = (f64::from(column[(k - 1) / 2]) + f64::from(column[k / 2])) / 2.0;
            prop_assert_eq!(median[index], middle as f32);
            let trim = k.div_ceil(10).min((k - 1) / 2);
            let kept = &column[trim..k - trim];
            let mean = kept.iter().copied().map(f64::from).sum::<f64>() / kept.len() as f64;
            prop_assert_eq!(trimmed[index], mean as f32);
        }
    }

    /// The breakdown point: any minority may send anything.
    #[test]
    fn a_minority_does_not_move_the_median_out_of_what_the_majority_sent(
        honest in copies(), garbage in prop::collection::vec(-1e30_f32..1e30, 20), every in any::<bool>(),
    ) {
        let elements = honest[0].0.len();
        let liars = (honest.len() - 1).min(garbage.len());
        let mut all = honest.clone();
        for (nth, value) in garbage.iter().take(liars).enumerate() {
            let value = if every { *value } else { 1e30 };
            all.insert(nth * 2, (vec![value; elements], 1));
        }
        for (index, element) in merged(Rule::Median, &all, Clip::None).into_iter().enumerate() {
            let values = || honest.iter().map(|(elements, _)| elements[index]);
            let (least, greatest) = (values().fold(f32::MAX, f32::min), values().fold(f32::MIN, f32::max));
            prop_assert!((least..=greatest).contains(&element), "{least} <= {element} <= {greatest}");
        }
    }

    #[test]
    fn the_geometric_mean_is_that_of_magnitudes_where_signs_agree_and_else_nothing(copies in copies()) {
        let geometric = merged(Rule::GeometricMean, &copies, Clip::None);
        let arithmetic = merged(Rule::WeightedMean, &copies, Clip::None);
        let total = copies.iter().map(|(_, weight)| *weight as f64).sum::<f64>();
        for index in 0..geometric.len() {
            let values = || copies.iter().map(|(elements, weight)| (f64::from(elements[index]), *weight as f64));
            let agree = values().all(|(x, _)| x > 0.0) || values().all(|(x, _)| x < 0.0);
            let logarithm = values().map(|(x, weight)| weight * x.abs().ln()).sum::<f64>() / total;
            let expected = if agree { logarithm.exp().copysign(f64::from(copies[0].0[index])) } else { 0.0 };
            let found = f64::from(geometric[index]);
            prop_assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} instead of {expected}");
            prop_assert!(geometric[index].abs() <= arithmetic[index].abs() * 1.000_001);
        }
    }

    /// Whatever one copy holds, it moves the centre by no more than its share of the radius.
    #[test]
    fn a_copy_moves_the_clipped_centre_by_a_bounded_length(
        seed in any::<u64>(), size in prop::sample::select(vec![1e1_f32, 1e6, 1e30]), direction in any::<u64>(),
    ) {
        const ELEMENTS: usize = 200;
        let honest: Vec<Owned> = (0..7).map(|nth| (noise(seed ^ nth << 8, ELEMENTS), 1)).collect();
        let garbage = noise(direction, ELEMENTS).iter().map(|x| x * size).collect();
        let mut all = honest.clone();
        all.push((garbage, 1));
        let radius = all.iter().map(|(copy, _)| norm(copy)).fold(0.0, |longest: f64, length| {
            if length < 100.0 { longest.max(length) } else { longest }
        });
        let with = merged(Rule::CLIPPED, &all, Clip::None);
        let honest_mean = merged(Rule::WeightedMean, &honest, Clip::None);
        let moved = distance(&with, &honest_mean);
        // The median, where it starts, is as near to the mean of seven as that is to zero; then an eighth of the radius.
        prop_assert!(moved < 0.6 * radius, "{moved} of {radius}");
    }

    #[test]
    fn the_radial_average_is_as_long_as_the_copies_are_on_average(copies in copies()) {
        let borrowed = borrowed(&copies);
        let radial = Rule::Radial.merge(&borrowed, Clip::None).unwrap().elements;
        let total = copies.iter().map(|(_, weight)| *weight as f64).sum::<f64>();
        let length = copies.iter().map(|(x, weight)| norm(x) * *weight as f64).sum::<f64>() / total;
        let found = norm(&radial);
        prop_assert!(found == 0.0 || (found / length - 1.0).abs() < 1e-5, "{found} instead of {length}");
    }

    #[test]
    fn clipping_shortens_what_is_longer_than_the_median(copies in copies()) {
        let mut norms: Vec<f64> = copies.iter().map(|(copy, _)| norm(copy)).collect();
        norms.sort_by(f64::total_cmp);
        let k = norms.len();
        let median = (norms[(k - 1) / 2] + norms[k / 2]) / 2.0;
        let by_hand: Vec<Owned> = copies
            .iter()
            .map(|(copy, weight)| {
                let factor = if norm(copy) > median { median / norm(copy) } else { 1.0 };
                (copy.iter().map(|x| (f64::from(*x) * factor) as f32).collect(), *weight)
            })
            .collect();
        for rule in RULES {
            prop_assert_eq!(
                bits(&merged(rule, &copies, Clip::MedianNorm)), bits(&merged(rule, &by_hand, Clip::None)), "{:?}", rule
            );
        }
    }

    /// Bytes of an upload are merged as they are.
    #[test]
    fn bytes_merge_as_the_numbers_that_they_stand_for(copies in copies()) {
        let bf16: Vec<Vec<[u8; 2]>> = copies
            .iter()
            .map(|(copy, _)| copy.iter().map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect())
            .collect();
        let f32_bytes: Vec<Vec<[u8; 4]>> =
            copies.iter().map(|(copy, _)| copy.iter().map(|x| x.to_le_bytes()).collect()).collect();
        let cut: Vec<Owned> = copies
            .iter()
            .map(|(copy, weight)| (copy.iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect(), *weight))
            .collect();
        for rule in RULES {
            let halves: Vec<_> = bf16.iter().zip(&copies)
                .map(|(elements, (_, weight))| WeightedCopy { elements, weight: *weight }).collect();
            let wholes: Vec<_> = f32_bytes.iter().zip(&copies)
                .map(|(elements, (_, weight))| WeightedCopy { elements, weight: *weight }).collect();
            prop_assert_eq!(
                bits(&rule.merge(&halves, Clip::MedianNorm).unwrap().elements), bits(&merged(rule, &cut, Clip::MedianNorm))
            );
            prop_assert_eq!(
                bits(&rule.merge(&wholes, Clip::None).unwrap().elements), bits(&merged(rule, &copies, Clip::None))
            );
        }
    }

    #[test]
    fn a_copy_that_is_not_finite_is_as_if_it_had_not_come(
        copies in copies(), at in any::<prop::sample::Index>(), element in any::<prop::sample::Index>(),
        bad in prop::sample::select(vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), weight in 0..5_u64,
    ) {
        let elements = copies[0].0.len();
        prop_assume!(elements > 0);
        let (at, element) = (at.index(copies.len() + 1), element.index(elements));
        let mut broken = vec![1.0; elements];
        broken[element] = bad;
        let mut with = copies.clone();
        with.insert(at, (broken, weight));
        for rule in RULES {
            for clip in CLIPS {
                let result = rule.merge(&borrowed(&with), clip).unwrap();
                prop_assert_eq!(bits(&result.elements), bits(&merged(rule, &copies, clip)));
                prop_assert_eq!(result.left_out, [Quarantined { copy: at, element }]);
            }
        }
    }
}

#[test]
fn one_of_eight_that_sends_garbage_does_not_reach_the_trimmed_mean() {
    let truth = noise(0, 1000);
    let honest: Vec<Owned> = (1..8)
        .map(|seed| {
            let drift = noise(seed, 1000);
            let copy = truth.iter().zip(&drift).map(|(x, d)| x + 0.1 * d);
            (copy.collect(), 1)
        })
        .collect();
    let mut all = honest.clone();
    all.insert(3, (noise(99, 1000).iter().map(|x| 1e6 * x).collect(), 1));
    let error = |rule, copies: &[Owned]| distance(&merged(rule, copies, Clip::None), &truth);
    let best = error(Rule::WeightedMean, &honest);
    assert!(error(Rule::WeightedMean, &all) > 1e5 * best);
    for rule in [Rule::TRIMMED, Rule::Median, Rule::CLIPPED] {
        let with = error(rule, &all);
        assert!(with < 2.0 * best, "{rule:?}: {with} instead of {best}");
    }
}

#[test]
fn numbers_as_large_as_they_can_be_stay_finite() {
    let huge = vec![f32::MAX; 100];
    let mut one = vec![0.0; 100];
    one[3] = f32::MIN;
    let copies = [(huge, 9), (one, u64::MAX)];
    for rule in RULES {
        for clip in CLIPS {
            let merged = merged(rule, &copies, clip);
            assert!(merged.iter().all(|x| x.is_finite()), "{rule:?} {clip:?}");
        }
    }
}

#[test]
fn copies_of_zeros_merge_to_zeros() {
    let copies = [(vec![0.0; 100], 1), (vec![0.0; 100], 2)];
    for rule in RULES {
        for clip in CLIPS {
            assert_eq!(
                bits(&merged(rule, &copies, clip)),
                [0; 100],
                "{rule:?} {clip:?}"
            );
        }
    }
}

#[test]
fn every_rule_refuses_what_it_cannot_merge() {
    let check = |copies: &[Owned], error: &Error| {
        for rule in RULES {
            for clip in CLIPS {
                assert_eq!(
                    rule.merge(&borrowed(copies), clip).as_ref(),
                    Err(error),
                    "{rule:?}"
                );
            }
        }
    };
    check(&[], &Error::NoCopies);
    check(&[(vec![1.0], 0)], &Error::ZeroWeight);
    check(&[(vec![1.0], 0), (vec![f32::NAN], 7)], &Error::ZeroWeight);
    let left_out = vec![Quarantined {
        copy: 0,
        element: 1,
    }];
    check(
        &[(vec![1.0, f32::INFINITY], 7)],
        &Error::NoneFinite { left_out },
    );
    let error = Error::Length {
        copy: 1,
        expected: 2,
        found: 1,
    };
    check(&[(vec![1.0, 2.0], 1), (vec![1.0], 1)], &error);
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let copies = [(vec![1.0], 1)];
    for (rule, name) in [
        (Rule::TrimmedMean { trim_percent: 50 }, "trim_percent"),
        (
            Rule::CenteredClip {
                radius_percent: 0,
                rounds: 1,
            },
            "radius_percent",
        ),
        (
            Rule::CenteredClip {
                radius_percent: 1,
                rounds: 0,
            },
            "rounds",
        ),
    ] {
        let error = rule.merge(&borrowed(&copies), Clip::None).unwrap_err();
        assert!(
            matches!(error, Error::Setting { name: found, .. } if found == name),
            "{error}"
        );
    }
}

#[test]
fn a_rule_is_written_down_by_name() {
    let json = |rule: Rule| serde_json::to_string(&rule).unwrap();
    assert_eq!(json(Rule::WeightedMean), r#""weighted-mean""#);
    assert_eq!(
        json(Rule::TRIMMED),
        r#"{"trimmed-mean":{"trim_percent":10}}"#
    );
    for rule in RULES {
        assert_eq!(serde_json::from_str::<Rule>(&json(rule)).unwrap(), rule);
    }
}

#[test]
fn the_rule_and_the_function_of_the_weighted_mean_are_the_same() {
    let copies = [(noise(1, 100), 3), (noise(2, 100), 5)];
    let copies = borrowed(&copies);
    assert_eq!(
        Rule::WeightedMean.merge(&copies, Clip::None),
        weighted_mean(&copies)
    );
}
