//! A few worlds for everyday tests, each in a process of its own, and that a seed says everything of a world.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::process::{Child, Command, Stdio};

use iota_turmoil::{Counts, Death, Fault, Lived, Which, kept_seeds};

/// Begins a world in a process of its own.
fn start(which: Which, how: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_iota-turmoil"))
        .args(which.to_string().split(' '))
        .arg(how)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the process of a world printed, which has come to a good end.
fn printed(world: Child) -> String {
    let output = world.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

const fn troubled(seed: u64) -> Which {
    Which::Troubled { seed }
}

/// Lives through worlds, all at once.
fn lived(worlds: impl Iterator<Item = Which>) -> Vec<Lived> {
    let worlds: Vec<Child> = worlds.map(|which| start(which, "--json")).collect();
    let lived = worlds
        .into_iter()
        .map(|world| serde_json::from_str(&printed(world)).unwrap());
    lived.collect()
}

#[test]
fn seeds_that_once_found_a_fault_find_none() {
    let seeds = kept_seeds().count();
    assert_eq!(lived(kept_seeds().map(troubled)).len(), seeds);
}

#[test]
fn runs_of_the_real_runtimes_survive_worlds_of_trouble() {
    let mut faults = Counts::default();
    for lived in lived((0..6).map(troubled)) {
        assert!(lived.completed > 0 && lived.audits > 0, "{lived:?}");
        faults.add(&lived.faults);
    }
    let kinds = Fault::ALL.iter().filter(|fault| faults.of(**fault) > 0);
    assert!(kinds.count() > Fault::ALL.len() / 2, "{faults}");
}

/// At some of its writes; `--every-write` is all of them.
#[test]
fn a_run_whose_orchestrator_dies_of_a_write_goes_on_as_if_nothing_had_happened() {
    let calm = lived([Which::Calm { death: None }].into_iter()).remove(0);
    let deaths = (0..calm.writes).step_by(43).map(|write| {
        let kept = write % 2 == 1;
        let death = Some(Death { write, kept });
        Which::Calm { death }
    });
    let worlds = lived(deaths);
    assert!(worlds.len() > 4, "a run of {} writes", calm.writes);
    for lived in worlds {
        assert_eq!(lived.faults.of(Fault::JournalDied), 1);
        assert_eq!(lived.completed, calm.completed);
        assert_eq!(
            (lived.re_leased, lived.lost),
            (0, 0),
            "no work was given to another"
        );
        assert_eq!(lived.joins, 5, "nobody joined twice");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_same_seed_makes_the_same_world_in_another_process_and_another_seed_another() {
    let (first, again) = (start(troubled(3), "--trace"), start(troubled(3), "--trace"));
    let (first, again) = (printed(first), printed(again));
    let different = first.lines().zip(again.lines()).find(|(a, b)| a != b);
    assert_eq!(different, None);
    assert_eq!(first, again);
    assert!(first.lines().count() > 100, "it is a trace of everything");
    let worlds = lived((3..5).map(troubled));
    assert!(first.contains(&worlds[0].trace));
    assert_ne!(worlds[0].trace, worlds[1].trace);
}
