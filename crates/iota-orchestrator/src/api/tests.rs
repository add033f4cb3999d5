//! Places in a run, over real sockets, signatures and journals.

use std::path::Path;

use iota_identity::Keypair;
use iota_node::Shutdown;
use iota_protocol::registration::{MovedUp, Place, PlaceEnd, WaitReason};
use iota_wire::{CallError, Client};

use super::*;
use crate::{Orchestrator, Participants, RegistrationOptions, RunOptions, Setup};

/// A run of one stage with one place.
fn setup() -> Setup {
    let options = RunOptions {
        preset: "tiny".to_owned(),
        stages: 1,
        registration: RegistrationOptions {
            miners_max: 1,
            ..RegistrationOptions::default()
        },
        ..RunOptions::default()
    };
    let participants = Participants {
        miners_to_start: 1,
        validators: vec![],
    };
    Setup::new(&options, participants).unwrap()
}

async fn client(orchestrator: &Orchestrator, name: u8) -> Client {
    let keypair = Arc::new(Keypair::from_seed([name; 32]));
    Client::connect(orchestrator.url(), keypair)
        .await
        .unwrap()
        .0
}

async fn place(client: &Client) -> Place {
    match client.join(Role::Miner, 1).await {
        Err(CallError::Waiting(place)) => place,
        other => panic!("{other:?}"),
    }
}

async fn resume(folder: &Path) -> Orchestrator {
    let builder = Orchestrator::resume(folder).unwrap();
    builder.start(&Shutdown::new()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_on_the_waiting_list_outlives_the_orchestrator_and_leads_into_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let builder = Orchestrator::builder(setup(), folder.path());
    let orchestrator = builder.start(&Shutdown::new()).await.unwrap();
    let miner = client(&orchestrator, 1).await;
    let session = miner.join(Role::Miner, 1).await.unwrap().session;
    let (second, third) = (
        client(&orchestrator, 2).await,
        client(&orchestrator, 3).await,
    );
    let first_in_line = place(&second).await;
    let next = place(&third).await;
    assert_eq!((first_in_line.place, next.place, next.line), (1, 2, 2));
    assert_eq!(next.why, WaitReason::Full);

    // The process ends, with whoever waited and asked; another goes on from the journal.
    orchestrator.suspend();
    orchestrator.finish().await.unwrap();
    let orchestrator = resume(folder.path()).await;
    let (second, third) = (
        client(&orchestrator, 2).await,
        client(&orchestrator, 3).await,
    );
    for (client, before) in [(&third, next), (&second, first_in_line)] {
        let now = place(client).await;
        assert_eq!((now.ticket, now.place), (before.ticket, before.place));
    }

    let miner = client(&orchestrator, 1).await;
    miner.leave(session).await.unwrap();
    let moved = place(&third).await;
    assert_eq!((moved.ticket, moved.place), (next.ticket, 1));
    let because = MovedUp {
        because_of: second.peer_id(),
        why: PlaceEnd::Admitted,
    };
    assert_eq!(moved.moved, Some(because));
    second.join(Role::Miner, 1).await.unwrap();
    orchestrator.stop().await;
    orchestrator.finish().await.unwrap();
}
