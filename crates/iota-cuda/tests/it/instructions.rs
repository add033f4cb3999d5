#![expect(unsafe_code, reason = "kernels are given addresses")]

use iota_cuda::Driver as _;
use iota_cuda::driver::{Argument, Launch};

use crate::emulator::Emulator;

/// Rows of four matrices of 8 x 8 numbers of two bytes.
const ROWS: usize = 32;
const SHARED_BYTES: u32 = 2048;

/// What a kernel that only tests have leaves in `out` numbers of four bytes, after these inputs of two bytes each.
fn run(
    kernel: &'static str,
    out: usize,
    inputs: &[&[u16]],
    rest: &[Argument],
) -> Option<Vec<[u8; 4]>> {
    let emulator = Emulator::new(1)?;
    let put = |bytes: &[u8]| {
        let at = emulator.allocate(bytes.len()).unwrap();
        // SAFETY: as many bytes are allocated.
        unsafe { emulator.upload(at, bytes).unwrap() };
        (at, bytes.len())
    };
    let mut places = vec![put(&vec![0xff; 4 * out])];
    for input in inputs {
        let bytes: Vec<u8> = input.iter().flat_map(|x| x.to_le_bytes()).collect();
        places.push(put(&bytes));
    }
    let mut arguments: Vec<Argument> = places.iter().map(|(at, _)| (*at).into()).collect();
    arguments.extend_from_slice(rest);
    let launch = Launch {
        kernel,
        blocks: [1, 1],
        arguments: &arguments,
    };
    let mut bytes = vec![0; 4 * out];
    // SAFETY: the arguments are the kernel's, and what it reads and writes is allocated until it is given back.
    unsafe {
        emulator.launch_with(&launch, SHARED_BYTES);
        emulator.download(&mut bytes, places[0].0).unwrap();
        for (at, length) in places {
            emulator.release(at, length);
        }
    }
    let words = bytes.chunks(4).map(|word| word.try_into().unwrap());
    Some(words.collect())
}

fn bf16(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

#[test]
fn a_product_of_fragments_is_the_product_of_the_matrices() {
    // Small whole numbers, so that nothing is rounded.
    let left: Vec<f32> = (0..16 * 16).map(|i| (i * 7 % 23) as f32 - 11.0).collect();
    let right: Vec<f32> = (0..16 * 8).map(|i| (i * 5 % 19) as f32 - 9.0).collect();
    let rounded = [&left, &right].map(|x| x.iter().map(|x| bf16(*x)).collect::<Vec<u16>>());
    let Some(out) = run("test_multiply", 16 * 8, &[&rounded[0], &rounded[1]], &[]) else {
        return;
    };
    for (i, computed) in out.into_iter().enumerate() {
        let (row, column) = (i / 8, i % 8);
        let expected: f32 = (0..16)
            .map(|k| left[row * 16 + k] * right[k * 8 + column])
            .sum();
        assert_eq!(f32::from_le_bytes(computed), expected, "{row}, {column}");
    }
}

/// 32 rows from a place on, so far apart.
fn load(
    [place, apart]: [u32; 2],
    transposed: bool,
    [waits, meets]: [bool; 2],
) -> Option<Vec<[u8; 4]>> {
    let rows: Vec<u16> = (0..(ROWS * 8) as u16).collect();
    let rest = [transposed, waits, meets].map(u32::from);
    let rest = [place, apart, rest[0], rest[1], rest[2]].map(Argument::from);
    run("test_load", 32 * 4, &[&rows], &rest)
}

#[test]
fn a_lane_is_given_the_documented_numbers_of_each_matrix() {
    for transposed in [false, true] {
        let Some(out) = load([256, 16], transposed, [true; 2]) else {
            return;
        };
        for (i, word) in out.into_iter().enumerate() {
            let (lane, matrix) = (i / 4, i % 4);
            let [one, pair] = [lane / 4, 2 * (lane % 4)];
            let number = |row: usize, column: usize| ((8 * matrix + row) * 8 + column) as u16;
            let expected = if transposed {
                [number(pair, one), number(pair + 1, one)]
            } else {
                [number(one, pair), number(one, pair + 1)]
            };
            let [a, b, c, d] = word;
            let computed = [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])];
            assert_eq!(computed, expected, "{lane}, {matrix}, {transposed}");
        }
    }
}

#[test]
fn copies_are_not_numbers_before_a_wait_and_a_barrier_behind_it() {
    for waits_and_meets in [[false, false], [false, true], [true, false]] {
        let Some(out) = load([0, 16], false, waits_and_meets) else {
            return;
        };
        let nothing_is_there = out.into_iter().all(|word| word == [0xff; 4]);
        assert!(nothing_is_there, "{waits_and_meets:?}");
    }
}

#[track_caller]
fn assert_refused(places: [u32; 2], reason: &str) {
    let refused = std::panic::catch_unwind(|| load(places, false, [true; 2]));
    let message = match refused {
        Ok(None) => return,
        Ok(Some(_)) => panic!("{places:?} were taken"),
        Err(message) => *message.downcast::<String>().unwrap(),
    };
    assert!(message.contains(reason), "{message}");
}

#[test]
fn places_that_are_not_aligned_or_not_there_or_in_the_same_banks_are_refused() {
    assert_refused([8, 16], "is not aligned to 16 bytes");
    assert_refused([SHARED_BYTES - 256, 16], "beyond the shared memory");
    assert_refused([0, 32], "in the same banks");
}

/// A kernel that a card would refuse.
#[test]
fn kernels_ask_for_no_more_shared_memory_than_an_a100_has() {
    for kernel in iota_cuda::kernels::NAMES {
        assert!(iota_cuda::kernels::shared_bytes(kernel) <= 160 << 10);
    }
}
