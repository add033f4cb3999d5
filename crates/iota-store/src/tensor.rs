//! Tensors as bytes: the safetensors format, in one canonical form.
//!
//! ```text
//! 8 bytes            header length n, little endian
//! n bytes            {"weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}, padded with spaces to 512
//! 24 bytes           the elements, little endian, row by row
//! ```
//!
//! Peers compare digests of these bytes, so one list of tensors must have one encoding. Order and spelling are those of
//! the `safetensors` crate (F32 before BF16 before U8, then by name), no metadata; so any safetensors reader reads what is
//! written here. In turn only this form is read: a header is compared with the expected one, and is parsed only to say
//! how it differs. The length follows from the specs alone, which is what lets a grant be signed before there is data.

use std::fmt;

use bytes::Bytes;
use safetensors::SafeTensors;

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// The upper half of an [`F32`](Self::F32), rounded to nearest, ties to even.
    ///
    /// A finite number stays finite unless it rounds beyond the largest bfloat16 (3.39e38), which makes it infinite;
    /// a NaN stays a NaN.
    Bf16,
    /// A byte: what is in it is the writer's and the reader's business. See [`encode_with`].
    U8,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::U8 => "U8",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a tensor must be, apart from its values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Its name; not `__metadata__`, which the format keeps for itself.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of f32 elements.
    pub fn f32(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: name.into(),
            dtype: Dtype::F32,
            shape: shape.into(),
        }
    }

    /// A tensor of bfloat16 elements.
    pub fn bf16(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: name.into(),
            dtype: Dtype::Bf16,
            shape: shape.into(),
        }
    }

    /// A tensor of bytes.
    pub fn u8(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: name.into(),
            dtype: Dtype::U8,
            shape: shape.into(),
        }
    }

    /// How many elements it has.
    ///
    /// # Panics
    /// If that is more than a `usize` counts.
    pub fn elements(&self) -> usize {
        self.shape
            .iter()
            .try_fold(1_usize, |product, &dimension| {
                product.checked_mul(dimension)
            })
            .expect("a tensor fits into memory")
    }

    fn size_bytes(&self) -> usize {
        self.elements()
            .checked_mul(self.dtype.size_bytes())
            .expect("a tensor fits into memory")
    }
}

/// How bytes differ from the tensors that they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// There are more or fewer bytes.
    #[error("{found_bytes} bytes instead of {expected_bytes}")]
    Length {
        /// What the specs make.
        expected_bytes: u64,
        /// What there is.
        found_bytes: u64,
    },
    /// The header is not one of safetensors.
    #[error("not safetensors: {reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// A tensor is not there.
    #[error("tensor {name} is missing")]
    Name {
        /// The missing one.
        name: String,
    },
    /// A tensor's elements are stored in another way.
    #[error("tensor {name} has dtype {found} instead of {expected}")]
    Dtype {
        /// Which.
        name: String,
        /// What it should be.
        expected: Dtype,
        /// What it is, in the format's own spelling.
        found: String,
    },
    /// A tensor has other dimensions.
    #[error("tensor {name} has shape {found:?} instead of {expected:?}")]
    Shape {
        /// Which.
        name: String,
        /// What it should be.
        expected: Vec<usize>,
        /// What it is.
        found: Vec<usize>,
    },
    /// The right tensors, written in another order or spelling, or with something else beside them.
    #[error("not in canonical form")]
    NotCanonical,
}

/// Length in bytes of what [`encode`] makes of tensors like these, whatever their values.
///
/// # Panics
/// As [`encode`].
pub fn encoded_length(specs: &[TensorSpec]) -> u64 {
    Layout::new(&specs.iter().collect::<Vec<_>>()).total_bytes() as u64
}

/// Encodes tensors: for each its spec and its elements, row by row.
///
/// # Panics
/// If a tensor has not as many elements as its shape says or is one of bytes, if two have the same name, or if one is
/// called `__metadata__`.
pub fn encode(tensors: &[(TensorSpec, &[f32])]) -> Bytes {
    let specs: Vec<&TensorSpec> = tensors.iter().map(|(spec, _)| spec).collect();
    let layout = Layout::new(&specs);
    let mut encoded = vec![0; layout.total_bytes()];
    let (header, data) = encoded.split_at_mut(layout.header.len());
    header.copy_from_slice(&layout.header);
    for ((spec, values), &start) in tensors.iter().zip(&layout.starts) {
        assert_eq!(
            values.len(),
            spec.elements(),
            "tensor {} must have as many elements as its shape says",
            spec.name
        );
        let slots = &mut data[start..start + spec.size_bytes()];
        match spec.dtype {
            Dtype::F32 => {
                for (slot, value) in slots.as_chunks_mut().0.iter_mut().zip(*values) {
                    *slot = value.to_le_bytes();
                }
            }
            Dtype::Bf16 => {
                for (slot, value) in slots.as_chunks_mut().0.iter_mut().zip(*values) {
                    *slot = bf16_bits(*value).to_le_bytes();
                }
            }
            Dtype::U8 => panic!("{BYTES_ARE_NO_NUMBERS}"),
        }
    }
    encoded.into()
}

/// Decodes tensors; returns their elements in the order of `specs`.
///
/// # Errors
/// [`TensorError`] if `bytes` are not the canonical encoding of exactly these tensors. No bytes make it panic, and it
/// allocates only after everything has been checked. Values are not: see [`first_non_finite`].
///
/// # Panics
/// If `specs` are not possible or a tensor is one of bytes, as [`encode`].
pub fn decode(bytes: &[u8], specs: &[TensorSpec]) -> Result<Vec<Vec<f32>>, TensorError> {
    let layout = Layout::new(&specs.iter().collect::<Vec<_>>());
    let data = layout.check(bytes, specs)?;
    let tensors = specs.iter().zip(&layout.starts).map(|(spec, &start)| {
        let slots = &data[start..start + spec.size_bytes()];
        match spec.dtype {
            Dtype::F32 => {
                let slots = slots.as_chunks().0.iter();
                slots.map(|slot| f32::from_le_bytes(*slot)).collect()
            }
            Dtype::Bf16 => {
                let slots = slots.as_chunks().0.iter();
                slots
                    .map(|slot| f32::from_bits(u32::from(u16::from_le_bytes(*slot)) << 16))
                    .collect()
            }
            Dtype::U8 => panic!("{BYTES_ARE_NO_NUMBERS}"),
        }
    });
    Ok(tensors.collect())
}

const BYTES_ARE_NO_NUMBERS: &str = "a tensor of bytes is written and read as such";

/// Encodes one tensor of any dtype: `write` is given the bytes of its elements, all zero, and fills them in.
///
/// # Errors
/// Those of `write`.
///
/// # Panics
/// If the tensor is called `__metadata__`.
pub fn encode_with<E>(
    spec: &TensorSpec,
    write: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Bytes, E> {
    let layout = Layout::new(&[spec]);
    let mut encoded = vec![0; layout.total_bytes()];
    let (header, data) = encoded.split_at_mut(layout.header.len());
    header.copy_from_slice(&layout.header);
    write(data)?;
    Ok(encoded.into())
}

/// The bytes of the elements of one tensor of any dtype: what `write` made in [`encode_with`].
///
/// # Errors
/// [`TensorError`] if `bytes` are not the canonical encoding of exactly this tensor. No bytes make it panic.
///
/// # Panics
/// If the tensor is called `__metadata__`.
pub fn element_bytes<'a>(bytes: &'a [u8], spec: &TensorSpec) -> Result<&'a [u8], TensorError> {
    let layout = Layout::new(&[spec]);
    layout.check(bytes, std::slice::from_ref(spec))
}

/// Position of the first value that is infinite or not a number.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    // Whole blocks first: a search that can stop at every element is not vectorised.
    const BLOCK: usize = 1024;
    values
        .chunks(BLOCK)
        .position(|block| {
            !block
                .iter()
                .fold(true, |all, value| all & value.is_finite())
        })
        .and_then(|block| {
            let start = block * BLOCK;
            let position = values[start..]
                .iter()
                .position(|value| !value.is_finite())?;
            Some(start + position)
        })
}

/// Headers are padded to a multiple of this. Those of a few tensors are then equally long whatever their sizes, so that
/// an object's length is a linear function of its elements, which the rules of a run rely on; and the elements are aligned
/// if the whole is.
const HEADER_BYTES: usize = 512;

/// The header of an encoding and where each tensor starts after it.
struct Layout {
    /// Length field, JSON and padding.
    header: Vec<u8>,
    /// Offsets in bytes from the end of the header, in the order of the specs.
    starts: Vec<usize>,
    data_bytes: usize,
}

impl Layout {
    fn new(specs: &[&TensorSpec]) -> Self {
        let mut order: Vec<usize> = (0..specs.len()).collect();
        order.sort_by_key(|&index| (specs[index].dtype, &specs[index].name));

        let mut names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        names.sort_unstable();
        assert!(
            names.windows(2).all(|pair| pair[0] != pair[1]) && !names.contains(&"__metadata__"),
            "tensors must have names of their own"
        );

        let mut starts = vec![0; specs.len()];
        let mut data_bytes = 0_usize;
        let mut json = String::from("{");
        for (place, &index) in order.iter().enumerate() {
            let spec = specs[index];
            let start = data_bytes;
            starts[index] = start;
            data_bytes = data_bytes
                .checked_add(spec.size_bytes())
                .expect("tensors fit into memory");
            let comma = if place == 0 { "" } else { "," };
            let name = serde_json::to_string(&spec.name).expect("a text can be JSON");
            let shape = serde_json::to_string(&spec.shape).expect("numbers can be JSON");
            json += &format!(
                r#"{comma}{name}:{{"dtype":"{}","shape":{shape},"data_offsets":[{start},{data_bytes}]}}"#,
                spec.dtype
            );
        }
        json.push('}');
        let padded_bytes = (8 + json.len()).next_multiple_of(HEADER_BYTES) - 8;
        let mut header = (padded_bytes as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        header.resize(8 + padded_bytes, b' ');
        Self {
            header,
            starts,
            data_bytes,
        }
    }

    /// What follows the header, if this is the layout of `bytes`; it was made of `specs`.
    fn check<'a>(&self, bytes: &'a [u8], specs: &[TensorSpec]) -> Result<&'a [u8], TensorError> {
        if bytes.len() != self.total_bytes() {
            return Err(TensorError::Length {
                expected_bytes: self.total_bytes() as u64,
                found_bytes: bytes.len() as u64,
            });
        }
        let (header, data) = bytes.split_at(self.header.len());
        if header != self.header {
            return Err(difference(bytes, specs));
        }
        Ok(data)
    }

    fn total_bytes(&self) -> usize {
        self.header
            .len()
            .checked_add(self.data_bytes)
            .expect("tensors fit into memory")
    }
}

/// Why a header is not the expected one.
fn difference(bytes: &[u8], specs: &[TensorSpec]) -> TensorError {
    let found = match SafeTensors::deserialize(bytes) {
        Ok(found) => found,
        Err(error) => {
            return TensorError::Malformed {
                reason: error.to_string(),
            };
        }
    };
    for spec in specs {
        let Ok(tensor) = found.tensor(&spec.name) else {
            return TensorError::Name {
                name: spec.name.clone(),
            };
        };
        let dtype = tensor.dtype().to_string();
        if dtype != spec.dtype.name() {
            return TensorError::Dtype {
                name: spec.name.clone(),
                expected: spec.dtype,
                found: dtype,
            };
        }
        if tensor.shape() != spec.shape {
            return TensorError::Shape {
                name: spec.name.clone(),
                expected: spec.shape.clone(),
                found: tensor.shape().to_vec(),
            };
        }
    }
    TensorError::NotCanonical
}

fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = if value.is_nan() {
        // Rounding could carry a NaN over into infinity or zero; its top bits with the quiet bit set are one for sure.
        bits | 0x0040_0000
    } else {
        // Adding just under a half rounds to nearest; the last kept bit makes it a half where that is odd.
        bits + 0x7fff + (bits >> 16 & 1)
    };
    (rounded >> 16) as u16
}

#[cfg(test)]
mod tests;
