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
}

impl Behaviour {
    /// What goes to the store in place of an encoded activation or gradient.
    pub(crate) fn tamper(self, honest: Bytes) -> Bytes {
        match self {
            Self::Honest => honest,
            Self::WrongTensors => {
                // The header of a safetensors object says its own length in the first eight bytes; what follows are
                // little-endian f32. Flipping every other sign keeps shape, norm and finiteness.
                let mut bytes = honest.to_vec();
                let header = u64::from_le_bytes(
                    bytes[..8]
                        .try_into()
                        .expect("an encoded tensor has a header"),
                );
                for value in bytes[8 + header as usize..].chunks_exact_mut(8) {
                    value[3] ^= 0x80;
                }
                bytes.into()
            }
        }
    }
}
