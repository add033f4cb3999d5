//! Whole networks over real sockets, with a tiny model.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod by_hand;
mod cheating;
mod close;
mod encrypted;
mod history;
mod merging;
mod refusing;
mod restoring;
mod resuming;
mod training;
mod using;
mod vanishing;

use std::path::Path;

use iota_node::Shutdown;
use iota_testnet::{Report, Testnet, TestnetSettings};

/// A network that is done within seconds: a tiny model, two stages, a short text.
fn small(folder: &Path) -> TestnetSettings {
    let corpus = folder.join("corpus.txt");
    std::fs::write(&corpus, text()).unwrap();
    let mut settings = TestnetSettings {
        stages: 2,
        preset: "tiny".to_owned(),
        corpus: corpus.display().to_string(),
        out: folder.join("run"),
        ..TestnetSettings::default()
    };
    settings.training.epochs = 2;
    settings.training.samples_per_epoch = 24;
    settings.training.sequences = 4;
    settings.training.warmup_samples = 8;
    settings.training.learning_rate = 5e-3;
    settings
}

/// Enough regular text for a tiny model to learn something within a few dozen samples.
fn text() -> String {
    (0..2_000)
        .map(|line| format!("line {line}: the quick brown fox jumps over the lazy dog.\n"))
        .collect()
}

async fn run(settings: TestnetSettings) -> Report {
    Testnet::new(settings)
        .unwrap()
        .run(&Shutdown::new())
        .await
        .unwrap()
}
