//! Copies and merged ranges in fewer bytes.
//!
//! ```text
//!              bytes of 4096 elements   what is lost                      for
//!   f32                         16384   nothing                           checkpoints
//!   bf16                         8192   16 of 24 bits                     checkpoints, weights
//!   int8                         4160   1/254 of a block's largest        deltas
//!   low-rank 4, 1024 wide       *8224   all but 4 directions              deltas of large matrices (* 1024 x 1024: 16384)
//!   top-k 64                       84   all but 64 values, and those      deltas, with error feedback
//!                                       to 2 bits
//!   signs 488                     371   all but 488 signs                 deltas, with error feedback
//!   ternary                       854   a fifth of the energy             merged deltas of such uploads
//!   sparse               516 to  2564   a fifth of a value, or a tiny one  merged deltas of top-k uploads
//! ```
//!
//! **Error feedback** makes up for what is lost: what a codec left out of one delta is added to the next, so that it is
//! late, not gone.
//!
//! ```text
//!   target    = decay · residual + delta
//!   bytes     = encode(target)
//!   residual  = target - decode(bytes)
//! ```
//!
//! Encoders give the same bytes on every machine, for an audit encodes again and compares; decoders the same bits. A
//! decoder takes bytes from strangers: it knows how many elements to expect, looks at the length before it allocates, and
//! answers whatever else is wrong with an [`Error`].
//!
//! Elements are taken in chunks of [`CHUNK`], by low-rank as rows of one matrix. A range of other than a multiple of
//! [`CHUNK`] elements ends with a shorter chunk.
//!
//! | codec | module |
//! |---|---|
//! | `F32`, `Bf16` | [`float`] |
//! | `Int8` | [`int8`] |
//! | `LowRank` | [`low_rank`] |
//! | `TopK` | [`top_k`] |
//! | `Signs` | [`signs`] |
//! | `Ternary` | [`ternary`] |
//! | `Sparse` | [`sparse`] |

pub mod float;
pub mod int8;
pub mod low_rank;
mod places;
pub mod signs;
pub mod sparse;
pub mod ternary;
pub mod top_k;

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::outer::same_length;
use crate::vector::{Kernel, dispatch};

/// Elements that all codecs but low-rank look at together.
pub const CHUNK: usize = 4096;

/// How numbers become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Codec {
    /// As they are, 4 bytes each.
    #[default]
    F32,
    /// Rounded to bf16, 2 bytes each.
    Bf16,
    /// A byte each, and 4 for every 256.
    Int8,
    /// The closest matrix of few directions that a few rounds of iteration find.
    LowRank {
        /// Directions, at least 1.
        rank: u16,
        /// Elements of a row of the matrix, at least 1.
        columns: u32,
    },
    /// The largest values of every 4096, 2 bits each.
    TopK {
        /// Values kept of every 4096: 1 to 4096.
        keep: u16,
    },
    /// Which values are not zero, and half a byte for each of those.
    Sparse,
    /// The signs of the largest values of every 4096.
    Signs {
        /// Values kept of every 4096: 1 to 4096.
        keep: u16,
    },
    /// Minus one, zero or one, times a scale for every 64.
    Ternary,
}

/// What an encoder left out so far, and how much of it to make up for.
#[derive(Debug)]
pub struct Feedback<'a> {
    /// As many elements as are encoded; zeros at first. It is brought up to date.
    pub residual: &'a mut [f32],
    /// How much of the residual still counts at the next encoding: 1, or a little less, so that what is long out of date
    /// fades. 0.95 in SparseLoCo.
    pub decay: f32,
}

impl Codec {
    /// Top-k as SparseLoCo has it: 64 of 4096.
    pub const TOP_64: Self = Self::TopK { keep: 64 };
    /// Signs of which uploads and merged cells together take a fiftieth of IOTA's bytes, if merged deltas are
    /// [`Codec::Ternary`].
    pub const SIGNS: Self = Self::Signs { keep: 488 };

    /// Whether its settings make sense.
    ///
    /// # Errors
    /// [`Error::Setting`] names the one that does not.
    pub const fn validate(self) -> Result<(), Error> {
        let (name, expected) = match self {
            Self::LowRank { rank: 0, .. } => ("rank", "at least 1"),
            Self::LowRank { columns: 0, .. } => ("columns", "at least 1"),
            Self::TopK { keep: 0 | 4097.. } | Self::Signs { keep: 0 | 4097.. } => {
                ("keep", "1 to 4096")
            }
            _ => return Ok(()),
        };
        Err(Error::Setting { name, expected })
    }

    /// Bytes that so many elements take. Only those of [`Codec::Sparse`] depend on the values.
    #[must_use]
    pub fn encoded_length(self, elements: usize) -> RangeInclusive<usize> {
        let (whole, rest) = (elements / CHUNK, elements % CHUNK);
        let chunks = |length: fn(usize, u16) -> usize, keep| {
            let rest_length = if rest > 0 { length(rest, keep) } else { 0 };
            whole * length(CHUNK, keep) + rest_length
        };
        let exact = |length| length..=length;
        match self {
            Self::F32 => exact(4 * elements),
            Self::Bf16 => exact(2 * elements),
            Self::Int8 => exact(chunks(|elements, _| int8::length(elements), 0)),
            Self::LowRank { rank, columns } => exact(low_rank::length(elements, rank, columns)),
            Self::TopK { keep } => exact(chunks(top_k::length, keep)),
            Self::Signs { keep } => exact(chunks(signs::length, keep)),
            Self::Ternary => exact(chunks(|elements, _| ternary::length(elements), 0)),
            Self::Sparse => {
                let least = chunks(|elements, _| sparse::length(elements), 0);
                least..=least + chunks(|elements, _| elements.div_ceil(2), 0)
            }
        }
    }

    /// The bytes of `values`, or with feedback of `decay · residual + values`.
    ///
    /// ```
    /// use iota_merge::{Codec, Feedback};
    ///
    /// let mut values = vec![0.001_f32; 4096];
    /// values[7] = -3.0;
    /// let mut residual = vec![0.0; 4096];
    /// let feedback = Feedback { residual: &mut residual, decay: 1.0 };
    /// let bytes = Codec::TOP_64.encode(&values, Some(feedback))?;
    /// assert_eq!(bytes.len(), 84);
    /// assert_eq!(Codec::TOP_64.decode(&bytes, 4096)?[7], -3.0);
    /// assert_eq!(residual[4095], 0.001); // kept for the next time
    /// # Ok::<(), iota_merge::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::OtherLength`] if the residual is not as long; [`Error::Value`] names a value that is
    /// not finite, or, but for [`Codec::F32`], larger than a bf16 can be. The residual then holds anything.
    pub fn encode(self, values: &[f32], feedback: Option<Feedback<'_>>) -> Result<Vec<u8>, Error> {
        self.validate()?;
        if let Some(feedback) = &feedback {
            same_length("the residual", values.len(), feedback.residual.len())?;
        }
        let mut bytes = Vec::with_capacity(*self.encoded_length(values.len()).start());
        dispatch(Encode {
            codec: self,
            values,
            feedback,
            bytes: &mut bytes,
        })?;
        Ok(bytes)
    }

    /// The values that `bytes` stand for. All finite.
    ///
    /// # Errors
    /// As [`Codec::decode_into`].
    pub fn decode(self, bytes: &[u8], elements: usize) -> Result<Vec<f32>, Error> {
        // Before anything is allocated: whoever sent the bytes does not decide how much that is.
        self.check_length(bytes.len(), elements)?;
        let mut values = vec![0.0; elements];
        self.decode_into(bytes, &mut values)?;
        Ok(values)
    }

    /// As [`Codec::decode`], into memory that the caller has.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::EncodedLength`] if there are not as many bytes as so many values take;
    /// [`Error::Malformed`], [`Error::Value`]. `values` then holds anything.
    pub fn decode_into(self, bytes: &[u8], values: &mut [f32]) -> Result<(), Error> {
        self.check_length(bytes.len(), values.len())?;
        let used = dispatch(Decode {
            codec: self,
            bytes,
            values,
        })?;
        if used == bytes.len() {
            Ok(())
        } else {
            Err(Error::EncodedLength {
                expected: used,
                found: bytes.len(),
            })
        }
    }

    /// As [`Codec::decode`], of bytes that are filled up with zeros to a length that was agreed on beforehand.
    ///
    /// # Errors
    /// As [`Codec::decode`], and [`Error::EncodedLength`] if there is anything but zeros behind what was encoded.
    pub fn decode_filled(self, bytes: &[u8], elements: usize) -> Result<Vec<f32>, Error> {
        let least = *self.encoded_length(elements).start();
        self.check_length(bytes.len().min(least), elements)?;
        let mut values = vec![0.0; elements];
        let used = dispatch(Decode {
            codec: self,
            bytes,
            values: &mut values,
        })?;
        if bytes[used..].iter().all(|byte| *byte == 0) {
            Ok(values)
        } else {
            Err(Error::EncodedLength {
                expected: used,
                found: bytes.len(),
            })
        }
    }

    fn check_length(self, found: usize, elements: usize) -> Result<(), Error> {
        self.validate()?;
        let length = self.encoded_length(elements);
        if length.contains(&found) {
            return Ok(());
        }
        let (least, most) = length.into_inner();
        Err(Error::EncodedLength {
            expected: if found < least { least } else { most },
            found,
        })
    }

    /// Elements that are encoded on their own.
    const fn chunk(self) -> usize {
        match self {
            Self::LowRank { .. } => usize::MAX,
            _ => CHUNK,
        }
    }

    /// Appends a chunk's bytes. On an error says at which of its elements.
    #[inline(always)]
    fn encode_chunk(self, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
        match self {
            Self::F32 => float::encode_f32(values, bytes),
            Self::Bf16 => float::encode_bf16(values, bytes),
            Self::Int8 => int8::encode(values, bytes),
            Self::LowRank { rank, columns } => low_rank::encode(values, rank, columns, bytes),
            Self::TopK { keep } => top_k::encode(values, keep, bytes),
            Self::Signs { keep } => signs::encode(values, keep, bytes),
            Self::Ternary => ternary::encode(values, bytes),
            Self::Sparse => sparse::encode(values, bytes),
        }
    }

    /// Fills `values` from the first bytes and returns how many those were. There are at least as many as the shortest
    /// encoding of the chunk takes.
    #[inline(always)]
    fn decode_chunk(self, bytes: &[u8], values: &mut [f32]) -> Result<usize, Refused> {
        match self {
            Self::F32 => float::decode_f32(bytes, values),
            Self::Bf16 => float::decode_bf16(bytes, values),
            Self::Int8 => int8::decode(bytes, values),
            Self::LowRank { rank, columns } => low_rank::decode(bytes, rank, columns, values),
            Self::TopK { keep } => top_k::decode(bytes, keep, values),
            Self::Signs { keep } => signs::decode(bytes, keep, values),
            Self::Ternary => ternary::decode(bytes, values),
            Self::Sparse => sparse::decode(bytes, values),
        }
    }
}

/// What is wrong with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It has no meaning.
    Malformed(&'static str),
    /// It stands for a value that is not finite, this one of the chunk.
    Value(usize),
    /// It is longer than what is left of the bytes.
    TooShort { expected: usize },
}

struct Encode<'a> {
    codec: Codec,
    values: &'a [f32],
    feedback: Option<Feedback<'a>>,
    bytes: &'a mut Vec<u8>,
}

impl Kernel for Encode<'_> {
    type Output = Result<(), Error>;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> Result<(), Error> {
        let Self {
            codec,
            values,
            feedback,
            bytes,
        } = self;
        let chunk = codec.chunk();
        let at = |start: usize| {
            move |element: usize| Error::Value {
                element: start + element,
            }
        };
        let Some(Feedback { residual, decay }) = feedback else {
            for (index, values) in values.chunks(chunk).enumerate() {
                codec
                    .encode_chunk(values, bytes)
                    .map_err(at(index.saturating_mul(chunk)))?;
            }
            return Ok(());
        };
        // The residual of a chunk is its target until it is known what was encoded of it.
        let mut decoded = vec![0.0; values.len().min(chunk)];
        for (index, (values, residual)) in values
            .chunks(chunk)
            .zip(residual.chunks_mut(chunk))
            .enumerate()
        {
            for (residual, value) in residual.iter_mut().zip(values) {
                *residual = decay * *residual + value;
            }
            let begin = bytes.len();
            codec
                .encode_chunk(residual, bytes)
                .map_err(at(index.saturating_mul(chunk)))?;
            let decoded = &mut decoded[..values.len()];
            codec
                .decode_chunk(&bytes[begin..], decoded)
                .expect("what was just encoded can be decoded");
            for (residual, decoded) in residual.iter_mut().zip(decoded) {
                *residual -= *decoded;
            }
        }
        Ok(())
    }
}

struct Decode<'a> {
    codec: Codec,
    bytes: &'a [u8],
    values: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    /// How many of the bytes were decoded.
    type Output = Result<usize, Error>;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> Result<usize, Error> {
        let Self {
            codec,
            bytes,
            values,
        } = self;
        let chunk = codec.chunk();
        let mut begin = 0;
        for (index, values) in values.chunks_mut(chunk).enumerate() {
            let used = codec.decode_chunk(&bytes[begin..], values);
            begin += used.map_err(|refused| match refused {
                Refused::Malformed(what) => Error::Malformed { what, chunk: index },
                Refused::Value(element) => Error::Value {
                    element: index.saturating_mul(chunk) + element,
                },
                Refused::TooShort { expected } => Error::EncodedLength {
                    expected: begin + expected,
                    found: bytes.len(),
                },
            })?;
        }
        Ok(begin)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => formatter.write_str("f32"),
            Self::Bf16 => formatter.write_str("bf16"),
            Self::Int8 => formatter.write_str("int8"),
            Self::LowRank { rank, .. } => write!(formatter, "low-rank {rank}"),
            Self::TopK { keep } => write!(formatter, "top-k {keep}"),
            Self::Signs { keep } => write!(formatter, "signs {keep}"),
            Self::Ternary => formatter.write_str("ternary"),
            Self::Sparse => formatter.write_str("sparse"),
        }
    }
}
