//! Miners that do not do what they say.

use iota_identity::Keypair;
use iota_miner::{Behaviour, Miner};
use iota_node::Shutdown;
use iota_orchestrator::{Orchestrator, Participants, Setup};
use iota_protocol::event::BanReason;
use iota_testnet::summary;
use iota_validator::Validator;

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

/// Its peers notice at once and say so; a validator looks at the object and finds them right.
#[tokio::test(flavor = "multi_thread")]
async fn a_miner_whose_tensors_are_no_numbers_is_found_and_poisons_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let settings = small(folder.path());
    let validator = Keypair::from_seed([99; 32]);
    let participants = Participants {
        miners_to_start: 2,
        validators: vec![validator.peer_id()],
    };
    let setup = Setup::new(&settings.run_options(), participants).unwrap();
    std::fs::create_dir_all(&settings.out).unwrap();
    let orchestrator = Orchestrator::builder(setup, &settings.out)
        .start(&Shutdown::new())
        .await
        .unwrap();
    let validator = Validator::builder(orchestrator.url()).with_keypair(validator);
    tokio::spawn(validator.run(Shutdown::new()));
    let poisoner = Keypair::from_seed([3; 32]).peer_id();
    for number in 0..4 {
        let behaviour = if number == 3 {
            Behaviour::NotFinite
        } else {
            Behaviour::Honest
        };
        let miner = Miner::builder(orchestrator.url())
            .with_keypair(Keypair::from_seed([number; 32]))
            .with_behaviour(behaviour)
            .with_threads(1);
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
