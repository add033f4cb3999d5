use std::sync::Arc;

use iota_identity::Keypair;
use iota_protocol::Role;
use iota_tls::testing::Authority;
use iota_tls::{Refusal, Trust};
use iota_wire::{CallError, CallErrorKind, Client, ConnectOptions, Connector, RunInfo};

use crate::stub::{RUN, serve, serve_encrypted};

/// Calls as somebody who believes `trust`.
async fn connect(url: &str, trust: Trust) -> Result<(Client, RunInfo), CallError> {
    let options = ConnectOptions {
        connector: Connector::trusting(trust),
        ..ConnectOptions::default()
    };
    let keypair = Arc::new(Keypair::from_seed([1; 32]));
    Client::connect_with(url, keypair, options).await
}

#[tokio::test]
async fn calls_are_made_by_tls_where_the_address_says_so() {
    let authority = Authority::new();
    let served = serve_encrypted(&authority.server(&["127.0.0.1"])).await;
    let (client, run) = connect(&served.url, authority.trust()).await.unwrap();
    assert_eq!(run.run, RUN);
    assert!(client.join(Role::Miner, 1).await.is_ok());
    assert_eq!(served.stub.take_asked().len(), 1);
    // The same client calls without, where that is what the address says.
    let plain = serve().await;
    assert!(connect(&plain.url, authority.trust()).await.is_ok());
}

#[tokio::test]
async fn a_server_that_cannot_show_who_it_is_is_not_called_and_not_waited_for() {
    let authority = Authority::new();
    let served = serve_encrypted(&authority.server(&["127.0.0.1"])).await;
    for stranger in [Trust::system(), Authority::new().trust()] {
        let error = connect(&served.url, stranger).await.unwrap_err();
        assert_eq!(error, CallError::Tls(Refusal::UnknownIssuer));
        assert_eq!(error.kind(), CallErrorKind::Fix);
        assert!(error.to_string().contains("--ca"), "{error}");
    }
    let elsewhere = serve_encrypted(&authority.server(&["orchestrator.example"])).await;
    let error = connect(&elsewhere.url, authority.trust())
        .await
        .unwrap_err();
    assert!(
        matches!(error, CallError::Tls(Refusal::OtherName { .. })),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.contains("127.0.0.1") && text.contains("orchestrator.example"),
        "{text}"
    );
    assert_eq!(error.kind(), CallErrorKind::Fix);
}

#[tokio::test]
async fn whoever_mistakes_the_scheme_is_told_the_right_one() {
    let authority = Authority::new();
    let encrypted = serve_encrypted(&authority.server(&["127.0.0.1"])).await;
    let url = encrypted.url.replace("https://", "http://");
    let error = connect(&url, authority.trust()).await.unwrap_err();
    assert_eq!(error, CallError::Tls(Refusal::OnlyTls));
    assert_eq!(error.kind(), CallErrorKind::Fix);
    assert!(error.to_string().contains("https://"), "{error}");

    let plain = serve().await;
    let url = plain.url.replace("http://", "https://");
    let error = connect(&url, authority.trust()).await.unwrap_err();
    assert_eq!(error, CallError::Tls(Refusal::NoTls));
    assert!(error.to_string().contains("http://"), "{error}");
}

#[tokio::test]
async fn callers_that_say_nothing_keep_nobody_else_out() {
    let authority = Authority::new();
    let served = serve_encrypted(&authority.server(&["127.0.0.1"])).await;
    let address = served.url.strip_prefix("https://").unwrap();
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    assert!(connect(&served.url, authority.trust()).await.is_ok());
}
