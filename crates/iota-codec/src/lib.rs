//! Activations and gradients in fewer bytes, the same bytes on every machine.
//!
//! Between two stages of a model travels one tensor per sample and direction, over links that are a thousand times slower
//! than memory. This crate makes it 2, 4 or 7 times smaller. Whoever repeats an encoding (an auditor, years later, on
//! another processor) gets the **same bytes**, so that "is this what the stage had to send?" stays a comparison of two
//! digests.
//!
//! ```text
//!             values [tokens, channels], f32, and a seed
//!                               │
//!      ┌──────────┬─────────────┼────────────────────────┐
//!     f32        bf16         int8                      int4
//!      │          │             │                         │  signs, Hadamard: outliers are shared out
//!      │       nearest     step per token         step per 64 channels
//!      │          │             ╰──────── by chance ──────╯  hash of seed, token, channel
//!      ▼          ▼             ▼                         ▼
//!   4 bytes    2 bytes    1 byte + 4/channels      0.53 bytes          of a value
//! ```
//!
//! # Example
//!
//! ```
//! use iota_codec::{Codec, Seed, Shape};
//!
//! let shape = Shape::new(2, 64);
//! let values: Vec<f32> = (0..128).map(|value| value as f32 - 64.0).collect();
//!
//! let mut bytes = vec![0; Codec::Int4.encoded_length(shape)];
//! assert_eq!(bytes.len(), 2 * 34); // instead of 2 * 256
//! Codec::Int4.encode(&values, shape, Seed::new(7), &mut bytes)?;
//!
//! let mut decoded = vec![0.0; 128];
//! Codec::Int4.decode(&bytes, shape, &mut decoded)?;
//! assert!(values.iter().zip(&decoded).all(|(a, b)| (a - b).abs() < 30.0));
//! # Ok::<(), iota_codec::Error>(())
//! ```
//!
//! # The codecs
//!
//! With `c` channels, `x` a value and `m` the largest magnitude of its token or tile:
//!
//! | | bytes of a token | what is written | off by at most | on average |
//! |---|---|---|---|---|
//! | [`F32`](Codec::F32) | `4 c` | the value | 0 | the value |
//! | [`Bf16`](Codec::Bf16) | `2 c` | its upper half, to nearest, ties to even | `abs(x) / 256` | off to one side by up to that |
//! | [`Int8`](Codec::Int8) | `4 + c` | `m / 127` of the token as f32; `x / step` by chance | `m / 127` | the value |
//! | [`Int4`](Codec::Int4) | `34 ⌊c / 64⌋`, and `2 + ⌈r / 2⌉` if `r = c mod 64 > 0` | tiles of 64 of the rotated token: `m / 7`, rounded up to bf16; `x / step` by chance | `m / 6.94` in a rotated channel | the value |
//!
//! *By chance* means: to the whole number below or above, the upper one with a probability that is the fraction. So the
//! mean over seeds is the value (to a 65,536th of a step, and to the rounding of f32), and what a network sums up over many
//! tokens is not pulled to one side. The price is a larger spread: at worst half a step, `step / √6` on average, where
//! rounding to nearest has `step / √12`.
//!
//! Measured, as the length of the difference over the length of the tensor (`cargo run --release -p iota-codec --example
//! errors`, which has more rows); the tensors are described in `tests/it/data.rs`:
//!
//! | tensor | channels | bf16 | int8 | int4 | int4 without rotation |
//! |---|---:|---:|---:|---:|---:|
//! | Gaussian | 64 | 0.0017 | 0.0082 | 0.153 | 0.150 |
//! | heavy tails | 64 | 0.0017 | 0.0199 | 0.125 | 0.301 |
//! | outlier channels | 64 | 0.0017 | 0.0232 | 0.088 | 0.224 |
//! | Gaussian | 80 | 0.0017 | 0.0084 | 0.147 | 0.144 |
//! | outlier channels | 80 | 0.0017 | 0.0256 | 0.112 | 0.174 |
//! | Gaussian | 5,120 | 0.0017 | 0.0117 | 0.153 | 0.149 |
//! | outlier channels | 5,120 | 0.0016 | 0.1792 | 0.128 | 0.228 |
//!
//! The last row is a warning: one step for a token of thousands of channels, some of them a hundred times as large as the
//! rest, leaves `Int8` less than the rotated 4 bits keep. It is meant for bottleneck boundaries, which are narrow.
//!
//! Sources: 8 bits between pipeline stages, SWARM (Ryabinin et al., arXiv 2301.11913); rounding by chance, QSGD (Alistarh
//! et al., arXiv 1610.02132); 4 bits by tiles after a Hadamard transform, TAH-Quant (He et al., arXiv 2506.01352). The
//! modules say what is done otherwise here.
//!
//! # The same bytes
//!
//! - Chance is a hash of seed, token and channel: no state runs through the loops.
//! - A value goes through single additions, multiplications and divisions, each rounded as IEEE 754 says. Nothing is fused,
//!   no function of a mathematical library is called, and the only thing that is reduced over lanes is a maximum.
//! - Lengths are a function of codec and shape, so that a grant can be signed for exactly so many bytes before there is data.
//!
//! Nothing that is not finite is ever encoded, and nothing that is not finite comes out of a decoder, whatever the bytes.
//!
//! # Modules
//!
//! | | |
//! |---|---|
//! | this one | [`Codec`], [`Shape`]; lengths are checked here |
//! | `float` | f32 and bf16 |
//! | `int8` | a step per token |
//! | `int4` | tiles, packing |
//! | `hadamard` | the rotation, for any width |
//! | `magnitude` | limits, and the step that fits |
//! | `random` | [`Seed`], chance by position, rounding by chance |
//! | `vector` | the loops once for any processor and once for AVX2, which makes them up to 4 times as fast |
//!
//! A further codec is a variant of [`Codec`], a module beside `int8` and an arm in `vector`.
//!
//! # What it does *not* know
//!
//! What a tensor is for, who seeds it, files and their headers (`iota-store`), threads. Tokens are encoded one by one, so
//! whoever wants threads can be given them; at several GB/s per core nobody has asked.

mod error;
mod float;
mod hadamard;
mod int4;
mod int8;
mod magnitude;
mod random;
mod vector;

use serde::{Deserialize, Serialize};

pub use error::Error;
pub use random::Seed;
use vector::Instructions;

/// Channels of a token, at most.
pub const CHANNELS_MAX: usize = 1 << 24;

/// How the values of a tensor become bytes; see the table at the head of the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// As they are.
    #[default]
    F32,
    /// The upper half of each, rounded to nearest, ties to even.
    Bf16,
    /// 8 bits each and a scale per token, rounded by chance.
    Int8,
    /// 4 bits each after a Hadamard rotation of the token, and a scale per 64; rounded by chance.
    Int4,
}

/// Tokens and channels of a tensor. Both are at least 1, channels at most [`CHANNELS_MAX`], and a `usize` counts the bytes of
/// all values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    tokens: usize,
    channels: usize,
}

impl Shape {
    /// A shape.
    ///
    /// # Panics
    /// If it is none, see [`Shape`].
    pub fn new(tokens: usize, channels: usize) -> Self {
        assert!(
            tokens > 0 && (1..=CHANNELS_MAX).contains(&channels),
            "a tensor of {tokens} x {channels} has no encoding"
        );
        // No codec needs more than 5 bytes for a value.
        let bytes = tokens.checked_mul(channels).and_then(|n| n.checked_mul(8));
        assert!(bytes.is_some(), "a tensor fits into memory");
        Self { tokens, channels }
    }

    /// Rows: a vector each.
    pub const fn tokens(self) -> usize {
        self.tokens
    }

    /// Columns: the width of a vector.
    pub const fn channels(self) -> usize {
        self.channels
    }

    /// Values.
    pub const fn elements(self) -> usize {
        self.tokens * self.channels
    }
}

impl Codec {
    /// Every codec, those with the most bytes first.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4];

    /// Its name, as settings spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of one token with so many channels. A tensor is its tokens, one after the other, and nothing else.
    pub const fn token_bytes(self, channels: usize) -> usize {
        match self {
            Self::F32 => 4 * channels,
            Self::Bf16 => 2 * channels,
            Self::Int8 => int8::row_bytes(channels),
            Self::Int4 => int4::row_bytes(channels),
        }
    }

    /// Bytes of a tensor of this shape, whatever its values.
    pub const fn encoded_length(self, shape: Shape) -> usize {
        shape.tokens * self.token_bytes(shape.channels)
    }

    /// The largest magnitude that can be encoded.
    pub const fn magnitude_max(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::Bf16 => float::BF16_MAX,
            Self::Int8 | Self::Int4 => magnitude::MAGNITUDE_MAX,
        }
    }

    /// Encodes a tensor. `values`: token by token. `seed`: where rounding gets its chance from, not used by
    /// [`F32`](Self::F32) and [`Bf16`](Self::Bf16). `encoded` is overwritten.
    ///
    /// The bytes are a function of codec, shape, values and seed alone.
    ///
    /// # Errors
    /// [`Error::NotFinite`] or [`Error::TooLarge`] name the first value that has no encoding; `encoded` is then of no use.
    ///
    /// # Panics
    /// If `values` or `encoded` are not as long as the shape says.
    pub fn encode(
        self,
        values: &[f32],
        shape: Shape,
        seed: Seed,
        encoded: &mut [u8],
    ) -> Result<(), Error> {
        self.encode_with(Instructions::detect(), values, shape, seed, encoded)
    }

    /// Decodes a tensor. What comes out is finite. `values` is overwritten.
    ///
    /// # Errors
    /// [`Error::Length`] if there are more or fewer bytes than [`encoded_length`](Self::encoded_length),
    /// [`Error::NotFinite`] or [`Error::Scale`] if no encoder can have written them; `values` are then of no use. No bytes
    /// make it panic.
    ///
    /// # Panics
    /// If `values` is not as long as the shape says.
    pub fn decode(self, encoded: &[u8], shape: Shape, values: &mut [f32]) -> Result<(), Error> {
        self.decode_with(Instructions::detect(), encoded, shape, values)
    }

    fn encode_with(
        self,
        instructions: Instructions,
        values: &[f32],
        shape: Shape,
        seed: Seed,
        encoded: &mut [u8],
    ) -> Result<(), Error> {
        assert_eq!(values.len(), shape.elements(), "values of that shape");
        assert_eq!(
            encoded.len(),
            self.encoded_length(shape),
            "room for exactly the encoding"
        );
        vector::encode(instructions, self, values, shape, seed, encoded)
    }

    fn decode_with(
        self,
        instructions: Instructions,
        encoded: &[u8],
        shape: Shape,
        values: &mut [f32],
    ) -> Result<(), Error> {
        assert_eq!(values.len(), shape.elements(), "room for that shape");
        if encoded.len() != self.encoded_length(shape) {
            return Err(Error::Length {
                expected_bytes: self.encoded_length(shape),
                found_bytes: encoded.len(),
            });
        }
        vector::decode(instructions, self, encoded, shape, values)
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
