//! The program as a shell sees it: exit codes and messages.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use iota_tls::testing::Authority;

fn orchestrator(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_iota-orchestrator"))
        .args(arguments)
        .env_remove("IOTA_LOG")
        .output()
        .unwrap()
}

#[track_caller]
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = orchestrator(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    for word in words {
        assert!(
            message.contains(word),
            "{arguments:?}: {word:?} is missing in {message:?}"
        );
    }
}

#[test]
fn unusable_input_is_exit_code_2_and_says_what_would_do() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("settings.toml");
    std::fs::write(&config, "[training]\nepoch = 3\n").unwrap();
    let config = config.display().to_string();
    refused(&["testnet", "--stages", "0"], 2, &["stages"]);
    refused(&["testnet", "--stages", "99"], 2, &["99", "6"]);
    refused(
        &["testnet", "--preset", "tesnet"],
        2,
        &["tesnet", "testnet"],
    );
    refused(
        &["testnet", "--corpus", "/no/such/file"],
        2,
        &["/no/such/file"],
    );
    refused(
        &["testnet", "--config", &config],
        2,
        &["training.epoch", "training.epochs", "settings.toml:2"],
    );
    refused(
        &["testnet", "--config", "/no/such.toml"],
        2,
        &["/no/such.toml"],
    );
    refused(&["testnet", "--no-such-flag"], 2, &["--no-such-flag"]);
    let out = folder.path().join("run").display().to_string();
    for command in ["testnet", "serve"] {
        let arguments = [command, "--out", &out, "--store-url", "the proxy"];
        refused(&arguments, 2, &["store_url"]);
    }
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_certificate_that_cannot_be_used_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let issued = Authority::new().issue(&["127.0.0.1"]);
    let other = Authority::new().issue(&["127.0.0.1"]);
    let files = [
        ("certificate.pem", issued.certificate.as_str()),
        ("key.pem", &issued.key),
        ("other.pem", &other.key),
        ("empty.pem", ""),
    ];
    for (name, text) in files {
        std::fs::write(path(name), text).unwrap();
    }
    let out = path("run");
    let cases = [
        ("certificate.pem", "other.pem", "other.pem"),
        ("empty.pem", "key.pem", "empty.pem"),
        ("certificate.pem", "missing.pem", "missing.pem"),
        ("certificate.pem", "certificate.pem", "no private key"),
    ];
    for (certificate, key, word) in cases {
        let (certificate, key) = (path(certificate), path(key));
        let tls = ["--tls-certificate", &certificate, "--tls-key", &key];
        let serve = ["serve", "--preset", "tiny", "--out", &out];
        refused(&[&serve[..], &tls].concat(), 2, &[word]);
        refused(&[&["resume", "--out", &out][..], &tls].concat(), 2, &[word]);
    }
    let alone = [
        "serve",
        "--out",
        &out,
        "--tls-certificate",
        "certificate.pem",
    ];
    refused(&alone, 2, &["tls_key"]);
    assert!(!folder.path().join("run").exists());
    // As a setting of a testnet, which nobody could reach by it.
    let config = path("settings.toml");
    let settings = "tls_certificate = 'certificate.pem'\ntls_key = 'key.pem'\n";
    std::fs::write(&config, settings).unwrap();
    refused(
        &["testnet", "--out", &out, "--config", &config],
        2,
        &["tls_certificate", "serve"],
    );
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_port_in_use_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments = [
        "testnet",
        "--preset",
        "tiny",
        "--listen",
        &address,
        "--out",
        out.to_str().unwrap(),
    ];
    refused(&arguments, 1, &[&address]);
    assert!(!out.exists());
}

#[test]
fn a_folder_that_is_no_run_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.tex"), "mine").unwrap();
    let arguments = [
        "testnet",
        "--preset",
        "tiny",
        "--out",
        folder.path().to_str().unwrap(),
    ];
    refused(&arguments, 2, &[folder.path().to_str().unwrap(), "--out"]);
    assert_eq!(
        std::fs::read_to_string(folder.path().join("thesis.tex")).unwrap(),
        "mine"
    );
}

#[test]
fn there_is_no_going_on_with_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    refused(&["resume", "--out", out], 2, &[out, "--out"]);
    refused(
        &["resume", "--from-store", out, "--out", "elsewhere"],
        2,
        &["nothing to restore", out],
    );
    refused(
        &[
            "resume",
            "--from-store",
            "ftp://left/run",
            "--out",
            "elsewhere",
        ],
        2,
        &["ftp"],
    );
    refused(&["resume", "--listen", "127.0.0.1:1"], 2, &["--from-store"]);
    refused(&["fsck", "--out", out], 2, &["journal.sqlite"]);
    refused(&["audit-ledger", "--out", out], 2, &[out]);
    std::fs::write(folder.path().join("journal.sqlite"), "x".repeat(5000)).unwrap();
    refused(&["fsck", "--out", out], 2, &["damaged", "backup"]);
}

#[test]
fn a_run_that_is_over_can_be_audited_explained_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("corpus.txt");
    let lines = (0..1_000).map(|line| format!("line {line}: the quick brown fox jumps.\n"));
    std::fs::write(&corpus, lines.collect::<String>()).unwrap();
    let config = folder.path().join("settings.toml");
    let training = "[training]\nepochs = 1\nsamples_per_epoch = 8\nsequences = 2\n";
    std::fs::write(&config, training).unwrap();
    let out = folder.path().join("run").display().to_string();
    let (corpus, config) = (corpus.display().to_string(), config.display().to_string());
    let settings = ["--stages", "2", "--corpus", &corpus, "--config", &config];
    let testnet = [
        &["testnet", "--preset", "tiny", "--out", &out][..],
        &settings,
    ]
    .concat();
    // Whether so few samples teach it anything is not the question.
    let lived = orchestrator(&testnet);
    assert!(matches!(lived.status.code(), Some(0 | 1)), "{lived:?}");

    let said = |arguments: &[&str]| {
        let output = orchestrator(&[arguments, &["--out", &out]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let audit = said(&["audit-ledger"]);
    assert!(audit.contains("8 count once each"), "{audit}");
    assert!(
        audit.ends_with("Every sample's tokens are counted once.\n"),
        "{audit}"
    );
    let sample = said(&["explain", "sample", "3"]);
    assert!(sample.contains("smp_3 counts once, in epoch_0"), "{sample}");
    let epoch = said(&["explain", "epoch", "epoch_0"]);
    assert!(epoch.contains("8 samples complete"), "{epoch}");
    // Nobody but miners has to do with a sample.
    let miners = sample
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("peer_"));
    let miner = miners
        .filter_map(|word| word.split('#').next())
        .next()
        .unwrap();
    let miner = said(&["explain", "miner", miner]);
    assert!(miner.contains("joined as a miner of"), "{miner}");
    uses_its_model(&out, &folder.path().join("model").display().to_string());
    let end = said(&["replay", "--at", "365d", "--json"]);
    let end: serde_json::Value = serde_json::from_str(&end).unwrap();
    assert_eq!(end["summary"]["phase"], "over", "{end}");
    assert_eq!(end["summary"]["samples"]["completed"], 8, "{end}");
    assert!(said(&["replay", "--at", "0s"]).contains("Gathering in epoch_0"));

    refused(
        &["explain", "sample", "8", "--out", &out],
        2,
        &["smp_8", "not come to"],
    );
    refused(
        &["explain", "miner", "nobody", "--out", &out],
        2,
        &["nobody", "peer_"],
    );
    refused(
        &["replay", "--at", "soon", "--out", &out],
        2,
        &["soon", "1h30m"],
    );
    for entry in std::fs::read_dir(folder.path().join("run/store")).unwrap() {
        let merged = entry.unwrap().path().join("merged");
        if merged.exists() {
            std::fs::remove_dir_all(merged).unwrap();
        }
    }
    let audit = orchestrator(&["audit-ledger", "--out", &out]);
    assert_eq!(audit.status.code(), Some(1));
    let audit = String::from_utf8(audit.stdout).unwrap();
    assert!(
        audit.contains("does NOT add up") && audit.contains("it is not there"),
        "{audit}"
    );
}

/// Writes with the model of the run in `out`, and exports it as `model`.
fn uses_its_model(out: &str, model: &str) {
    let generate = ["generate", "--out", out, "--prompt", "line 7"];
    let written = [(); 2].map(|()| {
        let written = orchestrator(&[&generate[..], &["--tokens", "9"]].concat());
        assert!(written.status.success(), "{written:?}");
        written.stdout
    });
    assert!(written[0].starts_with(b"line 7"), "{written:?}");
    assert_eq!(written[0], written[1], "the same seed");
    // Whoever reads has enough before the first word: of so many there would be no end.
    let mut endless = Command::new(env!("CARGO_BIN_EXE_iota-orchestrator"))
        .args(generate)
        .args(["--tokens", &usize::MAX.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(endless.stdout.take());
    assert!(endless.wait().unwrap().success());
    refused(
        &[&generate[..], &["--epoch", "7"]].concat(),
        2,
        &["epoch_7"],
    );

    let export = ["export", "--out", out, "--to", model];
    let exported = orchestrator(&export);
    assert!(exported.status.success(), "{exported:?}");
    assert!(Path::new(model).join("config.json").is_file());
    refused(&export, 2, &[model, "there already"]);
}

#[test]
fn shown_settings_can_be_used_as_a_file() {
    let shown = orchestrator(&["config", "show", "--epochs", "7"]);
    assert!(shown.status.success());
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(
        has_line(&text, "training.epochs = 7 # command line"),
        "{text}"
    );
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("settings.toml");
    std::fs::write(&config, &text).unwrap();
    let again = orchestrator(&["config", "show", "--config", config.to_str().unwrap()]);
    let again = String::from_utf8(again.stdout).unwrap();
    let origin = format!("training.epochs = 7 # {}", config.display());
    assert!(
        again
            .lines()
            .any(|line| squeezed(line).starts_with(&origin)),
        "{again}"
    );
    assert!(!again.contains("command line"), "{again}");
}

fn has_line(text: &str, wanted: &str) -> bool {
    text.lines().any(|line| squeezed(line) == wanted)
}

/// With one space where there are several: columns are for people.
fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
