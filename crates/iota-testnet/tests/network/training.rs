//! What an undisturbed network comes to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iota_orchestrator::{BoundaryChoice, Codec, Cuts, Wire};
use iota_testnet::{Error, Report, Testnet, TestnetSettings, summary};
use tokio::net::{TcpListener, TcpStream};

use crate::{run, small};

/// Every stage embeds the tokens, so every miner and every validator has to be given them.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_trains_and_passes_its_audits_with_two_channels_behind_embeddings() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = small(folder.path());
    settings.stages = 3;
    settings.model.boundary = BoundaryChoice::Anchored;
    settings.model.boundary_channels = 2;
    let report = run(settings).await;
    assert!(report.trained, "{report:?}");
    assert!(report.audits.passed > 0 && report.audits.failed == 0);
    assert!(report.loss.held_out_end < report.loss.held_out_start - 0.5);
}

/// Cuts where the operator wants them, of a model whose stages are then of different sizes.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_trains_a_model_that_is_cut_where_one_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = small(folder.path());
    settings.cut.at = Cuts::Before(vec![1]);
    settings.model.boundary = BoundaryChoice::None;
    let out = settings.out.clone();
    let report = run(settings).await;
    assert!(report.trained, "{report:?}");
    assert!(report.loss.held_out_end < report.loss.held_out_start);
    let run: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["description"]["cuts"], serde_json::json!([1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_trains_merges_and_accounts_for_every_sample() {
    let folder = tempfile::tempdir().unwrap();
    let settings = small(folder.path());
    let out = settings.out.clone();
    let report = run(settings).await;

    assert!(report.trained, "{}", summary(&report));
    assert!(
        report.loss.held_out_end < report.loss.held_out_start - 0.5,
        "{:?}",
        report.loss
    );
    assert!(
        (report.loss.held_out_start - 256_f64.ln()).abs() < 0.3,
        "{:?}",
        report.loss
    );
    assert_eq!((report.samples.completed, report.samples.lost), (48, 0));

    assert_eq!(report.merges.len(), 4, "two stages, two epochs");
    for merge in &report.merges {
        assert_eq!(
            (merge.covered, merge.agreed),
            (merge.cells, merge.cells),
            "{merge:?}"
        );
        assert!(merge.bytes_up > 0 && merge.bytes_down > 0, "{merge:?}");
    }
    assert!(report.replicas_equal);
    assert!(report.audits.passed > 0);
    assert_eq!(report.audits.failed, 0);
    assert_eq!(report.cheaters, [""; 0]);

    // Each sample is one backward pass on every stage, whoever did it.
    for stage in 0..2 {
        let done: u64 = report
            .miners
            .iter()
            .filter(|miner| miner.stage == stage)
            .map(|m| m.backwards)
            .sum();
        assert_eq!(done, 48, "stage {stage}");
    }

    let written: Report =
        serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(written, report);
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines.iter().filter(|line| line["kind"] == "sample").count(),
        48
    );
    assert_eq!(count(&lines, "checkpoint_committed"), 4);
}

fn count(lines: &[serde_json::Value], event: &str) -> usize {
    lines
        .iter()
        .filter(|line| line["event"]["event"] == event)
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_trains_and_passes_its_audits_on_four_bits_forward_and_eight_backward() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = small(folder.path());
    settings.wire = Wire {
        activations: Codec::Int4,
        gradients: Codec::Int8,
    };
    let report = run(settings).await;
    assert!(report.trained, "{}", summary(&report));
    assert!(
        report.loss.held_out_end < report.loss.held_out_start - 0.5,
        "{:?}",
        report.loss
    );
    assert_eq!((report.samples.completed, report.samples.lost), (48, 0));
    assert!(report.replicas_equal);
    assert!(report.audits.passed > 0);
    assert_eq!(report.audits.failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stage_and_one_miner_are_a_network_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = small(folder.path());
    settings.stages = 1;
    settings.miners_per_stage = 1;
    settings.validators = 0;
    settings.training.epochs = 1;
    let report = run(settings).await;
    assert!(report.trained, "{}", summary(&report));
    assert_eq!(report.merges.len(), 1);
    assert_eq!(
        report.merges[0].covered, 1,
        "one miner merges its own upload"
    );
    assert_eq!(report.audits.passed + report.audits.failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_share_three_cells() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = small(folder.path());
    settings.miners_per_stage = 3;
    settings.validators = 0;
    settings.training.epochs = 1;
    let report = run(settings).await;
    assert!(report.trained, "{}", summary(&report));
    for merge in &report.merges {
        assert_eq!(
            (merge.cells, merge.covered, merge.agreed),
            (3, 3, 3),
            "every pair shares one cell"
        );
    }
}

/// Whoever runs a network behind a name, or a proxy, says where peers find the store.
#[tokio::test(flavor = "multi_thread")]
async fn peers_reach_the_store_under_the_url_that_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at_proxy = proxy.local_addr().unwrap();
    // Free a moment ago; the run says so if it is not any more.
    let store = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at_store = store.local_addr().unwrap();
    drop(store);
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = proxy.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut store = TcpStream::connect(at_store).await.unwrap();
                tokio::io::copy_bidirectional(&mut peer, &mut store).await
            });
        }
    });
    let report = run(TestnetSettings {
        store_listen: at_store,
        store_url: format!("http://{at_proxy}"),
        ..small(folder.path())
    })
    .await;
    assert!(report.trained, "{}", summary(&report));
    assert!(
        connections.load(Ordering::Relaxed) > 0,
        "nobody came by the proxy"
    );

    let nowhere = Testnet::new(TestnetSettings {
        store_url: "the proxy".to_owned(),
        ..small(folder.path())
    });
    assert!(matches!(nowhere, Err(Error::Settings(_))));
}
