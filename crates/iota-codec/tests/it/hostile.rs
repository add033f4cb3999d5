//! Bytes from somebody who means harm.

use iota_codec::{Codec, Error, Shape};
use proptest::prelude::*;

use crate::{data, encode};

fn decoded(codec: Codec, encoded: &[u8], shape: Shape) -> Result<Vec<f32>, Error> {
    let mut values = vec![0.0; shape.elements()];
    codec.decode(encoded, shape, &mut values).map(|()| values)
}

proptest! {
    #[test]
    fn any_bytes_are_finite_values_or_an_error(
        (codec, shape, bytes) in (0..4_usize, 1..4_usize, 1..200_usize).prop_flat_map(
            |(codec, tokens, channels)| {
                let (codec, shape) = (Codec::ALL[codec], Shape::new(tokens, channels));
                let bytes = proptest::collection::vec(any::<u8>(), codec.encoded_length(shape));
                (Just(codec), Just(shape), bytes)
            },
        ),
    ) {
        if let Ok(values) = decoded(codec, &bytes, shape) {
            prop_assert!(values.iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn only_the_right_length_is_read(
        codec in 0..4_usize,
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let (codec, shape) = (Codec::ALL[codec], Shape::new(2, 33));
        let expected_bytes = codec.encoded_length(shape);
        prop_assume!(bytes.len() != expected_bytes);
        prop_assert_eq!(
            decoded(codec, &bytes, shape),
            Err(Error::Length { expected_bytes, found_bytes: bytes.len() })
        );
    }

    #[test]
    fn whatever_is_encoded_can_be_decoded(
        codec in 0..4_usize,
        (channels, values) in (1..150_usize).prop_flat_map(|channels| {
            let value = any::<f32>().prop_filter("encodable", |x| x.abs() <= 1e19);
            (Just(channels), proptest::collection::vec(value, 2 * channels))
        }),
        seed in any::<u64>(),
    ) {
        let (codec, shape) = (Codec::ALL[codec], Shape::new(2, channels));
        let values = decoded(codec, &encode(codec, &values, shape, seed), shape);
        prop_assert!(values.unwrap().iter().all(|value| value.is_finite()));
    }
}

#[test]
fn the_worst_codes_with_the_largest_scale_stay_finite() {
    for channels in [64, 80, 5120, 1 << 16] {
        let shape = Shape::new(1, channels);
        for codec in [Codec::Int8, Codec::Int4] {
            let largest = vec![codec.magnitude_max(); channels];
            let mut bytes = encode(codec, &largest, shape, 1);
            let (scale_bytes, tile_bytes) = match codec {
                Codec::Int8 => (4, bytes.len()),
                _ => (2, 34),
            };
            for tile in bytes.chunks_mut(tile_bytes) {
                tile[scale_bytes..].fill(0x88);
            }
            let values = decoded(codec, &bytes, shape).unwrap();
            assert!(values.iter().all(|value| value.is_finite()), "{codec}");
        }
    }
}

#[test]
fn a_scale_that_no_encoder_writes_is_refused_by_its_place() {
    let hostile = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        1e36,
        1e-30,
        f32::from_bits(0x0001_0000),
        -1.0,
        -0.0,
    ];
    let shape = Shape::new(3, 80);
    for scale in hostile {
        let mut int8 = encode(Codec::Int8, &data::gaussian(3, 80), shape, 1);
        int8[2 * 84..][..4].copy_from_slice(&scale.to_le_bytes());
        let place = Error::Scale {
            token: 2,
            channel: 0,
        };
        assert_eq!(decoded(Codec::Int8, &int8, shape), Err(place), "{scale}");

        // The second scale of the second token, which holds for the last 16 channels.
        let mut int4 = encode(Codec::Int4, &data::gaussian(3, 80), shape, 1);
        int4[44 + 34..][..2].copy_from_slice(&scale.to_le_bytes()[2..]);
        let place = Error::Scale {
            token: 1,
            channel: 64,
        };
        assert_eq!(decoded(Codec::Int4, &int4, shape), Err(place), "{scale}");
    }
}

#[test]
fn a_float_that_is_none_is_refused_by_its_place() {
    let shape = Shape::new(30, 80);
    let place = Error::NotFinite {
        token: 21,
        channel: 3,
    };
    let at = 21 * 80 + 3;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut f32s = encode(Codec::F32, &data::gaussian(30, 80), shape, 1);
        f32s[4 * at..][..4].copy_from_slice(&bad.to_le_bytes());
        assert_eq!(decoded(Codec::F32, &f32s, shape), Err(place));
        let mut bf16s = encode(Codec::Bf16, &data::gaussian(30, 80), shape, 1);
        bf16s[2 * at..][..2].copy_from_slice(&bad.to_le_bytes()[2..]);
        assert_eq!(decoded(Codec::Bf16, &bf16s, shape), Err(place));
    }
}
