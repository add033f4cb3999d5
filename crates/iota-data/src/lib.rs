//! Tokenizers, corpora and digest-named token shards.
