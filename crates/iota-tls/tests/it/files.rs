use std::path::PathBuf;

use iota_tls::testing::{Authority, Issued};
use iota_tls::{CertificateFiles, ServerCertificate, Trust};

/// A certificate and a key in files of a folder, as given.
fn files(folder: &tempfile::TempDir, certificate: &str, key: &str) -> CertificateFiles {
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    CertificateFiles {
        certificate: write("chain.pem", certificate),
        key: write("private.pem", key),
    }
}

#[track_caller]
fn refused(certificate: &str, key: &str, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder, certificate, key);
    let error = ServerCertificate::from_files(&files).unwrap_err();
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in {text:?}");
    }
}

#[test]
fn a_certificate_with_its_key_is_taken_alone_and_with_its_authority() {
    let authority = Authority::new();
    let Issued { certificate, key } = authority.issue(&["orchestrator.example"]);
    for chain in [
        certificate.clone(),
        format!("{certificate}{}", authority.pem()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&folder, &chain, &key);
        let read = ServerCertificate::from_files(&files).unwrap();
        assert_eq!(read.files(), Some(&files));
        let given = ServerCertificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(given.files(), None);
    }
}

#[test]
fn a_certificate_names_hosts_as_urls_write_them() {
    let server = Authority::new().server(&["orchestrator.example", "127.0.0.1", "::1"]);
    for host in ["orchestrator.example", "127.0.0.1", "[::1]"] {
        assert!(server.names(host), "{host}");
    }
    for host in ["store.example", "127.0.0.2", "0.0.0.0", "no host", ""] {
        assert!(!server.names(host), "{host}");
    }
}

#[test]
fn what_nobody_could_accept_is_refused_by_file_and_reason() {
    let authority = Authority::new();
    let good = authority.issue(&["orchestrator.example"]);
    let other = authority.issue(&["orchestrator.example"]);
    let expired = authority.issue_expired(&["orchestrator.example"]);
    refused("", &good.key, &["chain.pem", "no certificate"]);
    refused(&good.key, &good.key, &["chain.pem", "no certificate"]);
    refused(&good.certificate, "", &["private.pem", "no private key"]);
    refused(
        &good.certificate,
        &good.certificate,
        &["private.pem", "no private key"],
    );
    let old_header = "PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,A305\n";
    for encrypted in [
        good.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
        good.key.replacen("PRIVATE KEY-----\n", old_header, 1),
    ] {
        refused(
            &good.certificate,
            &encrypted,
            &["private.pem", "encrypted", "openssl pkey"],
        );
    }
    refused(
        &good.certificate,
        &other.key,
        &["private.pem", "not the key of", "chain.pem"],
    );
    refused(
        &expired.certificate,
        &expired.key,
        &["chain.pem", "expired"],
    );
    refused(
        authority.pem(),
        &good.key,
        &["chain.pem", "an authority's", "usr_cert"],
    );
    let cut_off = &good.certificate[..good.certificate.len() / 2];
    refused(cut_off, &good.key, &["chain.pem", "PEM"]);
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    refused(no_certificate, &good.key, &["chain.pem", "X.509"]);
}

#[test]
fn a_key_that_cannot_be_read_is_not_shown_either() {
    let Issued { certificate, key } = Authority::new().issue(&["orchestrator.example"]);
    let one_line = key.replace('\n', " ");
    // Without the dashes at its end, with them, and as text that is no base64.
    for spoilt in [
        one_line.trim_end().trim_end_matches('-').to_owned(),
        one_line,
        key.replacen('M', "!", 1),
    ] {
        let error =
            ServerCertificate::from_pem(certificate.as_bytes(), spoilt.as_bytes()).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("not well-formed PEM"), "{text}");
        // The library would show bytes as a list of numbers.
        assert!(
            !text.contains('[') && !text.contains("MIGH") && text.len() < 400,
            "{text}"
        );
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = CertificateFiles {
        certificate: folder.path().join("missing.pem"),
        key: folder.path().join("also-missing.pem"),
    };
    let error = ServerCertificate::from_files(&missing).unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");
    let error = Trust::and_file(&missing.certificate).unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");
}

#[test]
fn an_authority_is_a_certificate_and_not_something_else() {
    let authority = Authority::new();
    assert!(Trust::and_pem(authority.pem().as_bytes()).is_ok());
    let key = authority.issue(&["orchestrator.example"]).key;
    for text in ["", "trust me", &key] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authority.pem");
        std::fs::write(&path, text).unwrap();
        let error = Trust::and_file(&path).unwrap_err();
        assert!(error.to_string().contains("authority.pem"), "{error}");
    }
}
