//! Honest miners, and the dishonest one that a testnet can plant to see it found.

use bytes::Bytes;

/// What a miner does with the tensors that it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Behaviour {
    /// Uploads what it computed.
    #[default]
    Honest,
    /// Uploads tensors of the right shape and plausible size with wrong numbers in them, and commits to those: what a
    /// free rider would do who hopes that nobody looks.
    WrongTensors,
    /// Uploads tensors with a value that is not a number, and commits to those: what poisons everybody who adds it up.
    NotFinite,
}

impl Behaviour {
    /// What goes to the store in place of an encoded activation or gradient.
    pub(crate) fn tamper(self, honest: Bytes) -> Bytes {
        match self {
            Self::Honest => honest,
            Self::WrongTensors => {
                let mut bytes = honest.to_vec();
                // Flipping every other sign keeps shape, norm and finiteness.
                for value in values(&mut bytes).chunks_exact_mut(8) {
                    value[3] ^= 0x80;
                }
                bytes.into()
            }
            Self::NotFinite => {
                let mut bytes = honest.to_vec();
                values(&mut bytes)[..4].copy_from_slice(&f32::NAN.to_le_bytes());
                bytes.into()
            }
        }
    }
}

/// The little-endian f32 of a safetensors object. Its first eight bytes say how long the header is that follows them.
fn values(object: &mut [u8]) -> &mut [u8] {
    let (length, rest) = object.split_at_mut(8);
    let header = u64::from_le_bytes((*length).try_into().expect("split at eight bytes"));
    &mut rest[header as usize..]
}
