//! Miners that do not do what they say.

use iota_miner::Behaviour;
use iota_node::Shutdown;
use iota_protocol::event::BanReason;
use iota_testnet::summary;

use crate::{by_hand, run, small};

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

/// Its peers notice at once and say so; a validator looks at the object and finds them right.
#[tokio::test(flavor = "multi_thread")]
async fn a_miner_whose_tensors_are_no_numbers_is_found_and_poisons_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let settings = small(folder.path());
    let orchestrator = by_hand::validated(&settings, 2).await;
    let poisoner = by_hand::peer(3);
    for number in 0..4 {
        let behaviour = if number == 3 {
            Behaviour::NotFinite
        } else {
            Behaviour::Honest
        };
        let miner = by_hand::miner(orchestrator.url(), number).with_behaviour(behaviour);
        tokio::spawn(miner.run(Shutdown::new()));
    }

    let (last, course) = orchestrator.finish().await.unwrap();
    let cheaters: Vec<_> = last.cheaters().map(|(peer, _)| peer).collect();
    assert_eq!(cheaters, [poisoner]);
    let (_, why) = last.cheaters().next().unwrap();
    assert!(matches!(why, BanReason::Inspection { .. }), "{why:?}");
    assert_eq!(
        (last.sample_counts().completed, last.sample_counts().lost),
        (48, 0)
    );
    assert!(last.replicas_equal());
    assert!(course.loss_at_end().is_finite() && course.loss_at_end() < course.loss_at_start());
}
