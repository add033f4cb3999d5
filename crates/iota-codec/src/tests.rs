use proptest::prelude::*;

use super::*;

proptest! {
    /// The loops are compiled twice; where the processor has no AVX2 this compares the portable ones with themselves.
    #[test]
    fn vector_instructions_change_no_bits(
        (channels, values) in (1..300_usize).prop_flat_map(|channels| {
            let value = any::<f32>().prop_filter("encodable", |x| x.abs() <= 1e19);
            (Just(channels), proptest::collection::vec(value, 2 * channels))
        }),
        seed in any::<u64>(),
    ) {
        let (shape, seed) = (Shape::new(2, channels), Seed::new(seed));
        for codec in Codec::ALL {
            let outcome = |instructions| {
                let mut encoded = vec![0; codec.encoded_length(shape)];
                let mut decoded = vec![0.0; shape.elements()];
                codec
                    .encode_with(instructions, &values, shape, seed, &mut encoded)
                    .and_then(|()| codec.decode_with(instructions, &encoded, shape, &mut decoded))
                    .map(|()| (encoded, decoded.into_iter().map(f32::to_bits).collect::<Vec<_>>()))
            };
            let portable = outcome(Instructions::portable());
            prop_assert!(portable.is_ok());
            prop_assert_eq!(portable, outcome(Instructions::detect()));
        }
    }
}

#[test]
#[should_panic(expected = "has no encoding")]
fn a_tensor_without_channels_has_no_shape() {
    Shape::new(1, 0);
}
