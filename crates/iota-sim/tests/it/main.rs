//! The simulator's own promises, and a small set of worlds for everyday tests.

use std::collections::BTreeSet;

use iota_sim::{Counts, Fault, Places, kept_seeds, run};

#[test]
fn seeds_that_once_found_a_fault_find_none() {
    for seed in kept_seeds() {
        run(seed, false).unwrap();
    }
}

#[test]
fn runs_survive_worlds_full_of_trouble_and_every_kind_of_it_is_there() {
    let mut faults = Counts::default();
    let mut places = Places::default();
    let mut ahead = 0;
    for seed in 0..150 {
        let run = run(seed, false).unwrap();
        faults += run.faults;
        places += run.places;
        ahead += run.ahead;
    }
    assert!(ahead > 0, "nobody trained while its stage merged");
    let Places {
        waited,
        admitted,
        expired,
        windows,
    } = places;
    assert!(
        waited > 0 && admitted > 0 && expired > 0 && windows > 0,
        "{places:?}"
    );
    for fault in Fault::ALL {
        assert!(faults.of(*fault) > 0, "no world had a {}", fault.text());
    }
}

#[test]
fn the_same_seed_makes_the_same_world_and_another_seed_another() {
    let traces: BTreeSet<String> = (0..10)
        .map(|seed| {
            let first = run(seed, false).unwrap();
            assert_eq!(first, run(seed, false).unwrap());
            first.trace.to_string()
        })
        .collect();
    assert_eq!(traces.len(), 10);
}
