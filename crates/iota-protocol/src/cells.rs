//! Which ranges of a stage are merged, and by whom.
//!
//! ```text
//!   butterfly, 4 miners               grid, 5 miners, 6 cells, 2 owners each
//!
//!   cell   0  1  2  3  4  5           cell   0  1  2  3  4  5
//!   a      x  x        x              a      x        x
//!   b      x        x     x           b      x        x     x        dealt like cards: the shuffled roster
//!   c         x     x  x              c         x     x              again and again, two to a cell
//!   d            x        x ..        d         x        x
//!                                     e            x        x  ..
//! ```
//!
//! *Butterfly all-reduce* (IOTA primer): among k miners there are C(k, 2) pairs. The stage's parameters are cut into as
//! many cells, and every pair gets one: so any two miners check each other exactly once. The cells of a stage of 500
//! would be 124,750, each with an object from every miner; a *grid* has as many cells as it is told to, and as many
//! owners of each.
//!
//! In both everybody owns as many cells as everybody else, give or take one, and cells are equally long, give or take an
//! element. Who owns what is drawn with a [`seed`] that follows from the run's secret: nobody can foresee which cells an
//! accomplice shares. Once the seed is told, with the record of the merge, anybody can plan again what was planned.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::id::{Digest, Epoch, Session, StageIndex};

/// How a stage is cut into cells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Cells {
    /// A cell for every pair of miners, who both own it.
    #[default]
    Butterfly,
    /// As many cells as wanted.
    Grid {
        /// How many. A miner owns `cells * owners / miners` of them. At least 1.
        cells: u32,
        /// Miners that merge the same cell and have to agree, the more than half of them. At least 2, at most
        /// [`OWNERS_MAX`]; as many as there are if there are fewer.
        owners: u32,
    },
}

/// Owners of a cell, at most: more would merge the same again and again and make no lie less likely to be found.
pub const OWNERS_MAX: u32 = 8;

/// Cells of a grid, at most: each is an object of every upload.
pub const CELLS_MAX: u32 = 4_096;

/// One cell and who is to merge it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCell {
    /// Its elements of the stage's flat parameters.
    pub range: Range<u64>,
    /// Distinct sessions in ascending order: two or as many as a grid wants, fewer if there are fewer (M2).
    pub owners: Vec<Session>,
}

/// What the owners of a stage's cells are drawn with, in one epoch. It tells nothing of other epochs.
pub fn seed(secret: &[u8; 32], stage: StageIndex, epoch: Epoch) -> Digest {
    Draw::about(secret, "cells")
        .number(stage.get().into())
        .number(epoch.get())
        .digest()
}

/// Cuts a stage of `elements` parameters into cells, disjoint, in order and covering it exactly (M1), and deals them to
/// the miners of `roster`. A stage with fewer elements than cells has a cell per element. An empty roster has no cells.
pub fn plan(cells: Cells, seed: &Digest, roster: &[Session], elements: u64) -> Vec<PlannedCell> {
    let dealt = match (cells, roster) {
        (_, []) => return Vec::new(),
        (Cells::Butterfly, [alone]) => vec![vec![*alone]],
        (Cells::Butterfly, _) => pairs(seed, roster),
        (Cells::Grid { cells, owners }, _) => deal(
            seed,
            roster,
            u64::from(cells.max(1)).min(elements),
            owners.max(1) as usize,
        ),
    };
    let count = elements.min(dealt.len() as u64);
    dealt
        .into_iter()
        .zip(0..count)
        .map(|(mut owners, cell)| {
            owners.sort_unstable();
            PlannedCell {
                range: share(elements, count, cell),
                owners,
            }
        })
        .collect()
}

/// Every pair of a roster once, in an order that is drawn.
fn pairs(seed: &Digest, roster: &[Session]) -> Vec<Vec<Session>> {
    let mut pairs: Vec<Vec<Session>> = (0..roster.len())
        .flat_map(|a| (a + 1..roster.len()).map(move |b| vec![roster[a], roster[b]]))
        .collect();
    shuffle(&mut pairs, |position| {
        Draw::about(seed.as_bytes(), "pairs").number(position)
    });
    pairs
}

/// The roster, shuffled, again and again, a few to each cell: so nobody has a second cell more than anybody else, and
/// whom one meets at a cell is drawn anew in every round.
fn deal(seed: &Digest, roster: &[Session], cells: u64, owners: usize) -> Vec<Vec<Session>> {
    let owners = owners.min(roster.len());
    let mut rounds = 0_u64;
    // Dealt from the end.
    let mut pile: Vec<Session> = Vec::new();
    let mut deal_one = |hand: &mut Vec<Session>| {
        if pile.is_empty() {
            pile.extend_from_slice(roster);
            shuffle(&mut pile, |position| {
                Draw::about(seed.as_bytes(), "round")
                    .number(rounds)
                    .number(position)
            });
            rounds += 1;
        }
        // A hand that is dealt from two rounds may meet the same miner again: then the next one of the round comes first.
        let place = pile.iter().rposition(|one| !hand.contains(one));
        let place = place.expect("a round has everybody, and the hand is smaller than the roster");
        hand.push(pile.remove(place));
    };
    (0..cells)
        .map(|_| {
            let mut hand = Vec::with_capacity(owners);
            for _ in 0..owners {
                deal_one(&mut hand);
            }
            hand
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
mod tests;
