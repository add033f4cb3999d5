use proptest::prelude::*;

use super::*;
use crate::cpu::definition::assert_defined;

/// Numbers of very different sizes, tiny and subnormal ones among them.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let exponent = match state % 16 {
                0 => 0,
                1 => 127 - 56 + state / 16 % 3,
                _ => 117 + state / 16 % 20,
            };
            f32::from_bits(state & 0x807f_ffff | exponent << 23)
        })
        .collect()
}

fn check(rows: usize, columns: usize, inner: usize) {
    let size = Size {
        rows,
        columns,
        inner,
    };
    assert_defined(
        size,
        values,
        round,
        |instructions, threads, size, out, a, b, add| {
            let threads = Threads::new(threads).unwrap();
            threads.scope(|| matmul((instructions, &threads), size, out, a, b, add));
        },
    );
}

#[test]
fn products_equal_their_definition_at_the_edges_of_tiles_and_stretches() {
    for (rows, columns, inner) in [
        (1, 1, 1),
        (1, 70, 33),
        (70, 1, 33),
        (12, 32, 64),
        (13, 33, 65),
        (24, 64, 511),
        (25, 31, 513),
        (11, 97, 1100),
        (400, 600, 31),
    ] {
        check(rows, columns, inner);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn products_equal_their_definition(rows in 1..80_usize, columns in 1..80_usize, inner in 1..90_usize) {
        check(rows, columns, inner);
    }

    #[test]
    fn rounding_is_that_of_bf16_and_drops_what_is_tiny(bits in any::<u32>()) {
        let x = f32::from_bits(bits);
        let expected = half::bf16::from_f32(x).to_f32();
        let rounded = round(x);
        if x.is_nan() {
            prop_assert!(rounded.is_nan());
        } else if x.abs() < 2.0_f32.powi(-55) {
            prop_assert_eq!(rounded, 0.0);
        } else {
            prop_assert_eq!(rounded.to_bits(), expected.to_bits());
        }
    }
}

#[test]
fn what_is_not_a_number_is_not_lost() {
    let threads = Threads::new(1).unwrap();
    let size = Size {
        rows: 13,
        columns: 40,
        inner: 21,
    };
    for instructions in InstructionSet::available() {
        for poison in [f32::NAN, f32::INFINITY, f32::from_bits(0x7fff_ffff)] {
            let (mut left, right) = (vec![1.0; 13 * 21], vec![1.0; 21 * 40]);
            left[12 * 21 + 20] = poison;
            let mut out = vec![0.0; 13 * 40];
            let (a, b) = (Matrix::rows(&left, 21), Matrix::rows(&right, 40));
            matmul((instructions, &threads), size, &mut out, a, b, false);
            let (good, bad) = out.split_at(12 * 40);
            assert!(good.iter().all(|x| *x == 21.0), "{instructions:?}");
            assert!(bad.iter().all(|x| !x.is_finite()), "{instructions:?}");
        }
    }
}

#[test]
fn an_empty_sum_is_zero() {
    let threads = Threads::new(1).unwrap();
    let size = Size {
        rows: 2,
        columns: 2,
        inner: 0,
    };
    let empty = Matrix::rows(&[], 0);
    for instructions in InstructionSet::available() {
        for (add, expected) in [(true, 1.0), (false, 0.0)] {
            let mut out = [1.0; 4];
            matmul((instructions, &threads), size, &mut out, empty, empty, add);
            assert_eq!(out, [expected; 4]);
        }
    }
}
