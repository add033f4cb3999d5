//! What crosses a boundary between two stages: how it is encoded, and with what chance.
//!
//! ```text
//! stage s ──► forward ──► Wire::activations ──► object ──► decoded by stage s + 1, and by who redoes its work
//! stage s ◄── backward ◄─ decoded ◄── object ◄── Wire::gradients ◄── stage s + 1
//! ```
//!
//! A stage computes with what it *decodes*, whether it is its first forward, a redone one or an audit, so all of them
//! agree to the bit. The chance of rounding follows from the run's seed, the sample, the stage and the direction: what
//! whoever redoes a piece of work knows of it. A sample that is sent on its way again is rounded as before.

use bytes::Bytes;
use iota_codec::{Codec, Seed, Shape};
use iota_protocol::event::{Direction, Piece};
use iota_protocol::{Digest, SampleId};
use iota_store::tensor::{self, TensorError, TensorSpec};
use serde::{Deserialize, Serialize};

use crate::Description;

/// Name of the tensor in an activation's or a gradient's object.
const ACTIVATION: &str = "activation";

/// How tensors are encoded that stages send to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wire {
    /// Forward: what a stage makes of a sample.
    pub activations: Codec,
    /// Backward: the gradients of activations.
    pub gradients: Codec,
}

/// An object that is not the tensor that it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoundaryError {
    /// The bytes are not an encoding of such a tensor.
    #[error("not an encoded tensor of this run")]
    Malformed,
    /// One of the values is infinite or not a number.
    #[error("the tensor is not finite")]
    NotFinite,
}

impl Wire {
    /// The codec of tensors that go this way.
    pub const fn codec(self, direction: Direction) -> Codec {
        match direction {
            Direction::Forward => self.activations,
            Direction::Backward => self.gradients,
        }
    }
}

impl Description {
    /// Length in bytes of the object that carries a sample across a boundary.
    pub fn boundary_bytes(&self, direction: Direction) -> u64 {
        tensor::encoded_length(&[self.boundary_spec(direction)])
    }

    /// Encodes what comes of a sample's piece: `values` of shape `[tokens of a sample, boundary width]`.
    ///
    /// # Errors
    /// [`NotFinite`](BoundaryError::NotFinite) if a value is infinite, not a number, or so large that the codec counts it
    /// as such.
    ///
    /// # Panics
    /// If there are more or fewer values than that.
    pub fn encode_boundary(
        &self,
        sample: SampleId,
        piece: Piece,
        values: &[f32],
    ) -> Result<Bytes, BoundaryError> {
        let codec = self.wire.codec(piece.direction);
        let (shape, seed) = (self.boundary_shape(), self.rounding(sample, piece));
        tensor::encode_with(&self.boundary_spec(piece.direction), |encoded| {
            codec
                .encode(values, shape, seed, encoded)
                .map_err(|_| BoundaryError::NotFinite)
        })
    }

    /// Decodes what another stage has sent: values of shape `[tokens of a sample, boundary width]`, all finite.
    ///
    /// # Errors
    /// [`BoundaryError`] if the object is none that [`encode_boundary`](Self::encode_boundary) makes.
    pub fn decode_boundary(
        &self,
        direction: Direction,
        object: &[u8],
    ) -> Result<Vec<f32>, BoundaryError> {
        let shape = self.boundary_shape();
        let encoded = tensor::element_bytes(object, &self.boundary_spec(direction))?;
        let mut values = vec![0.0; shape.elements()];
        self.wire
            .codec(direction)
            .decode(encoded, shape, &mut values)?;
        Ok(values)
    }

    /// The tensor in the object. Codecs that write plain elements have the dtype of these; of the others it is bytes, and
    /// a row is a token as `iota-codec` describes it.
    fn boundary_spec(&self, direction: Direction) -> TensorSpec {
        let shape = self.boundary_shape();
        let [tokens, channels] = [shape.tokens(), shape.channels()];
        match self.wire.codec(direction) {
            Codec::F32 => TensorSpec::f32(ACTIVATION, [tokens, channels]),
            Codec::Bf16 => TensorSpec::bf16(ACTIVATION, [tokens, channels]),
            codec @ (Codec::Int8 | Codec::Int4) => {
                TensorSpec::u8(ACTIVATION, [tokens, codec.token_bytes(channels)])
            }
        }
    }

    fn boundary_shape(&self) -> Shape {
        Shape::new(self.sample_tokens(), self.model.boundary_width())
    }

    fn rounding(&self, sample: SampleId, piece: Piece) -> Seed {
        let direction = match piece.direction {
            Direction::Forward => 0,
            Direction::Backward => 1,
        };
        let mut question = b"iota boundary rounding".to_vec();
        for number in [self.seed, sample.get(), piece.stage.get().into(), direction] {
            question.extend(number.to_le_bytes());
        }
        let digest = Digest::of(&question);
        let first = digest.as_bytes().first_chunk();
        Seed::new(u64::from_le_bytes(*first.expect("a digest is longer")))
    }
}

impl From<TensorError> for BoundaryError {
    fn from(_: TensorError) -> Self {
        Self::Malformed
    }
}

impl From<iota_codec::Error> for BoundaryError {
    fn from(error: iota_codec::Error) -> Self {
        match error {
            iota_codec::Error::NotFinite { .. } => Self::NotFinite,
            _ => Self::Malformed,
        }
    }
}

#[cfg(test)]
mod tests;
