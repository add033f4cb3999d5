//! Objects: activations to bytes and back, and the digests that everything read is checked against, in bytes of the
//! encoded object per second.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iota_store::tensor::{TensorSpec, decode, encode, encoded_length};

/// As the programs have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `[tokens, boundary width]` of a testnet's sample: 4 sequences of 128 tokens, 64 channels; 128 KiB as f32.
const TESTNET: [usize; 2] = [512, 64];
/// Of IOTA's 15B model: 4 sequences of 800 tokens, 80 channels; 1 MB as f32.
const LARGE: [usize; 2] = [3_200, 80];

fn codec(c: &mut Criterion) {
    for shape in [TESTNET, LARGE] {
        let values: Vec<f32> = (0..shape[0] * shape[1])
            .map(|element| (element * 37 % 1_013) as f32 / 506.0 - 1.0)
            .collect();
        let mut group = c.benchmark_group(format!("activation {} x {}", shape[0], shape[1]));
        for (dtype, spec) in [
            ("f32", TensorSpec::f32("activation", shape)),
            ("bf16", TensorSpec::bf16("activation", shape)),
        ] {
            let specs = [spec.clone()];
            let bytes = encode(&[(spec.clone(), &values)]);
            group.throughput(Throughput::Bytes(encoded_length(&specs)));
            group.bench_function(BenchmarkId::new("encode", dtype), |b| {
                b.iter(|| encode(black_box(&[(spec.clone(), &values[..])])));
            });
            group.bench_function(BenchmarkId::new("decode", dtype), |b| {
                b.iter(|| decode(black_box(&bytes), &specs).expect("it was just encoded"));
            });
            group.bench_function(BenchmarkId::new("blake3", dtype), |b| {
                b.iter(|| blake3::hash(black_box(&bytes)));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = codec
}
criterion_main!(benches);
