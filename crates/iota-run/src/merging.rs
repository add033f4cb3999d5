//! How the copies of a stage become one, and the objects that this takes.
//!
//! ```text
//!                whole                                       relative to the checkpoint that all started from
//!
//!   upload       parameters, moments                         what was learned, in few bytes; moments
//!   merged cell  parameters, moments                         parameters, moments, momentum of the outer step
//!   delta                                                    what the merge changed, in few bytes; moments
//!   kept         moments, if each keeps its own              the same, and what the upload left out
//!                both: parameters, if it trains on while its stage merges
//! ```
//!
//! Moments are in these objects if they are merged like parameters ([`OptimizerState`]). A merged cell and its delta say
//! the same: whoever holds the checkpoint before makes the one from the other, bit for bit.

use iota_merge::codec::CHUNK;
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
    /// Whether miners train on while their stage merges, and put what they learn meanwhile on top of what was merged. Only
    /// with moments that stay with their miner: moments have no sum that means anything.
    #[serde(default)]
    pub overlaps: bool,
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
    /// How long encoded values are depends on the values, but a grant names an exact length beforehand. Sparse deltas of
    /// top-k and signs uploads have one that is not much more than it takes: no more values differ from zero than were
    /// uploaded.
    #[error(
        "the codec {codec} can only be used for deltas of top-k or signs uploads: others have no useful length beforehand"
    )]
    Unsized {
        /// Which.
        codec: Codec,
    },
    /// Miners that train on have moments of their own.
    #[error("training overlaps merging only where every miner keeps its own moments")]
    Overlap,
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
        for (codec, is_delta) in [(Some(self.upload), false), (self.delta, true)] {
            let Some(codec) = codec else { continue };
            codec.validate()?;
            let is_sized = match (codec, self.upload) {
                (Codec::Sparse, Codec::TopK { .. } | Codec::Signs { .. }) => is_delta,
                (codec, upload) => codec != Codec::Sparse && codec_size(codec, upload).is_some(),
            };
            if !is_sized {
                return Err(MergeError::Unsized { codec });
            }
        }
        if self.overlaps && self.optimizer_state != OptimizerState::Local {
            return Err(MergeError::Overlap);
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
    pub const fn shares_moments(&self) -> bool {
        matches!(self.optimizer_state, OptimizerState::Merged)
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

    /// The tensor of bytes with what was learned about so many elements, by a miner or by a merge of so many copies:
    /// `codec`'s bytes, filled up with zeros to what so many elements take at most, then both moments, if they are merged,
    /// as f32.
    pub fn learned_spec(&self, codec: Codec, elements: usize, copies: usize) -> TensorSpec {
        let bytes = data_bytes(self.learned_size(codec), elements, copies);
        TensorSpec::u8(LEARNED, [bytes])
    }

    /// That tensor in an object of so many bytes; none if no such object is so short. What made it decides how much is
    /// filled up, which a reader need not know.
    pub fn learned_spec_within(&self, length_bytes: usize) -> Option<TensorSpec> {
        let bytes = length_bytes.checked_sub(header_bytes(LEARNED))?;
        Some(TensorSpec::u8(LEARNED, [bytes]))
    }

    /// Bytes that the moments of so many elements take at its end.
    pub const fn learned_moments_bytes(&self, elements: usize) -> usize {
        if self.shares_moments() {
            8 * elements
        } else {
            0
        }
    }

    /// The tensor of bytes with what a miner keeps for itself of a stage of so many elements: optimizer steps as u64; both
    /// moments, if each has its own; what uploads left out, if that is made up for; parameters, if it trains on from them.
    pub fn kept_spec(&self, elements: usize) -> TensorSpec {
        TensorSpec::u8(KEPT, [data_bytes(self.kept_data(), elements, 1)])
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
        let size = codec_size(codec, self.upload).expect("validated: the codec has a size");
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
        let parameters = if self.overlaps { 4 } else { 0 };
        ObjectSize {
            overhead_bytes: 8,
            ..ObjectSize::per_element(moments + residual + parameters)
        }
    }
}

/// What so many elements take at most, if uploads are encoded like `upload`. None of a codec that is not known here.
fn codec_size(codec: Codec, upload: Codec) -> Option<ObjectSize> {
    let chunked = |chunk_bytes: usize, chunk_elements: usize| ObjectSize {
        chunk_bytes: chunk_bytes as u64,
        chunk_elements: chunk_elements as u64,
        ..ObjectSize::per_element(0)
    };
    let lengths = codec.encoded_length(CHUNK);
    Some(match codec {
        Codec::F32 => ObjectSize::per_element(4),
        Codec::Bf16 => ObjectSize::per_element(2),
        Codec::Int8 => ObjectSize {
            element_bytes: 1,
            ..chunked(4, 256)
        },
        Codec::TopK { .. } | Codec::Signs { .. } | Codec::Ternary => chunked(*lengths.end(), CHUNK),
        // Each copy adds as many values as it kept, until all are there.
        Codec::Sparse => {
            let keep = match upload {
                Codec::TopK { keep } | Codec::Signs { keep } => keep.into(),
                _ => CHUNK,
            };
            ObjectSize {
                // Half a byte each.
                copy_chunk_bytes: keep.div_ceil(2) as u64,
                copies_max: CHUNK.div_ceil(keep.max(1)) as u64,
                ..chunked(*lengths.start(), CHUNK)
            }
        }
        Codec::LowRank { rank, columns } => {
            let (rank, columns) = (usize::from(rank), columns as usize);
            ObjectSize {
                overhead_bytes: 2 * (rank * columns) as u64,
                ..chunked(2 * rank, columns)
            }
        }
        _ => return None,
    })
}

fn data_bytes(size: ObjectSize, elements: usize, copies: usize) -> usize {
    let bytes = size.bytes_from(elements as u64, copies as u64);
    usize::try_from(bytes).expect("a stage fits into memory")
}

/// The length of the object with one tensor of so many bytes. Headers are equally long whatever they say.
fn in_object(name: &str, data: ObjectSize) -> ObjectSize {
    ObjectSize {
        overhead_bytes: data.overhead_bytes + header_bytes(name) as u64,
        ..data
    }
}

fn header_bytes(name: &str) -> usize {
    let of_one = tensor::encoded_length(&[TensorSpec::u8(name, [1])]);
    usize::try_from(of_one - 1).expect("a header is short")
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
            let states = [
                (OptimizerState::Merged, false),
                (OptimizerState::Local, false),
                (OptimizerState::Local, true),
            ];
            for (optimizer_state, overlaps) in states {
                let merge = Merge {
                    optimizer_state,
                    overlaps,
                    ..with_codec(codec)
                };
                merge.validate().unwrap();
                for elements in [1, 5, 255, 256, 257, 4_095, 4_097, 100_000, 1 << 20] {
                    let length = |spec: TensorSpec| tensor::encoded_length(&[spec]);
                    let bytes = |size: Option<ObjectSize>| size.unwrap().bytes(elements as u64);
                    let spec = merge.learned_spec(codec, elements, 1);
                    let learned = length(spec.clone());
                    assert_eq!(bytes(merge.upload_size()), learned);
                    assert_eq!(bytes(merge.delta_size()), learned);
                    assert_eq!(merge.learned_spec_within(learned as usize), Some(spec));
                    let room = data_bytes(codec_size(codec, codec).unwrap(), elements, 1);
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

    /// As many values as the copies kept, in a place each: what is filled up is what copies have in common.
    #[test]
    fn sparse_deltas_have_room_for_every_value_that_was_uploaded_and_for_no_more() {
        let merge = Merge {
            delta: Some(Codec::Sparse),
            optimizer_state: OptimizerState::Local,
            ..with_codec(Codec::TOP_64)
        };
        merge.validate().unwrap();
        for copies in [1, 2, 8, 64, 500] {
            for elements in [1, 63, 4_095, 4_096, 4_097, 100_000] {
                let mut values = vec![0.0; elements];
                for chunk in values.chunks_mut(CHUNK) {
                    let kept = copies * (chunk.len() * 64).div_ceil(CHUNK);
                    chunk.iter_mut().take(kept).for_each(|value| *value = 1.0);
                }
                let needed = Codec::Sparse.encode(&values, None).unwrap().len();
                let spec = merge.learned_spec(Codec::Sparse, elements, copies);
                let room = tensor::encoded_length(&[spec]) as usize - header_bytes(LEARNED);
                assert!(needed <= room, "{needed} of {room}: {copies} of {elements}");
                let whole_chunks = elements % CHUNK == 0;
                assert!(!whole_chunks || needed == room, "{needed} of {room}");
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
        let sparse_of_whole = Merge {
            delta: Some(Codec::Sparse),
            ..with_codec(Codec::Int8)
        };
        assert!(sparse_of_whole.validate().is_err());
        let too_much = Merge {
            feedback: Some(1.5),
            ..Merge::default()
        };
        assert!(matches!(too_much.validate(), Err(MergeError::Feedback)));
        let shared = Merge {
            overlaps: true,
            ..Merge::default()
        };
        assert!(matches!(shared.validate(), Err(MergeError::Overlap)));
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
