//! A few worlds for everyday tests, each in a process of its own, and that a seed says everything of a world.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::process::{Command, Output};

use iota_turmoil::{Counts, Fault, Lived, kept_seeds};

/// Lives through a world in a process of its own.
fn live(seed: u64, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_iota-turmoil"))
        .args(["--seed", &seed.to_string()])
        .args(arguments)
        .output()
        .unwrap()
}

fn lived(seed: u64) -> Lived {
    let output = live(seed, &["--json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn seeds_that_once_found_a_fault_find_none() {
    for seed in kept_seeds() {
        lived(seed);
    }
}

#[test]
fn runs_of_the_real_runtimes_survive_worlds_of_trouble() {
    let mut faults = Counts::default();
    for seed in 0..6 {
        let lived = lived(seed);
        assert!(lived.completed > 0 && lived.audits > 0, "{lived:?}");
        faults.add(&lived.faults);
    }
    let kinds = Fault::ALL.iter().filter(|fault| faults.of(**fault) > 0);
    assert!(kinds.count() > Fault::ALL.len() / 2, "{faults}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_same_seed_makes_the_same_world_in_another_process_and_another_seed_another() {
    let first = live(3, &["--trace"]);
    assert!(first.status.success());
    let (first, again) = (
        String::from_utf8(first.stdout).unwrap(),
        String::from_utf8(live(3, &["--trace"]).stdout).unwrap(),
    );
    let different = first.lines().zip(again.lines()).find(|(a, b)| a != b);
    assert_eq!(different, None);
    assert_eq!(first, again);
    assert!(first.lines().count() > 1_000, "it is a trace of everything");
    assert_ne!(lived(3).trace, lived(4).trace);
}
