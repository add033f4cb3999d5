//! Runs of which nothing is left but the store.

use std::path::Path;

use iota_journal::{Recovered, SqliteJournal};
use iota_node::{Clock as _, Shutdown, SystemClock};
use iota_orchestrator::{JOURNAL, Orchestrator, RestoreOptions};
use iota_testnet::{Error, Testnet};

use crate::small;

/// Copies what is there while it is being written to, as a machine that is lost leaves it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if let Err(error) = std::fs::copy(entry.path(), target) {
            // It was deleted meanwhile.
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
    }
}

fn journalled(folder: &Path) -> Option<Recovered> {
    let journal = SqliteJournal::open_for_reading(folder.join(JOURNAL)).ok()?;
    iota_journal::recover(&journal).ok()?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_testnet_whose_folder_is_lost_trains_to_its_report_from_the_store() {
    let parent = tempfile::tempdir().unwrap();
    let settings = small(parent.path());
    let (out, left) = (settings.out.clone(), parent.path().join("left"));
    let shutdown = Shutdown::new();
    let testnet = Testnet::new(settings).unwrap();
    let running = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { testnet.run(&shutdown).await }
    });
    // In its second epoch, which has begun to learn what no checkpoint has.
    let lost = loop {
        let recovered = journalled(&out);
        if let Some(recovered) = recovered
            && recovered.state.sample_counts().completed > 26
        {
            break recovered;
        }
        assert!(!running.is_finished(), "it ended before it was lost");
        tokio::task::yield_now().await;
    };
    copy(&out.join("store"), &left);
    shutdown.request();
    assert!(matches!(running.await.unwrap(), Err(Error::Interrupted)));
    std::fs::remove_dir_all(&out).unwrap();

    let options = RestoreOptions {
        store: left.into(),
        ..RestoreOptions::default()
    };
    let again = parent.path().join("again");
    let restored = Orchestrator::restore(&options, &again, SystemClock::new().now())
        .await
        .unwrap();
    assert_eq!(restored.run, lost.genesis.settings.run);
    let known = journalled(&again).unwrap().state.sample_counts();
    assert_eq!(known.completed, 24, "what the last checkpoint has learned");

    let report = Testnet::resume(&again)
        .unwrap()
        .run(&Shutdown::new())
        .await
        .unwrap();
    assert!(report.trained, "{report:?}");
    assert_eq!(report.run, lost.genesis.settings.run.to_string());
    assert_eq!((report.samples.completed, report.samples.lost), (48, 0));
    SqliteJournal::open_for_reading(again.join(JOURNAL))
        .unwrap()
        .check()
        .unwrap();
}
