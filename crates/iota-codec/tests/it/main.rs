//! What each codec promises, from outside.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod data;
mod errors;
mod format;
mod hostile;

use iota_codec::{Codec, Seed, Shape};

fn encode(codec: Codec, values: &[f32], shape: Shape, seed: u64) -> Vec<u8> {
    let mut encoded = vec![0xaa; codec.encoded_length(shape)];
    codec
        .encode(values, shape, Seed::new(seed), &mut encoded)
        .unwrap();
    encoded
}

fn decode(codec: Codec, encoded: &[u8], shape: Shape) -> Vec<f32> {
    let mut values = vec![f32::NAN; shape.elements()];
    codec.decode(encoded, shape, &mut values).unwrap();
    values
}

fn round_trip(codec: Codec, values: &[f32], shape: Shape, seed: u64) -> Vec<f32> {
    decode(codec, &encode(codec, values, shape, seed), shape)
}
