//! The operator's view of the store, in memory and in a folder.

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be set up has failed the test"
)]

use bytes::Bytes;
use iota_protocol::id::{Digest, Epoch, ObjectId, RunId, StageIndex};
use iota_protocol::work::{ObjectName, Purpose};
use iota_store::{Error, ErrorKind, KeyPrefix, ObjectKey, Store, conformance};

const RUN: RunId = RunId::from_bytes([1; 16]);

fn object(purpose: Purpose, epoch: u64, id: u8) -> ObjectKey {
    let name = ObjectName {
        purpose,
        epoch: Epoch::new(epoch),
        id: ObjectId::from_bytes([id; 16]),
    };
    ObjectKey::object(RUN, name)
}

/// What is there already is not copied again, so a copy that was interrupted goes on.
#[tokio::test]
async fn everything_of_a_run_is_copied_to_another_store_once() {
    let (from, to) = (Store::in_memory(), Store::in_memory());
    let (ours, theirs) = (RunId::from_bytes([1; 16]), RunId::from_bytes([2; 16]));
    for run in [ours, theirs] {
        for content in ["one", "another", "a third"] {
            let digest = Digest::of(content.as_bytes());
            let key = ObjectKey::shard(run, digest);
            from.put(&key, content.into()).await.unwrap();
        }
    }
    let one = ObjectKey::shard(ours, Digest::of(b"one"));
    to.put(&one, "one".into()).await.unwrap();
    let prefix = KeyPrefix::Run(ours);
    let copied = from.copy_to(&to, &prefix, 2).await.unwrap();
    assert_eq!((copied.objects, copied.bytes), (2, 14));
    let everything = from.list(&prefix).await.unwrap();
    assert_eq!(to.list(&prefix).await.unwrap(), everything);
    assert_eq!(to.list(&KeyPrefix::Run(theirs)).await.unwrap(), []);
    let again = from.copy_to(&to, &prefix, 2).await.unwrap();
    assert_eq!(again.objects, 0);
    // Bytes that somebody else wrote are not replaced.
    let other = Store::in_memory();
    other.put(&one, "ONE!".into()).await.unwrap();
    let refused = from.copy_to(&other, &prefix, 2).await;
    assert!(matches!(refused, Err(Error::Exists { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_store_in_memory_conforms() {
    conformance::check(&Store::in_memory(), RUN).await;
}

#[tokio::test]
async fn a_store_in_a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::in_folder(folder.path().join("made/on/the/way")).unwrap();
    conformance::check(&store, RUN).await;
}

/// Both kinds of store, for what is not about single objects.
fn stores() -> (tempfile::TempDir, [Store; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = Store::in_folder(folder.path()).unwrap();
    (folder, [Store::in_memory(), in_folder])
}

#[tokio::test]
async fn retention_takes_one_purpose_of_one_epoch_and_nothing_else() {
    let (_folder, stores) = stores();
    for store in stores {
        let gone = [1, 2].map(|id| object(Purpose::Activation, 1, id));
        let kept = [
            object(Purpose::Activation, 2, 1),
            // A prefix by letters would take this one with epoch 1.
            object(Purpose::Activation, 10, 1),
            object(Purpose::Gradient, 1, 1),
            ObjectKey::shard(RUN, Digest::of(b"tokens")),
            ObjectKey::checkpoint(RUN, Epoch::new(1), StageIndex::new(0)),
        ];
        for key in gone.iter().chain(&kept) {
            store.put(key, Bytes::from_static(b"bytes")).await.unwrap();
        }
        let epoch = KeyPrefix::Epoch(RUN, Purpose::Activation, Epoch::new(1));
        let listed = store.list(&epoch).await.unwrap();
        assert_eq!(
            listed.iter().map(|listed| listed.key).collect::<Vec<_>>(),
            gone
        );
        assert!(listed.iter().all(|listed| listed.length_bytes == 5));

        assert_eq!(store.delete_prefix(&epoch).await.unwrap(), 2);
        assert_eq!(store.delete_prefix(&epoch).await.unwrap(), 0);
        let left = store.list(&KeyPrefix::Run(RUN)).await.unwrap();
        let mut left: Vec<ObjectKey> = left.into_iter().map(|listed| listed.key).collect();
        left.sort_unstable();
        let mut kept = kept;
        kept.sort_unstable();
        assert_eq!(left, kept);
    }
}

#[tokio::test]
async fn runs_are_found_by_what_they_have_and_objects_go_one_by_one() {
    let (_folder, stores) = stores();
    for store in stores {
        assert_eq!(store.runs().await.unwrap(), []);
        let other = RunId::from_bytes([9; 16]);
        let backups: Vec<ObjectKey> = [(other, 1), (RUN, 1), (RUN, 2)]
            .map(|(run, number)| ObjectKey::Backup { run, number })
            .into();
        for key in &backups {
            store.put(key, Bytes::from_static(b"bytes")).await.unwrap();
        }
        assert_eq!(store.runs().await.unwrap(), [RUN, other]);
        for _ in 0..2 {
            store.delete(&backups[1]).await.unwrap();
            let left = store.list(&KeyPrefix::Backups(RUN)).await.unwrap();
            assert_eq!(left.len(), 1);
            assert_eq!(left[0].key, backups[2]);
        }
    }
}

#[tokio::test]
async fn every_prefix_finds_its_own() {
    let (_folder, stores) = stores();
    for store in stores {
        let upload = object(Purpose::Upload, 3, 1);
        let shard = ObjectKey::shard(RUN, Digest::of(b"tokens"));
        let manifests =
            [3, 30].map(|epoch| ObjectKey::checkpoint(RUN, Epoch::new(epoch), StageIndex::new(0)));
        let foreign = ObjectKey::shard(RunId::from_bytes([2; 16]), Digest::of(b"tokens"));
        for key in [upload, shard, manifests[0], manifests[1], foreign] {
            store.put(&key, Bytes::from_static(b"bytes")).await.unwrap();
        }
        for (prefix, expected) in [
            (KeyPrefix::Purpose(RUN, Purpose::Upload), vec![upload]),
            (KeyPrefix::Purpose(RUN, Purpose::Merged), vec![]),
            (KeyPrefix::Shards(RUN), vec![shard]),
            (KeyPrefix::Checkpoints(RUN), manifests.to_vec()),
            (
                KeyPrefix::CheckpointsOf(RUN, Epoch::new(3)),
                vec![manifests[0]],
            ),
            (KeyPrefix::Shards(foreign.run()), vec![foreign]),
        ] {
            let found = store.list(&prefix).await.unwrap();
            let found: Vec<ObjectKey> = found.into_iter().map(|listed| listed.key).collect();
            assert_eq!(found, expected, "{prefix}");
        }
    }
}

#[tokio::test]
async fn a_file_that_is_no_object_does_not_disturb_a_listing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::in_folder(folder.path()).unwrap();
    let key = object(Purpose::Merged, 1, 1);
    store.put(&key, Bytes::from_static(b"bytes")).await.unwrap();
    std::fs::write(
        folder.path().join(RUN.to_string()).join("notes.txt"),
        "mine",
    )
    .unwrap();
    let listed = store.list(&KeyPrefix::Run(RUN)).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].key, key);
}

#[tokio::test]
async fn bytes_that_changed_on_the_disk_are_not_returned() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::in_folder(folder.path()).unwrap();
    let key = object(Purpose::Merged, 1, 1);
    let seal = store.put(&key, Bytes::from_static(b"bytes")).await.unwrap();
    std::fs::write(folder.path().join(key.to_string()), b"bytez").unwrap();
    let error = store.get(&key, &seal).await.unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::GiveUp);
    // And a put that finds them does not take them for its own.
    let error = store
        .put(&key, Bytes::from_static(b"bytes"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error:?}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Store::in_folder(file.path().join("below")).unwrap_err();
    assert!(
        matches!(&error, Error::Folder { path, .. } if path.starts_with(file.path())),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Fix);
}
