//! Lengths, layouts and bytes: what a reader written elsewhere has to match.

use iota_codec::{Codec, Error, Seed, Shape};

use crate::{data, decode, encode, round_trip};

#[test]
fn a_length_is_tokens_times_what_a_token_takes() {
    // Channels, then bytes of a token in each codec.
    for (channels, expected) in [
        (1, [4, 2, 5, 3]),
        (16, [64, 32, 20, 10]),
        (64, [256, 128, 68, 34]),
        (65, [260, 130, 69, 37]),
        (80, [320, 160, 84, 44]),
        (192, [768, 384, 196, 102]),
        (5120, [20480, 10240, 5124, 2720]),
    ] {
        for (codec, token_bytes) in Codec::ALL.into_iter().zip(expected) {
            assert_eq!(
                codec.token_bytes(channels),
                token_bytes,
                "{codec} {channels}"
            );
            let shape = Shape::new(7, channels);
            assert_eq!(codec.encoded_length(shape), 7 * token_bytes);
        }
    }
}

#[test]
fn the_bytes_are_these_for_ever() {
    // Another digest means that runs which are under way cannot be audited with the new code.
    let expected = [
        (Codec::F32, "b88d1cef4173963d"),
        (Codec::Bf16, "f4739b0c009599d5"),
        (Codec::Int8, "354215c9deb22dde"),
        (Codec::Int4, "d0b697b89bf319f2"),
    ];
    let digests = expected.map(|(codec, _)| {
        let mut hasher = blake3::Hasher::new();
        for channels in [1, 5, 16, 64, 80, 192, 1000] {
            let shape = Shape::new(9, channels);
            let values = data::heavy_tails(9, channels);
            hasher.update(&encode(codec, &values, shape, 0x1234_5678_9abc_def0));
        }
        (codec, hasher.finalize().to_hex()[..16].to_owned())
    });
    assert_eq!(
        digests,
        expected.map(|(codec, digest)| (codec, digest.to_owned()))
    );
}

#[test]
fn f32_and_bf16_are_plain_little_endian_elements() {
    let shape = Shape::new(1, 3);
    // The last one is a tie, which goes to the even neighbour.
    let values = [1.0, -2.5, 1.0 + 1.0 / 256.0];
    assert_eq!(
        encode(Codec::F32, &values, shape, 1),
        values.map(f32::to_le_bytes).concat()
    );
    assert_eq!(
        encode(Codec::Bf16, &values, shape, 1),
        [0x80, 0x3f, 0x20, 0xc0, 0x80, 0x3f]
    );
}

#[test]
fn an_int8_token_is_its_scale_and_its_codes() {
    let shape = Shape::new(1, 4);
    let encoded = encode(Codec::Int8, &[254.0, -254.0, 2.0, 0.0], shape, 1);
    assert_eq!(encoded[..4], 2.0_f32.to_le_bytes());
    assert_eq!(encoded[4..], [127, 129, 1, 0]);
}

#[test]
fn an_int4_tile_packs_its_halves_into_the_halves_of_bytes() {
    // Whatever the rotation makes of it: code 1 in the low half is the first channel's, in the high half the third's.
    let shape = Shape::new(1, 4);
    let scale = [0x80, 0x3f];
    let rotated = |codes: [u8; 2]| decode(Codec::Int4, &[&scale[..], &codes].concat(), shape);
    let sum =
        |a: Vec<f32>, b: Vec<f32>| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    assert_eq!(
        rotated([0x51, 0]),
        sum(rotated([0x01, 0]), rotated([0x50, 0]))
    );
    for codes in [[0x01, 0], [0x10, 0], [0, 0x01], [0, 0x10]] {
        let length: f32 = rotated(codes).iter().map(|x| x * x).sum();
        assert_eq!(length, 1.0, "a code of 1 is one step of scale 1");
    }
    // -8 is read, though never written.
    assert_eq!(
        rotated([0x08, 0]),
        rotated([0x01, 0])
            .iter()
            .map(|x| x * -8.0)
            .collect::<Vec<_>>()
    );
}

#[test]
fn zeros_stay_zeros_and_what_is_next_to_nothing_becomes_zero() {
    for codec in Codec::ALL {
        let shape = Shape::new(2, 80);
        assert_eq!(
            round_trip(codec, &[0.0; 160], shape, 5),
            [0.0; 160],
            "{codec}"
        );
    }
    for codec in [Codec::Int8, Codec::Int4] {
        let shape = Shape::new(1, 64);
        assert_eq!(
            round_trip(codec, &[1e-30; 64], shape, 5),
            [0.0; 64],
            "{codec}"
        );
    }
}

#[test]
fn the_seed_decides_how_it_is_rounded_and_nothing_else_does() {
    let shape = Shape::new(4, 80);
    let values = data::gaussian(4, 80);
    for (codec, by_chance) in Codec::ALL.into_iter().zip([false, false, true, true]) {
        let encoded = encode(codec, &values, shape, 1);
        assert_eq!(encode(codec, &values, shape, 1), encoded, "{codec}");
        assert_eq!(
            encode(codec, &values, shape, 2) != encoded,
            by_chance,
            "{codec}"
        );
    }
}

#[test]
fn rows_that_are_alike_are_rounded_unlike() {
    let row = data::gaussian(1, 64);
    let shape = Shape::new(2, 64);
    for codec in [Codec::Int8, Codec::Int4] {
        let encoded = encode(codec, &[&row[..], &row].concat(), shape, 1);
        let (first, second) = encoded.split_at(codec.token_bytes(64));
        assert_ne!(first, second, "{codec}");
    }
}

#[test]
fn what_has_no_encoding_is_refused_by_its_place() {
    let shape = Shape::new(3, 80);
    let refused = |codec: Codec, value: f32| {
        let mut values = data::gaussian(3, 80);
        values[80 + 17] = value;
        values[80 + 18] = f32::NAN;
        let mut encoded = vec![0; codec.encoded_length(shape)];
        codec
            .encode(&values, shape, Seed::new(1), &mut encoded)
            .unwrap_err()
    };
    let place = (1, 17);
    for codec in Codec::ALL {
        let (token, channel) = place;
        for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(
                refused(codec, value),
                Error::NotFinite { token, channel },
                "{codec}"
            );
        }
        let too_large = codec.magnitude_max().next_up();
        let expected = if too_large.is_finite() {
            Error::TooLarge { token, channel }
        } else {
            Error::NotFinite { token, channel }
        };
        assert_eq!(refused(codec, too_large), expected, "{codec}");
        assert_eq!(refused(codec, -too_large), expected, "{codec}");
    }
}

#[test]
fn the_largest_values_that_may_be_encoded_come_back_finite() {
    for codec in Codec::ALL {
        for channels in [1, 64, 80, 5120] {
            let shape = Shape::new(1, channels);
            let values = vec![-codec.magnitude_max(); channels];
            let decoded = round_trip(codec, &values, shape, 1);
            assert!(decoded.iter().all(|value| value.is_finite()), "{codec}");
            assert!(data::relative_error(&values, &decoded) < 0.5, "{codec}");
        }
    }
}

#[test]
fn settings_spell_codecs_as_people_do() {
    for codec in Codec::ALL {
        let json = serde_json::to_string(&codec).unwrap();
        assert_eq!(json, format!("\"{codec}\""));
        assert_eq!(serde_json::from_str::<Codec>(&json).unwrap(), codec);
    }
    assert!(serde_json::from_str::<Codec>("\"int2\"").is_err());
}
