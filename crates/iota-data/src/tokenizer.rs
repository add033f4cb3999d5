//! Text to tokens and back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A tokenizer, by its name. In settings and manifests it is that name.
///
/// An enum and not a trait: which tokenizers there are is part of a run's rules, for all who take part must cut the
/// same text alike.
///
/// ```
/// use iota_data::Tokenizer;
///
/// let tokenizer: Tokenizer = "bytes".parse()?;
/// assert_eq!(tokenizer.encode("Ré"), [82, 195, 169]);
/// assert_eq!(tokenizer.decode(&[82, 195, 169])?, "Ré");
/// # Ok::<(), iota_data::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Tokenizer {
    /// A token is a byte.
    Bytes(ByteTokenizer),
}

impl Tokenizer {
    /// Its name, unique among tokenizers.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bytes(_) => ByteTokenizer::NAME,
        }
    }

    /// Number of different tokens; tokens are 0 to below this.
    #[must_use]
    pub fn vocabulary(&self) -> u32 {
        match self {
            Self::Bytes(_) => ByteTokenizer::VOCABULARY,
        }
    }

    /// The tokens of `text`. Joining texts joins their tokens for [`ByteTokenizer`], and need not for others.
    #[must_use]
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match self {
            Self::Bytes(bytes) => bytes.encode(text).collect(),
        }
    }

    /// The text of `tokens`. Where they are not UTF-8, as when a character is cut in half, U+FFFD stands in.
    ///
    /// # Errors
    /// [`Error::Token`] for a token outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        match self {
            Self::Bytes(bytes) => bytes.decode(tokens),
        }
    }
}

impl Default for Tokenizer {
    fn default() -> Self {
        Self::Bytes(ByteTokenizer)
    }
}

impl fmt::Display for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tokenizer {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            ByteTokenizer::NAME => Ok(Self::Bytes(ByteTokenizer)),
            _ => Err(Error::UnknownTokenizer {
                name: name.to_owned(),
            }),
        }
    }
}

impl TryFrom<String> for Tokenizer {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<Tokenizer> for String {
    fn from(tokenizer: Tokenizer) -> Self {
        tokenizer.name().to_owned()
    }
}

/// A token is a byte of the UTF-8 text. Nothing to learn, download or get wrong, at four times the length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ByteTokenizer;

impl ByteTokenizer {
    /// Its name.
    pub const NAME: &'static str = "bytes";

    /// Number of tokens.
    pub const VOCABULARY: u32 = 256;

    /// One token per byte.
    pub fn encode(self, text: &str) -> impl ExactSizeIterator<Item = u32> {
        text.bytes().map(u32::from)
    }

    /// The text of `tokens`, see [`Tokenizer::decode`].
    ///
    /// # Errors
    /// [`Error::Token`] for a token above 255.
    pub fn decode(self, tokens: &[u32]) -> Result<String, Error> {
        let byte = |&token| {
            u8::try_from(token).map_err(|_| Error::Token {
                token,
                vocabulary: Self::VOCABULARY,
            })
        };
        let bytes = tokens
            .iter()
            .map(byte)
            .collect::<Result<Vec<u8>, Error>>()?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_comes_back(text in any::<String>()) {
            let tokens = Tokenizer::default().encode(&text);
            prop_assert!(tokens.iter().all(|token| *token < ByteTokenizer::VOCABULARY));
            prop_assert_eq!(Tokenizer::default().decode(&tokens).unwrap(), text);
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_an_error() {
        let error = Tokenizer::default().decode(&[65, 256]).unwrap_err();
        assert!(matches!(
            error,
            Error::Token {
                token: 256,
                vocabulary: 256
            }
        ));
    }

    #[test]
    fn half_a_character_decodes_to_a_stand_in() {
        assert_eq!(
            Tokenizer::default().decode(&[82, 195]).unwrap(),
            "R\u{fffd}"
        );
    }

    #[test]
    fn a_tokenizer_is_its_name() {
        let tokenizer = Tokenizer::default();
        assert_eq!(serde_json::to_string(&tokenizer).unwrap(), "\"bytes\"");
        assert_eq!(
            serde_json::from_str::<Tokenizer>("\"bytes\"").unwrap(),
            tokenizer
        );
        let error = serde_json::from_str::<Tokenizer>("\"words\"").unwrap_err();
        assert!(
            error.to_string().contains("unknown tokenizer \"words\""),
            "{error}"
        );
    }
}
