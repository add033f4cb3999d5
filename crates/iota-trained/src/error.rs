//! What can go wrong.

use std::path::PathBuf;

use iota_protocol::{Epoch, StageIndex};

/// What can go wrong with a trained model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint cannot be read.
    #[error("reading the checkpoint")]
    Store(#[from] iota_store::Error),
    /// A checkpoint that is none of the run's stage.
    #[error("the checkpoint of {stage} at {epoch} does not fit: {problem}")]
    Checkpoint {
        /// The stage.
        stage: StageIndex,
        /// The epoch that began from it.
        epoch: Epoch,
        /// What is wrong.
        problem: &'static str,
    },
    /// The run's description does not fit together.
    #[error(transparent)]
    Run(#[from] iota_run::Error),
    /// The model cannot be computed.
    #[error(transparent)]
    Compute(#[from] iota_compute::Error),
    /// A token that the tokenizer does not know.
    #[error(transparent)]
    Data(#[from] iota_data::Error),
    /// The folder to write to is in use.
    #[error("{folder} is there already; name a folder that is not")]
    Occupied {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Tensors cannot be written.
    #[error("cannot write {path}")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What the library said.
        source: safetensors::SafeTensorError,
    },
    /// There is nothing to go on from.
    #[error("the prompt is empty: a model goes on from at least one token")]
    NoPrompt,
    /// Scores of which none is the largest.
    #[error("the model's scores are not numbers")]
    NotFinite,
}
