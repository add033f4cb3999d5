//! The models that are trained: small, of the shape of large ones.

use iota_model::{Boundary, ModelConfig, Rope};

/// Channels of a head.
const HEAD_WIDTH: usize = 32;

/// So many blocks of so many channels, without boundaries.
pub(crate) fn small_model(
    width: usize,
    blocks: usize,
    context: usize,
    vocabulary: usize,
) -> ModelConfig {
    let heads = (width / HEAD_WIDTH).max(1);
    ModelConfig {
        vocabulary,
        width,
        blocks,
        heads,
        key_value_heads: heads.div_ceil(2),
        feed_forward: 2 * width,
        context,
        rope: Rope {
            base: 10_000.0,
            scaling: None,
        },
        norm_epsilon: 1e-5,
        boundary: Boundary::None,
    }
}
