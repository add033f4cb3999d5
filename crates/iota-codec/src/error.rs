//! What can be wrong with numbers and with bytes.

/// Values that have no encoding, or bytes that are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value is infinite or not a number.
    #[error("the value at token {token}, channel {channel} is not finite")]
    NotFinite {
        /// Its row.
        token: usize,
        /// Its column.
        channel: usize,
    },
    /// A value is finite, but beyond what the codec can write: [`Codec::magnitude_max`](crate::Codec::magnitude_max).
    #[error("the value at token {token}, channel {channel} is too large to be encoded")]
    TooLarge {
        /// Its row.
        token: usize,
        /// Its column.
        channel: usize,
    },
    /// There are more or fewer bytes than the shape makes.
    #[error("{found_bytes} bytes instead of {expected_bytes}")]
    Length {
        /// What the shape makes.
        expected_bytes: usize,
        /// What there is.
        found_bytes: usize,
    },
    /// A scale is negative, not finite, or of a size that no encoder writes.
    #[error("the scale of token {token} from channel {channel} on is none that an encoder writes")]
    Scale {
        /// Its row.
        token: usize,
        /// The first column that it holds for.
        channel: usize,
    },
}
