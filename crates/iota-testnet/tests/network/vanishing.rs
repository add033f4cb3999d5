//! Miners that are gone from one moment to the next.

use iota_node::Shutdown;

use crate::{by_hand, small};

/// As after `kill -9`: its connections break, it says nothing to anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_miner_that_vanishes_in_the_middle_of_training_costs_no_sample_and_no_merge() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = small(folder.path());
    settings.training.samples_per_epoch = 60;
    settings.timing.session_timeout_ms = 3_000;
    settings.timing.lease_initial_ms = 2_000;
    settings.timing.lease_min_ms = 500;
    settings.timing.affinity_ms = 500;
    let orchestrator = by_hand::orchestrator(&settings, 2).await;
    let miners: Vec<_> = (0..4)
        .map(|number| {
            let miner = by_hand::miner(orchestrator.url(), number);
            tokio::spawn(miner.run(Shutdown::new()))
        })
        .collect();

    let mut state = orchestrator.state();
    state
        .wait_for(|state| state.sample_counts().completed >= 10)
        .await
        .unwrap();
    miners[0].abort();

    let (last, _) = orchestrator.finish().await.unwrap();
    let counts = last.sample_counts();
    assert_eq!((counts.completed, counts.lost), (120, 0));
    assert_eq!(last.merges().len(), 4);
    assert!(
        last.merges()
            .iter()
            .all(|merge| merge.covered == merge.cells),
        "{:?}",
        last.merges()
    );
    assert!(last.replicas_equal());
    assert!(counts.re_leased > 0, "it held work when it vanished");
}
