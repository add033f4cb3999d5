//! Token shards: a stretch of tokens as bytes that say what they are.
//!
//! ```text
//!   offset  length
//!        0       8   magic, "iotatok" and a zero byte
//!        8       2   version, 1
//!       10       2   bytes per token: the least of 1, 2, 4 that holds the vocabulary
//!       12       4   vocabulary: every token is below it
//!       16       8   number of tokens
//!       24     ...   the tokens                                         all numbers are little-endian and unsigned
//! ```
//!
//! There is exactly one way to write given tokens, so that equal shards have equal digests, and the decoder refuses all
//! others. It allocates nothing but what it keeps, which is no longer than its input.

use std::ops::Range;

use crate::error::Error;

/// Bytes before the first token.
pub const HEADER_BYTES: usize = 24;

/// Tokens in a shard, at most: 256 Mi, so that a shard is at most 1 GiB.
pub const SHARD_TOKENS_MAX: usize = 1 << 28;

const MAGIC: [u8; 8] = *b"iotatok\0";
const VERSION: u16 = 1;

/// A stretch of tokens, packed as they are at rest.
///
/// Always true: every token is below the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    vocabulary: u32,
    width: usize,
    packed: Vec<u8>,
}

impl Shard {
    /// Packs tokens.
    ///
    /// # Errors
    /// [`Error::Token`] if one is not in the vocabulary, [`Error::NotAShard`] if there are more than
    /// [`SHARD_TOKENS_MAX`].
    pub fn new(tokens: &[u32], vocabulary: u32) -> Result<Self, Error> {
        if tokens.len() > SHARD_TOKENS_MAX {
            return Err(Error::NotAShard {
                problem: "too many tokens",
            });
        }
        if let Some(&token) = tokens.iter().find(|token| **token >= vocabulary) {
            return Err(Error::Token { token, vocabulary });
        }
        let width = token_bytes(vocabulary);
        let mut packed = Vec::with_capacity(tokens.len() * width);
        for token in tokens {
            packed.extend_from_slice(&token.to_le_bytes()[..width]);
        }
        Ok(Self {
            vocabulary,
            width,
            packed,
        })
    }

    /// The shard as bytes, [`encoded_bytes`] of them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.packed.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.width as u16).to_le_bytes());
        bytes.extend_from_slice(&self.vocabulary.to_le_bytes());
        bytes.extend_from_slice(&(self.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.packed);
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote. Any bytes are safe to try.
    ///
    /// # Errors
    /// [`Error::NotAShard`] if they are not exactly that, [`Error::Token`] if a token is not in the vocabulary.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let not_a_shard = |problem| Error::NotAShard { problem };
        let mut rest = bytes;
        if take::<8>(&mut rest)? != MAGIC {
            return Err(not_a_shard("it does not begin like one"));
        }
        if u16::from_le_bytes(take(&mut rest)?) != VERSION {
            return Err(not_a_shard("its version is unknown"));
        }
        let width = usize::from(u16::from_le_bytes(take(&mut rest)?));
        let vocabulary = u32::from_le_bytes(take(&mut rest)?);
        if width != token_bytes(vocabulary) {
            return Err(not_a_shard(
                "its tokens are not as wide as its vocabulary needs",
            ));
        }
        let tokens = u64::from_le_bytes(take(&mut rest)?);
        if tokens > SHARD_TOKENS_MAX as u64 {
            return Err(not_a_shard("too many tokens"));
        }
        if tokens * width as u64 != rest.len() as u64 {
            return Err(not_a_shard("it is not as long as its tokens are"));
        }
        let shard = Self {
            vocabulary,
            width,
            packed: rest.to_vec(),
        };
        let outside = shard
            .tokens(0..shard.len())
            .find(|token| *token >= vocabulary);
        match outside {
            Some(token) => Err(Error::Token { token, vocabulary }),
            None => Ok(shard),
        }
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packed.len() / self.width
    }

    /// Whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    /// Every token is below this.
    #[must_use]
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// The tokens of a range.
    ///
    /// # Panics
    /// If the range does not lie in `0..len()`.
    pub fn tokens(&self, range: Range<usize>) -> impl ExactSizeIterator<Item = u32> + '_ {
        let bytes = &self.packed[range.start * self.width..range.end * self.width];
        bytes.chunks_exact(self.width).map(|token| {
            let mut word = [0; 4];
            word[..token.len()].copy_from_slice(token);
            u32::from_le_bytes(word)
        })
    }
}

/// Length in bytes of a shard at rest.
#[must_use]
pub const fn encoded_bytes(tokens: u64, vocabulary: u32) -> u64 {
    (HEADER_BYTES as u64).saturating_add(tokens.saturating_mul(token_bytes(vocabulary) as u64))
}

/// Bytes per token.
const fn token_bytes(vocabulary: u32) -> usize {
    match vocabulary {
        0..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        _ => 4,
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Error> {
    let (taken, rest) = bytes.split_first_chunk::<N>().ok_or(Error::NotAShard {
        problem: "it ends in its header",
    })?;
    *bytes = rest;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shard() -> impl Strategy<Value = (Vec<u32>, u32)> {
        prop::sample::select(vec![1, 7, 256, 257, 65_536, 65_537, u32::MAX]).prop_flat_map(
            |vocabulary| {
                (
                    prop::collection::vec(0..vocabulary, 0..200),
                    Just(vocabulary),
                )
            },
        )
    }

    proptest! {
        #[test]
        fn tokens_come_back((tokens, vocabulary) in shard()) {
            let shard = Shard::new(&tokens, vocabulary).unwrap();
            let bytes = shard.encode();
            prop_assert_eq!(bytes.len() as u64, encoded_bytes(tokens.len() as u64, vocabulary));
            let decoded = Shard::decode(&bytes).unwrap();
            prop_assert_eq!(decoded.tokens(0..decoded.len()).collect::<Vec<_>>(), tokens);
            prop_assert_eq!(decoded, shard);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Shard::decode(&bytes).is_err(), "random bytes do not begin with the magic");
        }

        /// Headers that are nearly right, so that the decoder gets past its first checks.
        #[test]
        fn what_decodes_is_written_the_one_true_way(
            width in 0..6_u16, vocabulary in prop_oneof![0..600_u32, 65_000..66_000_u32, any::<u32>()],
            tokens in prop_oneof![8 => 0..12_u64, 1 => any::<u64>()], packed in prop::collection::vec(any::<u8>(), 0..24),
        ) {
            let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &width.to_le_bytes()].concat();
            bytes.extend_from_slice(&vocabulary.to_le_bytes());
            bytes.extend_from_slice(&tokens.to_le_bytes());
            bytes.extend_from_slice(&packed);
            if let Ok(shard) = Shard::decode(&bytes) {
                prop_assert!(shard.tokens(0..shard.len()).all(|token| token < vocabulary));
                prop_assert_eq!(shard.encode(), bytes);
            }
        }

        /// A changed shard is refused or is another shard in its one true form; it is never read differently.
        #[test]
        fn a_damaged_shard_is_refused_or_is_another(
            (tokens, vocabulary) in shard(), at in any::<prop::sample::Index>(), flip in 1..=u8::MAX,
            length in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Shard::new(&tokens, vocabulary).unwrap().encode();
            let cut = &bytes[..length.index(bytes.len())];
            prop_assert!(Shard::decode(cut).is_err(), "a shard cut short is no shard");
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(shard) = Shard::decode(&bytes) {
                prop_assert_eq!(shard.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_header_that_promises_too_much_is_refused_before_anything_is_allocated() {
        let mut bytes = Shard::new(&[1, 2, 3], 256).unwrap().encode();
        bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(
            Shard::decode(&bytes),
            Err(Error::NotAShard {
                problem: "too many tokens"
            })
        ));
    }

    #[test]
    fn tokens_wider_than_they_must_be_are_refused() {
        let mut bytes = Shard::new(&[1, 2], 256).unwrap().encode();
        bytes[10] = 2;
        bytes[16] = 1;
        assert!(matches!(
            Shard::decode(&bytes),
            Err(Error::NotAShard { .. })
        ));
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused() {
        assert!(matches!(
            Shard::new(&[3, 7], 7),
            Err(Error::Token {
                token: 7,
                vocabulary: 7
            })
        ));
        let mut bytes = Shard::new(&[3, 6], 7).unwrap().encode();
        bytes[25] = 9;
        assert!(matches!(
            Shard::decode(&bytes),
            Err(Error::Token {
                token: 9,
                vocabulary: 7
            })
        ));
    }
}
