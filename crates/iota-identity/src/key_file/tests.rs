//! Files that a peer may meet, and what becomes of them.

use super::*;

const ALICE: &str = "0xe5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a";
const ALICE_ADDRESS: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
const ALICE_PUBLIC: &str = "0xd43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d";

fn parse_text(text: &str) -> Result<Keypair, KeyFileError> {
    parse(text, Path::new("hotkey"))
}

#[test]
fn a_key_is_made_on_first_use_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys/miner");
    let made = load_or_create(&path).unwrap();
    let found = load_or_create(&path).unwrap();
    assert_eq!(made.peer_id(), found.peer_id());
    let files: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(files.len(), 1, "no draft is left behind");
}

#[test]
fn processes_that_start_together_agree_on_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let peers: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| load_or_create(&path).unwrap().peer_id()))
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    assert!(peers.iter().all(|peer| *peer == peers[0]));
}

#[cfg(unix)]
#[test]
fn a_file_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    create(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = load_or_create(&path).unwrap_err();
    assert!(
        matches!(error, KeyFileError::Exposed { mode: 0o640, .. }),
        "{error}"
    );
}

#[test]
fn a_file_that_is_there_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let first = create(&path).unwrap();
    let error = create(&path).unwrap_err();
    assert!(
        matches!(&error, KeyFileError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists),
        "{error}"
    );
    assert_eq!(load(&path).unwrap().peer_id(), first.peer_id());
}

#[test]
fn a_bittensor_hotkey_is_read_whatever_else_it_holds() {
    for text in [
        format!(
            r#"{{"accountId":"{ALICE_PUBLIC}","publicKey":"{ALICE_PUBLIC}","privateKey":"0x00","secretPhrase":"a b c",
            "secretSeed":"{ALICE}","ss58Address":"{ALICE_ADDRESS}","cryptoType":1}}"#
        ),
        format!(r#"{{" ss58Address":"{ALICE_ADDRESS}","secretSeed":"{ALICE}","newField":[1]}}"#),
        format!(r#"{{"secretSeed":"{ALICE}"}}"#),
    ] {
        assert_eq!(parse_text(&text).unwrap().address(), ALICE_ADDRESS);
    }
}

#[test]
fn mixed_up_files_are_refused() {
    let public = format!(
        r#"{{"secretSeed":"{ALICE}","publicKey":"0x{}"}}"#,
        "11".repeat(32)
    );
    let error = parse_text(&public).unwrap_err();
    assert!(
        matches!(
            error,
            KeyFileError::Mismatch {
                field: "publicKey",
                ..
            }
        ),
        "{error}"
    );

    let other = Keypair::from_seed([9; 32]).address();
    let address = format!(r#"{{"secretSeed":"{ALICE}","ss58Address":"{other}"}}"#);
    let error = parse_text(&address).unwrap_err();
    assert!(
        matches!(
            error,
            KeyFileError::Mismatch {
                field: "ss58Address",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn other_kinds_of_key_file_are_named_not_guessed_at() {
    for text in [
        "$NACLxyz",
        "gAAAAAB",
        r#"{"encoded":"abc","encoding":{},"address":"5"}"#,
        &format!(r#"{{"secretSeed":"{ALICE}","cryptoType":0}}"#),
    ] {
        let error = parse_text(text).unwrap_err();
        assert!(
            matches!(error, KeyFileError::Unsupported { .. }),
            "{text}: {error}"
        );
    }
}

#[test]
fn a_malformed_file_is_refused_without_quoting_it() {
    for text in [
        "",
        "{}",
        "[]",
        r#"{"secretSeed":"0xsecret"}"#,
        r#"{"secretSeed": secret}"#,
        r#"{"secretSeed":7}"#,
    ] {
        let error = parse_text(text).unwrap_err();
        assert!(
            matches!(error, KeyFileError::Malformed { .. }),
            "{text}: {error}"
        );
        assert!(!error.to_string().contains("secret}") && !error.to_string().contains("0xsecret"));
    }
}
