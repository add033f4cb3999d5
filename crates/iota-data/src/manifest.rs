//! What the data of a run are: the list of their shards, by digest.

use iota_protocol::Digest;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::shard::{SHARD_TOKENS_MAX, Shard, encoded_bytes};
use crate::tokenizer::Tokenizer;

/// What data are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Trained on.
    Training,
    /// Only ever measured on.
    HeldOut,
}

/// One shard of the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// BLAKE3 of its bytes, which is also its name.
    pub digest: Digest,
    /// Number of its bytes.
    pub length_bytes: u64,
    /// Number of its tokens.
    pub tokens: u64,
}

/// The data of a run, or the part that is held out: whoever has the manifest can check every shard, and all who have
/// the same one read the same tokens for the same sample.
///
/// The last token of a shard is the first one of the next, so that every token but the very first is predicted once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataManifest {
    /// What cut the text into tokens.
    pub tokenizer: Tokenizer,
    /// Every token is below this.
    pub vocabulary: u32,
    /// Number of tokens, those at the joints counted once.
    pub tokens: u64,
    /// The shards, in the order of the text.
    pub shards: Vec<ShardEntry>,
    /// What the data are for.
    pub split: Split,
}

impl DataManifest {
    /// As JSON, for the store.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only strings and numbers")
    }

    /// From JSON, [valid](Self::validate). Any bytes are safe to try.
    ///
    /// # Errors
    /// [`Error::Manifest`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| Error::Manifest {
            problem: error.to_string(),
        })?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// BLAKE3 of its JSON: one value that fixes every token of the data.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_json())
    }

    /// Checks that the manifest agrees with itself.
    ///
    /// # Errors
    /// [`Error::Manifest`] says what does not add up.
    pub fn validate(&self) -> Result<(), Error> {
        let invalid = |problem: String| Err(Error::Manifest { problem });
        if self.vocabulary != self.tokenizer.vocabulary() {
            let (name, has) = (&self.tokenizer, self.tokenizer.vocabulary());
            return invalid(format!(
                "tokenizer {name} has {has} tokens, not {}",
                self.vocabulary
            ));
        }
        if self.shards.is_empty() {
            return invalid("it has no shards".to_owned());
        }
        let mut tokens = 1_u64;
        for (index, shard) in self.shards.iter().enumerate() {
            if !(2..=SHARD_TOKENS_MAX as u64).contains(&shard.tokens) {
                return invalid(format!("shard {index} has {} tokens", shard.tokens));
            }
            if shard.length_bytes != encoded_bytes(shard.tokens, self.vocabulary) {
                return invalid(format!(
                    "shard {index} cannot be {} bytes long",
                    shard.length_bytes
                ));
            }
            tokens = tokens.saturating_add(shard.tokens - 1);
        }
        if tokens != self.tokens {
            return invalid(format!(
                "its shards have {tokens} tokens, not {}",
                self.tokens
            ));
        }
        Ok(())
    }
}

impl ShardEntry {
    /// Reads the shard's bytes after checking that they are the ones that are meant.
    ///
    /// # Errors
    /// [`Error::WrongShard`] if their digest is another; those of [`Shard::decode`] and [`Error::Manifest`] if whoever
    /// made the manifest did so wrongly.
    pub fn open(&self, bytes: &[u8]) -> Result<Shard, Error> {
        let found = Digest::of(bytes);
        if found != self.digest {
            return Err(Error::WrongShard {
                expected: self.digest,
                found,
            });
        }
        let shard = Shard::decode(bytes)?;
        if shard.len() as u64 != self.tokens {
            let problem = format!(
                "{} has {} tokens, not {}",
                self.digest,
                shard.len(),
                self.tokens
            );
            return Err(Error::Manifest { problem });
        }
        Ok(shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Corpus, Preparation};

    fn manifest() -> DataManifest {
        let corpus = Corpus::bundled().split(0.001).unwrap().held_out;
        Preparation::new(&corpus, Tokenizer::default(), Split::HeldOut, 1000)
            .unwrap()
            .finish()
    }

    #[test]
    fn a_manifest_survives_json() {
        let manifest = manifest();
        assert_eq!(
            DataManifest::from_json(&manifest.to_json()).unwrap(),
            manifest
        );
        assert_eq!(
            DataManifest::from_json(&manifest.to_json())
                .unwrap()
                .digest(),
            manifest.digest()
        );
    }

    #[test]
    fn a_manifest_that_does_not_add_up_is_refused() {
        let check = |change: fn(&mut DataManifest), problem: &str| {
            let mut manifest = manifest();
            change(&mut manifest);
            let error = DataManifest::from_json(&manifest.to_json())
                .unwrap_err()
                .to_string();
            assert!(error.contains(problem), "{error}");
        };
        check(
            |manifest| manifest.vocabulary = 300,
            "has 256 tokens, not 300",
        );
        check(|manifest| manifest.shards.clear(), "no shards");
        check(|manifest| manifest.tokens += 1, "its shards have");
        check(
            |manifest| manifest.shards[1].length_bytes += 1,
            "shard 1 cannot be",
        );
        check(
            |manifest| manifest.shards[1].tokens = 1,
            "shard 1 has 1 tokens",
        );
        check(
            |manifest| manifest.shards[1].tokens = u64::MAX,
            "shard 1 has 18446744073709551615 tokens",
        );
    }

    #[test]
    fn what_is_not_a_manifest_is_an_error() {
        for text in ["", "{}", "null", "[1]", "\u{fffd}"] {
            assert!(
                matches!(
                    DataManifest::from_json(text.as_bytes()),
                    Err(Error::Manifest { .. })
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn another_shard_is_refused() {
        let entry = &manifest().shards[0];
        let other = Shard::new(&[1, 2, 3], 256).unwrap().encode();
        let error = entry.open(&other).unwrap_err();
        assert!(matches!(error, Error::WrongShard { found, .. } if found == Digest::of(&other)));
    }
}
