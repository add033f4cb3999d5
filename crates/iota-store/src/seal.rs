//! Seals: what an object's bytes must be.

use bytes::Bytes;
use iota_protocol::id::Digest;
use iota_protocol::work::Seal;

use crate::error::{Error, Result};

/// Above this, hashing leaves the async thread: BLAKE3 does a few GB/s, so this is well under a millisecond.
const HASH_INLINE_BYTES: usize = 1 << 20;

/// The seal of `bytes`: what its producer commits to.
pub fn seal(bytes: &[u8]) -> Seal {
    Seal {
        digest: Digest::of(bytes),
        length: bytes.len() as u64,
    }
}

/// [`seal`] without holding up the async thread for long.
pub(crate) async fn seal_off_thread(bytes: Bytes) -> Seal {
    if bytes.len() <= HASH_INLINE_BYTES {
        return seal(&bytes);
    }
    tokio::task::spawn_blocking(move || seal(&bytes))
        .await
        .expect("hashing does not panic")
}

/// Compares what was found under `key` with what must be there; length first, because it says more.
pub(crate) fn check(key: impl ToString, expected: &Seal, found: &Seal) -> Result<()> {
    check_length(&key, expected.length, found.length)?;
    if expected.digest != found.digest {
        return Err(Error::Digest {
            key: key.to_string(),
            expected: expected.digest,
            found: found.digest,
        });
    }
    Ok(())
}

pub(crate) fn check_length(
    key: &impl ToString,
    expected_bytes: u64,
    found_bytes: u64,
) -> Result<()> {
    if expected_bytes != found_bytes {
        return Err(Error::Length {
            key: key.to_string(),
            expected_bytes,
            found_bytes,
        });
    }
    Ok(())
}
