//! What can go wrong.

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a card.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A library of NVIDIA's is not installed, or not where the system looks for libraries.
    #[error("there is no {library} on this machine ({of}), so it cannot compute on a card")]
    Library {
        /// As the linker names it.
        library: &'static str,
        /// What brings it.
        of: &'static str,
    },
    /// There are fewer cards.
    #[error("there is no card {ordinal}: the driver shows {cards}")]
    NoSuchCard {
        /// As asked for, from 0.
        ordinal: usize,
        /// Cards that there are.
        cards: usize,
    },
    /// The card is older than what the kernels are made for.
    #[error(
        "{name} has compute capability {major}.{minor}; 8.0 (A100) is the least that is supported"
    )]
    TooOld {
        /// The card's name.
        name: String,
        /// Of its compute capability.
        major: u32,
        /// Of its compute capability.
        minor: u32,
    },
    /// The card's memory is full.
    #[error("the card has no room for {bytes} bytes more: {free_bytes} are free")]
    OutOfMemory {
        /// What was asked for.
        bytes: u64,
        /// What is left.
        free_bytes: u64,
    },
    /// The kernels do not compile on this machine.
    #[error("the kernels do not compile for {architecture}: {log}")]
    Compile {
        /// Such as `sm_90`.
        architecture: String,
        /// What the compiler says.
        log: String,
    },
    /// A call of the driver or of a library failed. After some of these, no later call works either.
    #[error("{call} failed: {reason}")]
    Call {
        /// The function.
        call: &'static str,
        /// What it said.
        reason: String,
    },
}

/// Full memory is told apart, because a caller can do something about it.
impl From<Error> for iota_compute::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::OutOfMemory { bytes, .. } => Self::OutOfMemory {
                bytes,
                source: Box::new(error),
            },
            error => Self::Device(Box::new(error)),
        }
    }
}
