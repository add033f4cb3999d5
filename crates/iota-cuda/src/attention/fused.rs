//! Attention without scores in memory: a kernel forward, and two backward, for the head widths that they are written for.
//!
//! ```text
//!   packed, rounded --> attention_fused_forward --> out, log_sums        a block: the queries of a few heads, all keys
//!
//!   packed, rounded,    attention_fused_queries --> dQ                   the same blocks
//!   out_gradient,   --> attention_fused_keys    --> dK, dV               a block: 128 keys, the queries of all heads that
//!   rounded, along                                                       share them
//! ```
//!
//! Nothing is rearranged: kernels read and write rows as they lie. Scores stay in registers, so that what is in memory for
//! them is two numbers for each query and head. `kernels/attention_fused.cu` has the algorithm and its source.

use iota_compute::backend::AttentionShape;
use iota_model::Precision;

use crate::device::{Cuda, to_u32};
use crate::driver::Argument;
use crate::error::Result;
use crate::kernels::{LANES, THREADS, shared_bytes};
use crate::memory::{View, ViewMut};

/// Queries that a warp holds, forward.
const FORWARD_ROWS: usize = 32;

/// Queries or keys that a warp holds, backward, and forward where there is little shared memory.
const SMALL_ROWS: usize = 16;

const WARPS: usize = (THREADS / LANES) as usize;

/// Kernels write two numbers at a time.
const PAIR_BYTES: u64 = 8;

/// The kernels of a head width, and what follows from a shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fused {
    shape: AttentionShape,
    forward: &'static str,
    forward_rows: usize,
    queries: &'static str,
    keys: &'static str,
    /// Heads of a block of queries: all of them share keys and values.
    heads_together: usize,
}

impl Fused {
    /// None if there are no such kernels. `result`: what they would write.
    pub(super) fn new(device: &Cuda, shape: AttentionShape, result: &ViewMut<'_>) -> Option<Self> {
        let [mut forward, queries, keys] = match (device.precision, shape.head_width) {
            (Precision::Bf16, 64) => [
                "attention_fused_forward_64",
                "attention_fused_queries_64",
                "attention_fused_keys_64",
            ],
            (Precision::Bf16, 128) => [
                "attention_fused_forward_128",
                "attention_fused_queries_128",
                "attention_fused_keys_128",
            ],
            _ => return None,
        };
        let mut forward_rows = FORWARD_ROWS;
        // What the others ask for, every card has.
        if shared_bytes(forward) > device.driver.shared_bytes_max() {
            (forward, forward_rows) = ("attention_fused_forward_small_128", SMALL_ROWS);
        }
        let group = shape.heads / shape.key_value_heads;
        let heads_together = [8, 4, 2, 1]
            .into_iter()
            .find(|heads| group.is_multiple_of(*heads))?;
        let is_aligned = result.address().0.is_multiple_of(PAIR_BYTES);
        is_aligned.then_some(Self {
            shape,
            forward,
            forward_rows,
            queries,
            keys,
            heads_together,
        })
    }

    /// Blocks of queries, if a warp holds so many.
    fn query_blocks(&self, rows: usize) -> [usize; 2] {
        let shape = self.shape;
        let of_block = WARPS / self.heads_together * rows;
        [
            shape.sequences * shape.heads / self.heads_together,
            shape.tokens.div_ceil(of_block),
        ]
    }

    fn key_blocks(&self) -> [usize; 2] {
        let shape = self.shape;
        [
            shape.sequences * shape.key_value_heads,
            shape.tokens.div_ceil(WARPS * SMALL_ROWS),
        ]
    }

    /// Tokens and heads: where the arguments of all three kernels begin to be the same.
    fn sizes(&self) -> [Argument; 3] {
        let shape = self.shape;
        // Kernels count elements in 32 bits.
        let _ = to_u32(shape.rows() * shape.packed_width());
        [shape.tokens, shape.heads, shape.key_value_heads].map(|size| to_u32(size).into())
    }

    fn scale(&self) -> Argument {
        (1.0 / (self.shape.head_width as f32).sqrt()).into()
    }

    pub(super) fn forward(
        &self,
        device: &Cuda,
        out: &ViewMut<'_>,
        log_sums: &ViewMut<'_>,
        packed: View<'_>,
    ) -> Result<()> {
        let room = device.scratch.take([device.factor_room(packed, false)])?;
        let [packed_room] = room.parts;
        let factors = device.factor(packed, false, packed_room)?;
        let mut arguments = vec![out.into(), log_sums.into(), factors.into()];
        arguments.extend(self.sizes());
        arguments.extend([to_u32(self.heads_together).into(), self.scale()]);
        device.launch(
            self.forward,
            self.query_blocks(self.forward_rows),
            &arguments,
        )
    }

    pub(super) fn backward(
        &self,
        device: &Cuda,
        packed_gradient: &ViewMut<'_>,
        out_gradient: View<'_>,
        out: View<'_>,
        log_sums: View<'_>,
        packed: View<'_>,
    ) -> Result<()> {
        let room = device.scratch.take([
            device.factor_room(packed, false),
            device.factor_room(out_gradient, false),
            log_sums.len() * size_of::<f32>(),
        ])?;
        let [packed_room, gradient_room, along] = room.parts;
        let factors = device.factor(packed, false, packed_room)?;
        let slopes = device.factor(out_gradient, false, gradient_room)?;
        // Laid out like the logarithms: as if each head had keys of its own.
        device.along(
            [along, out_gradient.address(), out.address()],
            self.shape,
            1,
        )?;
        let mut arguments = vec![
            packed_gradient.into(),
            factors.into(),
            slopes.into(),
            log_sums.into(),
            along.into(),
        ];
        arguments.extend(self.sizes());
        let mut of_queries = arguments.clone();
        of_queries.extend([to_u32(self.heads_together).into(), self.scale()]);
        device.launch(self.queries, self.query_blocks(SMALL_ROWS), &of_queries)?;
        arguments.push(self.scale());
        device.launch(self.keys, self.key_blocks(), &arguments)
    }
}
