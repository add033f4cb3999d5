//! A caller of our own, so that what is signed and what is sent can differ. It follows `request_auth.proto` and shares no
//! code with the client: a change of the signed bytes would break it.

use std::time::Duration;

use iota_identity::Keypair;
use iota_protocol::{PeerId, Role, Timestamp};
use iota_wire::error::AuthFailure;
use iota_wire::proto::orchestrator_service_client::OrchestratorServiceClient;
use iota_wire::{CallError, RateSettings, proto};
use prost::Message as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::stub::{Asked, RUN, START, Served, orchestrator_key, serve, serve_with};

/// What an honest caller states of an honest request; tests change one thing.
#[derive(Clone)]
struct Statement {
    signer: [u8; 32],
    public_key: PeerId,
    run: [u8; 16],
    audience: PeerId,
    method: &'static str,
    body: Vec<u8>,
    issued_at: Timestamp,
    nonce: [u8; 16],
}

fn message() -> proto::JoinRequest {
    proto::JoinRequest {
        role: proto::Role::Miner.into(),
        capacity: 2,
    }
}

fn honest() -> Statement {
    Statement {
        signer: [1; 32],
        public_key: Keypair::from_seed([1; 32]).peer_id(),
        run: *RUN.as_bytes(),
        audience: orchestrator_key(),
        method: "iota.v1.OrchestratorService/Join",
        body: message().encode_to_vec(),
        issued_at: START,
        nonce: [42; 16],
    }
}

impl Statement {
    fn sign(&self) -> Vec<u8> {
        let digest = *blake3::hash(&self.body).as_bytes();
        let mut signed = b"iota/v1/request\0".to_vec();
        signed.extend(self.public_key.as_bytes());
        signed.extend(self.run);
        signed.extend(self.audience.as_bytes());
        signed.extend(u32::try_from(self.method.len()).unwrap().to_le_bytes());
        signed.extend(self.method.as_bytes());
        signed.extend(digest);
        signed.extend(self.issued_at.as_millis().to_le_bytes());
        signed.extend(self.nonce);
        let message = proto::RequestAuth {
            public_key: self.public_key.as_bytes().to_vec(),
            run: self.run.to_vec(),
            audience: self.audience.as_bytes().to_vec(),
            method: self.method.to_owned(),
            body_digest: digest.to_vec(),
            issued_at_ms: self.issued_at.as_millis(),
            nonce: self.nonce.to_vec(),
            signature: Keypair::from_seed(self.signer)
                .sign(&signed)
                .as_bytes()
                .to_vec(),
        };
        message.encode_to_vec()
    }
}

/// Joins with these entries beside an honest message.
async fn join_with(served: &Served, entries: &[Vec<u8>]) -> Result<proto::JoinResponse, Status> {
    let mut client = OrchestratorServiceClient::connect(served.url.clone())
        .await
        .unwrap();
    let mut request = Request::new(message());
    for entry in entries {
        request
            .metadata_mut()
            .append_bin("iota-auth-bin", MetadataValue::from_bytes(entry));
    }
    client.join(request).await.map(tonic::Response::into_inner)
}

#[track_caller]
fn assert_refused(answer: Result<proto::JoinResponse, Status>, failure: AuthFailure) {
    let status = answer.expect_err("must be refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(CallError::from(status), CallError::Unauthenticated(failure));
}

#[tokio::test]
async fn an_honest_statement_is_accepted_once() {
    let served = serve().await;
    let entry = honest().sign();
    assert!(
        join_with(&served, std::slice::from_ref(&entry))
            .await
            .is_ok()
    );
    assert_eq!(
        served.stub.take_asked(),
        [Asked::Join(honest().public_key, Role::Miner, 2)]
    );
    assert_refused(join_with(&served, &[entry]).await, AuthFailure::Replayed);
    assert_eq!(served.stub.take_asked(), []);
}

#[tokio::test]
async fn each_wrong_statement_is_refused_with_its_reason_and_without_effect() {
    let served = serve().await;
    let stale = AuthFailure::Stale { server_time: START };
    let ahead = Duration::from_millis(501);
    let late = Timestamp::from_millis(START.as_millis() - 30_001);
    let cases = [
        // Another key's signature, and a signature by the right key with another name on it.
        (
            Statement {
                signer: [2; 32],
                ..honest()
            },
            AuthFailure::BadSignature,
        ),
        (
            Statement {
                public_key: Keypair::from_seed([2; 32]).peer_id(),
                ..honest()
            },
            AuthFailure::BadSignature,
        ),
        (
            Statement {
                public_key: PeerId::from_bytes([255; 32]),
                ..honest()
            },
            AuthFailure::BadSignature,
        ),
        (
            Statement {
                run: [6; 16],
                ..honest()
            },
            AuthFailure::WrongRun,
        ),
        (
            Statement {
                audience: honest().public_key,
                ..honest()
            },
            AuthFailure::WrongAudience,
        ),
        (
            Statement {
                method: "iota.v1.OrchestratorService/Leave",
                ..honest()
            },
            AuthFailure::WrongMethod,
        ),
        (
            Statement {
                issued_at: late,
                ..honest()
            },
            stale,
        ),
        (
            Statement {
                issued_at: START + ahead,
                ..honest()
            },
            stale,
        ),
        (
            Statement {
                body: proto::JoinRequest {
                    capacity: 3,
                    ..message()
                }
                .encode_to_vec(),
                ..honest()
            },
            AuthFailure::WrongBody,
        ),
        (
            Statement {
                body: vec![],
                ..honest()
            },
            AuthFailure::WrongBody,
        ),
    ];
    for (nonce, (statement, failure)) in (0..).zip(cases) {
        let statement = Statement {
            nonce: [nonce; 16],
            ..statement
        };
        assert_refused(join_with(&served, &[statement.sign()]).await, failure);
    }
    assert_eq!(served.stub.take_asked(), []);
}

#[tokio::test]
async fn a_request_must_carry_exactly_one_well_formed_statement() {
    let served = serve().await;
    assert_refused(join_with(&served, &[]).await, AuthFailure::Missing);
    assert_refused(
        join_with(&served, &[honest().sign(), honest().sign()]).await,
        AuthFailure::Missing,
    );
    let garbage = [
        vec![],
        vec![0xff; 64],
        vec![0; 2000],
        honest().sign()[..100].to_vec(),
    ];
    for entry in garbage {
        assert_refused(join_with(&served, &[entry]).await, AuthFailure::Malformed);
    }
    assert_eq!(served.stub.take_asked(), []);
}

#[tokio::test]
async fn what_was_made_before_the_floor_is_refused() {
    let served = serve_with(RateSettings::default(), START).await;
    assert_refused(
        join_with(&served, &[honest().sign()]).await,
        AuthFailure::Stale { server_time: START },
    );
    let after = Statement {
        issued_at: START + Duration::from_millis(1),
        ..honest()
    };
    assert!(join_with(&served, &[after.sign()]).await.is_ok());
}

/// Says "too large" before it has read it all, even to somebody who signed it.
#[tokio::test]
async fn an_oversized_message_is_refused() {
    let served = serve().await;
    let mut client = OrchestratorServiceClient::connect(served.url.clone())
        .await
        .unwrap();
    let message = proto::GetWorkRequest {
        held: vec![u64::MAX; 40_000],
        ..Default::default()
    };
    let body = message.encode_to_vec();
    let bytes_max = iota_wire::limits::REQUEST_BYTES_MAX;
    assert!(body.len() > bytes_max);
    let statement = Statement {
        method: "iota.v1.OrchestratorService/GetWork",
        body,
        ..honest()
    };
    let mut request = Request::new(message);
    request.metadata_mut().insert_bin(
        "iota-auth-bin",
        MetadataValue::from_bytes(&statement.sign()),
    );
    let error = CallError::from(client.get_work(request).await.unwrap_err());
    assert_eq!(
        error,
        CallError::TooLarge {
            bytes_max: bytes_max as u64
        }
    );
    assert_eq!(served.stub.take_asked(), []);
}

#[tokio::test]
async fn a_signed_message_that_is_no_value_of_the_protocol_is_refused_by_field() {
    let served = serve().await;
    let mut client = OrchestratorServiceClient::connect(served.url.clone())
        .await
        .unwrap();
    let message = proto::JoinRequest {
        role: 77,
        capacity: 1,
    };
    let statement = Statement {
        body: message.encode_to_vec(),
        ..honest()
    };
    let mut request = Request::new(message);
    request.metadata_mut().insert_bin(
        "iota-auth-bin",
        MetadataValue::from_bytes(&statement.sign()),
    );
    let error = CallError::from(client.join(request).await.unwrap_err());
    assert_eq!(
        error,
        CallError::Invalid {
            problem: "role: 77 is not among the known values".to_owned()
        }
    );
    assert_eq!(served.stub.take_asked(), []);
}

/// A request of a newer client: the server knows only part of it, and could not encode it again as it was signed.
#[tokio::test]
async fn what_is_signed_are_the_bytes_that_travel() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct NewerJoinRequest {
        #[prost(int32, tag = "1")]
        role: i32,
        #[prost(uint32, tag = "2")]
        capacity: u32,
        #[prost(string, tag = "900")]
        novelty: String,
    }

    let served = serve().await;
    let message = NewerJoinRequest {
        role: proto::Role::Miner.into(),
        capacity: 2,
        novelty: "unheard of".to_owned(),
    };
    let statement = Statement {
        body: message.encode_to_vec(),
        ..honest()
    };
    let mut request = Request::new(message);
    request.metadata_mut().insert_bin(
        "iota-auth-bin",
        MetadataValue::from_bytes(&statement.sign()),
    );

    let channel = tonic::transport::Endpoint::new(served.url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/iota.v1.OrchestratorService/Join");
    let codec = tonic_prost::ProstCodec::<NewerJoinRequest, proto::JoinResponse>::default();
    assert!(client.unary(request, path, codec).await.is_ok());
    assert_eq!(
        served.stub.take_asked(),
        [Asked::Join(honest().public_key, Role::Miner, 2)]
    );
}

/// Not known to this version, so closed: a stranger learns nothing, a signer learns that it does not exist.
#[tokio::test]
async fn an_unknown_method_is_closed_and_then_unimplemented() {
    let served = serve().await;
    let channel = tonic::transport::Endpoint::new(served.url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    for (signed, expected) in [
        (false, CallError::Unauthenticated(AuthFailure::Missing)),
        (true, CallError::Unsupported),
    ] {
        let mut request = Request::new(message());
        if signed {
            let entry = Statement {
                method: "iota.v1.OrchestratorService/Novelty",
                ..honest()
            }
            .sign();
            request
                .metadata_mut()
                .insert_bin("iota-auth-bin", MetadataValue::from_bytes(&entry));
        }
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/iota.v1.OrchestratorService/Novelty");
        let codec = tonic_prost::ProstCodec::<proto::JoinRequest, proto::JoinResponse>::default();
        let status = client.unary(request, path, codec).await.unwrap_err();
        assert_eq!(CallError::from(status), expected);
    }
}

#[tokio::test]
async fn asking_what_the_run_is_needs_no_signature() {
    let served = serve().await;
    let mut client = OrchestratorServiceClient::connect(served.url.clone())
        .await
        .unwrap();
    let answer = client
        .get_run(proto::GetRunRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.run, RUN.as_bytes());
}
