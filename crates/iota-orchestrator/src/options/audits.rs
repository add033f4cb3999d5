//! What an operator can set about how audits compare.

use iota_run::{Comparison, Tolerances};
use serde::{Deserialize, Serialize};

/// How audits compare what a validator computes with what a miner said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditOptions {
    /// `bits` finds every miner that did anything else, and bans those that compute on a card, or in another precision than
    /// the run's. `close` is for runs in which they take part, and needs tolerances.
    pub comparison: ComparisonName,
    /// With `close`: how far an honest miner may be from a validator, by optimizer steps since the checkpoint, as
    /// `iota-orchestrator tolerances` prints it for the run's model, settings and devices.
    pub tolerances: Vec<Tolerances>,
}

/// How audits compare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComparisonName {
    /// [`Comparison::Bits`].
    #[default]
    Bits,
    /// [`Comparison::Close`].
    Close,
}

impl AuditOptions {
    pub(crate) fn comparison(&self) -> Comparison {
        match self.comparison {
            ComparisonName::Bits => Comparison::Bits,
            ComparisonName::Close => Comparison::Close {
                tolerances: self.tolerances.clone(),
            },
        }
    }
}
