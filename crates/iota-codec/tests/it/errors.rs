//! How far what comes back is from what went in, and that it is so on no particular side.

use iota_codec::{Codec, Shape};

use crate::data::{gaussian, heavy_tails, outlier_channels, plain_int4, relative_error};
use crate::{encode, round_trip};

#[test]
fn f32_loses_nothing_and_bf16_half_a_unit_of_its_last_place() {
    let shape = Shape::new(50, 80);
    let values = heavy_tails(50, 80);
    assert_eq!(round_trip(Codec::F32, &values, shape, 1), values);
    for (value, decoded) in values
        .iter()
        .zip(round_trip(Codec::Bf16, &values, shape, 1))
    {
        assert!(
            (value - decoded).abs() <= value.abs() / 256.0,
            "{value} {decoded}"
        );
    }
}

#[test]
fn int8_is_never_more_than_a_step_off() {
    for channels in [1, 16, 80, 5120] {
        let shape = Shape::new(20, channels);
        let values = heavy_tails(20, channels);
        let decoded = round_trip(Codec::Int8, &values, shape, 9);
        for (row, decoded) in values.chunks(channels).zip(decoded.chunks(channels)) {
            let step = row.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0;
            for (value, decoded) in row.iter().zip(decoded) {
                assert!(
                    (value - decoded).abs() <= step * 1.0001,
                    "{value} {decoded} {step}"
                );
            }
        }
    }
}

#[test]
fn int4_is_never_more_than_a_step_off_in_any_rotated_channel() {
    for channels in [1, 16, 64, 80, 192] {
        let shape = Shape::new(20, channels);
        let values = heavy_tails(20, channels);
        let encoded = encode(Codec::Int4, &values, shape, 9);
        let decoded = round_trip(Codec::Int4, &values, shape, 9);
        let token_bytes = Codec::Int4.token_bytes(channels);
        for ((row, decoded), bytes) in values
            .chunks(channels)
            .zip(decoded.chunks(channels))
            .zip(encoded.chunks(token_bytes))
        {
            // A rotation keeps lengths: the row's error is as long as that of its rotated channels.
            let bound: f64 = bytes
                .chunks(34)
                .zip(row.chunks(64))
                .map(|(bytes, tile)| {
                    let scale = u32::from(bytes[0]) << 16 | u32::from(bytes[1]) << 24;
                    f64::from(f32::from_bits(scale)).powi(2) * tile.len() as f64
                })
                .sum();
            let error: f64 = row
                .iter()
                .zip(decoded)
                .map(|(a, b)| f64::from(a - b).powi(2))
                .sum();
            assert!(error <= bound * 1.0001, "{channels}: {error} {bound}");
        }
    }
}

/// The mean over seeds comes as close to the value as chance allows: five standard errors, a number in a million.
#[test]
fn rounding_by_chance_is_right_on_average() {
    const SEEDS: u64 = 4_000;
    for codec in [Codec::Int8, Codec::Int4] {
        for channels in [16, 64, 80] {
            let shape = Shape::new(2, channels);
            let values = outlier_channels(2, channels);
            let mut sums = vec![(0.0_f64, 0.0_f64); values.len()];
            for seed in 0..SEEDS {
                let decoded = round_trip(codec, &values, shape, seed);
                for ((sum, squares), (decoded, value)) in
                    sums.iter_mut().zip(decoded.iter().zip(&values))
                {
                    let error = f64::from(*decoded) - f64::from(*value);
                    *sum += error;
                    *squares += error * error;
                }
            }
            for ((sum, squares), value) in sums.iter().zip(&values) {
                let bias = sum / SEEDS as f64;
                let standard_error = (squares / SEEDS as f64 / SEEDS as f64).sqrt();
                // The largest value of a row is met but for the rounding of f32.
                let rounding = f64::from(value.abs()) * 1e-6;
                assert!(
                    bias.abs() <= 5.0 * standard_error + rounding,
                    "{codec}, {channels}: {value} is off by {bias} +- {standard_error}"
                );
                // Rounding to nearest would be off by a quarter of a step on average, with no spread.
                assert!(standard_error < 0.02 * f64::from(value.abs()) + 0.5);
            }
        }
    }
}

#[test]
fn errors_are_of_the_size_that_the_documentation_says() {
    for (channels, int8, int4) in [(64, 0.009, 0.16), (80, 0.009, 0.16), (5120, 0.014, 0.16)] {
        let shape = Shape::new(64, channels);
        let values = gaussian(64, channels);
        let error = |codec| relative_error(&values, &round_trip(codec, &values, shape, 3));
        for (codec, expected) in [
            (Codec::Bf16, 0.0017),
            (Codec::Int8, int8),
            (Codec::Int4, int4),
        ] {
            let error = error(codec);
            assert!(
                (0.8..1.2).contains(&(error / expected)),
                "{codec}, {channels}: {error}"
            );
        }
    }
}

#[test]
fn rotated_int4_beats_plain_int4_where_a_few_channels_are_large() {
    for channels in [64, 80, 192, 5120] {
        let shape = Shape::new(64, channels);
        let values = outlier_channels(64, channels);
        let rotated = round_trip(Codec::Int4, &values, shape, 3);
        let plain = plain_int4(&values, channels);
        let ratio = relative_error(&values, &plain) / relative_error(&values, &rotated);
        assert!(ratio > 1.5, "{channels}: {ratio}");
    }
}
