//! Round trips, error feedback, and bytes from strangers.

use iota_merge::codec::CHUNK;
use iota_merge::{Codec, Error, Feedback, norm};
use proptest::prelude::*;

use crate::support::{bits, distance, noise};

const CODECS: [Codec; 12] = [
    Codec::F32,
    Codec::Bf16,
    Codec::Int8,
    Codec::LowRank {
        rank: 4,
        columns: 64,
    },
    Codec::TOP_64,
    Codec::TopK { keep: 500 },
    Codec::TopK { keep: 4096 },
    Codec::Sparse,
    Codec::SIGNS,
    Codec::Signs { keep: 1 },
    Codec::Signs { keep: 4096 },
    Codec::Ternary,
];

/// Up to two chunks and a piece, of any size, with some zeros.
fn values() -> impl Strategy<Value = Vec<f32>> {
    (any::<u64>(), 0..2 * CHUNK + 700, -100..100_i32, 0..3_u64).prop_map(
        |(seed, elements, exponent, zeros)| {
            let scale = (f64::from(exponent) / 3.0).exp2() as f32;
            let values = noise(seed, elements);
            let zeroed = |(index, x): (usize, f32)| {
                let mixed = seed.wrapping_add(index as u64 * 31);
                let is_zero = zeros > 0 && !mixed.is_multiple_of(1 + zeros * zeros);
                if is_zero { 0.0 } else { x * scale }
            };
            values.into_iter().enumerate().map(zeroed).collect()
        },
    )
}

/// Of the difference, over that of the values.
fn relative_error(codec: Codec, values: &[f32]) -> f64 {
    let bytes = codec.encode(values, None).unwrap();
    let decoded = codec.decode(&bytes, values.len()).unwrap();
    distance(&decoded, values) / norm(values).max(f64::MIN_POSITIVE)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn lengths_are_as_announced_and_what_was_decoded_encodes_to_the_same_bytes(values in values()) {
        for codec in CODECS {
            let bytes = codec.encode(&values, None).unwrap();
            prop_assert!(codec.encoded_length(values.len()).contains(&bytes.len()), "{codec}");
            let decoded = codec.decode(&bytes, values.len()).unwrap();
            prop_assert_eq!(decoded.len(), values.len());
            // Not the other two: from factors, and from two sizes, others follow by rounding.
            if matches!(codec, Codec::F32 | Codec::Bf16) {
                prop_assert_eq!(codec.encode(&decoded, None).unwrap(), bytes, "{}", codec);
            }
        }
    }

    #[test]
    fn f32_is_exact_and_the_others_are_off_by_what_they_say(values in values()) {
        let decoded = |codec: Codec| codec.decode(&codec.encode(&values, None).unwrap(), values.len()).unwrap();
        prop_assert_eq!(bits(&decoded(Codec::F32)), bits(&values));
        for (x, y) in values.iter().zip(decoded(Codec::Bf16)) {
            prop_assert!((x - y).abs() <= x.abs() / 256.0);
        }
        let largest = |values: &[f32]| values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        for (values, decoded) in values.chunks(256).zip(decoded(Codec::Int8).chunks(256)) {
            for (x, y) in values.iter().zip(decoded) {
                prop_assert!((x - y).abs() <= largest(values) / 254.0 * 1.0001, "{x} {y}");
            }
        }
        for (values, decoded) in values.chunks(CHUNK).zip(decoded(Codec::Sparse).chunks(CHUNK)) {
            let least = largest(values) * 3.0 / 64.0;
            for (x, y) in values.iter().zip(decoded) {
                if x.abs() < least {
                    prop_assert_eq!(*y, 0.0);
                } else {
                    prop_assert!((x - y).abs() <= x.abs() * 0.2001 || x.abs() < least * 2.0 && (x - y).abs() <= least, "{x} {y}");
                }
            }
        }
    }

    /// The definition, by sorting.
    #[test]
    fn top_k_keeps_the_largest_with_their_signs(values in values(), keep in prop::sample::select(vec![1_u16, 64, 300])) {
        let codec = Codec::TopK { keep };
        let decoded = codec.decode(&codec.encode(&values, None).unwrap(), values.len()).unwrap();
        for (values, decoded) in values.chunks(CHUNK).zip(decoded.chunks(CHUNK)) {
            let mut places: Vec<usize> = (0..values.len()).collect();
            places.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()).then(a.cmp(&b)));
            let kept = (values.len() * usize::from(keep)).div_ceil(CHUNK);
            let (kept, left_out) = places.split_at(kept);
            prop_assert!(left_out.iter().all(|&place| decoded[place] == 0.0));
            prop_assert!(kept.iter().all(|&place| decoded[place] * values[place] >= 0.0));
            let sizes: std::collections::BTreeSet<u32> = kept.iter().map(|&place| decoded[place].abs().to_bits()).collect();
            prop_assert!(sizes.len() <= 2);
            // Two sizes, each the mean of its side but for rounding to bf16, are closer than none at all.
            let error: f64 = kept.iter().map(|&place| f64::from(values[place] - decoded[place]).powi(2)).sum();
            let all: f64 = kept.iter().map(|&place| f64::from(values[place]).powi(2)).sum();
            prop_assert!(error <= 0.5 * all + 1e-30, "{error} of {all}");
        }
    }

    #[test]
    fn signs_are_those_of_the_largest_and_all_have_one_size(values in values(), keep in prop::sample::select(vec![1_u16, 488, 4096])) {
        let codec = Codec::Signs { keep };
        let decoded = codec.decode(&codec.encode(&values, None).unwrap(), values.len()).unwrap();
        for (values, decoded) in values.chunks(CHUNK).zip(decoded.chunks(CHUNK)) {
            let mut places: Vec<usize> = (0..values.len()).collect();
            places.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()).then(a.cmp(&b)));
            let (kept, left_out) = places.split_at((values.len() * usize::from(keep)).div_ceil(CHUNK));
            let smallest = values[kept[kept.len() - 1]].abs();
            prop_assert!(left_out.iter().all(|&place| decoded[place] == 0.0));
            for &place in kept {
                let (x, y) = (values[place], decoded[place]);
                let above = 2.0 * smallest - y.abs();
                prop_assert!((0.0..=y.abs() / 128.0).contains(&above), "{y} of {smallest}");
                prop_assert!(y == 0.0 || (x > 0.0) == (y > 0.0));
            }
        }
    }

    #[test]
    fn a_ternary_value_is_the_nearest_of_three(values in values()) {
        let decoded = Codec::Ternary.decode(&Codec::Ternary.encode(&values, None).unwrap(), values.len()).unwrap();
        for (values, decoded) in values.chunks(CHUNK).zip(decoded.chunks(CHUNK)) {
            let values_of_chunk = values;
            let blocks = || values.chunks(64).zip(decoded.chunks(64));
            for (values, decoded) in blocks() {
                let scale = decoded.iter().fold(0.0_f32, |scale, x| scale.max(x.abs()));
                for (x, y) in values.iter().zip(decoded) {
                    let nearest = if x.abs() >= 0.5 * scale { scale.copysign(*x) } else { 0.0 };
                    prop_assert_eq!(*y, nearest);
                }
            }
            // What is not sent at all is much smaller than what is.
            let largest = |values: &[f32]| values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            for (values, decoded) in blocks() {
                prop_assert!(largest(decoded) > 0.0 || largest(values) <= largest(values_of_chunk) / 8.0);
            }
        }
    }

    /// What was sent and what is kept back make up what was to be sent: over many rounds nothing is lost.
    #[test]
    fn error_feedback_loses_nothing(seed in any::<u64>(), elements in 1..CHUNK + 900, rounds in 1..8_u64) {
        for codec in CODECS {
            let mut residual = vec![0.0; elements];
            let (mut sent, mut wanted) = (vec![0.0_f64; elements], vec![0.0_f64; elements]);
            for round in 0..rounds {
                let delta = noise(seed ^ round << 5, elements);
                let bytes = codec.encode(&delta, Some(Feedback { residual: &mut residual, decay: 1.0 })).unwrap();
                for (sum, x) in sent.iter_mut().zip(codec.decode(&bytes, elements).unwrap()) {
                    *sum += f64::from(x);
                }
                for (sum, x) in wanted.iter_mut().zip(delta) {
                    *sum += f64::from(x);
                }
            }
            for ((sent, wanted), kept) in sent.iter().zip(&wanted).zip(&residual) {
                prop_assert!((sent + f64::from(*kept) - wanted).abs() < 1e-4, "{codec}");
            }
        }
    }

    #[test]
    fn what_is_kept_back_is_exactly_what_was_not_decoded(values in values(), decay in 0.0_f32..1.0) {
        for codec in CODECS {
            let before = noise(7, values.len());
            let mut residual = before.clone();
            let bytes = codec.encode(&values, Some(Feedback { residual: &mut residual, decay })).unwrap();
            let target: Vec<f32> = before.iter().zip(&values).map(|(e, x)| decay * e + x).collect();
            prop_assert_eq!(&codec.encode(&target, None).unwrap(), &bytes);
            let decoded = codec.decode(&bytes, values.len()).unwrap();
            let expected: Vec<f32> = target.iter().zip(decoded).map(|(x, y)| x - y).collect();
            prop_assert_eq!(bits(&residual), bits(&expected));
        }
    }

    #[test]
    fn any_bytes_are_values_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..600), elements in 0..1200_usize, exact in any::<bool>(),
    ) {
        for codec in CODECS {
            let mut bytes = bytes.clone();
            if exact {
                // Else hardly anything would have the right length.
                bytes.resize(*codec.encoded_length(elements).start(), 0x3c);
            }
            let decoded = [codec.decode(&bytes, elements), codec.decode_filled(&bytes, elements)];
            for values in decoded.into_iter().flatten() {
                prop_assert_eq!(values.len(), elements);
                prop_assert!(values.iter().all(|x| x.is_finite()));
            }
        }
    }

    #[test]
    fn zeros_behind_what_was_encoded_change_nothing_and_anything_else_is_refused(
        values in values(), filling in 0..300_usize, other in 1..=255_u8,
    ) {
        for codec in CODECS {
            let mut bytes = codec.encode(&values, None).unwrap();
            let decoded = codec.decode(&bytes, values.len()).unwrap();
            bytes.resize(bytes.len() + filling, 0);
            let filled = codec.decode_filled(&bytes, values.len()).unwrap();
            prop_assert_eq!(bits(&filled), bits(&decoded));
            bytes.push(other);
            prop_assert!(codec.decode_filled(&bytes, values.len()).is_err());
        }
    }

    /// What an honest encoder wrote, with one byte changed, cut off or added.
    #[test]
    fn bytes_that_were_tampered_with_are_finite_values_or_an_error(
        values in values(), at in any::<prop::sample::Index>(), flip in 1..=255_u8,
    ) {
        prop_assume!(!values.is_empty());
        for codec in CODECS {
            let honest = codec.encode(&values, None).unwrap();
            let mut changed = honest.clone();
            changed[at.index(honest.len())] ^= flip;
            if let Ok(values) = codec.decode(&changed, values.len()) {
                prop_assert!(values.iter().all(|x| x.is_finite()));
            }
            let short = codec.decode(&honest[..honest.len() - 1], values.len());
            prop_assert!(matches!(short, Err(Error::EncodedLength { .. })), "{codec}");
            let long = [&honest[..], &[0]].concat();
            prop_assert!(matches!(codec.decode(&long, values.len()), Err(Error::EncodedLength { .. })), "{codec}");
        }
    }
}

/// However often a value is sent, and although it is sent larger than it is.
#[test]
fn what_signs_leave_out_stays_within_what_a_few_rounds_teach() {
    let mut residual = vec![0.0; CHUNK];
    let (mut owed_half_way, mut owed) = (0.0, 0.0);
    for round in 0..400 {
        let feedback = Feedback {
            residual: &mut residual,
            decay: 1.0,
        };
        Codec::SIGNS
            .encode(&noise(round, CHUNK), Some(feedback))
            .unwrap();
        owed = norm(&residual);
        if round == 199 {
            owed_half_way = owed;
        }
    }
    let learned = norm(&noise(0, CHUNK));
    assert!(owed < 10.0 * learned, "{owed} after rounds of {learned}");
    assert!(owed < 1.2 * owed_half_way, "{owed} after {owed_half_way}");
}

/// Of a normal distribution, whose best three levels lose 0.19 (Max 1960), in blocks of different sizes.
#[test]
fn ternary_values_lose_a_fifth_of_the_energy() {
    // Sums of twelve uniform numbers.
    let mut values = vec![0.0; 16 * CHUNK];
    for seed in 0..12 {
        for (value, x) in values.iter_mut().zip(noise(seed, 16 * CHUNK)) {
            *value += x;
        }
    }
    for (block, values) in values.chunks_mut(64).enumerate() {
        let scale = ((block % 13) as f32 / 4.0).exp2();
        values.iter_mut().for_each(|x| *x *= scale);
    }
    let lost = relative_error(Codec::Ternary, &values).powi(2);
    assert!((0.18..0.22).contains(&lost), "{lost}");
}

#[test]
fn a_matrix_of_low_rank_comes_back_and_others_lose_what_is_beyond_the_rank() {
    const ROWS: usize = 60;
    const COLUMNS: usize = 40;
    let codec = |rank| Codec::LowRank {
        rank,
        columns: COLUMNS as u32,
    };
    let (left, right) = (noise(1, 3 * ROWS), noise(2, 3 * COLUMNS));
    let low: Vec<f32> = (0..ROWS * COLUMNS)
        .map(|at| {
            let (row, column) = (at / COLUMNS, at % COLUMNS);
            (0..3)
                .map(|k| left[3 * row + k] * right[3 * column + k])
                .sum()
        })
        .collect();
    assert!(relative_error(codec(3), &low) < 0.01);
    assert!(relative_error(codec(2), &low) > 0.1);
    let full = noise(3, ROWS * COLUMNS);
    let errors = [1, 4, 16, 40].map(|rank| relative_error(codec(rank), &full));
    assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
    assert!(
        errors[3] < 0.01,
        "all directions but for rounding: {errors:?}"
    );
}

#[test]
fn a_last_row_that_is_not_full_is_encoded_like_any_other() {
    let codec = Codec::LowRank {
        rank: 30,
        columns: 30,
    };
    assert!(relative_error(codec, &noise(1, 30 * 40 + 7)) < 0.01);
    assert!(relative_error(codec, &noise(1, 7)) < 0.01);
}

#[test]
fn values_that_have_no_encoding_are_named() {
    for codec in CODECS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = noise(1, CHUNK + 5);
            values[CHUNK + 3] = bad;
            let error = codec.encode(&values, None);
            assert_eq!(error, Err(Error::Value { element: CHUNK + 3 }), "{codec}");
        }
        let large = codec.encode(&[1.0, f32::MAX], None);
        if codec == Codec::F32 {
            assert!(large.is_ok());
        } else {
            assert_eq!(large, Err(Error::Value { element: 1 }), "{codec}");
        }
    }
}

#[test]
fn a_huge_length_is_refused_before_anything_is_allocated() {
    for codec in CODECS {
        let elements = usize::MAX / 64;
        assert!(
            matches!(
                codec.decode(&[0; 64], elements),
                Err(Error::EncodedLength { .. })
            ),
            "{codec}"
        );
    }
}

#[test]
fn malformed_chunks_say_what_is_wrong() {
    let refused = |codec: Codec, bytes: &[u8], elements| match codec.decode(bytes, elements) {
        Err(Error::Malformed { what, chunk: 0 }) => what,
        other => panic!("{codec}: {other:?}"),
    };
    let top = Codec::TOP_64;
    let good = top.encode(&noise(1, CHUNK), None).unwrap();
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    assert_eq!(refused(top, &changed(0, &[0x80, 0x7f]), CHUNK), "a size"); // infinite
    assert_eq!(refused(top, &changed(2, &[0, 0]), CHUNK), "a size"); // the large one is smaller
    assert_eq!(refused(top, &changed(0, &[0, 0x80]), CHUNK), "a size"); // -0
    // The bitmap has 16 bytes and 64 bits that are set.
    let ascending: Vec<u8> = (0..64).collect();
    let many = [&[0xff; 16][..], &ascending].concat();
    assert_eq!(refused(top, &changed(4, &many), CHUNK), "the bitmap");
    assert_eq!(refused(top, &changed(4, &[0; 16]), CHUNK), "the bitmap");
    // All places in the first 64, all the same one.
    let same = [&[0xff; 8][..], &[0; 8 + 64]].concat();
    assert_eq!(refused(top, &changed(4, &same), CHUNK), "a place");
    // Two of a hundred are kept: a bitmap of 5 bits, and 2 entries of 5 + 2.
    let short = top.encode(&[1.0; 100], None).unwrap();
    let mut beyond = short.clone();
    beyond[4] = 0b1_0001; // the second place has the upper bits 3, and
    beyond[5] |= 0x80; // the lower ones 1:
    beyond[6] |= 0x0f; // 31, which makes 127
    assert_eq!(refused(top, &beyond, 100), "a place");
    let mut filled = short;
    *filled.last_mut().unwrap() |= 0x80;
    assert_eq!(refused(top, &filled, 100), "the last byte");

    assert_eq!(refused(Codec::Int8, &[0, 0, 0x80, 0xbf, 1], 1), "a scale"); // -1
    assert_eq!(refused(Codec::Int8, &[0, 0, 0xc0, 0x7f, 1], 1), "a scale"); // NaN
    assert_eq!(
        refused(Codec::Int8, &[0, 0, 0x80, 0x3f, 0x80], 1),
        "a level"
    ); // -128
    let one = [0, 0, 0x80, 0x3f];
    let sparse = |bytes: &[u8]| refused(Codec::Sparse, bytes, 1);
    assert_eq!(
        sparse(&[&one[..], &[2, 0]].concat()),
        "the end of the bitmap"
    );
    assert_eq!(sparse(&[&one[..], &[1, 0x10]].concat()), "the last byte");
    for largest in [[0, 0, 0x80, 0xbf], [0, 0, 0x80, 0x7f], [0; 4]] {
        let bytes = [&largest[..], &[1, 0]].concat();
        assert_eq!(sparse(&bytes), "the largest magnitude", "{largest:?}"); // -1, infinite, 0 with a value
    }
    let signs = |bytes: &[u8]| refused(Codec::Signs { keep: 4096 }, bytes, 1);
    for size in [[0x80, 0x7f], [0, 0x80]] {
        assert_eq!(signs(&[size, [1, 0]].concat()), "a size", "{size:?}"); // infinite, -0
    }
    assert_eq!(signs(&[0x80, 0x3f, 0, 0]), "the bitmap");
    assert_eq!(signs(&[0x80, 0x3f, 1, 2]), "the last byte");
    let ternary = |bytes: &[u8]| refused(Codec::Ternary, bytes, 1);
    for scale in [[0x80, 0x7f], [0x80, 0xbf]] {
        let bytes = [scale, [0, 121]].concat();
        assert_eq!(ternary(&bytes), "the largest scale", "{scale:?}"); // infinite, -1
    }
    let cases = [
        ([0x10, 121], "the scale after the last"),
        ([0, 243], "a byte of five values"),
        ([0, 122 + 3], "the last byte"), // 1, 1, 0, 0, 0
    ];
    for (bytes, what) in cases {
        assert_eq!(ternary(&[[0x80, 0x3f], bytes].concat()), what);
    }
    let low = Codec::LowRank {
        rank: 1,
        columns: 1,
    };
    assert_eq!(refused(low, &[0x80, 0x7f, 0x80, 0x3f], 1), "a factor");
    let overflow = low.decode(&[0x7f, 0x7f, 0x7f, 0x7f], 1);
    assert_eq!(overflow, Err(Error::Value { element: 0 }));
}

#[test]
fn settings_that_make_no_sense_are_named() {
    for (codec, name) in [
        (Codec::TopK { keep: 0 }, "keep"),
        (Codec::TopK { keep: 4097 }, "keep"),
        (Codec::Signs { keep: 0 }, "keep"),
        (Codec::Signs { keep: 4097 }, "keep"),
        (
            Codec::LowRank {
                rank: 0,
                columns: 1,
            },
            "rank",
        ),
        (
            Codec::LowRank {
                rank: 1,
                columns: 0,
            },
            "columns",
        ),
    ] {
        let error = codec.encode(&[1.0], None).unwrap_err();
        assert!(
            matches!(error, Error::Setting { name: found, .. } if found == name),
            "{error}"
        );
        assert_eq!(codec.decode(&[], 1), Err(error));
    }
}

#[test]
fn a_residual_of_another_length_is_refused() {
    let feedback = Feedback {
        residual: &mut [0.0; 3],
        decay: 1.0,
    };
    let error = Codec::Bf16.encode(&[1.0, 2.0], Some(feedback)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OtherLength {
                expected: 2,
                found: 3,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_chunk_of_4096_takes_the_bytes_that_the_documentation_says() {
    let bytes = |codec: Codec| codec.encoded_length(CHUNK);
    assert_eq!(bytes(Codec::F32), 16384..=16384);
    assert_eq!(bytes(Codec::Bf16), 8192..=8192);
    assert_eq!(bytes(Codec::Int8), 4160..=4160);
    assert_eq!(bytes(Codec::TOP_64), 84..=84);
    assert_eq!(bytes(Codec::Sparse), 516..=2564);
    assert_eq!(bytes(Codec::SIGNS), 371..=371);
    assert_eq!(bytes(Codec::Ternary), 854..=854);
    let low = Codec::LowRank {
        rank: 4,
        columns: 1024,
    };
    assert_eq!(low.encoded_length(1024 * 1024), 16384..=16384);
}
