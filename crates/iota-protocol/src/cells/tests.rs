use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::id::PeerId;

const BUTTERFLY: Cells = Cells::Butterfly;

const fn grid(cells: u32, owners: u32) -> Cells {
    Cells::Grid { cells, owners }
}

fn roster(miners: u16) -> Vec<Session> {
    let session = |number: u16| Session {
        peer: PeerId::from_bytes(*Digest::of(&number.to_le_bytes()).as_bytes()),
        generation: 1,
    };
    (0..miners).map(session).collect()
}

fn seeded(secret: u8) -> Digest {
    seed(&[secret; 32], StageIndex::new(1), Epoch::new(3))
}

fn plan_for(cells: Cells, miners: u16, elements: u64) -> Vec<PlannedCell> {
    plan(cells, &seeded(1), &roster(miners), elements)
}

/// What holds of every plan: M1, M2, and that nobody is asked to do more than others.
fn check(cells: Cells, miners: u16, elements: u64, planned: &[PlannedCell]) {
    let case = format!("{cells:?}, {miners} miners, {elements} elements");
    let mut next = 0;
    let roster: BTreeSet<Session> = roster(miners).into_iter().collect();
    let mut owned: BTreeMap<Session, u64> = roster.iter().map(|one| (*one, 0)).collect();
    let wanted = match cells {
        Cells::Butterfly => 2,
        Cells::Grid { owners, .. } => owners as usize,
    };
    for cell in planned {
        assert_eq!(cell.range.start, next, "{case}");
        assert!(cell.range.end > cell.range.start, "{case}");
        next = cell.range.end;
        assert_eq!(cell.owners.len(), wanted.min(roster.len()), "{case}");
        assert!(cell.owners.is_sorted_by(|a, b| a < b), "{case}");
        for owner in &cell.owners {
            *owned.get_mut(owner).expect("owners are of the roster") += 1;
        }
    }
    assert_eq!(next, elements, "{case}");
    let spread = |numbers: &mut dyn Iterator<Item = u64>| {
        let numbers: Vec<u64> = numbers.collect();
        numbers.iter().max().unwrap() - numbers.iter().min().unwrap()
    };
    let mut lengths = planned.iter().map(|cell| cell.range.end - cell.range.start);
    assert!(spread(&mut lengths) <= 1, "{case}");
    // A butterfly with fewer elements than pairs has lost some of its cells.
    let whole = cells != BUTTERFLY || planned.len() >= pairs_of(miners);
    assert!(!whole || spread(&mut owned.into_values()) <= 1, "{case}");
}

fn pairs_of(miners: u16) -> usize {
    usize::from(miners) * usize::from(miners.saturating_sub(1)) / 2
}

#[test]
fn cells_are_disjoint_cover_the_stage_exactly_and_are_as_many_for_everybody() {
    for miners in [1, 2, 3, 5, 7, 50, 500] {
        for elements in [1, 2, 9, 1_225, 1_000_003] {
            let cells = if miners == 500 {
                vec![grid(1_000, 2), grid(4_096, 3), grid(7, 2)]
            } else {
                vec![BUTTERFLY, grid(1, 2), grid(60, 2), grid(61, 3), grid(5, 8)]
            };
            for cells in cells {
                check(cells, miners, elements, &plan_for(cells, miners, elements));
            }
        }
    }
}

proptest! {
    #[test]
    fn a_grid_is_fair_for_any_numbers(
        miners in 1..200_u16,
        elements in 1..100_000_u64,
        cells in 1..600_u32,
        owners in 2..=OWNERS_MAX,
    ) {
        let cells = grid(cells, owners);
        check(cells, miners, elements, &plan_for(cells, miners, elements));
    }

    #[test]
    fn a_butterfly_is_fair_for_any_numbers(miners in 1..60_u16, elements in 1..100_000_u64) {
        check(BUTTERFLY, miners, elements, &plan_for(BUTTERFLY, miners, elements));
    }
}

#[test]
fn every_pair_shares_exactly_one_cell() {
    for miners in [2, 3, 5, 50] {
        let cells = plan_for(BUTTERFLY, miners, 1_000_000);
        assert_eq!(cells.len(), pairs_of(miners));
        let pairs: BTreeSet<_> = cells.iter().map(|cell| cell.owners.clone()).collect();
        assert_eq!(pairs.len(), cells.len());
    }
}

#[test]
fn whom_one_meets_in_a_grid_is_drawn_anew_for_every_cell() {
    // 20 miners own 25 cells each. Dealt in a fixed order, each would meet at most two others.
    let cells = plan_for(grid(250, 2), 20, 1_000_000);
    for miner in roster(20) {
        let shared = cells.iter().filter(|cell| cell.owners.contains(&miner));
        let met: BTreeSet<Session> = shared.flat_map(|cell| cell.owners.clone()).collect();
        assert!(met.len() > 10, "{} met {}", miner, met.len() - 1);
    }
}

#[test]
fn a_miner_alone_owns_the_whole_stage_and_nobody_owns_nothing() {
    let alone = PlannedCell {
        range: 0..10,
        owners: roster(1),
    };
    assert_eq!(plan_for(BUTTERFLY, 1, 10), vec![alone]);
    assert_eq!(plan_for(grid(3, 2), 1, 10).len(), 3);
    assert_eq!(plan_for(BUTTERFLY, 0, 10), vec![]);
    assert_eq!(plan_for(grid(3, 2), 0, 10), vec![]);
}

#[test]
fn the_seed_decides_who_owns_what_and_whoever_knows_it_can_plan_again() {
    for cells in [BUTTERFLY, grid(40, 2)] {
        let planned = plan(cells, &seeded(1), &roster(5), 1_000);
        assert_eq!(planned, plan(cells, &seeded(1), &roster(5), 1_000));
        assert_ne!(planned, plan(cells, &seeded(2), &roster(5), 1_000));
    }
    let of = |stage, epoch| seed(&[1; 32], StageIndex::new(stage), Epoch::new(epoch));
    let seeds = BTreeSet::from([of(0, 0), of(0, 1), of(1, 0)]);
    assert_eq!(seeds.len(), 3);
}
