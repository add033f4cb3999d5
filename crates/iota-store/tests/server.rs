//! The embedded server over real sockets, against peers of every kind.

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be set up has failed the test"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt as _;
use iota_protocol::Timestamp;
use iota_protocol::id::{Digest, Epoch, ObjectId, RunId};
use iota_protocol::work::{ObjectName, Purpose, Seal};
use iota_store::conformance::{self, Subject};
use iota_store::server::{BUCKET, REGION};
use iota_store::{
    Credentials, Error, ErrorKind, Grant, GrantClient, Grants, KeyPrefix, ObjectKey, Result,
    S3Server, ServerSettings, Store, seal,
};
use iota_tls::testing::Authority;
use iota_tls::{Refusal, Trust};
use reqwest::{Method, RequestBuilder, StatusCode};
use rusty_s3::S3Action as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const RUN: RunId = RunId::from_bytes([1; 16]);
const TTL: Duration = Duration::from_secs(60);
const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A server, the folder that it serves, and what its users have.
struct World {
    outer: tempfile::TempDir,
    server: S3Server,
    grants: Grants,
    client: GrantClient,
    http: reqwest::Client,
}

impl World {
    async fn new() -> Self {
        Self::with(ServerSettings::default()).await
    }

    async fn with(settings: ServerSettings) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("objects");
        let server = S3Server::bind(ANY_PORT, root, credentials(), settings)
            .await
            .unwrap();
        Self::of(outer, server, GrantClient::new())
    }

    /// A server that shows a certificate, and a client that believes it.
    async fn encrypted(authority: &Authority, names: &[&str]) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("objects");
        let (settings, certificate) = (ServerSettings::default(), authority.server(names));
        let server = S3Server::bind_tls(ANY_PORT, root, credentials(), settings, &certificate)
            .await
            .unwrap();
        Self::of(outer, server, GrantClient::trusting(&authority.trust()))
    }

    fn of(outer: tempfile::TempDir, server: S3Server, client: GrantClient) -> Self {
        iota_tls::install_provider();
        Self {
            outer,
            grants: server.grants(),
            server,
            client,
            http: reqwest::Client::new(),
        }
    }

    fn store(&self) -> Store {
        self.server.store().unwrap()
    }

    fn put_grant(&self, key: &ObjectKey, length_bytes: u64) -> Grant {
        self.grants.put(key, length_bytes, TTL, now())
    }

    fn get_grant(&self, key: &ObjectKey, seal: &Seal) -> Grant {
        self.grants.get(key, seal, TTL, now())
    }

    async fn upload(&self, key: &ObjectKey, bytes: &[u8]) -> Result<Seal> {
        let grant = self.put_grant(key, bytes.len() as u64);
        self.client
            .upload(&grant, Bytes::copy_from_slice(bytes))
            .await
    }

    async fn fetch(&self, key: &ObjectKey, seal: &Seal) -> Result<Bytes> {
        self.client.fetch(&self.get_grant(key, seal), seal).await
    }

    /// A request as a stranger would make it who does with a grant what he likes.
    fn request(&self, method: Method, grant: &Grant) -> RequestBuilder {
        let mut request = self.http.request(method, grant.url.clone());
        for (name, value) in &grant.headers {
            request = request.header(name, value);
        }
        request
    }

    /// Files anywhere under the outer folder: objects, leftovers, escapes.
    fn files(&self) -> Vec<std::path::PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.outer.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    files.push(entry.path());
                }
            }
        }
        files
    }

    /// Waits until the server has noticed that a peer is gone, by its own deeds: each turn is a full request.
    async fn until_no_files(&self) {
        for _ in 0..10_000 {
            if self.files().is_empty() {
                return;
            }
            let missing = seal(b"");
            let _ = self.fetch(&object(255), &missing).await;
        }
        panic!("left behind: {:?}", self.files());
    }
}

impl Subject for World {
    async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<Seal> {
        self.upload(key, &bytes).await
    }

    async fn get(&self, key: &ObjectKey, seal: &Seal) -> Result<Bytes> {
        self.fetch(key, seal).await
    }
}

fn credentials() -> Credentials {
    Credentials::new("orchestrator", "correct horse battery staple")
}

/// The server checks expiry by the system's clock, so these tests sign by it.
fn now() -> Timestamp {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Timestamp::from_millis(since_epoch.as_millis() as u64)
}

fn object(id: u8) -> ObjectKey {
    let name = ObjectName {
        purpose: Purpose::Activation,
        epoch: Epoch::new(1),
        id: ObjectId::from_bytes([id; 16]),
    };
    ObjectKey::object(RUN, name)
}

async fn status(request: RequestBuilder) -> StatusCode {
    request.send().await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_on_the_server_conform() {
    let world = World::new().await;
    conformance::check(&world, RUN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_on_an_encrypted_server_conform() {
    let world = World::encrypted(&Authority::new(), &["127.0.0.1"]).await;
    assert_eq!(world.put_grant(&object(1), 1).url.scheme(), "https");
    conformance::check(&world, RUN).await;
}

#[tokio::test]
async fn a_store_that_cannot_show_who_it_is_gets_nothing() {
    let authority = Authority::new();
    let world = World::encrypted(&authority, &["127.0.0.1"]).await;
    let grant = world.put_grant(&object(1), 4);
    let stranger = GrantClient::trusting(&Trust::system());
    let error = stranger
        .upload(&grant, Bytes::from_static(b"good"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Tls(Refusal::UnknownIssuer)),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Fix);

    let elsewhere = World::encrypted(&authority, &["store.example"]).await;
    let error = elsewhere.upload(&object(1), b"good").await.unwrap_err();
    assert!(
        matches!(error, Error::Tls(Refusal::OtherName { .. })),
        "{error:?}"
    );
    assert!(elsewhere.files().is_empty());
}

#[tokio::test]
async fn a_grant_of_the_wrong_scheme_is_answered_with_the_right_one() {
    let encrypted = World::encrypted(&Authority::new(), &["127.0.0.1"]).await;
    let mut grant = encrypted.put_grant(&object(1), 1 << 20);
    grant.url.set_scheme("http").unwrap();
    // Longer than what fits into a socket: the answer has to survive what is still coming.
    let bytes = Bytes::from(vec![7; 1 << 20]);
    let error = encrypted.client.upload(&grant, bytes).await.unwrap_err();
    assert!(matches!(error, Error::Tls(Refusal::OnlyTls)), "{error:?}");
    let request = encrypted.request(Method::GET, &grant);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UPGRADE_REQUIRED);
    assert!(answer.text().await.unwrap().contains("https://"));

    let plain = World::new().await;
    let mut grant = plain.put_grant(&object(1), 4);
    grant.url.set_scheme("https").unwrap();
    let bytes = Bytes::from_static(b"good");
    let error = plain.client.upload(&grant, bytes).await.unwrap_err();
    assert!(matches!(error, Error::Tls(Refusal::NoTls)), "{error:?}");
}

/// What an orchestrator does against a cloud, done against the embedded server.
#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread")]
async fn a_store_over_s3_conforms_lists_and_deletes() {
    let world = World::new().await;
    let location = iota_store::S3Location {
        endpoint: format!("http://{}", world.server.local_address())
            .parse()
            .unwrap(),
        bucket: BUCKET.to_owned(),
        region: REGION.to_owned(),
    };
    let store = location.open(&credentials()).unwrap();
    conformance::check(&store, RUN).await;

    let listed = store.list(&KeyPrefix::Run(RUN)).await.unwrap();
    assert!(!listed.is_empty());
    assert_eq!(
        listed,
        world.store().list(&KeyPrefix::Run(RUN)).await.unwrap()
    );
    let deleted = store.delete_prefix(&KeyPrefix::Run(RUN)).await.unwrap();
    assert_eq!(deleted, listed.len() as u64);
    assert_eq!(world.files(), Vec::<std::path::PathBuf>::new());

    let wrong = location
        .open(&Credentials::new("orchestrator", "a guess"))
        .unwrap();
    let error = wrong.get(&object(1), &seal(b"good")).await.unwrap_err();
    assert!(matches!(error, Error::Refused { status: 403 }), "{error:?}");
}

#[tokio::test]
async fn peers_and_orchestrator_see_the_same_objects() {
    let world = World::new().await;
    let store = world.store();
    let from_peer = world.upload(&object(1), b"activation").await.unwrap();
    assert_eq!(
        store.get(&object(1), &from_peer).await.unwrap(),
        "activation"
    );
    let from_store = store
        .put(&object(2), Bytes::from_static(b"merged"))
        .await
        .unwrap();
    assert_eq!(
        world.fetch(&object(2), &from_store).await.unwrap(),
        "merged"
    );
    assert_eq!(store.list(&KeyPrefix::Run(RUN)).await.unwrap().len(), 2);
    assert_eq!(world.files().len(), 2, "one plain file per object");
}

#[tokio::test]
async fn a_replayed_upload_changes_nothing() {
    let world = World::new().await;
    let grant = world.put_grant(&object(1), 5);
    let seal = world
        .client
        .upload(&grant, Bytes::from_static(b"first"))
        .await
        .unwrap();
    let error = world
        .client
        .upload(&grant, Bytes::from_static(b"other"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error:?}");
    assert_eq!(world.fetch(&object(1), &seal).await.unwrap(), "first");
}

#[tokio::test]
async fn a_grant_is_good_for_its_own_key_and_method_only() {
    let world = World::new().await;
    let put = world.put_grant(&object(1), 4);

    let mut elsewhere = put.clone();
    elsewhere.url.set_path(&format!("/{BUCKET}/{}", object(2)));
    assert_eq!(
        status(world.request(Method::PUT, &elsewhere).body("evil")).await,
        StatusCode::FORBIDDEN
    );
    let mut other_bucket = put.clone();
    other_bucket.url.set_path(&format!("/other/{}", object(1)));
    assert_eq!(
        status(world.request(Method::PUT, &other_bucket).body("evil")).await,
        StatusCode::FORBIDDEN
    );

    world
        .client
        .upload(&put, Bytes::from_static(b"good"))
        .await
        .unwrap();
    for method in [Method::GET, Method::HEAD, Method::DELETE, Method::POST] {
        let refused = world.http.request(method.clone(), put.url.clone());
        assert_eq!(status(refused).await, StatusCode::FORBIDDEN, "{method}");
    }
    let get = world.get_grant(&object(1), &seal(b"good"));
    for method in [Method::PUT, Method::DELETE] {
        let refused = world.request(method.clone(), &get).body("evil");
        assert_eq!(status(refused).await, StatusCode::FORBIDDEN, "{method}");
    }
    // The client says so without asking anybody.
    let error = world.client.fetch(&put, &seal(b"good")).await.unwrap_err();
    assert!(matches!(error, Error::WrongGrant { .. }), "{error:?}");
    let error = world
        .client
        .upload(&get, Bytes::from_static(b"good"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongGrant { .. }), "{error:?}");
    assert_eq!(
        world.fetch(&object(1), &seal(b"good")).await.unwrap(),
        "good"
    );
}

#[tokio::test]
async fn an_upload_has_exactly_the_granted_length() {
    let world = World::new().await;
    let grant = world.put_grant(&object(1), 1000);
    for length in [0_usize, 999, 1001, 300_000] {
        let request = world
            .http
            .put(grant.url.clone())
            .header("if-none-match", "*")
            .header("content-length", length)
            .body(vec![0; length]);
        assert_eq!(status(request).await, StatusCode::FORBIDDEN, "{length}");
        let error = world
            .client
            .upload(&grant, vec![0; length].into())
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::Length {
                    expected_bytes: 1000,
                    ..
                }
            ),
            "{error:?}"
        );
    }
    // Without a length at all, in chunks.
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>(vec![0_u8; 1000])]);
    let request = world
        .http
        .put(grant.url.clone())
        .header("if-none-match", "*")
        .body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(status(request).await, StatusCode::FORBIDDEN);
    assert_eq!(world.files(), Vec::<std::path::PathBuf>::new());
}

/// An upload in chunks by somebody whose grant does not sign the length: it is refused for want of one.
#[tokio::test]
async fn an_upload_without_a_length_is_refused_whatever_is_signed() {
    let world = World::new().await;
    let url = sign_raw(&world, &object(1).to_string(), &[]);
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>(vec![0_u8; 1000])]);
    let request = world.http.put(url).body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(status(request).await, StatusCode::LENGTH_REQUIRED);
    assert_eq!(world.files(), Vec::<std::path::PathBuf>::new());
}

/// A client that reads the answer only when it has sent everything. Far more than any socket buffer is on its way when
/// the server has made up its mind, and the answer must not be lost under the bytes that nobody wants.
#[tokio::test]
async fn a_large_upload_that_is_refused_is_told_why() {
    let world = World::with(ServerSettings {
        object_bytes_max: 1 << 20,
        ..ServerSettings::default()
    })
    .await;
    let bytes = Bytes::from(vec![7; 32 << 20]);
    let grant = world.put_grant(&object(1), bytes.len() as u64);
    let mut stream = TcpStream::connect(world.server.local_address())
        .await
        .unwrap();
    let head = put_head(&world, &grant);
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("EntityTooLarge"),
        "{answer}"
    );

    let error = world.client.upload(&grant, bytes).await.unwrap_err();
    assert!(matches!(error, Error::Refused { status: 400 }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Fix);
    assert_eq!(world.files(), Vec::<std::path::PathBuf>::new());
}

/// The head of an honest upload, for tests that are less honest about the body.
fn put_head(world: &World, grant: &Grant) -> String {
    format!(
        "PUT {}?{} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\nif-none-match: *\r\n\r\n",
        grant.url.path(),
        grant.url.query().unwrap(),
        world.server.local_address(),
        grant.length_bytes
    )
}

#[tokio::test]
async fn an_expired_grant_is_refused() {
    let world = World::new().await;
    let signed_at = Timestamp::from_millis(now().as_millis() - 62_000);
    let put = world.grants.put(&object(1), 4, TTL, signed_at);
    assert!(put.expires_at_ms < now().as_millis());
    let error = world
        .client
        .upload(&put, Bytes::from_static(b"late"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Refused { status: 403 }), "{error:?}");
    let seal = world.upload(&object(1), b"good").await.unwrap();
    let get = world.grants.get(&object(1), &seal, TTL, signed_at);
    let error = world.client.fetch(&get, &seal).await.unwrap_err();
    assert!(matches!(error, Error::Refused { status: 403 }), "{error:?}");
}

#[tokio::test]
async fn a_changed_query_is_refused() {
    let world = World::new().await;
    let seal = world.upload(&object(1), b"good").await.unwrap();
    let get = world.get_grant(&object(1), &seal);
    let query = get.url.query().unwrap().to_owned();
    let expires = "X-Amz-Expires=60";
    assert!(query.contains(expires));
    let digit = if query.ends_with('0') { '1' } else { '0' };
    let other_signature = format!("{}{digit}", &query[..query.len() - 1]);
    for changed in [
        query.replace(expires, "X-Amz-Expires=6000"),
        other_signature,
        query.replace("orchestrator", "somebody"),
        format!("{query}&response-content-type=text%2Fhtml"),
        format!("{query}&versionId=1"),
        query.split("&X-Amz-Signature").next().unwrap().to_owned(),
        String::new(),
    ] {
        let mut url = get.url.clone();
        url.set_query(Some(&changed));
        let answer = world.http.get(url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{changed}");
    }
}

#[tokio::test]
async fn signed_headers_must_be_there_and_others_of_weight_must_not() {
    let world = World::new().await;
    let grant = world.put_grant(&object(1), 4);
    let without_condition = world.http.put(grant.url.clone()).body("evil");
    assert_eq!(status(without_condition).await, StatusCode::FORBIDDEN);
    let other_condition = world
        .http
        .put(grant.url.clone())
        .header("if-none-match", "\"x\"")
        .body("evil");
    assert_eq!(status(other_condition).await, StatusCode::FORBIDDEN);
    let with_more = world
        .request(Method::PUT, &grant)
        .header("x-amz-acl", "public-read")
        .body("evil");
    assert_eq!(status(with_more).await, StatusCode::FORBIDDEN);
    assert_eq!(world.files(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn who_has_signed_nothing_gets_nothing() {
    let world = World::new().await;
    world.upload(&object(1), b"good").await.unwrap();
    let root = format!("http://{}/", world.server.local_address());
    let bucket = format!("{root}{BUCKET}");
    let key = format!("{bucket}/{}", object(1));
    for (method, url) in [
        (Method::GET, &root),
        (Method::GET, &bucket),
        (Method::PUT, &bucket),
        (Method::DELETE, &bucket),
        (Method::GET, &key),
        (Method::HEAD, &key),
        (Method::PUT, &key),
        (Method::DELETE, &key),
    ] {
        let request = world.http.request(method.clone(), url.as_str());
        assert_eq!(
            status(request).await,
            StatusCode::FORBIDDEN,
            "{method} {url}"
        );
    }
    let wrong = Credentials::new("orchestrator", "a guess");
    let wrong = Grants::new(&root.parse().unwrap(), BUCKET, REGION, &wrong).unwrap();
    let grant = wrong.get(&object(1), &seal(b"good"), TTL, now());
    let error = world
        .client
        .fetch(&grant, &seal(b"good"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Refused { status: 403 }), "{error:?}");
}

/// A presigned PUT of any text as key, as a careless signer would make it.
fn sign_raw(world: &World, key: &str, headers: &[(&str, &str)]) -> reqwest::Url {
    let endpoint = format!("http://{}", world.server.local_address())
        .parse()
        .unwrap();
    let bucket = rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, BUCKET, REGION).unwrap();
    let credentials = rusty_s3::Credentials::new("orchestrator", "correct horse battery staple");
    let mut action = bucket.put_object(Some(&credentials), key);
    for (name, value) in headers {
        action.headers_mut().insert(*name, *value);
    }
    action.sign(TTL)
}

#[tokio::test]
async fn a_key_that_is_not_plain_is_refused_even_if_it_is_signed() {
    let world = World::new().await;
    for key in [
        ".partial",
        "a/.hidden",
        "a//b",
        "a/",
        "%2e%2e/escape",
        "..%2fescape",
        "a\\b",
        "a b",
        "é",
    ] {
        let url = sign_raw(&world, key, &[]);
        let answer = world.http.put(url).body("evil").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{key}");
    }
    assert_eq!(world.files(), Vec::<std::path::PathBuf>::new());
}

/// What an HTTP library would tidy up, written straight to the socket.
#[tokio::test]
async fn a_path_with_dot_segments_gets_nowhere() {
    let world = World::new().await;
    for path in [
        "/iota/../escape",
        "/iota/a/../../../escape",
        "/iota/%2e%2e/escape",
        "/iota/..%2fescape",
    ] {
        let url = sign_raw(&world, "escape", &[]);
        let mut stream = TcpStream::connect(world.server.local_address())
            .await
            .unwrap();
        let head = format!(
            "PUT {path}?{} HTTP/1.1\r\nhost: {}\r\ncontent-length: 4\r\nconnection: close\r\n\r\nevil",
            url.query().unwrap(),
            world.server.local_address()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
    }
    assert_eq!(world.files(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_never_seen() {
    let world = World::new().await;
    // Long enough that a part of it has been written to the disk by then.
    let length_bytes = 8 << 20;
    let grant = world.put_grant(&object(1), length_bytes);
    let mut stream = TcpStream::connect(world.server.local_address())
        .await
        .unwrap();
    let head = put_head(&world, &grant);
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![7; 4 << 20]).await.unwrap();
    let anything = Seal {
        digest: Digest::of(b""),
        length: length_bytes,
    };
    let error = world.fetch(&object(1), &anything).await.unwrap_err();
    assert!(
        matches!(error, Error::Missing { .. }),
        "half an upload is not there: {error:?}"
    );
    drop(stream);
    world.until_no_files().await;
    // And the grant is as good as before.
    let bytes = Bytes::from(vec![7; length_bytes as usize]);
    world.client.upload(&grant, bytes).await.unwrap();
}

#[tokio::test]
async fn bytes_that_changed_on_the_servers_disk_are_noticed_by_their_reader() {
    let world = World::new().await;
    let bytes = vec![7; 3 << 20];
    let seal = world.upload(&object(1), &bytes).await.unwrap();
    let path = world
        .outer
        .path()
        .join("objects")
        .join(object(1).to_string());
    let mut damaged = bytes.clone();
    damaged[2 << 20] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let error = world.fetch(&object(1), &seal).await.unwrap_err();
    assert!(
        matches!(error, Error::Digest { expected, .. } if expected == seal.digest),
        "{error:?}"
    );
    std::fs::write(&path, &damaged[1..]).unwrap();
    let error = world.fetch(&object(1), &seal).await.unwrap_err();
    assert!(matches!(error, Error::Length { .. }), "{error:?}");
    std::fs::remove_file(&path).unwrap();
    let error = world.fetch(&object(1), &seal).await.unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error:?}");
}

#[tokio::test]
async fn announced_checksums_are_checked_before_anything_appears() {
    let world = World::new().await;
    // SHA-256 of "good" and of nothing, in base64.
    let good = "dw5gdiTWiSZcpsRIhNCAfZsFTSPEc8EGxyvp3gi3N2w=";
    let nothing = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    for (sum, expected) in [(nothing, StatusCode::BAD_REQUEST), (good, StatusCode::OK)] {
        let headers = [("if-none-match", "*"), ("x-amz-checksum-sha256", sum)];
        let url = sign_raw(&world, &object(1).to_string(), &headers);
        let mut request = world.http.put(url).body("good");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        assert_eq!(status(request).await, expected, "{sum}");
        assert_eq!(world.files().len(), usize::from(expected == StatusCode::OK));
    }
}

#[tokio::test]
async fn a_full_folder_takes_no_more_until_there_is_room() {
    let world = World::with(ServerSettings {
        total_bytes_max: 1000,
        ..ServerSettings::default()
    })
    .await;
    world.upload(&object(1), &[1; 600]).await.unwrap();
    let error = world.upload(&object(2), &[2; 401]).await.unwrap_err();
    assert!(matches!(error, Error::Refused { status: 507 }), "{error:?}");
    world.upload(&object(2), &[2; 400]).await.unwrap();
    // Retention goes past the server, directly in the folder. It measures again, but not at every request.
    let epoch = KeyPrefix::Epoch(RUN, Purpose::Activation, Epoch::new(1));
    assert_eq!(world.store().delete_prefix(&epoch).await.unwrap(), 2);
    for _ in 0..10_000 {
        match world.upload(&object(3), &[3; 1000]).await {
            Ok(_) => return,
            Err(error) => assert!(matches!(error, Error::Refused { status: 507 }), "{error:?}"),
        }
    }
    panic!("the room that was made was never found");
}

#[tokio::test]
async fn uploads_under_way_count_against_the_room() {
    let world = World::with(ServerSettings {
        total_bytes_max: 1000,
        ..ServerSettings::default()
    })
    .await;
    let grant = world.put_grant(&object(1), 900);
    let (body, rest) = tokio::io::duplex(64);
    let chunks = futures::stream::unfold(body, |mut body| async move {
        let mut chunk = vec![0; 64];
        let length = body.read(&mut chunk).await.ok()?;
        chunk.truncate(length);
        (length > 0).then_some((Ok::<_, std::io::Error>(chunk), body))
    });
    let upload = tokio::spawn(
        world
            .request(Method::PUT, &grant)
            .body(reqwest::Body::wrap_stream(chunks))
            .send(),
    );
    let mut rest = rest;
    rest.write_all(&[7; 450]).await.unwrap();
    // The folder's own upload shows that the server has begun.
    while world.files().is_empty() {
        tokio::task::yield_now().await;
    }
    let error = world.upload(&object(2), &[2; 101]).await.unwrap_err();
    assert!(matches!(error, Error::Refused { status: 507 }), "{error:?}");
    rest.write_all(&[7; 450]).await.unwrap();
    drop(rest);
    assert_eq!(upload.await.unwrap().unwrap().status(), StatusCode::OK);
    world.upload(&object(2), &[2; 100]).await.unwrap();
}

#[tokio::test]
async fn parts_of_an_object_can_be_read() {
    let world = World::new().await;
    let bytes: Vec<u8> = (0..3 << 20).map(|index: u32| (index % 251) as u8).collect();
    let seal = world.upload(&object(1), &bytes).await.unwrap();
    let get = world.get_grant(&object(1), &seal);
    let length = bytes.len();
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=1000-1999999", 1000..2_000_000),
        ("bytes=3145000-", 3_145_000..length),
        ("bytes=-5", length - 5..length),
        ("bytes=10-99999999", 10..length),
    ] {
        let answer = world
            .http
            .get(get.url.clone())
            .header("range", range)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        let content_range = format!("bytes {}-{}/{length}", expected.start, expected.end - 1);
        assert_eq!(answer.headers()["content-range"], content_range.as_str());
        assert!(answer.bytes().await.unwrap() == bytes[expected], "{range}");
    }
    let beyond = world
        .http
        .get(get.url.clone())
        .header("range", "bytes=3145728-");
    assert_eq!(status(beyond).await, StatusCode::RANGE_NOT_SATISFIABLE);
    let empty = world.upload(&object(2), b"").await.unwrap();
    let get = world.get_grant(&object(2), &empty);
    let of_nothing = world.http.get(get.url).header("range", "bytes=-5");
    assert_eq!(status(of_nothing).await, StatusCode::RANGE_NOT_SATISFIABLE);
}

#[tokio::test]
async fn what_the_operator_signs_is_served_too() {
    let world = World::new().await;
    for id in 1..=3 {
        world.upload(&object(id), b"good").await.unwrap();
    }
    let endpoint = format!("http://{}", world.server.local_address())
        .parse()
        .unwrap();
    let bucket = rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, BUCKET, REGION).unwrap();
    let credentials = rusty_s3::Credentials::new("orchestrator", "correct horse battery staple");

    let key = object(2).to_string();
    let head = bucket.head_object(Some(&credentials), &key).sign(TTL);
    let answer = world.http.head(head).send().await.unwrap();
    assert_eq!(answer.headers()["content-length"], "4");

    let delete = bucket.delete_object(Some(&credentials), &key).sign(TTL);
    for _ in 0..2 {
        assert_eq!(
            status(world.http.delete(delete.clone())).await,
            StatusCode::NO_CONTENT
        );
    }
    // A listing is a signed GET of the bucket with a query of its own.
    let mut list = rusty_s3::actions::GetObject::new(&bucket, Some(&credentials), "");
    list.query_mut().insert("list-type", "2");
    list.query_mut().insert("max-keys", "1");
    list.query_mut().insert("prefix", RUN.to_string());
    let answer = world.http.get(list.sign(TTL)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let page = answer.text().await.unwrap();
    assert!(
        page.contains(&format!("<Key>{}</Key>", object(1))),
        "{page}"
    );
    assert!(page.contains("<IsTruncated>true</IsTruncated>"), "{page}");
    list.query_mut()
        .insert("continuation-token", object(1).to_string());
    let page = world
        .http
        .get(list.sign(TTL))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(
        page.contains(&format!("<Key>{}</Key>", object(3))),
        "{page}"
    );
    assert!(page.contains("<IsTruncated>false</IsTruncated>"), "{page}");
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_says_so() {
    let world = World::new().await;
    let taken = world.server.local_address();
    // The first server's uploads must survive the attempt on its folder, too.
    let key = object(1);
    let root = world.outer.path().join("objects");
    let partial = world.outer.path().join("objects.partial");
    std::fs::write(partial.join("17"), b"under way").unwrap();
    let error = S3Server::bind(taken, &root, credentials(), ServerSettings::default())
        .await
        .unwrap_err();
    let Error::Bind { address, source } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(
        (*address, source.kind()),
        (taken, std::io::ErrorKind::AddrInUse)
    );
    assert!(partial.join("17").exists());
    world.upload(&key, b"still served").await.unwrap();
}

#[tokio::test]
async fn shutting_down_waits_for_nobody_who_has_not_agreed_on_keys() {
    let world = World::encrypted(&Authority::new(), &["127.0.0.1"]).await;
    let silent = TcpStream::connect(world.server.local_address())
        .await
        .unwrap();
    // A request of somebody else: by its end the server has the silent one, too.
    world.upload(&object(1), b"good").await.unwrap();
    let World { server, client, .. } = world;
    drop(client);
    let began = std::time::Instant::now();
    server.shutdown(Duration::from_secs(60)).await;
    // The silent one has had a little of its time already, so that it would be gone just before all of it is over.
    assert!(began.elapsed() < iota_tls::accept::HANDSHAKE_TIMEOUT / 2);
    drop(silent);
}

#[tokio::test]
async fn shutting_down_lets_a_request_finish_and_takes_no_new_one() {
    let World {
        outer,
        server,
        grants,
        client,
        http,
    } = World::new().await;
    let grant = grants.put(&object(1), 100, TTL, now());
    let (mut sender, receiver) =
        futures::channel::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(0);
    let mut request = http.put(grant.url.clone());
    for (name, value) in &grant.headers {
        request = request.header(name, value);
    }
    let upload = tokio::spawn(request.body(reqwest::Body::wrap_stream(receiver)).send());
    futures::SinkExt::send(&mut sender, Ok(vec![7; 50]))
        .await
        .unwrap();
    let partial = outer.path().join("objects.partial");
    while std::fs::read_dir(&partial).unwrap().next().is_none() {
        tokio::task::yield_now().await;
    }
    let address = server.local_address();
    let shutdown = tokio::spawn(server.shutdown(Duration::from_secs(60)));
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    futures::SinkExt::send(&mut sender, Ok(vec![7; 50]))
        .await
        .unwrap();
    drop(sender);
    assert_eq!(upload.await.unwrap().unwrap().status(), StatusCode::OK);
    shutdown.await.unwrap();
    let later = grants.get(&object(1), &seal(&[7; 100]), TTL, now());
    let error = client.fetch(&later, &seal(&[7; 100])).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Retry);
    let store = Store::in_folder(outer.path().join("objects")).unwrap();
    store.get(&object(1), &seal(&[7; 100])).await.unwrap();
}

#[tokio::test]
async fn more_connections_than_allowed_wait_their_turn() {
    let world = World::with(ServerSettings {
        connections_max: 1,
        ..ServerSettings::default()
    })
    .await;
    let world = Arc::new(world);
    let mut uploads: futures::stream::FuturesUnordered<_> = (0..8_u8)
        .map(|id| {
            let world = Arc::clone(&world);
            async move {
                // A client of its own, so a connection of its own; it goes when the client does.
                let grant = world.put_grant(&object(id), 4);
                GrantClient::new()
                    .upload(&grant, Bytes::from_static(b"good"))
                    .await
            }
        })
        .collect();
    while let Some(result) = uploads.next().await {
        result.unwrap();
    }
}

fn impatient() -> ServerSettings {
    ServerSettings {
        idle_timeout: Duration::from_millis(50),
        ..ServerSettings::default()
    }
}

#[tokio::test]
async fn who_sends_nothing_is_let_go() {
    let world = World::with(impatient()).await;
    // In the head of a request.
    let mut stream = TcpStream::connect(world.server.local_address())
        .await
        .unwrap();
    stream.write_all(b"PUT /iota/").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    // In its body.
    let grant = world.put_grant(&object(1), 100);
    let mut stream = TcpStream::connect(world.server.local_address())
        .await
        .unwrap();
    let head = put_head(&world, &grant) + "half";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), "HTTP/1.1 400");
    world.until_no_files().await;
}

#[tokio::test]
async fn who_asks_and_does_not_read_is_let_go() {
    let world = World::with(impatient()).await;
    let mut stream = TcpStream::connect(world.server.local_address())
        .await
        .unwrap();
    let requests = "GET /iota/nothing HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1000);
    // Until there is no room for answers, and then none for requests: what is left is to be thrown out.
    let asking = async { while stream.write_all(requests.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), asking)
        .await
        .unwrap();
}
