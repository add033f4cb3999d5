//! The same loops, compiled twice: for any processor of the target and, on x86-64, for those with AVX2, which has
//! vectors twice as wide and the multiplications, maxima and packing of 32-bit lanes that the older set lacks.
//!
//! Every operation of this crate is exact or rounds once and says where, nothing is summed across lanes, and the compiler
//! fuses nothing by itself: so both give the same bytes.

use crate::{Codec, Error, Seed, Shape, float, int4, int8};

/// The vector instructions that the loops are compiled for. Holding one proves that this processor has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Instructions(Level);

#[derive(Debug, Clone, Copy)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Instructions {
    /// The best that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Self(Level::Avx2);
        }
        Self::portable()
    }

    /// What every processor of the target has.
    pub(crate) const fn portable() -> Self {
        Self(Level::Portable)
    }
}

/// Encodes; lengths have been checked.
#[expect(unsafe_code, reason = "code for AVX2 may run only where there is AVX2")]
pub(crate) fn encode(
    instructions: Instructions,
    codec: Codec,
    values: &[f32],
    shape: Shape,
    seed: Seed,
    encoded: &mut [u8],
) -> Result<(), Error> {
    match instructions.0 {
        Level::Portable => encode_body(codec, values, shape, seed, encoded),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is only made where the processor was seen to have AVX2.
        Level::Avx2 => unsafe { encode_avx2(codec, values, shape, seed, encoded) },
    }
}

/// Decodes; lengths have been checked.
#[expect(unsafe_code, reason = "code for AVX2 may run only where there is AVX2")]
pub(crate) fn decode(
    instructions: Instructions,
    codec: Codec,
    encoded: &[u8],
    shape: Shape,
    values: &mut [f32],
) -> Result<(), Error> {
    match instructions.0 {
        Level::Portable => decode_body(codec, encoded, shape, values),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is only made where the processor was seen to have AVX2.
        Level::Avx2 => unsafe { decode_avx2(codec, encoded, shape, values) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2(
    codec: Codec,
    values: &[f32],
    shape: Shape,
    seed: Seed,
    encoded: &mut [u8],
) -> Result<(), Error> {
    encode_body(codec, values, shape, seed, encoded)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn decode_avx2(
    codec: Codec,
    encoded: &[u8],
    shape: Shape,
    values: &mut [f32],
) -> Result<(), Error> {
    decode_body(codec, encoded, shape, values)
}

#[inline(always)]
fn encode_body(
    codec: Codec,
    values: &[f32],
    shape: Shape,
    seed: Seed,
    encoded: &mut [u8],
) -> Result<(), Error> {
    match codec {
        Codec::F32 => float::encode_f32(values, shape, encoded),
        Codec::Bf16 => float::encode_bf16(values, shape, encoded),
        Codec::Int8 => int8::encode(values, shape, seed, encoded),
        Codec::Int4 => int4::encode(values, shape, seed, encoded),
    }
}

#[inline(always)]
fn decode_body(
    codec: Codec,
    encoded: &[u8],
    shape: Shape,
    values: &mut [f32],
) -> Result<(), Error> {
    match codec {
        Codec::F32 => float::decode_f32(encoded, shape, values),
        Codec::Bf16 => float::decode_bf16(encoded, shape, values),
        Codec::Int8 => int8::decode(encoded, shape, values),
        Codec::Int4 => int4::decode(encoded, shape, values),
    }
}
