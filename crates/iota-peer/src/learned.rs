//! What was learned since a checkpoint, by a miner or by a merge: few bytes, and what they make of the checkpoint.
//!
//! ```text
//!   miner     anchor - parameters ──encode──► upload ──decode──┐
//!                                                              ├─ merge rule ──encode──► delta
//!   other miners                              uploads ─decode──┘                           │ decode
//!                                                                                          ▼
//!   owner, and everybody who has installed the checkpoint:      anchor, momentum ──outer step──► merged cell
//! ```
//!
//! The owner of a cell steps on the delta as it is when it has been decoded again, so the merged cell that it stores whole
//! is, bit for bit, what everybody else makes of the delta.

use bytes::Bytes;
use iota_merge::{Codec, Feedback, pseudo_gradient};
use iota_run::Merge;
use iota_store::tensor::{self, TensorSpec};

use crate::Error;

/// Tensors of one range of a stage, equally long: parameters; both moments, if they are merged; the outer step's momentum,
/// if it has one.
pub type CellPlanes = Vec<Vec<f32>>;

/// What was learned about a range.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Learned {
    /// Of the parameters: it points from where they are to where they were.
    pub(crate) delta: Vec<f32>,
    /// Both moments, if they are merged.
    pub(crate) moments: Vec<Vec<f32>>,
}

/// A range of the checkpoint that something was learned since.
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// The parameters.
    pub anchor: Vec<f32>,
    /// The outer step's momentum; empty if it has none.
    pub momentum: Vec<f32>,
}

/// The object with what a miner learned about a range. `residual`: what its earlier uploads of the range left out, brought
/// up to date; empty if that is not made up for.
pub(crate) fn encode_trained(
    merge: &Merge,
    anchor: &[f32],
    trained: &[f32],
    moments: &[&[f32]],
    residual: &mut [f32],
) -> Result<Bytes, Error> {
    let delta = pseudo_gradient(anchor, trained)?;
    let feedback = merge
        .residual_decay()
        .map(|decay| Feedback { residual, decay });
    let encoded = merge.upload.encode(&delta, feedback)?;
    let spec = merge.learned_spec(merge.upload, anchor.len(), 1);
    Ok(object(&spec, merge, anchor.len(), &encoded, moments))
}

/// The object with what a merge of so many copies changed in a range, and what whoever reads it gets.
pub(crate) fn encode_merged(
    merge: &Merge,
    codec: Codec,
    learned: Learned,
    copies: usize,
) -> Result<(Bytes, Learned), Error> {
    let elements = learned.delta.len();
    let encoded = codec.encode(&learned.delta, None)?;
    let moments: Vec<&[f32]> = learned.moments.iter().map(Vec::as_slice).collect();
    let spec = merge.learned_spec(codec, elements, copies);
    let bytes = object(&spec, merge, elements, &encoded, &moments);
    let delta = codec.decode(&encoded, elements)?;
    Ok((bytes, Learned { delta, ..learned }))
}

/// What such an object holds.
///
/// # Errors
/// [`Error::Merge`] if it holds anything else; [`Error::is_not_finite`] says whether that is a value.
pub(crate) fn decode(
    merge: &Merge,
    codec: Codec,
    elements: usize,
    bytes: &[u8],
) -> Result<Learned, Error> {
    let malformed = |_| Error::Input("the object is none of what was learned");
    let spec = merge.learned_spec_within(bytes.len());
    let spec = spec.ok_or(Error::Input("the object is too short for a header"))?;
    let data = tensor::element_bytes(bytes, &spec).map_err(malformed)?;
    let encoded = data
        .len()
        .checked_sub(merge.learned_moments_bytes(elements));
    let encoded = encoded.ok_or(Error::Input("the object is too short for its moments"))?;
    let (encoded, moments) = data.split_at(encoded);
    let delta = codec.decode_filled(encoded, elements)?;
    let moments: Vec<Vec<f32>> = floats(moments)
        .chunks_exact(elements)
        .map(<[f32]>::to_vec)
        .collect();
    if let Some(element) = moments
        .iter()
        .find_map(|plane| tensor::first_non_finite(plane))
    {
        return Err(iota_merge::Error::Value { element }.into());
    }
    Ok(Learned { delta, moments })
}

/// The merged cell that `learned` makes of the checkpoint of epoch `round`.
///
/// # Errors
/// [`Error::Merge`] if the result is not finite.
pub(crate) fn step(
    merge: &Merge,
    mut base: Base,
    learned: Learned,
    round: u64,
) -> Result<CellPlanes, Error> {
    let Learned { delta, moments } = learned;
    let parameters = merge
        .outer
        .step(&base.anchor, &delta, &mut base.momentum, round)?;
    let momentum = merge.outer.has_momentum().then_some(base.momentum);
    Ok([parameters]
        .into_iter()
        .chain(moments)
        .chain(momentum)
        .collect())
}

/// The object of a merged cell.
pub(crate) fn encode_cell(merge: &Merge, planes: &CellPlanes) -> Bytes {
    let elements = planes.first().map_or(0, Vec::len);
    let tensors: Vec<_> = merge
        .cell_spec(elements)
        .into_iter()
        .zip(planes.iter().map(Vec::as_slice))
        .collect();
    tensor::encode(&tensors)
}

/// Numbers as little-endian bytes, and back.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.as_chunks().0.iter();
    numbers.map(|number| f32::from_le_bytes(*number)).collect()
}

pub(crate) fn write_floats(into: &mut [u8], values: &[f32]) {
    for (slot, value) in into.as_chunks_mut().0.iter_mut().zip(values) {
        *slot = value.to_le_bytes();
    }
}

fn object(
    spec: &TensorSpec,
    merge: &Merge,
    elements: usize,
    encoded: &[u8],
    moments: &[&[f32]],
) -> Bytes {
    let written: Result<_, std::convert::Infallible> = tensor::encode_with(spec, |data| {
        data[..encoded.len()].copy_from_slice(encoded);
        let moments_start = data.len() - merge.learned_moments_bytes(elements);
        let planes = &mut data[moments_start..];
        for (into, plane) in planes.chunks_exact_mut(4 * elements).zip(moments) {
            write_floats(into, plane);
        }
        Ok(())
    });
    match written {
        Ok(bytes) => bytes,
        Err(never) => match never {},
    }
}
