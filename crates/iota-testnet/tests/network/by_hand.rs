//! Networks whose peers a test starts itself, so that each can be another one.

use iota_identity::Keypair;
use iota_miner::{Miner, MinerBuilder};
use iota_node::Shutdown;
use iota_orchestrator::{Orchestrator, Participants, Setup};
use iota_protocol::PeerId;
use iota_testnet::TestnetSettings;
use iota_validator::Validator;

/// Of a test's only validator.
const VALIDATOR: u8 = 99;

/// An orchestrator that waits for so many miners of each stage.
pub(crate) async fn orchestrator(settings: &TestnetSettings, miners_to_start: u32) -> Orchestrator {
    started(settings, miners_to_start, Vec::new()).await
}

/// The same, and a validator.
pub(crate) async fn validated(settings: &TestnetSettings, miners_to_start: u32) -> Orchestrator {
    let orchestrator = started(settings, miners_to_start, vec![peer(VALIDATOR)]).await;
    let validator = Validator::builder(orchestrator.url()).with_keypair(keypair(VALIDATOR));
    tokio::spawn(validator.run(Shutdown::new()));
    orchestrator
}

async fn started(
    settings: &TestnetSettings,
    miners_to_start: u32,
    validators: Vec<PeerId>,
) -> Orchestrator {
    let participants = Participants {
        miners_to_start,
        validators,
    };
    let setup = Setup::new(&settings.run_options(), participants).unwrap();
    std::fs::create_dir_all(&settings.out).unwrap();
    Orchestrator::builder(setup, &settings.out)
        .start(&Shutdown::new())
        .await
        .unwrap()
}

/// A miner that has not begun.
pub(crate) fn miner(url: &str, number: u8) -> MinerBuilder {
    Miner::builder(url)
        .with_keypair(keypair(number))
        .with_threads(1)
}

/// Who a miner of this number is.
pub(crate) fn peer(number: u8) -> PeerId {
    keypair(number).peer_id()
}

fn keypair(number: u8) -> Keypair {
    Keypair::from_seed([number; 32])
}
