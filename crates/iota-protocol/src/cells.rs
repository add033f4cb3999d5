//! Which ranges of a stage are merged, and by whom: butterfly all-reduce (IOTA primer).
//!
//! Among k miners there are C(k, 2) pairs. The stage's parameters are cut into as many cells, and every pair gets one:
//! so any two miners check each other exactly once, and a liar cannot tell which cells its accomplice shares. The
//! shuffle that hands pairs to cells is drawn with the run's secret.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::id::{Epoch, Session, StageIndex};

/// One cell and who is to merge it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCell {
    /// Its elements of the stage's flat parameters.
    pub range: Range<u64>,
    /// Two distinct sessions in ascending order; one if the miner is alone (M2).
    pub owners: Vec<Session>,
}

/// Cuts a stage of `elements` parameters into one cell per pair of `roster`, disjoint, in order and covering it exactly
/// (M1). A stage with fewer elements than there are pairs has a cell per element. An empty roster has no cells.
pub fn plan(
    secret: &[u8; 32],
    stage: StageIndex,
    epoch: Epoch,
    roster: &[Session],
    elements: u64,
) -> Vec<PlannedCell> {
    let mut pairs: Vec<Vec<Session>> = match roster {
        [] => return Vec::new(),
        [alone] => vec![vec![*alone]],
        _ => (0..roster.len())
            .flat_map(|a| (a + 1..roster.len()).map(move |b| (a, b)))
            .map(|(a, b)| vec![roster[a].min(roster[b]), roster[a].max(roster[b])])
            .collect(),
    };
    shuffle(&mut pairs, |position| {
        Draw::about(secret, "cells")
            .number(stage.get().into())
            .number(epoch.get())
            .number(position)
    });
    let count = elements.min(pairs.len() as u64);
    pairs
        .into_iter()
        .zip(0..count)
        .map(|(owners, cell)| PlannedCell {
            range: share(elements, count, cell),
            owners,
        })
        .collect()
}

/// The `index`-th of `count` near-equal contiguous shares of `elements`.
fn share(elements: u64, count: u64, index: u64) -> Range<u64> {
    let (length, longer) = (elements / count, elements % count);
    let start_of = |index: u64| index * length + index.min(longer);
    start_of(index)..start_of(index + 1)
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], draw: impl Fn(u64) -> Draw) {
    for last in (1..items.len()).rev() {
        let other = draw(last as u64).below(last as u64 + 1);
        items.swap(last, usize::try_from(other).expect("below a length"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::id::PeerId;

    fn roster(k: u8) -> Vec<Session> {
        (0..k)
            .map(|n| Session {
                peer: PeerId::from_bytes([n; 32]),
                generation: 1,
            })
            .collect()
    }

    fn plan_for(k: u8, elements: u64, secret: u8) -> Vec<PlannedCell> {
        plan(
            &[secret; 32],
            StageIndex::new(1),
            Epoch::new(3),
            &roster(k),
            elements,
        )
    }

    #[test]
    fn cells_are_disjoint_and_cover_the_stage_exactly() {
        for k in [1, 2, 3, 5, 50] {
            for elements in [1, 2, 9, 1_225, 1_000_003] {
                let cells = plan_for(k, elements, 1);
                let mut next = 0;
                for cell in &cells {
                    assert_eq!(cell.range.start, next, "{k} miners, {elements} elements");
                    assert!(cell.range.end > cell.range.start);
                    next = cell.range.end;
                }
                assert_eq!(next, elements);
                let lengths = cells.iter().map(|cell| cell.range.end - cell.range.start);
                assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn every_pair_shares_exactly_one_cell() {
        for k in [2, 3, 5, 50] {
            let cells = plan_for(k, 1_000_000, 1);
            assert_eq!(cells.len(), usize::from(k) * usize::from(k - 1) / 2);
            let pairs: BTreeSet<_> = cells.iter().map(|cell| cell.owners.clone()).collect();
            assert_eq!(pairs.len(), cells.len());
            assert!(
                pairs
                    .iter()
                    .all(|pair| pair.len() == 2 && pair[0] < pair[1])
            );
        }
    }

    #[test]
    fn a_miner_alone_owns_the_whole_stage_and_nobody_owns_nothing() {
        assert_eq!(
            plan_for(1, 10, 1),
            vec![PlannedCell {
                range: 0..10,
                owners: roster(1)
            }]
        );
        assert_eq!(plan_for(0, 10, 1), vec![]);
    }

    #[test]
    fn the_secret_decides_who_owns_what() {
        assert_eq!(plan_for(5, 1_000, 1), plan_for(5, 1_000, 1));
        assert_ne!(plan_for(5, 1_000, 1), plan_for(5, 1_000, 2));
    }
}
