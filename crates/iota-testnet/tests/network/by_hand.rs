//! Networks whose peers a test starts itself, so that each can be another one.

use iota_identity::Keypair;
use iota_miner::{Miner, MinerBuilder};
use iota_node::Shutdown;
use iota_orchestrator::{Orchestrator, OrchestratorBuilder, Participants, Setup};
use iota_protocol::PeerId;
use iota_testnet::TestnetSettings;
use iota_validator::{Validator, ValidatorBuilder};

/// Of a test's only validator.
const VALIDATOR: u8 = 99;

/// An orchestrator that waits for so many miners of each stage.
pub(crate) async fn orchestrator(settings: &TestnetSettings, miners_to_start: u32) -> Orchestrator {
    started(settings, miners_to_start, Vec::new()).await
}

/// The same, and a validator.
pub(crate) async fn validated(settings: &TestnetSettings, miners_to_start: u32) -> Orchestrator {
    let orchestrator = started(settings, miners_to_start, vec![peer(VALIDATOR)]).await;
    tokio::spawn(validator(orchestrator.url(), VALIDATOR).run(Shutdown::new()));
    orchestrator
}

async fn started(
    settings: &TestnetSettings,
    miners_to_start: u32,
    validators: Vec<PeerId>,
) -> Orchestrator {
    builder(settings, miners_to_start, validators)
        .start(&Shutdown::new())
        .await
        .unwrap()
}

/// An orchestrator that has not begun.
pub(crate) fn builder(
    settings: &TestnetSettings,
    miners_to_start: u32,
    validators: Vec<PeerId>,
) -> OrchestratorBuilder {
    let participants = Participants {
        miners_to_start,
        validators,
    };
    let setup = Setup::new(&settings.run_options(), participants).unwrap();
    std::fs::create_dir_all(&settings.out).unwrap();
    Orchestrator::builder(setup, &settings.out)
}

/// A miner that has not begun.
pub(crate) fn miner(url: &str, number: u8) -> MinerBuilder {
    Miner::builder(url)
        .with_keypair(keypair(number))
        .with_threads(1)
}

/// A validator that has not begun.
pub(crate) fn validator(url: &str, number: u8) -> ValidatorBuilder {
    Validator::builder(url)
        .with_keypair(keypair(number))
        .with_threads(1)
}

/// Who a peer of this number is.
pub(crate) fn peer(number: u8) -> PeerId {
    keypair(number).peer_id()
}

fn keypair(number: u8) -> Keypair {
    Keypair::from_seed([number; 32])
}
