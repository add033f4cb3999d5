use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use iota_tls::testing::Authority;
use iota_tls::{Accepted, CertificateFiles, Protocol, Refusal, ServerCertificate, Trust};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A server that accepts connections for calls, and says a word on each.
async fn server(certificate: ServerCertificate) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let acceptor = certificate.acceptor(Protocol::Http2);
        while let Ok((stream, _)) = listener.accept().await {
            match acceptor.accept(stream).await {
                Ok(Accepted::Encrypted(mut stream)) => {
                    stream.write_all(b"welcome").await.unwrap();
                    stream.shutdown().await.unwrap();
                }
                Ok(Accepted::Plain(mut stream)) => {
                    let mut heard = [0; 5];
                    stream.read_exact(&mut heard).await.unwrap();
                    stream.write_all(&heard).await.unwrap();
                }
                // The client does not get on with us; it says why.
                Err(_) => {}
            }
        }
    });
    address
}

/// What a client hears that calls `host`, wherever the server is.
async fn call(
    trust: &Trust,
    protocol: Protocol,
    host: &str,
    address: std::net::SocketAddr,
) -> io::Result<String> {
    let stream = TcpStream::connect(address).await?;
    let mut stream = trust.connector(protocol).connect(host, stream).await?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await?;
    Ok(heard)
}

#[tokio::test]
async fn a_server_is_believed_under_each_of_its_names_and_addresses() {
    let authority = Authority::new();
    let names = ["orchestrator.example", "127.0.0.1", "::1"];
    for host in ["orchestrator.example", "127.0.0.1", "[::1]"] {
        let address = server(authority.server(&names)).await;
        let heard = call(&authority.trust(), Protocol::Http2, host, address).await;
        assert_eq!(heard.unwrap(), "welcome", "{host}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_whoever_comes_next_and_a_spoilt_one_to_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let files = CertificateFiles {
        certificate: folder.path().join("certificate.pem"),
        key: folder.path().join("key.pem"),
    };
    let mut written = SystemTime::UNIX_EPOCH;
    let mut write = |path: &Path, text: &str| {
        std::fs::write(path, text).unwrap();
        // Files that are written one after the other may have been written at the same time, by the system's clock.
        written += Duration::from_secs(1);
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(written).unwrap();
    };
    let (before, after) = (Authority::new(), Authority::new());
    let old = before.issue(&["127.0.0.1"]);
    write(&files.certificate, &old.certificate);
    write(&files.key, &old.key);
    let address = server(ServerCertificate::from_files(&files).unwrap()).await;
    let believed = async |authority: &Authority| {
        let trust = authority.trust();
        let heard = call(&trust, Protocol::Http2, "127.0.0.1", address).await;
        heard.is_ok()
    };
    assert!(believed(&before).await && !believed(&after).await);

    // Of the new one only the first file is there.
    let new = after.issue(&["127.0.0.1"]);
    write(&files.certificate, &new.certificate);
    assert!(believed(&before).await && !believed(&after).await);
    write(&files.key, &new.key);
    assert!(!believed(&before).await && believed(&after).await);

    let expired = after.issue_expired(&["127.0.0.1"]);
    write(&files.key, &expired.key);
    write(&files.certificate, &expired.certificate);
    assert!(believed(&after).await);
    std::fs::remove_file(&files.key).unwrap();
    assert!(believed(&after).await);
}

#[tokio::test]
async fn each_kind_of_disagreement_has_its_name() {
    let authority = Authority::new();
    let trust = authority.trust();
    let good = || authority.server(&["127.0.0.1"]);

    let address = server(good()).await;
    let error = call(&Trust::system(), Protocol::Http2, "127.0.0.1", address).await;
    assert_eq!(refusal(error), Refusal::UnknownIssuer);

    let address = server(good()).await;
    let error = call(&trust, Protocol::Http2, "orchestrator.example", address).await;
    let Refusal::OtherName { asked, names } = refusal(error) else {
        panic!("the certificate is another's");
    };
    assert_eq!(asked, "orchestrator.example");
    assert_eq!(names, "127.0.0.1");

    let address = server(authority.server(&[])).await;
    let error = call(&trust, Protocol::Http2, "127.0.0.1", address).await;
    let Refusal::OtherName { names, .. } = refusal(error) else {
        panic!("the certificate names nobody");
    };
    assert!(names.contains("subjectAltName"), "{names}");

    let address = server(good()).await;
    let error = call(&trust, Protocol::Http1, "127.0.0.1", address).await;
    assert_eq!(refusal(error), Refusal::OtherProtocol);
}

#[tokio::test]
async fn a_server_without_tls_is_told_from_one_that_breaks_off() {
    let trust = Authority::new().trust();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b""] {
            let (mut stream, _) = listener.accept().await.unwrap();
            // All of it has to be read, or the system would take the answer back.
            let mut hello = [0; 4096];
            assert!(stream.read(&mut hello).await.unwrap() > 5);
            stream.write_all(answer).await.unwrap();
        }
    });
    let plain = call(&trust, Protocol::Http2, "127.0.0.1", address).await;
    assert_eq!(refusal(plain), Refusal::NoTls);
    let broken_off = call(&trust, Protocol::Http2, "127.0.0.1", address).await;
    assert_eq!(Refusal::of(&broken_off.unwrap_err()), None);
}

#[tokio::test]
async fn a_client_without_tls_keeps_its_connection_and_loses_no_byte() {
    let address = server(Authority::new().server(&["127.0.0.1"])).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"PRI *").await.unwrap();
    let mut echo = String::new();
    stream.read_to_string(&mut echo).await.unwrap();
    assert_eq!(echo, "PRI *");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_does_not_stay() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let acceptor = Authority::new()
        .server(&["127.0.0.1"])
        .acceptor(Protocol::Http1);
    // Nothing else can happen, so the clock goes on at once.
    let error = acceptor.accept(stream).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(silent);
}

#[track_caller]
fn refusal(answer: io::Result<String>) -> Refusal {
    let error = answer.unwrap_err();
    Refusal::of(&error).unwrap_or_else(|| panic!("{error:?} is no refusal"))
}
