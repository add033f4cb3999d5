use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use iota_identity::Keypair;
use iota_protocol::event::Phase;
use iota_protocol::work::{Failure, Lease, ObjectName, Outcome, Purpose, Seal, Work};
use iota_protocol::{
    Digest, Epoch, LeaseId, ObjectId, PeerId, Rejection, Role, SampleId, Session, StageIndex,
    Timestamp,
};
use iota_wire::{
    ApiError, CallError, CallErrorKind, Client, Clock, ConnectOptions, Grant, GrantMethod,
    GrantTarget, LeasedWork, PROTOCOL_VERSION, RateSettings, WorkReply, WorkRequest, WorkStatus,
};

use crate::stub::{Asked, RUN, START, Served, orchestrator_key, serve, serve_with, status};

fn alice() -> Arc<Keypair> {
    Arc::new(Keypair::from_seed([1; 32]))
}

async fn connect(served: &Served) -> Client {
    Client::connect(&served.url, alice()).await.unwrap().0
}

fn request(session: Session) -> WorkRequest {
    WorkRequest {
        session,
        room: 2,
        held: vec![LeaseId::new(7)],
        hold: Duration::from_secs(20),
    }
}

/// Until the stub has the poll and waits for work: it has a subscriber then.
async fn until_waiting<T>(served: &Served, poll: &tokio::task::JoinHandle<T>) {
    while served.stub.work.receiver_count() == 0 {
        assert!(
            !poll.is_finished(),
            "the poll was answered before there was work"
        );
        tokio::task::yield_now().await;
    }
}

fn reply(session: Session) -> WorkReply {
    let output = ObjectName {
        purpose: Purpose::Activation,
        epoch: Epoch::new(4),
        id: ObjectId::from_bytes([6; 16]),
    };
    let lease = Lease {
        id: LeaseId::new(8),
        session,
        stage: StageIndex::new(1),
        epoch: Epoch::new(4),
        work: Work::Forward {
            sample: SampleId::new(11),
            input: None,
            output,
        },
        issued_at: START,
        deadline: START + Duration::from_secs(60),
    };
    let grant = Grant {
        target: GrantTarget::Object(output),
        method: GrantMethod::Put,
        url: "http://127.0.0.1:1/bucket/key?X-Amz-Signature=00".to_owned(),
        headers: vec![("if-none-match".to_owned(), "*".to_owned())],
        length_bytes: 4096,
        digest: None,
        expires_at: START + Duration::from_secs(90),
    };
    WorkReply {
        leases: vec![LeasedWork {
            lease,
            grants: vec![grant],
        }],
        revoked: vec![LeaseId::new(7)],
        status: WorkStatus {
            phase: Phase::Training,
            epoch: Epoch::new(4),
            run_over: false,
            phase_deadline_remaining: Some(Duration::from_millis(1500)),
        },
    }
}

#[tokio::test]
async fn a_stay_from_join_to_leave() {
    let served = serve().await;
    let (client, info) = Client::connect(&served.url, alice()).await.unwrap();
    assert_eq!((info.run, info.orchestrator), (RUN, orchestrator_key()));
    assert_eq!(info.config, br#"{"model":"tiny"}"#);

    let joined = client.join(Role::Miner, 2).await.unwrap();
    let session = Session {
        peer: client.peer_id(),
        generation: 3,
    };
    assert_eq!(
        (joined.session, joined.stage),
        (session, Some(StageIndex::new(1)))
    );

    served.stub.work.send_replace(Some(reply(session)));
    assert_eq!(client.get_work(request(session)).await, Ok(reply(session)));

    let seal = Seal {
        digest: Digest::of(b"activation"),
        length: 4096,
    };
    let outcome = Outcome::Forward {
        ordinal: 0,
        output: seal,
    };
    assert_eq!(
        client
            .complete(session, LeaseId::new(8), outcome.clone())
            .await,
        Ok(true)
    );
    assert_eq!(
        client
            .complete(session, LeaseId::new(0), outcome.clone())
            .await,
        Ok(false)
    );
    assert_eq!(
        client
            .fail(session, LeaseId::new(9), Failure::Leaving)
            .await,
        Ok(())
    );
    assert_eq!(client.leave(session).await, Ok(()));

    // The peer in every session is the one that signed.
    let expected = [
        Asked::Join(client.peer_id(), Role::Miner, 2),
        Asked::GetWork(request(session)),
        Asked::Complete(session, LeaseId::new(8), outcome.clone()),
        Asked::Complete(session, LeaseId::new(0), outcome),
        Asked::Fail(session, LeaseId::new(9), Failure::Leaving),
        Asked::Leave(session),
    ];
    assert_eq!(served.stub.take_asked(), expected);
}

#[tokio::test]
async fn a_long_poll_answers_when_there_is_work() {
    let served = serve().await;
    let client = connect(&served).await;
    let session = Session {
        peer: client.peer_id(),
        generation: 1,
    };
    let poll = tokio::spawn({
        let client = client.clone();
        async move { client.get_work(request(session)).await }
    });
    until_waiting(&served, &poll).await;
    assert!(!poll.is_finished());
    served.stub.work.send_replace(Some(reply(session)));
    assert_eq!(poll.await.unwrap(), Ok(reply(session)));
}

#[tokio::test]
async fn every_refusal_of_the_api_reaches_the_caller_with_what_to_do() {
    let served = serve().await;
    let client = connect(&served).await;
    for rejection in Rejection::ALL {
        *served.stub.refuse.lock().unwrap() = Some(rejection.into());
        let error = client.join(Role::Miner, 1).await.unwrap_err();
        assert_eq!(error.rejection(), Some(rejection));
    }
    let retry_after = Duration::from_millis(2500);
    for (refusal, kind) in [
        (Rejection::NotRegistered.into(), CallErrorKind::Rejoin),
        (Rejection::Banned.into(), CallErrorKind::GiveUp),
        (Rejection::StaleEpoch.into(), CallErrorKind::Drop),
        (Rejection::WrongLength.into(), CallErrorKind::Fix),
        (ApiError::Unavailable { retry_after }, CallErrorKind::Retry),
        (ApiError::Internal, CallErrorKind::Retry),
    ] {
        *served.stub.refuse.lock().unwrap() = Some(refusal.clone());
        let error = client.join(Role::Miner, 1).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let told = matches!(refusal, ApiError::Unavailable { .. }).then_some(retry_after);
        assert_eq!(error.retry_after(), told);
    }
}

#[tokio::test]
async fn a_client_with_a_wrong_clock_signs_by_the_servers() {
    let served = serve().await;
    for wrong in [Timestamp::from_millis(0), START + Duration::from_secs(3600)] {
        let options = ConnectOptions {
            clock: Clock::new(move || wrong),
            ..ConnectOptions::default()
        };
        let (client, _) = Client::connect_with(&served.url, alice(), options)
            .await
            .unwrap();
        assert_eq!(client.server_time(), START);
        assert!(client.join(Role::Miner, 1).await.is_ok());
    }
}

#[tokio::test]
async fn a_client_whose_clock_is_refused_sets_it_and_signs_again() {
    let served = serve().await;
    let fixed = ConnectOptions {
        clock: Clock::new(|| START),
        ..ConnectOptions::default()
    };
    let (client, _) = Client::connect_with(&served.url, alice(), fixed)
        .await
        .unwrap();
    let now = START + Duration::from_secs(600);
    served.set_clock(now);
    assert!(client.join(Role::Miner, 1).await.is_ok());
    assert_eq!(client.server_time(), now);
    assert_eq!(served.stub.take_asked().len(), 1);
}

#[tokio::test]
async fn a_client_does_not_sign_for_whoever_answers() {
    let served = serve().await;
    let expected = PeerId::from_bytes([3; 32]);
    let options = ConnectOptions {
        orchestrator: Some(expected),
        ..ConnectOptions::default()
    };
    let error = Client::connect_with(&served.url, alice(), options)
        .await
        .unwrap_err();
    assert_eq!(
        error,
        CallError::OtherOrchestrator {
            expected,
            found: orchestrator_key()
        }
    );

    served
        .stub
        .protocol_version
        .store(u64::from(PROTOCOL_VERSION) + 1, Ordering::SeqCst);
    let error = Client::connect(&served.url, alice()).await.unwrap_err();
    assert_eq!(
        error,
        CallError::OtherVersion {
            theirs: PROTOCOL_VERSION + 1,
            ours: PROTOCOL_VERSION
        }
    );
    assert_eq!(error.kind(), CallErrorKind::GiveUp);
}

#[tokio::test]
async fn an_address_that_cannot_work_is_told_from_one_that_does_not_answer() {
    for url in ["", "127.0.0.1:9000", "ftp://127.0.0.1:9000"] {
        let error = Client::connect(url, alice()).await.unwrap_err();
        assert!(
            matches!(error, CallError::BadUrl { .. }),
            "{url:?}: {error:?}"
        );
        assert_eq!(error.kind(), CallErrorKind::Fix);
    }
    // Bound, then freed: nobody listens there.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://{address}");
        let error = Client::connect(&url, alice()).await.unwrap_err();
        assert!(matches!(error, CallError::Unavailable { .. }), "{error:?}");
        assert_eq!(error.kind(), CallErrorKind::Retry);
        assert!(error.to_string().contains("refused"), "{error}");
    }
}

#[tokio::test]
async fn a_watcher_sees_the_run_as_it_is_and_then_as_it_changes() {
    let served = serve().await;
    let client = connect(&served).await;
    let mut snapshots = Box::pin(client.watch().await.unwrap());
    assert_eq!(snapshots.next().await, Some(Ok(status(0))));
    served.stub.status.send_replace(status(1));
    assert_eq!(snapshots.next().await, Some(Ok(status(1))));
}

#[tokio::test]
async fn shutting_down_waits_for_no_poll_and_no_watcher() {
    let served = serve().await;
    let client = connect(&served).await;
    let session = Session {
        peer: client.peer_id(),
        generation: 1,
    };
    let mut snapshots = Box::pin(client.watch().await.unwrap());
    assert!(snapshots.next().await.is_some());
    let poll = tokio::spawn(async move { client.get_work(request(session)).await });
    until_waiting(&served, &poll).await;
    served.stop.send(()).unwrap();
    let error = poll.await.unwrap().unwrap_err();
    assert_eq!(
        error.retry_after(),
        Some(Duration::from_secs(1)),
        "{error:?}"
    );
    assert_eq!(snapshots.next().await, None);
    served.ended.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_asks_too_much_waits_while_others_go_on() {
    let rate = RateSettings {
        requests_per_second: 1,
        burst: 2,
        peers_max: 10,
    };
    let served = serve_with(rate, Timestamp::default()).await;
    let client = connect(&served).await;
    assert!(client.join(Role::Miner, 1).await.is_ok());
    assert!(client.join(Role::Miner, 1).await.is_ok());
    let error = client.join(Role::Miner, 1).await.unwrap_err();
    assert_eq!(
        error,
        CallError::RateLimited {
            retry_after: Duration::from_secs(1)
        }
    );

    let (other, _) = Client::connect(&served.url, Arc::new(Keypair::from_seed([2; 32])))
        .await
        .unwrap();
    assert!(other.join(Role::Miner, 1).await.is_ok());
    served.set_clock(START + Duration::from_secs(1));
    assert!(client.join(Role::Miner, 1).await.is_ok());
}

#[tokio::test]
async fn load_balancers_and_tools_can_ask_what_is_served() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let served = serve().await;
    let channel = tonic::transport::Endpoint::new(served.url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let service = "iota.v1.OrchestratorService".to_owned();
    let asked = HealthCheckRequest {
        service: service.clone(),
    };
    let health = HealthClient::new(channel.clone())
        .check(asked)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);

    let asked = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let asked = futures::stream::iter([asked]);
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(asked)
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("not a list of services: {answer:?}");
    };
    assert!(list.service.iter().any(|listed| listed.name == service));
}
