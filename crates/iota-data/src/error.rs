use std::io;
use std::path::PathBuf;

use iota_protocol::Digest;

use crate::sampling::BatchShape;

/// Why there is no data.
///
/// All but [`Error::Unreadable`] say that the data cannot be used as they are; trying again gives the same error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing at this path.
    #[error("there is no corpus at {}", path.display())]
    Missing {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A file or folder of the corpus could not be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The corpus has no text at all.
    #[error("{} holds no text", path.display())]
    Empty {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A file of the corpus is not UTF-8 text.
    #[error("{} is not UTF-8: byte {offset_bytes} does not belong", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Bytes before the first one that is not UTF-8.
        offset_bytes: usize,
    },
    /// A split that leaves nothing to train on or nothing to hold out.
    #[error("holding out {fraction} of {bytes} bytes leaves one part empty")]
    Split {
        /// The fraction to hold out.
        fraction: f64,
        /// Length of the corpus in bytes.
        bytes: usize,
    },
    /// No tokenizer has this name.
    #[error("unknown tokenizer {name:?}; there is \"bytes\"")]
    UnknownTokenizer {
        /// The name.
        name: String,
    },
    /// A token that the vocabulary does not have.
    #[error("token {token} is not in a vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Number of tokens in the vocabulary.
        vocabulary: u32,
    },
    /// Shards of this size cannot be made.
    #[error("a shard cannot advance by {shard_tokens} tokens, only by 1 to {max}", max = crate::shard::SHARD_TOKENS_MAX / 2)]
    ShardTokens {
        /// The size that was asked for.
        shard_tokens: usize,
    },
    /// Bytes that are not a token shard.
    #[error("not a token shard: {problem}")]
    NotAShard {
        /// What is wrong with them.
        problem: &'static str,
    },
    /// Bytes that are not the shard that the manifest names.
    #[error("the shard should be {expected} and is {found}")]
    WrongShard {
        /// Digest in the manifest.
        expected: Digest,
        /// Digest of the bytes.
        found: Digest,
    },
    /// A manifest that contradicts itself.
    #[error("not a data manifest: {problem}")]
    Manifest {
        /// What is wrong with it.
        problem: String,
    },
    /// A shape without sequences or without context.
    #[error("a sample of {} x {} tokens reads nothing", shape.sequences, shape.context)]
    Shape {
        /// The shape of a sample.
        shape: BatchShape,
    },
    /// The corpus is shorter than one sample.
    #[error(
        "the corpus is too short: one sample of {} x {} tokens needs {needed} and there are {tokens}",
        shape.sequences, shape.context
    )]
    TooShort {
        /// Tokens that there are.
        tokens: u64,
        /// Tokens that one sample reads.
        needed: u64,
        /// The shape of a sample.
        shape: BatchShape,
    },
    /// The data are cut too finely: a shard is shorter than one sample.
    #[error(
        "shard {shard} has {tokens} tokens and one sample of {} x {} tokens needs {needed} of one shard; prepare the data \
         with larger shards",
        shape.sequences, shape.context
    )]
    ShardTooShort {
        /// Position of the shard in the manifest.
        shard: usize,
        /// Tokens in it.
        tokens: u64,
        /// Tokens that one sample reads.
        needed: u64,
        /// The shape of a sample.
        shape: BatchShape,
    },
    /// A slice that reads beyond the end of its shard: it was drawn for other data.
    #[error("a window ends at token {end} of a shard of {tokens}")]
    WindowOutOfBounds {
        /// First token after the window.
        end: u64,
        /// Tokens in the shard.
        tokens: u64,
    },
}
