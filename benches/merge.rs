//! Merging: what every rule takes for eight copies, of bf16 as they arrive and of f32, on one and on two cores, beside what
//! merely reading and copying the same memory takes; what codecs take; and the digest of what was merged.
//!
//! Everything is given in bytes of input per second: of the copies for rules, of f32 values for codecs. The buffers are
//! larger than any cache, so that memory is the limit that rules are measured against.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iota_merge::{Accumulator, Clip, Codec, Element, Feedback, Rule, WeightedCopy, digest};

/// As the programs have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const COPIES: usize = 8;
/// 16 MiB a copy as bf16: eight are 128 MiB.
const ELEMENTS: usize = 1 << 23;
const THREADS: [usize; 2] = [1, 2];

const RULES: [(&str, Rule, Clip); 7] = [
    ("weighted mean", Rule::WeightedMean, Clip::None),
    (
        "weighted mean, norms clipped",
        Rule::WeightedMean,
        Clip::MedianNorm,
    ),
    ("geometric mean", Rule::GeometricMean, Clip::None),
    ("median", Rule::Median, Clip::None),
    ("trimmed mean", Rule::TRIMMED, Clip::None),
    ("centered clip", Rule::CLIPPED, Clip::None),
    ("radial", Rule::Radial, Clip::None),
];

const CODECS: [Codec; 8] = [
    Codec::F32,
    Codec::Bf16,
    Codec::Int8,
    Codec::LowRank {
        rank: 4,
        columns: 1024,
    },
    Codec::TOP_64,
    Codec::Sparse,
    Codec::SIGNS,
    Codec::Ternary,
];

fn rules(c: &mut Criterion) {
    let values: Vec<Vec<f32>> = (0..COPIES).map(values).collect();
    let halves: Vec<Vec<[u8; 2]>> = values
        .iter()
        .map(|copy| copy.iter().map(|x| bf16(*x)).collect())
        .collect();
    memory(c, &values);
    merges(c, "merge of 8 copies, bf16", &halves);
    merges(c, "merge of 8 copies, f32", &values);
    streaming(c, &values);
}

/// What memory gives: reading the copies, and copying them.
fn memory(c: &mut Criterion, copies: &[Vec<f32>]) {
    let mut group = c.benchmark_group("memory");
    group.throughput(Throughput::BytesDecimal(bytes(copies)));
    for threads in THREADS {
        group.bench_function(BenchmarkId::new("read", threads), |b| {
            b.iter(|| {
                in_shares(threads, &mut [], |range, _| {
                    for copy in copies {
                        let bits = copy[range.clone()].iter().map(|x| x.to_bits());
                        black_box(bits.fold(0, u32::wrapping_add));
                    }
                });
            });
        });
    }
    let mut target = copies.to_vec();
    group.bench_function("copy", |b| {
        b.iter(|| {
            for (target, copy) in target.iter_mut().zip(black_box(copies)) {
                target.copy_from_slice(copy);
            }
            black_box(&mut target);
        });
    });
    group.finish();
}

fn merges<E: Element + Sync>(c: &mut Criterion, name: &str, copies: &[Vec<E>]) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::BytesDecimal(bytes(copies)));
    let mut merged = vec![0.0; ELEMENTS];
    for (name, rule, clip) in RULES {
        for threads in THREADS {
            group.bench_function(BenchmarkId::new(name, threads), |b| {
                b.iter(|| {
                    in_shares(threads, &mut merged, |range, merged| {
                        let copies: Vec<WeightedCopy<'_, E>> = copies
                            .iter()
                            .zip(1..)
                            .map(|(copy, weight)| WeightedCopy {
                                elements: &copy[range.clone()],
                                weight,
                            })
                            .collect();
                        rule.merge_into(black_box(&copies), clip, merged)
                            .expect("the copies are finite and of one length");
                    });
                });
            });
        }
    }
    group.finish();
}

/// Copies one after the other, and the digest of a merged range.
fn streaming(c: &mut Criterion, copies: &[Vec<f32>]) {
    let mut group = c.benchmark_group("merge of 8 copies, f32");
    group.throughput(Throughput::BytesDecimal(bytes(copies)));
    group.bench_function("accumulator", |b| {
        b.iter(|| {
            let mut sums = Accumulator::new(ELEMENTS);
            for copy in black_box(copies) {
                sums.add(copy, 1)
                    .expect("all copies have the accumulator's length");
            }
            sums.finish()
        });
    });
    group.finish();
    let mut group = c.benchmark_group("digest of a merged cell");
    group.throughput(Throughput::BytesDecimal(bytes(&copies[..1])));
    group.bench_function("digest", |b| b.iter(|| digest(black_box(&copies[0]))));
    group.finish();
}

/// One core, with error feedback, of 4 million values.
fn codecs(c: &mut Criterion) {
    let values = &values(0)[..ELEMENTS / 2];
    let mut residual = vec![0.0; values.len()];
    let mut decoded = vec![0.0; values.len()];
    let mut group = c.benchmark_group("codec of deltas");
    group.throughput(Throughput::BytesDecimal(4 * values.len() as u64));
    for codec in CODECS {
        group.bench_function(BenchmarkId::new("encode", codec), |b| {
            b.iter(|| {
                let feedback = Feedback {
                    residual: &mut residual,
                    decay: 0.95,
                };
                codec
                    .encode(black_box(values), Some(feedback))
                    .expect("the values are finite")
            });
        });
        let bytes = codec.encode(values, None).expect("the values are finite");
        group.bench_function(BenchmarkId::new("decode", codec), |b| {
            b.iter(|| {
                codec
                    .decode_into(black_box(&bytes), &mut decoded)
                    .expect("it was just encoded");
            });
        });
    }
    group.finish();
}

/// Runs `work` on equal shares of all elements, and of `merged` if that has any, each on a thread of its own.
fn in_shares(
    threads: usize,
    merged: &mut [f32],
    work: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) {
    let share = ELEMENTS / threads;
    let mut rest = merged;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (piece, after) = rest.split_at_mut(share.min(rest.len()));
            rest = after;
            let work = &work;
            scope.spawn(move || work(thread * share..(thread + 1) * share, piece));
        }
    });
}

fn bytes<E>(copies: &[Vec<E>]) -> u64 {
    copies
        .iter()
        .map(|copy| size_of_val(&copy[..]) as u64)
        .sum()
}

fn bf16(x: f32) -> [u8; 2] {
    ((x.to_bits() >> 16) as u16).to_le_bytes()
}

/// Noise of the size that deltas have, nearly normal with deviation 0.001, other for each copy.
fn values(copy: usize) -> Vec<f32> {
    let mut state = (copy as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5
    };
    (0..ELEMENTS)
        .map(|_| 0.001 * (uniform() + uniform() + uniform() + uniform()) * 1.7)
        .collect()
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = rules, codecs
}
criterion_main!(benches);
