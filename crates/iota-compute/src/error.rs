//! What can go wrong.

use iota_model::StageRole;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. None of these leaves a stage with changed parameters or optimizer state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The plan has no stage of this index.
    #[error("there is no stage {index} in a plan of {stages}")]
    NoSuchStage {
        /// As asked for.
        index: usize,
        /// Stages that there are.
        stages: usize,
    },
    /// Tokens went to a stage that takes activations, or the other way round.
    #[error("a {role:?} stage takes {expected}, not {given}")]
    InputKind {
        /// The stage's place.
        role: StageRole,
        /// What it takes.
        expected: &'static str,
        /// What it was given.
        given: &'static str,
    },
    /// Only the last stage computes a loss, and it computes nothing else.
    #[error("a {role:?} stage cannot {operation}")]
    Unsupported {
        /// The stage's place.
        role: StageRole,
        /// What was asked of it.
        operation: &'static str,
    },
    /// Not whole sequences of `context` tokens, nor a single shorter one.
    #[error("{tokens} tokens are neither whole sequences of {context} nor a single shorter one")]
    Sequences {
        /// Tokens in the input.
        tokens: usize,
        /// Tokens in a sequence.
        context: usize,
    },
    /// A slice has the wrong length.
    #[error("{what} has {actual} elements instead of {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// What it should have.
        expected: usize,
        /// What it has.
        actual: usize,
    },
    /// An activation's length is not a multiple of the boundary's width.
    #[error("an activation of {elements} elements is not made of rows of {width}")]
    Rows {
        /// Elements in the input.
        elements: usize,
        /// Channels per token.
        width: usize,
    },
    /// A token that the model does not know.
    #[error("{what} {token} at position {position} is not below the vocabulary of {vocabulary}")]
    Vocabulary {
        /// An input token or a target.
        what: &'static str,
        /// The token.
        token: u32,
        /// Its place in the input.
        position: usize,
        /// Distinct tokens.
        vocabulary: usize,
    },
    /// A NaN or an infinity.
    #[error("{what} is not finite")]
    NotFinite {
        /// Where.
        what: &'static str,
    },
    /// What a forward pass saved was handed to a stage of another shape.
    #[error("the saved forward pass belongs to another stage")]
    ForeignSaved,
    /// The threads could not be started.
    #[error("cannot start {threads} compute threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why not.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
    /// The reference model failed.
    #[error("the reference model failed")]
    Reference(#[from] candle_core::Error),
    /// Autograd silently left out a parameter.
    #[error("autograd has no gradient for {tensor}")]
    MissingGradient {
        /// The parameter's name.
        tensor: String,
    },
    /// The device's memory is full: less at a time may fit. What the CPU allocates never comes to this.
    #[error("the compute device has no room for {bytes} bytes more")]
    OutOfMemory {
        /// What was asked for.
        bytes: u64,
        /// What the device says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A device refused. The CPU never does.
    #[error("the compute device failed")]
    Device(#[source] Box<dyn std::error::Error + Send + Sync>),
}
