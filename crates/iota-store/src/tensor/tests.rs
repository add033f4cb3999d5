use std::collections::BTreeMap;

use proptest::prelude::*;
use safetensors::tensor::TensorView;

use super::*;

/// Up to four tensors with distinct names and values of all kinds.
fn any_tensors() -> impl Strategy<Value = Vec<(TensorSpec, Vec<f32>)>> {
    let tensor = (
        any::<bool>(),
        prop::collection::vec(0_usize..5, 0..4),
        any::<u64>(),
    );
    prop::collection::btree_map("[a-z.\"\\\\é ]{0,8}", tensor, 0..4).prop_map(
        |tensors: BTreeMap<_, _>| {
            tensors
                .into_iter()
                .map(|(name, (half, shape, seed))| {
                    let dtype = if half { Dtype::Bf16 } else { Dtype::F32 };
                    let spec = TensorSpec { name, dtype, shape };
                    // Any bits will do, but a BF16 tensor reads back equal only if it fits.
                    let mut state = seed;
                    let values = (0..spec.elements())
                        .map(|_| {
                            state = state
                                .wrapping_mul(6_364_136_223_846_793_005)
                                .wrapping_add(1);
                            let bits = (state >> 32) as u32;
                            match dtype {
                                Dtype::F32 => f32::from_bits(bits),
                                _ => half::bf16::from_f32(f32::from_bits(bits)).to_f32(),
                            }
                        })
                        .collect();
                    (spec, values)
                })
                .collect()
        },
    )
}

fn borrowed(tensors: &[(TensorSpec, Vec<f32>)]) -> Vec<(TensorSpec, &[f32])> {
    tensors
        .iter()
        .map(|(spec, values)| (spec.clone(), values.as_slice()))
        .collect()
}

fn specs(tensors: &[(TensorSpec, Vec<f32>)]) -> Vec<TensorSpec> {
    tensors.iter().map(|(spec, _)| spec.clone()).collect()
}

proptest! {
    #[test]
    fn tensors_read_back_bit_for_bit(tensors in any_tensors()) {
        let encoded = encode(&borrowed(&tensors));
        let specs = specs(&tensors);
        prop_assert_eq!(encoded.len() as u64, encoded_length(&specs));
        let decoded = decode(&encoded, &specs).unwrap();
        prop_assert_eq!(decoded.len(), tensors.len());
        for (found, (_, expected)) in decoded.iter().zip(&tensors) {
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(found), bits(expected));
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_safetensors_crate_but_for_the_padding_in_any_order(
        tensors in any_tensors(),
        rotation in 0_usize..4,
    ) {
        let mut turned = tensors.clone();
        if !turned.is_empty() {
            let by = rotation % turned.len();
            turned.rotate_left(by);
        }
        let encoded = encode(&borrowed(&turned));
        let raw: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(spec, values)| match spec.dtype {
                Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                _ => values
                    .iter()
                    .flat_map(|value| half::bf16::from_f32(*value).to_le_bytes())
                    .collect(),
            })
            .collect();
        let views = tensors.iter().zip(&raw).map(|((spec, _), raw)| {
            let dtype = match spec.dtype {
                Dtype::F32 => safetensors::Dtype::F32,
                _ => safetensors::Dtype::BF16,
            };
            (&spec.name, TensorView::new(dtype, spec.shape.clone(), raw).unwrap())
        });
        let theirs = safetensors::serialize(views, None).unwrap();
        let parts = |bytes: &[u8]| {
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let json = String::from_utf8(bytes[8..header].to_vec()).unwrap();
            (json.trim_end().to_owned(), bytes[header..].to_vec())
        };
        prop_assert_eq!(parts(&encoded), parts(&theirs));
    }

    #[test]
    fn bytes_of_any_kind_are_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        tensors in any_tensors(),
    ) {
        prop_assert!(decode(&bytes, &specs(&tensors)).is_err());
    }

    #[test]
    fn a_damaged_header_is_refused_without_a_panic(
        tensors in any_tensors(),
        at in any::<prop::sample::Index>(),
        by in 1_u8..,
    ) {
        let specs = specs(&tensors);
        let mut bytes = encode(&borrowed(&tensors)).to_vec();
        let header_bytes = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        bytes[at.index(header_bytes)] ^= by;
        prop_assert!(decode(&bytes, &specs).is_err());
    }

    #[test]
    fn rounding_to_bf16_is_to_nearest_even(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        prop_assert_eq!(bf16_bits(value), half::bf16::from_f32(value).to_bits());
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found(
        length in 1_usize..5000,
        bad in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        kind in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ) {
        let mut values = vec![f32::MAX; length];
        let positions: Vec<usize> = bad.iter().map(|index| index.index(length)).collect();
        for &position in &positions {
            values[position] = kind;
        }
        prop_assert_eq!(first_non_finite(&values), positions.into_iter().min());
    }
}

#[test]
fn rounding_at_the_edges_is_as_documented() {
    let round = |value: f32| f32::from_bits(u32::from(bf16_bits(value)) << 16);
    assert_eq!(round(f32::MAX), f32::INFINITY);
    assert_eq!(round(f32::MIN), f32::NEG_INFINITY);
    assert_eq!(round(f32::INFINITY), f32::INFINITY);
    assert!(round(f32::from_bits(0x7f80_0001)).is_nan());
    assert!(round(f32::from_bits(0xffff_ffff)).is_nan());
    assert_eq!(round(1.0 + 1.0 / 256.0), 1.0, "a tie goes to the even one");
    assert_eq!(round(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
    assert_eq!(round(-0.0).to_bits(), (-0.0_f32).to_bits());
}

#[test]
fn what_is_wrong_with_a_tensor_is_said() {
    let expected = TensorSpec::f32("x", [2, 3]);
    let refusal = |spec: TensorSpec, elements: usize| {
        let encoded = encode(&[(spec, &vec![0.0; elements])]);
        decode(&encoded, std::slice::from_ref(&expected)).unwrap_err()
    };
    assert_eq!(
        refusal(TensorSpec::f32("x", [3, 2]), 6),
        TensorError::Shape {
            name: "x".to_owned(),
            expected: vec![2, 3],
            found: vec![3, 2]
        }
    );
    assert_eq!(
        refusal(TensorSpec::f32("y", [2, 3]), 6),
        TensorError::Name {
            name: "x".to_owned()
        }
    );
    // "BF16" and "[4,3]" make a header and a body of the very same length.
    assert_eq!(
        refusal(TensorSpec::bf16("x", [4, 3]), 12),
        TensorError::Dtype {
            name: "x".to_owned(),
            expected: Dtype::F32,
            found: "BF16".to_owned()
        }
    );
    assert!(matches!(
        refusal(TensorSpec::f32("x", [2, 2]), 4),
        TensorError::Length { .. }
    ));
}

#[test]
fn a_tensor_of_bytes_is_one_to_any_reader_and_reads_back() {
    let spec = TensorSpec::u8("x", [2, 3]);
    let written = encode_with(&spec, |elements| {
        elements.copy_from_slice(b"abcdef");
        Ok::<(), TensorError>(())
    });
    let encoded = written.unwrap();
    assert_eq!(
        encoded.len() as u64,
        encoded_length(std::slice::from_ref(&spec))
    );
    assert_eq!(element_bytes(&encoded, &spec), Ok(&b"abcdef"[..]));
    let found = SafeTensors::deserialize(&encoded).unwrap();
    let tensor = found.tensor("x").unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::U8);
    assert_eq!(
        (tensor.shape(), tensor.data()),
        (&[2, 3][..], &b"abcdef"[..])
    );

    assert!(matches!(
        element_bytes(&encoded, &TensorSpec::u8("x", [3, 2])),
        Err(TensorError::Shape { .. })
    ));
    assert!(matches!(
        element_bytes(&encoded[..513], &spec),
        Err(TensorError::Length { .. })
    ));
    let refused = encode_with(&spec, |_| Err(TensorError::NotCanonical));
    assert_eq!(refused, Err(TensorError::NotCanonical));
}

#[test]
fn numbers_that_are_written_as_bytes_are_their_bytes() {
    let spec = TensorSpec::f32("x", [2]);
    let values = [1.5_f32, -0.25];
    let encoded = encode(&[(spec.clone(), &values)]);
    let bytes = values.map(f32::to_le_bytes).concat();
    assert_eq!(element_bytes(&encoded, &spec), Ok(&bytes[..]));
}

#[test]
fn tensors_lie_in_the_order_of_the_safetensors_crate_bytes_last() {
    let specs = [
        TensorSpec::u8("a", [4]),
        TensorSpec::bf16("b", [2]),
        TensorSpec::f32("c", [1]),
    ];
    let layout = Layout::new(&specs.iter().collect::<Vec<_>>());
    assert_eq!(layout.starts, [8, 4, 0]);
    let raw = [0; 4];
    let dtypes = [
        safetensors::Dtype::U8,
        safetensors::Dtype::BF16,
        safetensors::Dtype::F32,
    ];
    let views = specs.iter().zip(dtypes).map(|(spec, dtype)| {
        let view = TensorView::new(dtype, spec.shape.clone(), &raw);
        (&spec.name, view.unwrap())
    });
    let theirs = safetensors::serialize(views, None).unwrap();
    let found = SafeTensors::read_metadata(&theirs).unwrap().1;
    let offsets = specs
        .each_ref()
        .map(|spec| found.info(&spec.name).unwrap().data_offsets.0);
    assert_eq!(offsets, [8, 4, 0]);
}

#[test]
fn the_same_tensor_in_another_spelling_is_refused() {
    let spec = TensorSpec::f32("x", [2]);
    let canonical = encode(&[(spec.clone(), &[1.0, 2.0])]);
    let text = String::from_utf8(canonical[8..canonical.len() - 8].to_vec()).unwrap();
    assert!(
        text.ends_with("  ") && encoded_length(std::slice::from_ref(&spec)) == 512 + 8,
        "the padding is what gives room for another spelling: {text:?}"
    );
    let mut respelled = canonical.to_vec();
    let body = respelled.len() - 8;
    let other = text.replacen("}}  ", "} } ", 1);
    respelled[8..body].copy_from_slice(other.as_bytes());
    assert!(SafeTensors::deserialize(&respelled).is_ok());
    assert_eq!(decode(&respelled, &[spec]), Err(TensorError::NotCanonical));
}

#[test]
#[should_panic(expected = "names of their own")]
fn two_tensors_of_one_name_are_our_own_mistake() {
    encoded_length(&[TensorSpec::f32("x", [1]), TensorSpec::bf16("x", [1])]);
}
