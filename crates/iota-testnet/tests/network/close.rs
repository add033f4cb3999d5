//! Miners whose bits are not the validators', in a run whose audits compare closely.

use std::sync::Arc;

use iota_miner::{Behaviour, Error, Miner};
use iota_model::Precision;
use iota_node::Shutdown;
use iota_orchestrator::{
    AuditOptions, ComparisonName, MergingOptions, OptimizerState, Participants, Setup, SetupError,
};
use iota_peer::Device;
use iota_protocol::State;
use iota_protocol::event::BanReason;
use iota_run::Wire;
use iota_testnet::{Measurement, TestnetSettings, measure};

use crate::{by_hand, small};

/// Steps that a miner may take in an epoch.
const STEPS: u64 = 24;

/// A run in f32 in which every miner is audited in every epoch.
fn settings(folder: &std::path::Path) -> TestnetSettings {
    let mut settings = small(folder);
    // What few bytes stand for cannot be compared closely.
    settings.merging = MergingOptions::WHOLE;
    settings.training.epochs = 3;
    settings.training.precision = Precision::F32;
    settings.training.audit_every_epochs = 1;
    // The cheater knows how to spoil f32 so that nobody but an auditor sees it.
    settings.wire = Wire::default();
    // At a higher rate two machines come apart too soon.
    settings.training.learning_rate = 1e-3;
    assert_eq!(settings.training.samples_per_epoch, STEPS);
    settings
}

/// Four miners, of which `rounds` computes in bf16 and `cheats` sends wrong tensors, and a validator in f32.
async fn mined(settings: &TestnetSettings, rounds: u8, cheats: Option<u8>) -> Arc<State> {
    let orchestrator = by_hand::validated(settings, 2).await;
    for number in 0..4 {
        let behaviour = if cheats == Some(number) {
            Behaviour::WrongTensors
        } else {
            Behaviour::Honest
        };
        let mut miner = by_hand::miner(orchestrator.url(), number).with_behaviour(behaviour);
        if number == rounds {
            miner = miner.with_precision(Precision::Bf16);
        }
        tokio::spawn(miner.run(Shutdown::new()));
    }
    let (last, _) = orchestrator.finish().await.unwrap();
    last
}

/// With tolerances that are measured for these settings.
async fn a_cheater_is_found_by_values_and_nobody_else(mut settings: TestnetSettings) {
    let measurement = Measurement {
        device: Device::Cpu,
        precision: Precision::Bf16,
        steps: 32,
        epochs: 3,
        margin: 4.0,
        threads: 1,
    };
    let measured = measure(&settings, &measurement).unwrap();
    let reach = measured.tolerances.last().map(|row| row.steps);
    assert_eq!(reach, Some(32), "{}", measured.table());
    settings.audits = AuditOptions {
        comparison: ComparisonName::Close,
        tolerances: measured.tolerances,
    };
    let last = mined(&settings, 1, Some(3)).await;
    let cheaters: Vec<_> = last.cheaters().map(|(peer, _)| peer).collect();
    assert_eq!(cheaters, [by_hand::peer(3)]);
    let (_, why) = last.cheaters().next().unwrap();
    assert!(matches!(why, BanReason::Audit { .. }), "{why:?}");
    let (passed, failed) = last.audits_settled();
    assert_eq!(failed, 1, "the audit that found the cheater");
    // Three miners in each of three epochs.
    assert!(passed >= 9, "{passed} audits");
    assert!(
        last.score(by_hand::peer(1)) > 0.0,
        "what it did was verified"
    );
    assert!(last.replicas_equal());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_of_another_precision_passes_every_audit_and_a_cheater_none() {
    let folder = tempfile::tempdir().unwrap();
    a_cheater_is_found_by_values_and_nobody_else(settings(folder.path())).await;
}

/// Epochs are so short that many a replay is one of everything, and reads what is kept at its end.
#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_where_miners_keep_their_moments_for_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    settings.merging.optimizer_state = OptimizerState::Local;
    settings.training.samples_per_epoch = 8;
    a_cheater_is_found_by_values_and_nobody_else(settings).await;
}

/// What makes such a run necessary.
#[tokio::test(flavor = "multi_thread")]
async fn where_bits_are_compared_a_miner_of_another_precision_does_not_take_part() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let orchestrator = by_hand::orchestrator(&settings, 1).await;
    let miner = Miner::builder(orchestrator.url()).with_precision(Precision::Bf16);
    let refused = miner.run(Shutdown::new()).await.unwrap_err();
    assert!(matches!(refused, Error::Precision { .. }), "{refused}");
}

#[test]
fn an_epoch_of_more_steps_than_were_measured_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    let measurement = Measurement {
        device: Device::Cpu,
        precision: Precision::Bf16,
        steps: 8,
        epochs: 1,
        margin: 4.0,
        threads: 1,
    };
    let set_up = |settings: &TestnetSettings| {
        let participants = Participants {
            miners_to_start: 1,
            validators: Vec::new(),
        };
        Setup::new(&settings.run_options(), participants)
    };
    let tolerances = measure(&settings, &measurement).unwrap().tolerances;
    settings.audits.comparison = ComparisonName::Close;
    assert!(matches!(set_up(&settings), Err(SetupError::Description(_))));
    settings.audits.tolerances = tolerances;
    let Err(SetupError::Horizon { steps, steps_max }) = set_up(&settings) else {
        panic!("it was not refused");
    };
    assert_eq!((steps, steps_max), (STEPS, 8));
    settings.training.samples_per_epoch = 8;
    set_up(&settings).unwrap();
}
