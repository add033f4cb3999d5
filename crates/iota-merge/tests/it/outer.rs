//! Steps on pseudo-gradients.

use iota_merge::{Error, Outer, Rule, WeightedCopy, pseudo_gradient, weighted_mean};
use proptest::prelude::*;

use crate::support::{bits, noise};

const NESTEROV: Outer = Outer::Nesterov {
    learning_rate: 0.7,
    momentum: 0.9,
    warmup_from: 0.5,
    warmup_rounds: 20,
};

proptest! {
    /// Nesterov's formula, written once more; torch.optim.SGD(nesterov=True) computes the same from the second step on, and
    /// the first, too: its momentum starts as the first gradient, ours as 0, which comes to that.
    #[test]
    fn nesterov_steps_by_its_formula(seed in any::<u64>(), rounds in 1..30_u64) {
        let mut parameters = noise(seed, 50);
        let mut momentum = vec![0.0; 50];
        let (mut expected, mut b) = (parameters.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), vec![0.0; 50]);
        for round in 0..rounds {
            let g = noise(seed ^ round << 9, 50);
            parameters = NESTEROV.step(&parameters, &g, &mut momentum, round).unwrap();
            let factor = 0.5 + 0.4 * (round.min(20) as f64 / 20.0);
            for ((x, b), g) in expected.iter_mut().zip(&mut b).zip(g) {
                *b = factor * *b + f64::from(g);
                *x -= 0.7 * (f64::from(g) + factor * *b);
            }
        }
        for (found, expected) in parameters.iter().zip(expected) {
            prop_assert!((f64::from(*found) - expected).abs() < 1e-4 * expected.abs().max(1.0));
        }
    }

    #[test]
    fn a_range_may_be_stepped_in_pieces(seed in any::<u64>(), cut in 0..50_usize) {
        let (anchor, g) = (noise(seed, 50), noise(!seed, 50));
        let mut whole = noise(seed ^ 5, 50);
        let mut pieces = whole.clone();
        let at_once = NESTEROV.step(&anchor, &g, &mut whole, 3).unwrap();
        let (left, right) = pieces.split_at_mut(cut);
        let mut in_pieces = NESTEROV.step(&anchor[..cut], &g[..cut], left, 3).unwrap();
        in_pieces.extend(NESTEROV.step(&anchor[cut..], &g[cut..], right, 3).unwrap());
        prop_assert_eq!(bits(&in_pieces), bits(&at_once));
        prop_assert_eq!(bits(&pieces), bits(&whole));
    }

    #[test]
    fn without_an_outer_step_the_deltas_average_to_the_average_of_the_copies(seed in any::<u64>()) {
        let anchor = noise(seed, 100);
        let trained: Vec<Vec<f32>> = (1..5)
            .map(|nth| anchor.iter().zip(noise(seed ^ nth << 7, 100)).map(|(a, d)| a + 0.01 * d).collect())
            .collect();
        let deltas: Vec<Vec<f32>> = trained.iter().map(|trained| pseudo_gradient(&anchor, trained).unwrap()).collect();
        let of = |copies: &[Vec<f32>]| {
            let copies: Vec<_> = copies.iter().map(|elements| WeightedCopy { elements, weight: 1 }).collect();
            weighted_mean(&copies).unwrap().elements
        };
        let stepped = Outer::None.step(&anchor, &of(&deltas), &mut [], 0).unwrap();
        for (stepped, mean) in stepped.iter().zip(of(&trained)) {
            prop_assert!((stepped - mean).abs() < 1e-6);
        }
    }
}

#[test]
fn without_momentum_nesterov_is_sgd() {
    let (anchor, g) = (noise(1, 100), noise(2, 100));
    let nesterov = Outer::Nesterov {
        learning_rate: 0.7,
        momentum: 0.0,
        warmup_from: 0.0,
        warmup_rounds: 0,
    };
    let sgd = Outer::Sgd { learning_rate: 0.7 };
    let mut momentum = vec![0.0; 100];
    assert_eq!(
        bits(&nesterov.step(&anchor, &g, &mut momentum, 0).unwrap()),
        bits(&sgd.step(&anchor, &g, &mut [], 0).unwrap())
    );
}

#[test]
fn momentum_warms_up_in_a_straight_line() {
    let at = |round| NESTEROV.momentum_at(round);
    assert!((at(0) - 0.5).abs() < 1e-7 && (at(10) - 0.7).abs() < 1e-7);
    assert_eq!(at(20), at(u64::MAX));
    assert!((at(20) - 0.9).abs() < 1e-7);
    assert_eq!(Outer::None.momentum_at(7), 0.0);
}

#[test]
fn an_error_leaves_the_momentum_as_it_was() {
    let mut momentum = vec![1.0, f32::MAX];
    let anchor = [0.0, f32::MIN];
    let error = NESTEROV.step(&anchor, &[1.0, f32::MAX], &mut momentum, 20);
    assert_eq!(error, Err(Error::Value { element: 1 }));
    assert_eq!(momentum, [1.0, f32::MAX]);

    let error = NESTEROV
        .step(&anchor, &[1.0], &mut momentum, 0)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::OtherLength {
                expected: 2,
                found: 1,
                ..
            }
        ),
        "{error}"
    );
    let error = Outer::None
        .step(&anchor, &[1.0, 2.0], &mut momentum, 0)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::OtherLength {
                expected: 0,
                found: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn settings_that_make_no_sense_are_named() {
    for learning_rate in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = Outer::Sgd { learning_rate }.validate().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Setting {
                    name: "learning_rate",
                    ..
                }
            ),
            "{error}"
        );
    }
    for momentum in [1.0, -0.1, f32::NAN] {
        let outer = Outer::Nesterov {
            learning_rate: 1.0,
            momentum,
            warmup_from: 0.0,
            warmup_rounds: 0,
        };
        let error = outer.validate().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Setting {
                    name: "momentum",
                    ..
                }
            ),
            "{error}"
        );
    }
}

/// At right angles, the plain mean of four is half as long as they are; the radial average is not.
#[test]
fn radial_averaging_keeps_the_length_of_a_step() {
    let copies: Vec<Vec<f32>> = (0..4)
        .map(|nth| (0..4).map(|at| if at == nth { 2.0 } else { 0.0 }).collect())
        .collect();
    let copies: Vec<_> = copies
        .iter()
        .map(|elements| WeightedCopy {
            elements,
            weight: 3,
        })
        .collect();
    let merged = |rule: Rule| {
        rule.merge(&copies, iota_merge::Clip::None)
            .unwrap()
            .elements
    };
    assert_eq!(merged(Rule::WeightedMean), [0.5; 4]);
    assert_eq!(merged(Rule::Radial), [1.0; 4]);
}
