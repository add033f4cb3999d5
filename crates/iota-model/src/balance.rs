//! Which cuts give stages of roughly equal cost.

use crate::config::ModelConfig;

/// What a model's pieces cost a stage, in any unit: seconds, say, as `iota-compute` measures them. Only their ratios
/// matter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// One block.
    pub block: f64,
    /// The embedding, in the first stage.
    pub head: f64,
    /// The last norm, the output projection and the loss, in the last stage.
    pub tail: f64,
}

/// [`Costs`] as whole numbers, so that sums and ties come out the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weights {
    block: u128,
    head: u128,
    tail: u128,
}

/// What measured costs add up to as whole numbers: so fine that rounding changes nothing that was measured, and so small
/// that the squared cost of the deepest model fits 128 bits.
const TOTAL_WEIGHT: f64 = (1_u64 << 40) as f64;

impl Costs {
    /// `None` if one of them is negative or not a number, or a block costs nothing.
    pub(crate) fn weights(&self) -> Option<Weights> {
        let costs = [self.block, self.head, self.tail];
        let total: f64 = costs.iter().sum();
        let usable = costs.iter().all(|cost| *cost >= 0.0) && self.block > 0.0;
        if !usable || !total.is_finite() {
            return None;
        }
        let weight = |cost: f64| (cost / total * TOTAL_WEIGHT).round() as u128;
        Some(Weights {
            block: weight(self.block).max(1),
            head: weight(self.head),
            tail: weight(self.tail),
        })
    }
}

impl Weights {
    /// An estimate from the model's dimensions alone.
    ///
    /// A parameter costs a stage twice: once for its memory, its optimizer step and its share of every merge, and once
    /// for the multiply-add that each token does with it. The embedding is looked up, not multiplied, and costs once;
    /// attention has a cost per token that grows with the context and no parameters.
    pub(crate) fn estimate(config: &ModelConfig) -> Self {
        let embedding = (config.vocabulary * config.width) as u128;
        Self {
            block: (2 * config.block_parameters() + config.context * config.width) as u128,
            head: embedding,
            tail: 2 * embedding,
        }
    }
}

/// Groups consecutive pieces, given by their first blocks, so that the sum of the squared costs of the groups is least.
/// Returns the first blocks of all groups but the first; `None` if there are no groups, or more groups than pieces.
pub(crate) fn cuts(
    weights: Weights,
    starts: &[usize],
    blocks: usize,
    groups: usize,
) -> Option<Vec<usize>> {
    if groups == 0 || groups > starts.len() {
        return None;
    }
    let edge = |piece: usize| starts.get(piece).copied().unwrap_or(blocks);
    let squared_cost = |from: usize, to: usize| {
        let mut cost = (edge(to) - edge(from)) as u128 * weights.block;
        if from == 0 {
            cost += weights.head;
        }
        if to == starts.len() {
            cost += weights.tail;
        }
        cost * cost
    };
    // least[group][end]: the least sum for pieces ..end in group + 1 groups, and where the last group starts.
    let mut least: Vec<Vec<Option<(u128, usize)>>> = vec![
        (0..=starts.len())
            .map(|end| (end > 0).then(|| (squared_cost(0, end), 0)))
            .collect(),
    ];
    for group in 1..groups {
        let before = &least[group - 1];
        let row = (0..=starts.len())
            .map(|end| {
                (group..end)
                    .filter_map(|from| {
                        before[from].map(|(sum, _)| (sum + squared_cost(from, end), from))
                    })
                    .min()
            })
            .collect();
        least.push(row);
    }
    let mut cuts = Vec::with_capacity(groups - 1);
    let mut end = starts.len();
    for group in (1..groups).rev() {
        end = least[group][end]
            .expect("there are enough pieces for every group")
            .1;
        cuts.push(starts[end]);
    }
    cuts.reverse();
    Some(cuts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(costs: Costs, blocks: usize, groups: usize) -> Vec<usize> {
        let starts: Vec<usize> = (0..blocks).collect();
        cuts(costs.weights().unwrap(), &starts, blocks, groups).unwrap()
    }

    #[test]
    fn a_costly_tail_gets_fewer_blocks_and_a_costly_head_too() {
        let plain = Costs {
            block: 1.0,
            head: 0.0,
            tail: 0.0,
        };
        assert_eq!(cut(plain, 9, 3), [3, 6]);
        assert_eq!(cut(Costs { tail: 2.0, ..plain }, 10, 3), [4, 8]);
        assert_eq!(cut(Costs { head: 2.0, ..plain }, 10, 3), [2, 6]);
    }

    #[test]
    fn the_unit_of_costs_does_not_matter() {
        let seconds = Costs {
            block: 0.013,
            head: 0.002,
            tail: 0.031,
        };
        let nanoseconds = Costs {
            block: 13e6,
            head: 2e6,
            tail: 31e6,
        };
        for groups in 1..=12 {
            assert_eq!(cut(seconds, 12, groups), cut(nanoseconds, 12, groups));
        }
    }

    #[test]
    fn costs_that_are_none_are_not_used() {
        let costs = Costs {
            block: 1.0,
            head: 0.0,
            tail: 0.0,
        };
        for unusable in [
            Costs {
                block: 0.0,
                ..costs
            },
            Costs {
                head: -1.0,
                ..costs
            },
            Costs {
                tail: f64::NAN,
                ..costs
            },
            Costs {
                tail: f64::INFINITY,
                ..costs
            },
        ] {
            assert_eq!(unusable.weights(), None, "{unusable:?}");
        }
    }
}
