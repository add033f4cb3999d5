//! What crosses from one stage to the next.

use serde::{Deserialize, Serialize};

/// How the residual stream, `d` channels, crosses a boundary.
///
/// A model that has been trained with one of them can only be used with the same one: except for [`Boundary::None`] they
/// have parameters of their own. In JSON: `"none"`, `{"iota": {"channels": 80}}`, `{"resbm": {"channels": 80}}`,
/// `{"anchored": {"channels": 80}}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Boundary {
    /// All `d` channels cross as they are. The model has no boundary modules and may be cut before any block.
    None,
    /// IOTA's bottleneck block. The sender's last block encodes `z = encoder silu(f) + x[..b]`, where `f` is the result
    /// of its feed-forward network and `x` what that was to be added to; the receiver's first block begins with
    /// `h = relu(decoder z)`, and behind its attention only the first `b` channels have a residual, which is `z`.
    ///
    /// Source: IOTA, arXiv 2507.17766, and the bottleneck block of its code.
    Iota {
        /// `b`: at least 1, less than `d`.
        channels: usize,
    },
    /// A residual bottleneck: the sender encodes the whole residual stream behind its last block,
    /// `z = E(x) + I x`, and the receiver decodes it before its first, `h = D(z) + I z`. `E` and `D` are two linear
    /// layers with a SiLU between them, and `I` is the rectangular identity: it cuts off the last `d - b` channels, or
    /// adds as many zeros. `h` is an ordinary residual stream from there on.
    ///
    /// Source: ResBM, arXiv 2604.11947; width of the hidden layer, no biases and initial weights as in Hone's public
    /// implementation of it.
    ResBm {
        /// `b`: at least 1, less than `d`.
        channels: usize,
    },
    /// [`ResBm`](Self::ResBm), and the receiver adds an embedding of its own of each token: `h = D(z) + I z + A[t]`. Which
    /// token is at a position follows from the sample's number, so it crosses no boundary; what crosses has room for what
    /// the stages before have made of the context. Costs each stage behind a boundary the parameters of an embedding, and
    /// next to no time.
    ///
    /// That the tokens' own part of the residual stream is what a narrow boundary cannot carry, and need not, is in
    /// "Protocol Models", arXiv 2506.01260, where that part is fixed and the same in all stages; here each stage trains one.
    Anchored {
        /// `b`: at least 1, less than `d`.
        channels: usize,
    },
}

/// Which [`Boundary`], without its number of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundaryKind {
    /// [`Boundary::None`].
    None,
    /// [`Boundary::Iota`].
    Iota,
    /// [`Boundary::ResBm`].
    ResBm,
    /// [`Boundary::Anchored`].
    Anchored,
}

/// Channels between the two layers of ResBM's encoders and decoders, at least.
const RESBM_HIDDEN_MIN: usize = 64;

impl Boundary {
    /// A boundary of this kind. The number of channels means nothing to [`BoundaryKind::None`].
    pub const fn new(kind: BoundaryKind, channels: usize) -> Self {
        match kind {
            BoundaryKind::None => Self::None,
            BoundaryKind::Iota => Self::Iota { channels },
            BoundaryKind::ResBm => Self::ResBm { channels },
            BoundaryKind::Anchored => Self::Anchored { channels },
        }
    }

    /// Which it is.
    pub const fn kind(self) -> BoundaryKind {
        match self {
            Self::None => BoundaryKind::None,
            Self::Iota { .. } => BoundaryKind::Iota,
            Self::ResBm { .. } => BoundaryKind::ResBm,
            Self::Anchored { .. } => BoundaryKind::Anchored,
        }
    }

    /// Channels that cross, `b`; `None` if all do.
    pub const fn channels(self) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Iota { channels } | Self::ResBm { channels } | Self::Anchored { channels } => {
                Some(channels)
            }
        }
    }

    /// Whether fewer than all channels cross, through modules that only stages at a boundary have.
    pub const fn is_bottleneck(self) -> bool {
        self.channels().is_some()
    }

    /// Whether a stage behind it takes the tokens too, and embeds them.
    pub const fn is_anchored(self) -> bool {
        matches!(self, Self::Anchored { .. })
    }

    /// Channels between the two layers of an encoder, and of a decoder, if these have two layers: `max(4 b, 64)`.
    pub const fn hidden_channels(self) -> Option<usize> {
        match self {
            Self::ResBm { channels } | Self::Anchored { channels } => {
                if 4 * channels > RESBM_HIDDEN_MIN {
                    Some(4 * channels)
                } else {
                    Some(RESBM_HIDDEN_MIN)
                }
            }
            Self::None | Self::Iota { .. } => None,
        }
    }

    /// Parameters of an encoder and a decoder together, and of an embedding if there is one, between stages of `width`
    /// channels.
    pub const fn parameters(self, width: usize, vocabulary: usize) -> usize {
        match (self, self.hidden_channels()) {
            (Self::ResBm { channels }, Some(hidden)) => 2 * hidden * (width + channels),
            (Self::Anchored { channels }, Some(hidden)) => {
                2 * hidden * (width + channels) + vocabulary * width
            }
            (Self::Iota { channels }, _) => 2 * channels * width,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_reads_well_as_json() {
        for (boundary, json) in [
            (Boundary::None, r#""none""#),
            (
                Boundary::Iota { channels: 80 },
                r#"{"iota":{"channels":80}}"#,
            ),
            (
                Boundary::ResBm { channels: 4 },
                r#"{"resbm":{"channels":4}}"#,
            ),
            (
                Boundary::Anchored { channels: 2 },
                r#"{"anchored":{"channels":2}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&boundary).unwrap(), json);
            assert_eq!(serde_json::from_str::<Boundary>(json).unwrap(), boundary);
        }
        let misspelt = r#"{"iota":{"channels":80,"chanels":8}}"#;
        assert!(serde_json::from_str::<Boundary>(misspelt).is_err());
    }

    #[test]
    fn a_resbm_encoder_has_four_hidden_channels_for_each_that_crosses_but_never_few() {
        let hidden = |channels| Boundary::ResBm { channels }.hidden_channels();
        assert_eq!(hidden(2), Some(64));
        assert_eq!(hidden(16), Some(64));
        assert_eq!(hidden(17), Some(68));
        assert_eq!(Boundary::Iota { channels: 17 }.hidden_channels(), None);
    }
}
