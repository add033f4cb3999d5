//! How the copies of a stage become one, and the objects that this takes.
//!
//! ```text
//!                whole                                       relative to the checkpoint that all started from
//!
//!   upload       parameters, moments                         what was learned, in few bytes; moments
//!   merged cell  parameters, moments                         parameters, moments, momentum of the outer step
//!   delta                                                    what the merge changed, in few bytes; moments
//!   kept         moments, if each keeps its own              the same, and what the upload left out
//! ```
//!
//! Moments are in these objects if they are merged like parameters ([`OptimizerState`]). A merged cell and its delta say
//! the same: whoever holds the checkpoint before makes the one from the other, bit for bit.

use iota_merge::{Clip, Codec, Outer, Rule};
use iota_protocol::settings::ObjectSize;
use iota_store::tensor::{self, TensorSpec};
use serde::{Deserialize, Serialize};

/// How the copies of a stage become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// How many values become one.
    pub rule: Rule,
    /// Whether copies that are longer than others are shortened first.
    pub clip: Clip,
    /// What is done with what the rule gives.
    pub outer: Outer,
    /// How uploads become bytes.
    pub upload: Codec,
    /// How that becomes bytes which a merge changed; none: everybody installs merged cells whole.
    pub delta: Option<Codec>,
    /// How much of what an upload left out is made up for by the next, from 0 to 1; none: nothing.
    pub feedback: Option<f32>,
    /// What becomes of the optimizer's moments.
    pub optimizer_state: OptimizerState,
}

/// What becomes of the optimizer's moments when a stage merges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerState {
    /// They are merged as parameters are, and everybody goes on with the same.
    #[default]
    Merged,
    /// Everybody goes on with its own; who joins begins with none.
    Local,
    /// Everybody begins anew with none.
    Dropped,
}

/// Why a run cannot merge like this.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A number is out of range.
    #[error(transparent)]
    Setting(#[from] iota_merge::Error),
    /// How long encoded values are depends on the values, but a grant names an exact length beforehand.
    #[error(
        "the codec {codec} cannot be used in a run: its objects have no length that is known beforehand"
    )]
    Unsized {
        /// Which.
        codec: Codec,
    },
    /// Not a fraction.
    #[error("feedback must lie between 0 and 1")]
    Feedback,
}

/// Names of the tensors in a merged cell's object.
const PARAMETERS: &str = "parameters";
const MOMENTS: [&str; 2] = ["first_moment", "second_moment"];
const MOMENTUM: &str = "outer_momentum";
/// Name of the only tensor, of bytes, in the objects of what was learned and of what is kept.
const LEARNED: &str = "learned";
const KEPT: &str = "kept";

impl Merge {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`MergeError`] names what does not.
    pub fn validate(&self) -> Result<(), MergeError> {
        self.rule.validate()?;
        self.outer.validate()?;
        for codec in [Some(self.upload), self.delta].into_iter().flatten() {
            codec.validate()?;
            if codec_size(codec).is_none() {
                return Err(MergeError::Unsized { codec });
            }
        }
        match self.feedback {
            Some(feedback) if !(0.0..=1.0).contains(&feedback) => Err(MergeError::Feedback),
            _ => Ok(()),
        }
    }

    /// Whether miners upload what they learned since the checkpoint, rather than what they have now.
    pub fn is_relative(&self) -> bool {
        self.outer != Outer::None
            || self.upload != Codec::F32
            || self.delta.is_some()
            || !self.rule.is_elementwise(self.clip)
    }

    /// Whether moments are merged, and so are part of what all replicas have in common.
    pub fn shares_moments(&self) -> bool {
        self.optimizer_state == OptimizerState::Merged
    }

    /// The decay of what uploads leave out, if they leave out anything.
    pub fn residual_decay(&self) -> Option<f32> {
        self.feedback.filter(|_| self.upload != Codec::F32)
    }

    /// Whether a miner has something of its own from epoch to epoch.
    pub fn keeps_something(&self) -> bool {
        self.optimizer_state == OptimizerState::Local || self.residual_decay().is_some()
    }

    /// The tensors of a merged cell of so many elements, each `[elements]` f32: parameters; both moments, if they are
    /// merged; the outer step's momentum, if it has one.
    pub fn cell_spec(&self, elements: usize) -> Vec<TensorSpec> {
        let moments = MOMENTS.iter().filter(|_| self.shares_moments());
        let momentum = Some(&MOMENTUM).filter(|_| self.outer.has_momentum());
        let names = [&PARAMETERS].into_iter().chain(moments).chain(momentum);
        names
            .map(|name| TensorSpec::f32(*name, [elements]))
            .collect()
    }

    /// How many elements the merged cell has whose object is so long; none if no cell's is.
    pub fn cell_elements(&self, length_bytes: u64) -> Option<usize> {
        let of = |elements| tensor::encoded_length(&self.cell_spec(elements));
        let per_element = 4 * self.cell_spec(0).len() as u64;
        let elements = length_bytes.checked_sub(of(0))? / per_element;
        let elements = usize::try_from(elements)
            .ok()
            .filter(|elements| *elements > 0)?;
        (of(elements) == length_bytes).then_some(elements)
    }

    /// The tensor of bytes with what was learned about so many elements, by a miner or by a merge: `codec`'s bytes, filled
    /// up with zeros to what so many elements take at most, then both moments, if they are merged, as f32.
    pub fn learned_spec(&self, codec: Codec, elements: usize) -> TensorSpec {
        let bytes = data_bytes(self.learned_size(codec), elements);
        TensorSpec::u8(LEARNED, [bytes])
    }

    /// Bytes of that tensor before the moments.
    pub fn learned_bytes(&self, codec: Codec, elements: usize) -> usize {
        let size = codec_size(codec).expect("validated: the codec has a size");
        data_bytes(size, elements)
    }

    /// The tensor of bytes with what a miner keeps for itself of a stage of so many elements: optimizer steps as u64; both
    /// moments, if each has its own; what uploads left out, if that is made up for.
    pub fn kept_spec(&self, elements: usize) -> TensorSpec {
        TensorSpec::u8(KEPT, [data_bytes(self.kept_data(), elements)])
    }

    /// How long objects with uploads are.
    pub fn upload_size(&self) -> Option<ObjectSize> {
        self.is_relative()
            .then(|| in_object(LEARNED, self.learned_size(self.upload)))
    }

    /// How long objects with what merges change are.
    pub fn delta_size(&self) -> Option<ObjectSize> {
        let codec = self.delta?;
        Some(in_object(LEARNED, self.learned_size(codec)))
    }

    /// How long objects with what miners keep for themselves are.
    pub fn kept_size(&self) -> Option<ObjectSize> {
        self.keeps_something()
            .then(|| in_object(KEPT, self.kept_data()))
    }

    fn learned_size(&self, codec: Codec) -> ObjectSize {
        let size = codec_size(codec).expect("validated: the codec has a size");
        let moments = if self.shares_moments() { 8 } else { 0 };
        ObjectSize {
            element_bytes: size.element_bytes + moments,
            ..size
        }
    }

    fn kept_data(&self) -> ObjectSize {
        let moments = if self.optimizer_state == OptimizerState::Local {
            8
        } else {
            0
        };
        let residual = if self.residual_decay().is_some() {
            4
        } else {
            0
        };
        ObjectSize {
            overhead_bytes: 8,
            ..per_element(moments + residual)
        }
    }
}

/// What so many elements take at most. None if that is much more than they usually take.
fn codec_size(codec: Codec) -> Option<ObjectSize> {
    let chunked = |chunk_bytes: usize, chunk_elements: usize| ObjectSize {
        overhead_bytes: 0,
        element_bytes: 0,
        chunk_bytes: chunk_bytes as u64,
        chunk_elements: chunk_elements as u64,
    };
    let of = |elements| *codec.encoded_length(elements).end();
    match codec {
        Codec::F32 => Some(per_element(4)),
        Codec::Bf16 => Some(per_element(2)),
        Codec::Int8 => Some(ObjectSize {
            element_bytes: 1,
            ..chunked(4, 256)
        }),
        Codec::TopK { .. } => Some(chunked(
            of(iota_merge::codec::CHUNK),
            iota_merge::codec::CHUNK,
        )),
        Codec::LowRank { rank, columns } => {
            let (rank, columns) = (usize::from(rank), columns as usize);
            Some(ObjectSize {
                overhead_bytes: 2 * (rank * columns) as u64,
                ..chunked(2 * rank, columns)
            })
        }
        _ => None,
    }
}

const fn per_element(element_bytes: u64) -> ObjectSize {
    ObjectSize {
        overhead_bytes: 0,
        element_bytes,
        chunk_bytes: 0,
        chunk_elements: 1,
    }
}

fn data_bytes(size: ObjectSize, elements: usize) -> usize {
    usize::try_from(size.bytes(elements as u64)).expect("a stage fits into memory")
}

/// The length of the object with one tensor of so many bytes. Headers are equally long whatever they say.
fn in_object(name: &str, data: ObjectSize) -> ObjectSize {
    let header = tensor::encoded_length(&[TensorSpec::u8(name, [1])]) - 1;
    ObjectSize {
        overhead_bytes: data.overhead_bytes + header,
        ..data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NESTEROV: Outer = Outer::Nesterov {
        learning_rate: 0.7,
        momentum: 0.9,
        warmup_from: 0.5,
        warmup_rounds: 20,
    };

    fn with_codec(codec: Codec) -> Merge {
        Merge {
            upload: codec,
            delta: Some(codec),
            feedback: Some(0.95),
            optimizer_state: OptimizerState::Local,
            ..Merge::default()
        }
    }

    const CODECS: [Codec; 5] = [
        Codec::F32,
        Codec::Bf16,
        Codec::Int8,
        Codec::TOP_64,
        Codec::LowRank {
            rank: 3,
            columns: 70,
        },
    ];

    #[test]
    fn sizes_are_the_lengths_of_the_objects() {
        for codec in CODECS {
            for state in [OptimizerState::Merged, OptimizerState::Local] {
                let merge = Merge {
                    optimizer_state: state,
                    ..with_codec(codec)
                };
                merge.validate().unwrap();
                for elements in [1, 5, 255, 256, 257, 4_095, 4_097, 100_000, 1 << 20] {
                    let length = |spec: TensorSpec| tensor::encoded_length(&[spec]);
                    let bytes = |size: Option<ObjectSize>| size.unwrap().bytes(elements as u64);
                    let learned = length(merge.learned_spec(codec, elements));
                    assert_eq!(bytes(merge.upload_size()), learned);
                    assert_eq!(bytes(merge.delta_size()), learned);
                    let room = merge.learned_bytes(codec, elements);
                    let needed = *codec.encoded_length(elements).end();
                    assert!(needed <= room, "{codec}: {needed} of {room} for {elements}");
                    if let Some(size) = merge.kept_size() {
                        let kept = length(merge.kept_spec(elements));
                        assert_eq!(size.bytes(elements as u64), kept);
                    }
                }
            }
        }
    }

    #[test]
    fn a_merged_cell_has_what_replicas_have_in_common() {
        let names = |merge: Merge| -> Vec<String> {
            let spec = merge.cell_spec(3);
            spec.into_iter().map(|tensor| tensor.name).collect()
        };
        let outer = Merge {
            outer: NESTEROV,
            ..Merge::default()
        };
        assert_eq!(
            names(outer),
            [
                "parameters",
                "first_moment",
                "second_moment",
                "outer_momentum"
            ]
        );
        assert_eq!(names(with_codec(Codec::Int8)), ["parameters"]);
        for merge in [outer, with_codec(Codec::Int8), Merge::default()] {
            let length = tensor::encoded_length(&merge.cell_spec(77));
            assert_eq!(merge.cell_elements(length), Some(77));
            assert_eq!(merge.cell_elements(length + 1), None);
        }
    }

    #[test]
    fn the_default_uploads_whole_values_and_keeps_nothing() {
        let merge = Merge::default();
        assert!(!merge.is_relative() && !merge.keeps_something());
        assert_eq!(merge.upload_size(), None);
        assert!(with_codec(Codec::Bf16).is_relative());
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert!(with_codec(Codec::Sparse).validate().is_err());
        let too_much = Merge {
            feedback: Some(1.5),
            ..Merge::default()
        };
        assert!(matches!(too_much.validate(), Err(MergeError::Feedback)));
    }

    #[test]
    fn every_choice_comes_back_as_it_was_sent() {
        for codec in CODECS {
            let merge = Merge {
                outer: NESTEROV,
                clip: Clip::MedianNorm,
                rule: Rule::TRIMMED,
                ..with_codec(codec)
            };
            let json = serde_json::to_string(&merge).unwrap();
            assert_eq!(serde_json::from_str::<Merge>(&json).unwrap(), merge);
        }
    }
}
