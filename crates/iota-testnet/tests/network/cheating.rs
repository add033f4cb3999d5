//! Miners that do not do what they say.

use iota_testnet::summary;

use crate::{run, small};

#[tokio::test(flavor = "multi_thread")]
async fn a_cheater_is_found_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = small(folder.path());
    settings.training.epochs = 3;
    settings.cheaters = 1;
    let report = run(settings).await;
    assert_eq!(report.cheaters.len(), 1, "{}", summary(&report));
    assert_eq!(
        report.audits.failed, 1,
        "the audit that found it is the only one that failed"
    );
    let cheater = report
        .miners
        .iter()
        .find(|miner| miner.id == report.cheaters[0])
        .unwrap();
    assert_eq!(cheater.score.to_bits(), 0_f64.to_bits());
    assert!(
        report
            .miners
            .iter()
            .filter(|miner| miner.id != cheater.id)
            .all(|miner| miner.score > 0.0)
    );
    assert_eq!(report.samples.lost, 0);
    assert!(report.replicas_equal);
}
