//! What each codec loses on tensors of several kinds, as a table.
//!
//! ```sh
//! cargo run --release -p iota-codec --example errors
//! ```

#[path = "../tests/it/data.rs"]
mod data;

use iota_codec::{Codec, Error, Seed, Shape};

const TOKENS: usize = 512;

fn main() -> Result<(), Error> {
    println!("relative error, length of the difference over length of the tensor; {TOKENS} tokens");
    println!();
    println!("| tensor | channels | bf16 | int8 | int4 | int4 without rotation |");
    println!("|---|---:|---:|---:|---:|---:|");
    for channels in [16, 64, 80, 192, 5120] {
        for (name, values) in [
            ("Gaussian", data::gaussian(TOKENS, channels)),
            ("heavy tails", data::heavy_tails(TOKENS, channels)),
            ("outlier channels", data::outlier_channels(TOKENS, channels)),
        ] {
            let shape = Shape::new(TOKENS, channels);
            print!("| {name} | {channels} ");
            for codec in [Codec::Bf16, Codec::Int8, Codec::Int4] {
                let mut encoded = vec![0; codec.encoded_length(shape)];
                let mut decoded = vec![0.0; shape.elements()];
                codec.encode(&values, shape, Seed::new(1), &mut encoded)?;
                codec.decode(&encoded, shape, &mut decoded)?;
                print!("| {:.4} ", data::relative_error(&values, &decoded));
            }
            let plain = data::plain_int4(&values, channels);
            println!("| {:.4} |", data::relative_error(&values, &plain));
        }
    }
    Ok(())
}
