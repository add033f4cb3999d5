//! How exactly a model is computed.

use serde::{Deserialize, Serialize};

/// What the factors of large matrix products are rounded to: those of linear layers and of the output projection, not
/// those within attention. Weights, sums, and everything between products are in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// bf16: eight significant bits. A device that multiplies bf16 is up to twice as fast; on a CPU that does not, results
    /// have the same bits and come a little slower than with f32.
    Bf16,
}
