//! Settings that make no network: each says what is wrong, and nothing has been written.

use iota_testnet::{Testnet, TestnetSettings};

use crate::small;

fn refusal(change: impl FnOnce(&mut TestnetSettings)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = small(folder.path());
    change(&mut settings);
    let out = settings.out.clone();
    let error = Testnet::new(settings).unwrap_err();
    assert!(
        !out.exists(),
        "nothing is written for settings that cannot be used"
    );
    error.to_string()
}

#[test]
fn what_cannot_be_used_is_named() {
    type Change = fn(&mut TestnetSettings);
    let cases: [(Change, &[&str]); 13] = [
        (|settings| settings.stages = 0, &["stages"]),
        (|settings| settings.stages = 100, &["100", "blocks"]),
        (
            |settings| settings.miners_per_stage = 0,
            &["miners_per_stage"],
        ),
        (|settings| settings.cheaters = 4, &["cheaters", "honest"]),
        (
            |settings| settings.preset = "tinny".to_owned(),
            &["tinny", "tiny"],
        ),
        (
            |settings| settings.model.boundary_channels = 1 << 20,
            &["boundary.channels", "width"],
        ),
        (
            |settings| settings.corpus = "/no/such/text".to_owned(),
            &["/no/such/text"],
        ),
        (|settings| settings.training.epochs = 0, &["epochs"]),
        (
            |settings| settings.training.sequences = 1_000_000,
            &["token"],
        ),
        (
            |settings| settings.training.learning_rate = f64::NAN,
            &["learning_rate"],
        ),
        (|settings| settings.training.beta2 = 1.5, &["beta"]),
        (
            |settings| settings.tls_certificate = "certificate.pem".into(),
            &["tls_key"],
        ),
        (
            |settings| {
                settings.tls_certificate = "certificate.pem".into();
                settings.tls_key = "key.pem".into();
            },
            &["tls_certificate", "serve"],
        ),
    ];
    for (change, words) in cases {
        let message = refusal(change);
        for word in words {
            assert!(message.contains(word), "{word:?} is missing in {message:?}");
        }
    }
}

#[test]
fn an_empty_corpus_is_named() {
    let message = refusal(|settings| std::fs::write(&settings.corpus, "").unwrap());
    assert!(message.contains("corpus.txt"), "{message}");
}

#[test]
fn a_corpus_that_is_no_text_is_named() {
    let message = refusal(|settings| std::fs::write(&settings.corpus, [0xff, 0xfe, 0x00]).unwrap());
    assert!(
        message.contains("corpus.txt") && message.contains("UTF-8"),
        "{message}"
    );
}
