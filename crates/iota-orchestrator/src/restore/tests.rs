use iota_node::{Clock as _, Shutdown, SystemClock};
use iota_protocol::{PeerId, Role};

use super::*;
use crate::OrchestratorBuilder;
use crate::testing::setup;

async fn started(builder: OrchestratorBuilder) -> Orchestrator {
    builder.start(&Shutdown::new()).await.unwrap()
}

async fn join(orchestrator: &Orchestrator, name: u8) {
    let command = Command::Join {
        peer: peer(name),
        role: Role::Miner,
        capacity: 1,
    };
    orchestrator.owner.command(command).await.unwrap().unwrap();
}

fn peer(name: u8) -> PeerId {
    PeerId::from_bytes([name; 32])
}

async fn suspended(orchestrator: Orchestrator) {
    orchestrator.suspend();
    orchestrator.finish().await.unwrap();
}

/// What the store in `folder` is now, copied to `to`: as much as is left if the machine is lost at this moment.
fn copy_store(folder: &Path, to: &Path) -> RestoreOptions {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    copy(&folder.join(run_file::STORE), to);
    RestoreOptions {
        store: to.to_owned().into(),
        ..RestoreOptions::default()
    }
}

async fn restored(options: &RestoreOptions, folder: &Path) -> Result<Restored, Error> {
    Orchestrator::restore(options, folder, SystemClock::new().now()).await
}

/// A run that was suspended three times, with one more peer each time, so that it has three backups at least.
async fn with_three_backups(folder: &Path) {
    let mut orchestrator = started(Orchestrator::builder(setup(9), folder)).await;
    for name in 1..=3 {
        join(&orchestrator, name).await;
        suspended(orchestrator).await;
        orchestrator = started(Orchestrator::resume(folder).unwrap()).await;
    }
    suspended(orchestrator).await;
}

fn known(state: &State) -> Vec<PeerId> {
    state.peers().map(|(peer, _)| peer).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_from_its_store_alone() {
    let parent = tempfile::tempdir().unwrap();
    let [first, left, second] = ["first", "left", "second"].map(|name| parent.path().join(name));
    let orchestrator = started(Orchestrator::builder(setup(9), &first)).await;
    let (url, run) = (orchestrator.url().to_owned(), orchestrator.run());
    std::fs::write(first.join("memo.json"), "a memo").unwrap();
    join(&orchestrator, 1).await;
    suspended(orchestrator).await;

    let again = Orchestrator::resume(&first)
        .unwrap()
        .with_companion("memo.json");
    let orchestrator = started(again).await;
    join(&orchestrator, 2).await;
    suspended(orchestrator).await;
    let options = copy_store(&first, &left);
    std::fs::remove_dir_all(&first).unwrap();

    let found = restored(&options, &second).await.unwrap();
    assert_eq!((found.run, found.lost_epoch), (run, None));
    assert!(found.passed_over.is_empty(), "{found:?}");
    let memo = std::fs::read_to_string(second.join("memo.json")).unwrap();
    assert_eq!(memo, "a memo");
    // The same key and addresses: whoever knew the run finds it.
    let orchestrator = started(Orchestrator::resume(&second).unwrap()).await;
    assert_eq!((orchestrator.url(), orchestrator.run()), (&*url, run));
    let state = orchestrator.state().borrow().clone();
    assert_eq!(known(&state), [peer(1), peer(2)]);
    assert_eq!(
        state.sessions().count(),
        0,
        "nobody knows what they did since"
    );
    // What it does from now on is backed up behind what it had.
    join(&orchestrator, 3).await;
    suspended(orchestrator).await;
    SqliteJournal::open_for_reading(second.join(JOURNAL))
        .unwrap()
        .check()
        .unwrap();
    let third = parent.path().join("third");
    let once_more = restored(&options, &third).await.unwrap();
    assert!(once_more.backup > found.backup);
    assert!(once_more.entries > found.entries);
}

/// The machine is lost, and what its store had is in a bucket of an S3 service.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_from_a_bucket_alone() {
    use iota_store::server::{BUCKET, REGION};
    use iota_store::{Credentials, S3Location, S3Server, ServerSettings};

    let parent = tempfile::tempdir().unwrap();
    let [first, left, second] = ["first", "left", "second"].map(|name| parent.path().join(name));
    let orchestrator = started(Orchestrator::builder(setup(9), &first)).await;
    let (url, run) = (orchestrator.url().to_owned(), orchestrator.run());
    join(&orchestrator, 1).await;
    suspended(orchestrator).await;
    copy_store(&first, &left);
    std::fs::remove_dir_all(&first).unwrap();

    let credentials = Credentials::new("operator", "a secret");
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let service = S3Server::bind(
        any_port,
        &left,
        credentials.clone(),
        ServerSettings::default(),
    )
    .await
    .unwrap();
    let endpoint = format!("http://{}", service.local_address());
    let bucket = |credentials| LeftStore::Bucket {
        location: S3Location {
            endpoint: endpoint.parse().unwrap(),
            bucket: BUCKET.to_owned(),
            region: REGION.to_owned(),
        },
        credentials,
    };
    let options = |store, run| RestoreOptions {
        store,
        run: Some(run),
        ..RestoreOptions::default()
    };
    let stranger = options(bucket(Credentials::new("operator", "a guess")), run);
    let refused = restored(&stranger, &second).await.unwrap_err();
    assert!(matches!(refused, Error::Store(_)), "{refused}");
    let another = options(bucket(credentials.clone()), RunId::from_bytes([9; 16]));
    let nothing = restored(&another, &second).await.unwrap_err();
    assert!(
        matches!(nothing, Error::NothingToRestore { .. }),
        "{nothing}"
    );
    assert!(!second.exists());

    let found = restored(&options(bucket(credentials), run), &second).await;
    let found = found.unwrap();
    assert_eq!((found.run, found.lost_epoch), (run, None));
    service.shutdown(std::time::Duration::from_secs(1)).await;
    std::fs::remove_dir_all(&left).unwrap();
    // Everything that it needs is in its folder now.
    let orchestrator = started(Orchestrator::resume(&second).unwrap()).await;
    assert_eq!((orchestrator.url(), orchestrator.run()), (&*url, run));
    assert_eq!(known(&orchestrator.state().borrow()), [peer(1)]);
    suspended(orchestrator).await;
    let history = crate::History::open(&second).unwrap();
    let audit = history.audit().await.unwrap();
    assert_eq!(audit.findings, []);
    assert!(audit.shards > 0, "{audit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_passed_over_for_the_one_before() {
    let parent = tempfile::tempdir().unwrap();
    let [folder, left] = ["run", "left"].map(|name| parent.path().join(name));
    with_three_backups(&folder).await;
    let options = copy_store(&folder, &left);
    let store = Store::in_folder(&left).unwrap();
    let run = store.runs().await.unwrap()[0];
    let numbers = backup::numbers(&store, run).await.unwrap();
    assert_eq!(numbers.len(), 3, "only so many are kept: {numbers:?}");
    let flip = |key: ObjectKey| {
        let path = left.join(key.to_string());
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };

    let whole = restored(&options, &parent.path().join("whole")).await;
    let whole = whole.unwrap();
    assert_eq!(whole.backup, numbers[2]);
    // The newest as a document, then the last page of the one before it.
    flip(ObjectKey::Backup {
        run,
        number: numbers[2],
    });
    let second = restored(&options, &parent.path().join("second")).await;
    let second = second.unwrap();
    assert_eq!(second.backup, numbers[1]);
    assert_eq!(second.passed_over[0].0, numbers[2]);
    assert!(second.entries < whole.entries);

    let key = ObjectKey::Backup {
        run,
        number: numbers[1],
    };
    let backup: Backup = store.get_manifest(&key).await.unwrap();
    let digest = backup.journal.pages.last().unwrap().digest;
    flip(ObjectKey::JournalPage { run, digest });
    let folder = parent.path().join("third");
    let third = restored(&options, &folder).await.unwrap();
    assert_eq!((third.backup, third.passed_over.len()), (numbers[0], 2));
    // It goes on from there, and its next backup is the newest, whatever became of those that were passed over.
    let orchestrator = started(Orchestrator::resume(&folder).unwrap()).await;
    suspended(orchestrator).await;
    let again = restored(&options, &parent.path().join("again")).await;
    assert!(again.unwrap().backup > numbers[2]);

    // Nothing is left that is sound.
    for listed in store.list(&KeyPrefix::Backups(run)).await.unwrap() {
        std::fs::write(left.join(listed.key.to_string()), "{}").unwrap();
    }
    let none = restored(&options, &parent.path().join("none")).await;
    let text = none.unwrap_err().to_string();
    assert!(text.contains("none of its 3 backups"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_named_and_nothing_is_written() {
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name);
    let problem = async |store: &str| {
        let options = RestoreOptions {
            store: path(store).into(),
            ..RestoreOptions::default()
        };
        let error = restored(&options, &path("out")).await.unwrap_err();
        assert!(matches!(error, Error::NothingToRestore { .. }), "{error}");
        assert!(!path("out").exists());
        error.to_string()
    };
    assert!(problem("nowhere").await.contains("no such folder"));
    std::fs::create_dir(path("empty")).unwrap();
    assert!(problem("empty").await.contains("no run's objects"));
    let runs = [1, 2].map(|name| RunId::from_bytes([name; 16]));
    std::fs::create_dir_all(path("one").join(runs[0].to_string()).join("data")).unwrap();
    assert!(problem("one").await.contains("has no backup"));
    for run in runs {
        std::fs::create_dir_all(path("two").join(run.to_string()).join("data")).unwrap();
    }
    let several = problem("two").await;
    assert!(runs.iter().all(|run| several.contains(&run.to_string())));

    let folder = path("run");
    let orchestrator = started(Orchestrator::builder(setup(9), &folder)).await;
    suspended(orchestrator).await;
    let options = copy_store(&folder, &path("left"));
    let occupied = restored(&options, &folder).await;
    assert!(matches!(occupied, Err(Error::Occupied { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_cannot_be_made_stops_nothing_and_is_made_later() {
    let parent = tempfile::tempdir().unwrap();
    let [first, left, second] = ["first", "left", "second"].map(|name| parent.path().join(name));
    let orchestrator = started(Orchestrator::builder(setup(9), &first)).await;
    // Where pages would be there is a file, so none can be written.
    let store = first.join(run_file::STORE);
    let pages = store.join(orchestrator.run().to_string()).join("journal");
    std::fs::write(&pages, "in the way").unwrap();
    join(&orchestrator, 1).await;
    suspended(orchestrator).await;

    std::fs::remove_file(&pages).unwrap();
    suspended(started(Orchestrator::resume(&first).unwrap()).await).await;
    let options = copy_store(&first, &left);
    restored(&options, &second).await.unwrap();
    let orchestrator = started(Orchestrator::resume(&second).unwrap()).await;
    let state = orchestrator.state().borrow().clone();
    assert_eq!(known(&state), [peer(1)]);
    suspended(orchestrator).await;
}

/// Whoever names a key of their own may use it elsewhere too.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_lies_elsewhere_is_not_in_the_store() {
    let parent = tempfile::tempdir().unwrap();
    let [first, left, second, key] =
        ["first", "left", "second", "key.json"].map(|name| parent.path().join(name));
    let builder = Orchestrator::builder(setup(9), &first).with_key_file(&key);
    suspended(started(builder).await).await;
    let mut options = copy_store(&first, &left);
    std::fs::remove_dir_all(&first).unwrap();
    let elsewhere = parent.path().join("moved.json");
    std::fs::rename(&key, &elsewhere).unwrap();

    options.key_file = Some(elsewhere);
    restored(&options, &second).await.unwrap();
    assert!(!second.join(KEY).exists());
    suspended(started(Orchestrator::resume(&second).unwrap()).await).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_can_look_into_the_store() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let orchestrator = started(Orchestrator::builder(setup(9), folder.path())).await;
    suspended(orchestrator).await;
    let store = std::fs::metadata(folder.path().join(run_file::STORE)).unwrap();
    assert_eq!(store.permissions().mode() & 0o777, 0o700);
}
