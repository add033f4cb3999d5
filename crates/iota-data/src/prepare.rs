//! From a corpus to shards and their manifest.

use iota_protocol::Digest;

use crate::corpus::{Corpus, Document};
use crate::error::Error;
use crate::manifest::{DataManifest, ShardEntry, Split};
use crate::sampling::BatchShape;
use crate::shard::{SHARD_TOKENS_MAX, Shard};
use crate::tokenizer::Tokenizer;

/// A shard that is ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedShard {
    /// What the manifest will say of it.
    pub entry: ShardEntry,
    /// What to store under [`ShardEntry::digest`].
    pub bytes: Vec<u8>,
}

/// Cuts a corpus into shards, one at a time. First take the shards from this iterator, then the manifest from
/// [`finish`](Self::finish): a manifest that exists names only shards that exist.
///
/// ```
/// use std::collections::BTreeMap;
/// use iota_data::{Corpus, HELD_OUT_FRACTION, Preparation, Split, Tokenizer};
///
/// let parts = Corpus::bundled().split(HELD_OUT_FRACTION)?;
/// let mut store = BTreeMap::new();
/// let mut preparation = Preparation::new(&parts.held_out, Tokenizer::default(), Split::HeldOut, 1 << 16)?;
/// for shard in &mut preparation {
///     store.insert(shard.entry.digest, shard.bytes);
/// }
/// let manifest = preparation.finish();
/// assert!(manifest.shards.iter().all(|shard| store.contains_key(&shard.digest)));
/// # Ok::<(), iota_data::Error>(())
/// ```
#[derive(Debug)]
pub struct Preparation<'a> {
    documents: std::slice::Iter<'a, Document>,
    shard_tokens: usize,
    /// Tokens that are not in a shard yet, after the `taken` first ones, which are.
    pending: Vec<u32>,
    taken: usize,
    /// Whether the last document ended in the middle of a line.
    mid_line: bool,
    manifest: DataManifest,
}

impl<'a> Preparation<'a> {
    /// Starts to cut `corpus` into shards that advance by `shard_tokens` tokens each.
    ///
    /// Documents follow one another without a mark; one that ends in the middle of a line gets a line break first.
    ///
    /// A shard holds one token more, its successor's first one, to predict. The last shard takes what remains and is up
    /// to twice as long, so that none is shorter unless the whole corpus is. With a multiple of
    /// [`BatchShape::tokens`](crate::BatchShape::tokens) no token is left over in any shard but the last.
    ///
    /// # Errors
    /// [`Error::ShardTokens`] if `shard_tokens` is 0 or too large for a shard twice as long. [`Error::TooShort`] if
    /// there is only one token, which leaves nothing to predict.
    pub fn new(
        corpus: &'a Corpus,
        tokenizer: Tokenizer,
        split: Split,
        shard_tokens: usize,
    ) -> Result<Self, Error> {
        if !(1..=SHARD_TOKENS_MAX / 2).contains(&shard_tokens) {
            return Err(Error::ShardTokens { shard_tokens });
        }
        let vocabulary = tokenizer.vocabulary();
        let manifest = DataManifest {
            tokenizer,
            vocabulary,
            tokens: 1,
            shards: Vec::new(),
            split,
        };
        let documents = corpus.documents().iter();
        let mut preparation = Self {
            documents,
            shard_tokens,
            pending: Vec::new(),
            taken: 0,
            mid_line: false,
            manifest,
        };
        let tokens = preparation.fill() as u64;
        if tokens < 2 {
            return Err(Error::TooShort {
                tokens,
                needed: 2,
                shape: BatchShape {
                    sequences: 1,
                    context: 1,
                },
            });
        }
        Ok(preparation)
    }

    /// The manifest of all shards, including those that nobody took.
    #[must_use]
    pub fn finish(mut self) -> DataManifest {
        self.by_ref().for_each(drop);
        self.manifest
    }

    /// Tokenizes documents until it is clear whether the next shard is the last one. Returns how many tokens wait.
    fn fill(&mut self) -> usize {
        while self.pending.len() - self.taken <= 2 * self.shard_tokens {
            let Some(document) = self.documents.next() else {
                break;
            };
            // Only here does what waits move to the front: at every shard, a long document would be moved many times.
            self.pending.drain(..self.taken);
            self.taken = 0;
            if self.mid_line {
                self.pending.extend(self.manifest.tokenizer.encode("\n"));
            }
            self.pending
                .extend(self.manifest.tokenizer.encode(&document.text));
            self.mid_line = !document.text.ends_with('\n');
        }
        self.pending.len() - self.taken
    }
}

impl Iterator for Preparation<'_> {
    type Item = PreparedShard;

    fn next(&mut self) -> Option<PreparedShard> {
        let waiting = self.fill();
        // After the last shard one token remains: the one that a further shard would have begun with.
        if waiting < 2 {
            return None;
        }
        let last = waiting <= 2 * self.shard_tokens;
        let advance = if last { waiting - 1 } else { self.shard_tokens };
        let tokens = &self.pending[self.taken..=self.taken + advance];
        let shard = Shard::new(tokens, self.manifest.vocabulary)
            .expect("a tokenizer stays in its vocabulary, and `new` checked twice the length");
        self.taken += advance;

        let bytes = shard.encode();
        let entry = ShardEntry {
            digest: Digest::of(&bytes),
            length_bytes: bytes.len() as u64,
            tokens: shard.len() as u64,
        };
        self.manifest.tokens += advance as u64;
        self.manifest.shards.push(entry.clone());
        Some(PreparedShard { entry, bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn corpus(texts: &[&str]) -> Corpus {
        let document = |text: &&str| Document {
            name: String::new(),
            text: (*text).to_owned(),
        };
        Corpus::from_documents(texts.iter().map(document).collect()).unwrap()
    }

    fn prepare(corpus: &Corpus, shard_tokens: usize) -> (DataManifest, Vec<Vec<u32>>) {
        let mut preparation =
            Preparation::new(corpus, Tokenizer::default(), Split::Training, shard_tokens).unwrap();
        let mut shards = Vec::new();
        for PreparedShard { entry, bytes } in &mut preparation {
            let shard = entry.open(&bytes).unwrap();
            shards.push(shard.tokens(0..shard.len()).collect());
        }
        (preparation.finish(), shards)
    }

    proptest! {
        #[test]
        fn shards_joined_at_their_common_token_are_the_text(
            texts in prop::collection::vec("[a-z]{0,40}\n", 1..8), shard_tokens in 1..60_usize,
        ) {
            let whole = texts.concat();
            prop_assume!(whole.len() >= 2);
            let corpus = corpus(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let (manifest, shards) = prepare(&corpus, shard_tokens);

            let mut joined = vec![shards[0][0]];
            for shard in &shards {
                prop_assert_eq!(shard[0], *joined.last().unwrap());
                joined.extend(&shard[1..]);
            }
            prop_assert_eq!(Tokenizer::default().decode(&joined).unwrap(), whole);
            prop_assert_eq!(manifest.tokens, joined.len() as u64);
            prop_assert!(manifest.validate().is_ok());

            let (last, others) = shards.split_last().unwrap();
            prop_assert!(others.iter().all(|shard| shard.len() == shard_tokens + 1));
            prop_assert!(last.len() <= 2 * shard_tokens);
            prop_assert!(last.len() > shard_tokens || others.is_empty());
        }
    }

    #[test]
    fn a_document_that_ends_in_the_middle_of_a_line_gets_a_line_break() {
        let (_, shards) = prepare(&corpus(&["one", "two\n", "six"]), 100);
        assert_eq!(
            Tokenizer::default().decode(&shards[0]).unwrap(),
            "one\ntwo\nsix"
        );
    }

    #[test]
    fn shards_that_nobody_takes_are_in_the_manifest_all_the_same() {
        let corpus = corpus(&["a text of some length\n"]);
        let untouched = Preparation::new(&corpus, Tokenizer::default(), Split::Training, 5)
            .unwrap()
            .finish();
        assert_eq!(untouched, prepare(&corpus, 5).0);
    }

    #[test]
    fn a_shard_of_no_tokens_and_a_text_of_one_are_refused() {
        let prepare = |text, shard_tokens| {
            Preparation::new(
                &corpus(&[text]),
                Tokenizer::default(),
                Split::Training,
                shard_tokens,
            )
            .map(|_| ())
            .unwrap_err()
        };
        assert!(matches!(
            prepare("text", 0),
            Error::ShardTokens { shard_tokens: 0 }
        ));
        assert!(matches!(
            prepare("text", SHARD_TOKENS_MAX),
            Error::ShardTokens { .. }
        ));
        assert!(matches!(
            prepare("x", 5),
            Error::TooShort {
                tokens: 1,
                needed: 2,
                ..
            }
        ));
    }
}
