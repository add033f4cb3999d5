//! Activations to bytes and back, in bytes of f32 values per second, beside moving the same values; and the digests that
//! every object is checked against, in bytes of the object per second.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iota_codec::{Codec, Seed, Shape};
use iota_store::tensor::{TensorSpec, decode, encode, encoded_length};

/// As the programs have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `[tokens, boundary width]` of a testnet's sample: 4 sequences of 128 tokens, 64 channels; 128 KiB as f32.
const TESTNET: [usize; 2] = [512, 64];
/// Of IOTA's 15B model: 4 sequences of 800 tokens, 80 channels; 1 MB as f32.
const LARGE: [usize; 2] = [3_200, 80];
/// Without a bottleneck: 256 tokens of a model as wide as Llama 2 13B; 5.2 MB as f32.
const UNCUT: [usize; 2] = [256, 5_120];

fn values([tokens, channels]: [usize; 2]) -> Vec<f32> {
    (0..tokens * channels)
        .map(|element| (element * 37 % 1_013) as f32 / 506.0 - 1.0)
        .collect()
}

/// The codecs of what crosses a boundary.
fn codec(c: &mut Criterion) {
    for dimensions in [TESTNET, LARGE, UNCUT] {
        let [tokens, channels] = dimensions;
        let shape = Shape::new(tokens, channels);
        let values = values(dimensions);
        let mut group = c.benchmark_group(format!("codec {tokens} x {channels}"));
        group.throughput(Throughput::BytesDecimal(4 * values.len() as u64));
        let mut decoded = vec![0.0; values.len()];
        group.bench_function("memcpy", |b| {
            b.iter(|| black_box(&mut decoded[..]).copy_from_slice(black_box(&values)));
        });
        for codec in Codec::ALL {
            let mut bytes = vec![0; codec.encoded_length(shape)];
            group.bench_function(BenchmarkId::new("encode", codec), |b| {
                b.iter(|| {
                    codec
                        .encode(black_box(&values), shape, Seed::new(1), &mut bytes)
                        .expect("the values are finite");
                });
            });
            group.bench_function(BenchmarkId::new("decode", codec), |b| {
                b.iter(|| {
                    codec
                        .decode(black_box(&bytes), shape, &mut decoded)
                        .expect("it was just encoded");
                });
            });
        }
        group.finish();
    }
}

/// The file around a tensor, allocated anew each time, and its digest.
fn object(c: &mut Criterion) {
    for dimensions in [TESTNET, LARGE] {
        let values = values(dimensions);
        let [tokens, channels] = dimensions;
        let mut group = c.benchmark_group(format!("object {tokens} x {channels}"));
        let spec = TensorSpec::f32("activation", dimensions);
        let specs = [spec.clone()];
        let bytes = encode(&[(spec.clone(), &values)]);
        group.throughput(Throughput::BytesDecimal(encoded_length(&specs)));
        group.bench_function("encode", |b| {
            b.iter(|| encode(black_box(&[(spec.clone(), &values[..])])));
        });
        group.bench_function("decode", |b| {
            b.iter(|| decode(black_box(&bytes), &specs).expect("it was just encoded"));
        });
        group.bench_function("blake3", |b| {
            b.iter(|| blake3::hash(black_box(&bytes)));
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = codec, object
}
criterion_main!(benches);
