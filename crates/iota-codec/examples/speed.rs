//! How fast each codec is on one core, as a table: the shortest of many passes, which a busy machine disturbs least.
//! (`benches/codec.rs` has the same loops with criterion's statistics, for a machine of one's own.)
//!
//! ```sh
//! cargo run --release -p iota-codec --example speed
//! ```

use std::hint::black_box;
use std::time::{Duration, Instant};

use iota_codec::{Codec, Seed, Shape};

const PASSES: u32 = 300;

fn main() {
    println!("GB/s of f32 values, shortest of {PASSES} passes");
    println!();
    println!("| tensor | | memcpy | f32 | bf16 | int8 | int4 |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    for (tokens, channels) in [(512, 64), (3_200, 80), (256, 5_120)] {
        let shape = Shape::new(tokens, channels);
        let values: Vec<f32> = (0..shape.elements())
            .map(|element| (element * 37 % 1_013) as f32 / 506.0 - 1.0)
            .collect();
        let mut decoded = vec![0.0; shape.elements()];
        let rate =
            |shortest: Duration| 4.0 * shape.elements() as f64 / 1e9 / shortest.as_secs_f64();
        let copying = rate(shortest(|| {
            black_box(&mut decoded[..]).copy_from_slice(black_box(&values));
        }));
        let mut encoding = Vec::new();
        let mut decoding = Vec::new();
        for codec in Codec::ALL {
            let mut bytes = vec![0; codec.encoded_length(shape)];
            encoding.push(rate(shortest(|| {
                codec
                    .encode(
                        black_box(&values),
                        shape,
                        Seed::new(1),
                        black_box(&mut bytes),
                    )
                    .expect("the values are finite");
            })));
            decoding.push(rate(shortest(|| {
                codec
                    .decode(black_box(&bytes), shape, black_box(&mut decoded))
                    .expect("it was just encoded");
            })));
        }
        let row = |rates: &[f64]| -> String {
            rates.iter().map(|rate| format!(" {rate:.1} |")).collect()
        };
        println!(
            "| {tokens} x {channels} | encode | {copying:.0} |{}",
            row(&encoding)
        );
        println!("| | decode | |{}", row(&decoding));
    }
}

fn shortest(mut pass: impl FnMut()) -> Duration {
    (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            pass();
            start.elapsed()
        })
        .min()
        .expect("there are passes")
}
