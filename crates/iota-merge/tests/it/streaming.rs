//! Copies one after the other.

use iota_merge::{Error, InProgress, Rule};
use proptest::prelude::*;

use crate::support::{CLIPS, RULES, bits, borrowed, copies};

proptest! {
    #[test]
    fn copies_that_come_one_by_one_merge_as_all_at_once(
        mut copies in copies(), bad in prop::option::of((0..20_usize, 0..300_usize)), idle in 0..20_usize,
    ) {
        if let Some((copy, element)) = bad
            && let Some(element) = copies.get_mut(copy).and_then(|(elements, _)| elements.get_mut(element))
        {
            *element = f32::INFINITY;
        }
        if let Some((_, weight)) = copies.get_mut(idle) {
            *weight = 0;
        }
        for rule in RULES {
            for clip in CLIPS {
                let mut merge = InProgress::new(rule, clip, copies[0].0.len()).unwrap();
                for (elements, weight) in &copies {
                    merge.add(elements, *weight).unwrap();
                }
                let (streamed, at_once) = (merge.finish(), rule.merge(&borrowed(&copies), clip));
                if let (Ok(streamed), Ok(at_once)) = (&streamed, &at_once) {
                    prop_assert_eq!(bits(&streamed.elements), bits(&at_once.elements));
                }
                prop_assert_eq!(streamed, at_once);
            }
        }
    }
}

#[test]
fn a_copy_of_another_length_does_not_count() {
    for rule in RULES {
        for clip in CLIPS {
            let mut merge = InProgress::new(rule, clip, 1).unwrap();
            let error = Error::Length {
                copy: 0,
                expected: 1,
                found: 2,
            };
            assert_eq!(merge.add(&[1.0, 2.0], 1), Err(error));
            merge.add(&[2.0], 1).unwrap();
            assert_eq!(merge.finish().unwrap().elements, [2.0]);
        }
    }
}

#[test]
fn only_a_weighted_mean_takes_the_same_memory_for_any_number_of_copies() {
    for rule in RULES {
        for clip in CLIPS {
            let bytes = |copies| InProgress::bytes(rule, clip, 1000, copies);
            if rule == Rule::WeightedMean && clip == CLIPS[0] {
                assert_eq!((bytes(2), bytes(50)), (8_000, 8_000));
            } else {
                assert_eq!((bytes(2), bytes(50)), (8_000, 200_000));
            }
        }
    }
}
