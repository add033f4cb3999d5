//! Merging: what eight copies of a cell cost to average, beside what they cost to copy.
//!
//! The mean reads every byte of every copy and writes an eighth as many; the copy reads and writes them all. Both are
//! given in bytes of copies per second.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iota_merge::{Accumulator, WeightedCopy, digest, weighted_mean_into};

/// As the programs have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const COPIES: usize = 8;
/// 4 MiB a copy: the copies together do not fit into a core's cache.
const ELEMENTS: usize = 1 << 20;

fn merge(c: &mut Criterion) {
    let copies: Vec<Vec<f32>> = (0..COPIES).map(values).collect();
    let weighted: Vec<WeightedCopy<'_>> = copies
        .iter()
        .zip(1..)
        .map(|(elements, weight)| WeightedCopy { elements, weight })
        .collect();
    let bytes = (COPIES * ELEMENTS * size_of::<f32>()) as u64;

    let mut group = c.benchmark_group("merge of 8 copies");
    group.throughput(Throughput::Bytes(bytes));
    let mut merged = vec![0.0; ELEMENTS];
    group.bench_function("weighted_mean_into", |b| {
        b.iter(|| weighted_mean_into(black_box(&weighted), &mut merged));
    });
    group.bench_function("accumulator", |b| {
        b.iter(|| {
            let mut sums = Accumulator::new(ELEMENTS);
            for copy in black_box(&weighted) {
                sums.add(copy.elements, copy.weight)
                    .expect("all copies have the accumulator's length");
            }
            sums.finish()
        });
    });
    let mut target: Vec<Vec<f32>> = copies.clone();
    group.bench_function("memcpy", |b| {
        b.iter(|| {
            for (target, copy) in target.iter_mut().zip(black_box(&copies)) {
                target.copy_from_slice(copy);
            }
            black_box(&mut target);
        });
    });
    group.finish();

    let mut group = c.benchmark_group("digest of a merged cell");
    group.throughput(Throughput::Bytes((ELEMENTS * size_of::<f32>()) as u64));
    group.bench_function("digest", |b| b.iter(|| digest(black_box(&merged))));
    group.finish();
}

/// Numbers of the size of weights, others for each copy.
fn values(copy: usize) -> Vec<f32> {
    (0..ELEMENTS)
        .map(|element| ((element * 31 + copy * 7) % 1_009) as f32 / 25_225.0 - 0.02)
        .collect()
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = merge
}
criterion_main!(benches);
