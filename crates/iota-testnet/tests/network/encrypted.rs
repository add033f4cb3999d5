//! Networks by TLS, and what is heard of them on the way.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use iota_miner::{Error, Network, Trust};
use iota_node::Shutdown;
use iota_orchestrator::ServerCertificate;
use iota_protocol::State;
use iota_tls::Refusal;
use iota_tls::testing::Authority;
use iota_wire::CallError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::{by_hand, small};

/// What a grant cannot be without, and what every object of tensors begins with.
const MARKERS: [&[u8]; 2] = [b"X-Amz-Signature=", b"\"dtype\":"];

/// A record of the handshake: what a TLS client says first.
const CLIENT_HELLO: u8 = 22;

/// Hands on what goes to and fro between peers and one address, and keeps it.
struct Tap {
    listener: TcpListener,
    heard: Heard,
}

/// What was said, by connection and direction, peers' words first.
type Heard = Arc<Mutex<Vec<[Vec<u8>; 2]>>>;

impl Tap {
    async fn new() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            heard: Heard::default(),
        }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn listen_in_on(self, server: SocketAddr) -> Heard {
        let heard = Arc::clone(&self.heard);
        tokio::spawn(async move {
            while let Ok((peer, _)) = self.listener.accept().await {
                let connection = {
                    let mut heard = self.heard.lock().unwrap();
                    heard.push([Vec::new(), Vec::new()]);
                    heard.len() - 1
                };
                let server = TcpStream::connect(server).await.unwrap();
                let ((from_peer, to_peer), (from_server, to_server)) =
                    (peer.into_split(), server.into_split());
                for (mut from, mut to, direction) in
                    [(from_peer, to_server, 0), (from_server, to_peer, 1)]
                {
                    let heard = Arc::clone(&self.heard);
                    tokio::spawn(async move {
                        let mut buffer = vec![0; 64 << 10];
                        // Either side may break off: then the other is told.
                        while let Ok(length @ 1..) = from.read(&mut buffer).await {
                            let said = &buffer[..length];
                            heard.lock().unwrap()[connection][direction].extend_from_slice(said);
                            if to.write_all(said).await.is_err() {
                                break;
                            }
                        }
                    });
                }
            }
        });
        heard
    }
}

fn contains(said: &[u8], marker: &[u8]) -> bool {
    said.windows(marker.len()).any(|window| window == marker)
}

/// How often each marker was heard.
fn overheard(heard: &Heard) -> [usize; MARKERS.len()] {
    let heard = heard.lock().unwrap();
    let said: Vec<&Vec<u8>> = heard.iter().flatten().collect();
    MARKERS.map(|marker| said.iter().filter(|said| contains(said, marker)).count())
}

/// A run of two miners and a validator, who reach calls and store through taps; and what these have heard.
async fn lived(
    folder: &Path,
    certificate: Option<ServerCertificate>,
    network: Network,
) -> (Arc<State>, Heard, Heard) {
    const VALIDATOR: u8 = 99;
    let scheme = if certificate.is_some() {
        "https"
    } else {
        "http"
    };
    let mut settings = small(folder);
    settings.training.samples_per_epoch = 12;
    let (calls, store) = (Tap::new().await, Tap::new().await);
    let store_url = format!("{scheme}://{}", store.address());
    let mut builder = by_hand::builder(&settings, 1, vec![by_hand::peer(VALIDATOR)])
        .with_store_url(store_url.parse().unwrap());
    if let Some(certificate) = certificate {
        builder = builder.with_certificate(certificate);
    }
    let orchestrator = builder.start(&Shutdown::new()).await.unwrap();
    let address = orchestrator.url().strip_prefix(&format!("{scheme}://"));
    let address: SocketAddr = address.unwrap().parse().unwrap();
    let run = std::fs::read(settings.out.join("run.json")).unwrap();
    let run: serde_json::Value = serde_json::from_slice(&run).unwrap();
    let store_address = run["store_listen"].as_str().unwrap().parse().unwrap();

    let url = format!("{scheme}://{}", calls.address());
    let heard = (
        calls.listen_in_on(address),
        store.listen_in_on(store_address),
    );
    for number in 0..2 {
        let miner = by_hand::miner(&url, number).with_network(network.clone());
        tokio::spawn(miner.run(Shutdown::new()));
    }
    let validator = by_hand::validator(&url, VALIDATOR).with_network(network);
    tokio::spawn(validator.run(Shutdown::new()));
    let (last, _) = orchestrator.finish().await.unwrap();
    (last, heard.0, heard.1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_by_tls_trains_merges_and_audits_and_nobody_on_the_way_reads_a_grant_or_a_tensor()
{
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let certificate = authority.server(&["127.0.0.1"]);
    let network = Network::trusting(authority.trust());
    let (last, calls, store) = lived(folder.path(), Some(certificate), network).await;
    let counts = last.sample_counts();
    assert_eq!((counts.completed, counts.lost), (24, 0));
    assert_eq!(last.merges().len(), 4);
    assert!(last.replicas_equal());
    let (passed, failed) = last.audits_settled();
    assert!(
        passed > 0 && failed == 0,
        "{passed} passed, {failed} failed"
    );
    for heard in [calls, store] {
        assert_eq!(overheard(&heard), [0, 0]);
        let heard = heard.lock().unwrap();
        assert!(!heard.is_empty(), "nobody came by the tap");
        for [said, _] in heard.iter().filter(|[said, _]| !said.is_empty()) {
            assert_eq!(said[0], CLIENT_HELLO);
        }
    }
}

/// That the taps would hear something if there were something to hear.
#[tokio::test(flavor = "multi_thread")]
async fn without_tls_whoever_is_on_the_way_reads_grants_and_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let (last, calls, store) = lived(folder.path(), None, Network::default()).await;
    assert_eq!(last.sample_counts().completed, 24);
    assert!(overheard(&calls)[0] > 0);
    assert!(overheard(&store).iter().all(|count| *count > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_cannot_know_whom_it_has_called_ends_and_says_why() {
    let authority = Authority::new();
    let elsewhere = "orchestrator.example";
    for (name, trust, expected) in [
        ("127.0.0.1", Trust::system(), Refusal::UnknownIssuer),
        (
            "127.0.0.1",
            Authority::new().trust(),
            Refusal::UnknownIssuer,
        ),
        (
            elsewhere,
            authority.trust(),
            Refusal::OtherName {
                asked: "127.0.0.1".to_owned(),
                names: elsewhere.to_owned(),
            },
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let builder = by_hand::builder(&small(folder.path()), 1, vec![by_hand::peer(7)])
            .with_certificate(authority.server(&[name]));
        let orchestrator = builder.start(&Shutdown::new()).await.unwrap();
        let network = Network::trusting(trust);
        let miner = by_hand::miner(orchestrator.url(), 1).with_network(network.clone());
        let validator = by_hand::validator(orchestrator.url(), 7).with_network(network);
        let errors = [
            miner.run(Shutdown::new()).await.unwrap_err(),
            validator.run(Shutdown::new()).await.unwrap_err(),
        ];
        for error in errors {
            let Error::Call(CallError::Tls(found)) = error else {
                panic!("{error:?}");
            };
            assert_eq!(found, expected);
        }
        orchestrator.suspend();
        orchestrator.finish().await.unwrap();
    }
}
