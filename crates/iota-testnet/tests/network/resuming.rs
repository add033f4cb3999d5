//! Orchestrators that end before their run does.

use std::collections::BTreeSet;
use std::path::Path;

use iota_journal::{Crash, MemoryDisk, SqliteJournal};
use iota_node::Shutdown;
use iota_orchestrator::{JOURNAL, Orchestrator, Participants, Setup};
use iota_testnet::{Error, Testnet};

use crate::{by_hand, small};

/// The runtime is the real one, and so are the miners; only the journal dies, again and again, at some write or other.
#[tokio::test(flavor = "multi_thread")]
async fn miners_notice_no_more_than_repeated_calls_when_the_orchestrator_keeps_dying() {
    let folder = tempfile::tempdir().unwrap();
    let settings = small(folder.path());
    let participants = Participants {
        miners_to_start: 2,
        validators: vec![],
    };
    let setup = Setup::new(&settings.run_options(), participants).unwrap();
    std::fs::create_dir_all(&settings.out).unwrap();
    let disk = MemoryDisk::default();
    let first = Crash {
        at_write: 20,
        kept: true,
    };
    let mut orchestrator = Orchestrator::builder(setup, &settings.out)
        .with_journal(disk.open_until(first))
        .start(&Shutdown::new())
        .await
        .unwrap();
    let url = orchestrator.url().to_owned();
    for number in 0..4 {
        let miner = by_hand::miner(&url, number);
        tokio::spawn(miner.run(Shutdown::new()));
    }

    let mut deaths = 0;
    let (last, course) = loop {
        match orchestrator.finish().await {
            Ok(end) => break end,
            Err(iota_orchestrator::Error::Journal(iota_journal::Error::Crashed { .. })) => {
                deaths += 1;
            }
            Err(error) => panic!("{error}"),
        }
        let crash = Crash {
            at_write: disk.writes() + 40 * deaths,
            kept: deaths % 2 == 0,
        };
        orchestrator = Orchestrator::resume(&settings.out)
            .unwrap()
            .with_journal(disk.open_until(crash))
            .start(&Shutdown::new())
            .await
            .unwrap();
        assert_eq!(orchestrator.url(), url);
    };
    assert!(deaths >= 3, "{deaths} deaths");
    let counts = last.sample_counts();
    assert_eq!((counts.completed, counts.lost), (48, 0));
    assert_eq!(last.merges().len(), 4);
    assert!(last.replicas_equal());
    // Nobody had to join again.
    assert_eq!(last.peers().count(), 4);
    assert!(last.peers().all(|(_, record)| record.generations == 1));
    assert_eq!(metrics_of_samples(&settings.out), (0..48).collect());
    assert!(course.loss_at_end() < course.loss_at_start());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_testnet_is_resumed_to_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let settings = small(folder.path());
    let out = settings.out.clone();
    let shutdown = Shutdown::new();
    let testnet = Testnet::new(settings).unwrap();
    let running = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { testnet.run(&shutdown).await }
    });
    // Until there is something to lose.
    let path = out.join(JOURNAL);
    let has_trained = || {
        let journal = SqliteJournal::open_for_reading(&path).ok()?;
        let recovered = iota_journal::recover(&journal).ok()??;
        (recovered.state.sample_counts().completed > 5).then_some(recovered)
    };
    while has_trained().is_none() {
        assert!(!running.is_finished(), "it ended before it was interrupted");
        tokio::task::yield_now().await;
    }
    shutdown.request();
    assert!(matches!(running.await.unwrap(), Err(Error::Interrupted)));
    let left = has_trained().unwrap();
    assert!(!left.state.is_over());

    let report = Testnet::resume(&out)
        .unwrap()
        .run(&Shutdown::new())
        .await
        .unwrap();
    assert!(report.trained, "{report:?}");
    assert_eq!(report.run, left.genesis.settings.run.to_string());
    assert_eq!((report.samples.completed, report.samples.lost), (48, 0));
    assert_eq!(metrics_of_samples(&out).len(), 48);
    SqliteJournal::open_for_reading(&path)
        .unwrap()
        .check()
        .unwrap();
}

#[test]
fn a_folder_without_a_testnet_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = Testnet::resume(folder.path()).unwrap_err();
    assert!(error.to_string().contains("testnet.json"), "{error}");
}

/// The samples in `metrics.jsonl`, each of which has to be there once.
fn metrics_of_samples(folder: &Path) -> BTreeSet<u64> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let mut samples = BTreeSet::new();
    for line in text.lines() {
        let metric: serde_json::Value = serde_json::from_str(line).unwrap();
        if metric["kind"] == "sample" {
            assert!(samples.insert(metric["sample"].as_u64().unwrap()), "{line}");
        }
    }
    samples
}
