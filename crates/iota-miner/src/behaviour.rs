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
    /// Trains as it should, then uploads large numbers in place of what it learned, and commits to those: what spoils the
    /// merge of a run that nobody audits. Where uploads are not of f32 the bytes mean something else, or nothing.
    Garbage,
    /// Does everything as it should, but hands over another past than it had sealed, when an audit is to begin with that.
    OtherPast,
}

/// As large as no parameter is, and as no optimizer would make one.
const LARGE: f32 = 100.0;

impl Behaviour {
    /// What goes to the store in place of an encoded activation or gradient.
    pub(crate) fn tamper(self, honest: Bytes) -> Bytes {
        match self {
            Self::Honest | Self::Garbage | Self::OtherPast => honest,
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

    /// What goes to the store in place of what it kept for itself.
    pub(crate) fn tamper_kept(self, honest: Bytes) -> Bytes {
        if self != Self::OtherPast {
            return honest;
        }
        let mut bytes = honest.to_vec();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        bytes.into()
    }

    /// What goes to the store in place of an encoded cell of f32.
    pub(crate) fn tamper_upload(self, honest: Bytes) -> Bytes {
        if self != Self::Garbage {
            return honest;
        }
        let mut bytes = honest.to_vec();
        for (at, value) in values(&mut bytes).as_chunks_mut().0.iter_mut().enumerate() {
            let garbage = if at % 2 == 0 { LARGE } else { -LARGE };
            *value = garbage.to_le_bytes();
        }
        bytes.into()
    }
}

/// The little-endian f32 of a safetensors object. Its first eight bytes say how long the header is that follows them.
fn values(object: &mut [u8]) -> &mut [u8] {
    let (length, rest) = object.split_at_mut(8);
    let header = u64::from_le_bytes((*length).try_into().expect("split at eight bytes"));
    &mut rest[header as usize..]
}
