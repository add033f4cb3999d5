use std::sync::Arc;

use iota_compute::backend::AttentionShape;
use iota_cuda::conformance::{Operation, Outcome};
use iota_cuda::{AttentionPath, Cuda};
use iota_model::Precision;

use crate::emulator::Emulator;

/// Sequences, tokens, heads, key-value heads, channels of a head. Tokens around the ends of tiles of 64 and of blocks of
/// 16, 32, 64, 128 and 256; one to eight heads that share keys, also as many as are no power of two.
const SHAPES: [[usize; 5]; 10] = [
    [4, 1, 8, 1, 64],
    [3, 5, 4, 1, 128],
    [1, 63, 2, 2, 128],
    [2, 64, 3, 1, 64],
    [1, 65, 8, 1, 64],
    [1, 130, 4, 1, 128],
    [2, 130, 4, 2, 64],
    [1, 200, 4, 1, 64],
    [1, 200, 1, 1, 128],
    [1, 257, 1, 1, 64],
];

fn attention([sequences, tokens, heads, key_value_heads, head_width]: [usize; 5]) -> Operation {
    Operation::Attention(AttentionShape {
        sequences,
        tokens,
        heads,
        key_value_heads,
        head_width,
    })
}

fn run(shape: [usize; 5], path: AttentionPath, seed: u64) -> Option<Vec<Outcome>> {
    Some(run_on(Emulator::new(seed)?, shape, path))
}

fn run_on(emulator: Arc<Emulator>, shape: [usize; 5], path: AttentionPath) -> Vec<Outcome> {
    let device = Cuda::on(emulator, Precision::Bf16).with_attention_path(path);
    attention(shape).run(&device, Precision::Bf16, 11).unwrap()
}

fn bits(outcome: &Outcome) -> Vec<u32> {
    outcome.computed.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn fused_attention_is_what_its_definition_says() {
    for shape in SHAPES {
        let Some(outcomes) = run(shape, AttentionPath::Fused, 1) else {
            return;
        };
        for outcome in outcomes {
            let (error, name) = (outcome.error(), outcome.name);
            println!("{shape:?} {name} {error:e}");
            assert!(error < 6e-3, "{name} of {shape:?} is {error:e} off");
        }
    }
}

/// Warps that run ahead of others, and blocks in another order, show a barrier or a wait that is missing.
#[test]
fn fused_attention_has_the_same_bits_in_whatever_order_threads_run() {
    for shape in SHAPES {
        let runs = [1, 2, 3].map(|seed| run(shape, AttentionPath::Fused, seed));
        let [Some(first), Some(second), Some(third)] = runs else {
            return;
        };
        for ((first, second), third) in first.iter().zip(&second).zip(&third) {
            let same = bits(first) == bits(second) && bits(first) == bits(third);
            assert!(same, "{} of {shape:?}", first.name);
        }
    }
}

/// Consumers' cards have 99 KiB for a block. A warp holds half as many queries there, which changes no number.
#[test]
fn fused_attention_has_the_same_bits_where_there_is_less_shared_memory() {
    for shape in SHAPES {
        let Some(emulator) = Emulator::with_shared_bytes(2, 99 << 10) else {
            return;
        };
        let small = run_on(emulator, shape, AttentionPath::Fused);
        let large = run(shape, AttentionPath::Fused, 1).unwrap();
        for (small, large) in small.iter().zip(&large) {
            assert_eq!(bits(small), bits(large), "{} of {shape:?}", small.name);
        }
    }
}

/// As far apart as the rounding of probabilities, which one path divides by their sum before and the other after.
#[test]
fn both_paths_make_the_same_numbers_up_to_rounding() {
    let shape = [2, 130, 4, 2, 64];
    let paths = [AttentionPath::Fused, AttentionPath::Products];
    let [Some(fused), Some(products)] = paths.map(|path| run(shape, path, 1)) else {
        return;
    };
    for (fused, products) in fused.iter().zip(&products) {
        let beside = Outcome {
            exact: products.computed.iter().map(|x| f64::from(*x)).collect(),
            ..fused.clone()
        };
        assert!(beside.error() < 6e-3, "{}", fused.name);
        let is_rounded = fused.name != "logarithms of denominators";
        assert!(
            !is_rounded || bits(fused) != bits(products),
            "{}: two paths were taken",
            fused.name
        );
    }
}
