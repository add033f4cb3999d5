//! What an operator can set about how a stage's miners become of one mind again.

use iota_protocol::cells::Cells;
use iota_protocol::settings::Merging;
use serde::{Deserialize, Serialize};

/// How a stage's miners become of one mind again at the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MergingOptions {
    /// Cells that a stage is cut into; 0: one for every pair of its miners, IOTA's butterfly, which suits up to 50 miners.
    pub cells: u32,
    /// Miners that merge the same cell, if `cells` says how many there are: the more than half of them decide. A pair
    /// that differs asks a third.
    pub owners: u32,
}

impl Default for MergingOptions {
    fn default() -> Self {
        Self {
            cells: 0,
            owners: 2,
        }
    }
}

impl MergingOptions {
    /// What the rules are told.
    pub(crate) const fn rules(&self) -> Merging {
        Merging {
            cells: match self.cells {
                0 => Cells::Butterfly,
                cells => Cells::Grid {
                    cells,
                    owners: self.owners,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_cells_is_a_butterfly() {
        let grid = MergingOptions {
            cells: 200,
            owners: 3,
        };
        assert_eq!(MergingOptions::default().rules().cells, Cells::Butterfly);
        let wanted = Cells::Grid {
            cells: 200,
            owners: 3,
        };
        assert_eq!(grid.rules().cells, wanted);
    }
}
