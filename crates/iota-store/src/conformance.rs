//! What every store must do, as a suite that any of them can run: in memory, in a folder, through grants.

use bytes::Bytes;
use iota_protocol::id::{Digest, Epoch, ObjectId, RunId};
use iota_protocol::work::{ObjectName, Purpose, Seal};

use crate::error::{Error, Result};
use crate::key::ObjectKey;
use crate::seal::seal;
use crate::store::Store;

/// Something that keeps objects.
pub trait Subject: Send + Sync {
    /// Writes a new object.
    fn put(&self, key: &ObjectKey, bytes: Bytes) -> impl Future<Output = Result<Seal>> + Send;

    /// Reads an object and verifies it.
    fn get(&self, key: &ObjectKey, seal: &Seal) -> impl Future<Output = Result<Bytes>> + Send;
}

impl Subject for Store {
    async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<Seal> {
        self.put(key, bytes).await
    }

    async fn get(&self, key: &ObjectKey, seal: &Seal) -> Result<Bytes> {
        self.get(key, seal).await
    }
}

/// Runs the whole suite on a store that has no objects of `run` yet.
///
/// # Panics
/// If the subject does not conform.
pub async fn check(subject: &impl Subject, run: RunId) {
    let mut keys = (0_u8..).map(|number| {
        ObjectKey::object(
            run,
            ObjectName {
                purpose: Purpose::Activation,
                epoch: Epoch::new(0),
                id: ObjectId::from_bytes([number; 16]),
            },
        )
    });
    let mut key = || keys.next().expect("there are enough numbers");
    for length in LENGTHS {
        what_is_put_is_what_is_got(subject, key(), length).await;
    }
    what_is_not_there_is_missing(subject, key()).await;
    what_is_not_as_promised_is_not_returned(subject, key()).await;
    a_key_is_written_once(subject, key()).await;
    for _ in 0..RACES {
        of_many_writers_one_wins(subject, key()).await;
    }
}

/// Nothing, one byte, and both sides of the sizes at which implementations change buffers.
const LENGTHS: [usize; 6] = [0, 1, 65_537, 1 << 20, (1 << 20) + 1, (3 << 20) + 7];

const RACES: usize = 8;
const RACERS: usize = 16;

/// Bytes that differ everywhere, so that a piece in the wrong place shows.
fn pattern(length: usize, salt: u8) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&[salt])
        .finalize_xof()
        .fill(&mut bytes);
    bytes.into()
}

async fn what_is_put_is_what_is_got(subject: &impl Subject, key: ObjectKey, length: usize) {
    let bytes = pattern(length, 0);
    let sealed = subject.put(&key, bytes.clone()).await.expect("a put");
    assert_eq!(sealed, seal(&bytes));
    let found = subject.get(&key, &sealed).await.expect("a get");
    assert!(found == bytes, "{length} bytes came back changed");
}

async fn what_is_not_there_is_missing(subject: &impl Subject, key: ObjectKey) {
    let error = subject
        .get(&key, &seal(b"anything"))
        .await
        .expect_err("nothing there");
    assert!(matches!(error, Error::Missing { .. }), "{error:?}");
}

async fn what_is_not_as_promised_is_not_returned(subject: &impl Subject, key: ObjectKey) {
    let sealed = subject.put(&key, pattern(1000, 1)).await.expect("a put");
    for length in [0, 999, 1001] {
        let promised = Seal { length, ..sealed };
        let error = subject.get(&key, &promised).await.expect_err("other bytes");
        assert!(
            matches!(error, Error::Length { expected_bytes, .. } if expected_bytes == length),
            "{error:?}"
        );
    }
    let promised = Seal {
        digest: Digest::of(b"something else"),
        ..sealed
    };
    let error = subject.get(&key, &promised).await.expect_err("other bytes");
    assert!(
        matches!(error, Error::Digest { expected, found, .. }
            if expected == promised.digest && found == sealed.digest),
        "{error:?}"
    );
}

async fn a_key_is_written_once(subject: &impl Subject, key: ObjectKey) {
    let sealed = subject.put(&key, pattern(1000, 2)).await.expect("a put");
    for other in [pattern(1000, 3), pattern(10, 3)] {
        let error = subject.put(&key, other).await.expect_err("a taken key");
        assert!(matches!(error, Error::Exists { .. }), "{error:?}");
    }
    match subject.put(&key, pattern(1000, 2)).await {
        Ok(again) => assert_eq!(again, sealed),
        // Who cannot read back cannot know that the bytes are the same.
        Err(error) => assert!(matches!(error, Error::Exists { .. }), "{error:?}"),
    }
    subject
        .get(&key, &sealed)
        .await
        .expect("the first bytes are still there");
}

async fn of_many_writers_one_wins(subject: &impl Subject, key: ObjectKey) {
    let racers = (0..RACERS).map(|racer| {
        let bytes = pattern(100_000, 100 + racer as u8);
        async move { subject.put(&key, bytes).await }
    });
    let results = futures::future::join_all(racers).await;
    let mut winners = Vec::new();
    for result in results {
        match result {
            Ok(sealed) => winners.push(sealed),
            Err(error) => assert!(matches!(error, Error::Exists { .. }), "{error:?}"),
        }
    }
    let [winner] = winners[..] else {
        panic!("{} of {RACERS} writers won", winners.len());
    };
    subject
        .get(&key, &winner)
        .await
        .expect("the winner's bytes are there");
}
