//! Causal grouped-query attention: by fused kernels where there are such, otherwise as matrix products of blocks of queries.
//!
//! ```text
//!             keys, values: [tokens, head_width] of a pair, a sequence and a key-value head
//!            .-----------------.
//!   queries  | S S . . . . . . |   the heads of a group lie together within a token, so that a block of queries is one
//!   of the   | S S S S . . . . |   left factor for all of them; blocks of several pairs are one batch of products
//!   group    | S S S S S S . . |
//!            | S S S S S S S S |   scores of one block at a time, for as many pairs as Pieces::scores has room for
//!            '-----------------'
//! ```
//!
//! Memory is linear in tokens. The products run on tensor cores in bf16; what is done to scores in between is bound by the
//! card's memory, or its cache. Going back, scores are made again from queries and keys, and probabilities from scores and
//! the saved logarithms of the softmax's denominators.

mod fused;

use std::ops::Range;

use iota_compute::backend::{AttentionShape, Form, Product};

use self::fused::Fused;
use crate::device::{Cuda, to_u32};
use crate::driver::{Address, Argument, Matrix, Multiplication};
use crate::error::Result;
use crate::memory::{View, ViewMut};

/// How attention is computed where there is a choice. Both make the same numbers, up to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionPath {
    /// By kernels that keep scores to themselves, if factors are bf16 and heads have 64 or 128 channels.
    Fused,
    /// By matrix products, with scores in memory between them: of any width, in f32 and bf16.
    Products,
}

/// Rows of scores start at multiples of so many elements, as tensor cores like it.
const SCORES_ALIGNED: usize = 64;

/// A block of queries of several pairs.
#[derive(Debug, Clone)]
struct Block {
    pairs: Range<usize>,
    tokens: Range<usize>,
}

/// What follows from a shape.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    shape: AttentionShape,
    /// Query heads of a key-value head.
    group: usize,
    /// Pairs of a sequence and a key-value head.
    pairs: usize,
    /// Tokens of a block of queries, at most.
    queries: usize,
    /// Pairs of a block, at most.
    pairs_at_a_time: usize,
}

impl Sizes {
    fn new(shape: AttentionShape, device: &Cuda) -> Self {
        let group = shape.heads / shape.key_value_heads;
        let pairs = shape.sequences * shape.key_value_heads;
        let queries = device.pieces.queries.min(shape.tokens);
        let of_pair = queries * group * shape.tokens.next_multiple_of(SCORES_ALIGNED);
        Self {
            shape,
            group,
            pairs,
            queries,
            pairs_at_a_time: (device.pieces.scores / of_pair).clamp(1, pairs.max(1)),
        }
    }

    /// Channels of queries, and of keys or values.
    const fn query_elements(&self) -> usize {
        self.shape.rows() * self.shape.width()
    }

    const fn key_elements(&self) -> usize {
        self.shape.rows() * self.shape.key_value_heads * self.shape.head_width
    }

    const fn scores(&self) -> usize {
        self.pairs_at_a_time * self.queries * self.group * self.stride(self.shape.tokens)
    }

    const fn stride(&self, keys: usize) -> usize {
        keys.next_multiple_of(SCORES_ALIGNED)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.head_width as f32).sqrt()
    }

    /// The last block of tokens first: it sees all keys, so that what is added up over blocks starts from it.
    fn blocks(self) -> impl Iterator<Item = Block> {
        (0..self.pairs)
            .step_by(self.pairs_at_a_time)
            .flat_map(move |pair| {
                let pairs = pair..(pair + self.pairs_at_a_time).min(self.pairs);
                (0..self.shape.tokens)
                    .step_by(self.queries)
                    .rev()
                    .map(move |token| Block {
                        pairs: pairs.clone(),
                        tokens: token..(token + self.queries).min(self.shape.tokens),
                    })
            })
    }

    /// Rows of scores of one pair of a block.
    fn rows(&self, block: &Block) -> usize {
        block.tokens.len() * self.group
    }

    /// Channels of the queries of a block, or of what lies like them: `[tokens * group, head_width]` of each pair.
    fn of_queries(&self, address: Address, bytes: usize, block: &Block) -> Matrix {
        let of_token = self.group * self.shape.head_width;
        let first = (block.pairs.start * self.shape.tokens + block.tokens.start) * of_token;
        Matrix {
            address: address.offset(first * bytes),
            row_stride: self.shape.head_width,
            batch_stride: self.shape.tokens * of_token,
        }
    }

    /// Channels of the keys or values that a block sees: `[tokens, head_width]` of each pair.
    fn of_keys(&self, address: Address, bytes: usize, block: &Block) -> Matrix {
        let of_pair = self.shape.tokens * self.shape.head_width;
        Matrix {
            address: address.offset(block.pairs.start * of_pair * bytes),
            row_stride: self.shape.head_width,
            batch_stride: of_pair,
        }
    }

    /// A block's scores, or what lies like them.
    fn of_scores(&self, address: Address, block: &Block) -> Matrix {
        let row_stride = self.stride(block.tokens.end);
        Matrix {
            address,
            row_stride,
            batch_stride: self.rows(block) * row_stride,
        }
    }

    /// Between queries and keys, summed over channels: scores.
    fn scores_product(&self, block: &Block) -> Product {
        Product {
            form: Form::TransposedRight,
            rows: self.rows(block),
            columns: block.tokens.end,
            inner: self.shape.head_width,
        }
    }

    /// Between scores and keys, summed over keys: channels of queries.
    fn queries_product(&self, block: &Block) -> Product {
        Product {
            form: Form::Plain,
            rows: self.rows(block),
            columns: self.shape.head_width,
            inner: block.tokens.end,
        }
    }

    /// Between scores and queries, summed over queries: channels of keys.
    fn keys_product(&self, block: &Block) -> Product {
        Product {
            form: Form::TransposedLeft,
            rows: block.tokens.end,
            columns: self.shape.head_width,
            inner: self.rows(block),
        }
    }

    /// Where a block lies, as the last arguments of the kernels of scores.
    fn place(&self, block: &Block) -> [Argument; 10] {
        [
            self.score_rows(block).into(),
            to_u32(self.stride(block.tokens.end)).into(),
            to_u32(block.tokens.end).into(),
            self.scale().into(),
            to_u32(block.pairs.start).into(),
            to_u32(block.tokens.start).into(),
            to_u32(block.tokens.len()).into(),
            to_u32(self.group).into(),
            to_u32(self.shape.key_value_heads).into(),
            to_u32(self.shape.tokens).into(),
        ]
    }

    fn score_rows(&self, block: &Block) -> u64 {
        (block.pairs.len() * self.rows(block)) as u64
    }
}

/// Channels of the packed rows.
#[derive(Debug, Clone, Copy)]
enum Part {
    Queries,
    Keys,
    Values,
}

impl Part {
    /// The first channel, the channels, and those of a key-value head's.
    const fn channels(self, sizes: &Sizes) -> [usize; 3] {
        let shape = sizes.shape;
        let key_width = shape.key_value_heads * shape.head_width;
        match self {
            Self::Queries => [0, shape.width(), sizes.group * shape.head_width],
            Self::Keys => [shape.width(), key_width, shape.head_width],
            Self::Values => [shape.width() + key_width, key_width, shape.head_width],
        }
    }
}

impl Cuda {
    /// The kernels that make this `result`, if it is not made of products.
    fn fused(&self, shape: AttentionShape, result: &ViewMut<'_>) -> Option<Fused> {
        match self.attention_path {
            AttentionPath::Fused => Fused::new(self, shape, result),
            AttentionPath::Products => None,
        }
    }

    /// Sums over a head's channels of out_gradient * out, as [pairs, tokens, group].
    fn along(
        &self,
        [along, out_gradient, out]: [Address; 3],
        shape: AttentionShape,
        group: usize,
    ) -> Result<()> {
        let heads = shape.rows() * shape.heads;
        self.launch_warps(
            "attention_along",
            heads,
            &[
                along.into(),
                out_gradient.into(),
                out.into(),
                (heads as u64).into(),
                to_u32(shape.heads).into(),
                to_u32(group).into(),
                to_u32(shape.tokens).into(),
                to_u32(shape.head_width).into(),
            ],
        )
    }

    pub(crate) fn attention_forward(
        &self,
        out: &ViewMut<'_>,
        log_sums: &ViewMut<'_>,
        packed: View<'_>,
        shape: AttentionShape,
    ) -> Result<()> {
        assert_shapes(shape, packed.len(), out.len(), log_sums.len());
        if let Some(fused) = self.fused(shape, out) {
            return fused.forward(self, out, log_sums, packed);
        }
        let sizes = Sizes::new(shape, self);
        let (queries, keys) = (sizes.query_elements(), sizes.key_elements());
        let bytes = self.factors().bytes();
        let room = self.scratch.take([
            queries * bytes,
            keys * bytes,
            keys * bytes,
            sizes.scores() * size_of::<f32>(),
            sizes.scores() * bytes,
            queries * size_of::<f32>(),
        ])?;
        let [q, k, v, scores, probabilities, gathered_out] = room.parts;
        for (factor, part) in [(q, Part::Queries), (k, Part::Keys), (v, Part::Values)] {
            self.gather(
                factor,
                packed.address(),
                shape.packed_width(),
                part.channels(&sizes),
                &sizes,
            )?;
        }
        let softmax = self.by_factors("attention_softmax_f32", "attention_softmax_bf16");
        for block in sizes.blocks() {
            let multiply = |product, out, a, b| {
                self.multiply_batch(&Multiplication {
                    product,
                    factors: self.factors(),
                    out,
                    a,
                    b,
                    batch: block.pairs.len(),
                    add: false,
                })
            };
            multiply(
                sizes.scores_product(&block),
                sizes.of_scores(scores, &block),
                sizes.of_queries(q, bytes, &block),
                sizes.of_keys(k, bytes, &block),
            )?;
            let mut arguments = vec![probabilities.into(), log_sums.into(), scores.into()];
            arguments.extend(sizes.place(&block));
            self.launch_warps(softmax, sizes.score_rows(&block) as usize, &arguments)?;
            multiply(
                sizes.queries_product(&block),
                sizes.of_queries(gathered_out, size_of::<f32>(), &block),
                sizes.of_scores(probabilities, &block),
                sizes.of_keys(v, bytes, &block),
            )?;
        }
        let [_, channels, group_width] = Part::Queries.channels(&sizes);
        self.scatter(
            out.address(),
            gathered_out,
            shape.width(),
            [0, channels, group_width],
            &sizes,
        )
    }

    pub(crate) fn attention_backward_pass(
        &self,
        packed_gradient: &ViewMut<'_>,
        out_gradient: View<'_>,
        out: View<'_>,
        log_sums: View<'_>,
        packed: View<'_>,
        shape: AttentionShape,
    ) -> Result<()> {
        assert_shapes(shape, packed.len(), out.len(), log_sums.len());
        assert_eq!(
            (packed_gradient.len(), out_gradient.len()),
            (packed.len(), out.len()),
            "shapes of an attention's gradients"
        );
        if let Some(fused) = self.fused(shape, packed_gradient) {
            return fused.backward(self, packed_gradient, out_gradient, out, log_sums, packed);
        }
        let sizes = Sizes::new(shape, self);
        let (queries, keys, all_scores) =
            (sizes.query_elements(), sizes.key_elements(), sizes.scores());
        let bytes = self.factors().bytes();
        let f32_bytes = size_of::<f32>();
        let room = self.scratch.take([
            queries * bytes,
            keys * bytes,
            keys * bytes,
            queries * bytes,
            shape.rows() * shape.heads * f32_bytes,
            all_scores * f32_bytes,
            all_scores * f32_bytes,
            all_scores * bytes,
            all_scores * bytes,
            queries * f32_bytes,
            keys * f32_bytes,
            keys * f32_bytes,
        ])?;
        let [q, k, v, dout, along, scores, dp, p, ds, dq, dk, dv] = room.parts;
        for (factor, part) in [(q, Part::Queries), (k, Part::Keys), (v, Part::Values)] {
            self.gather(
                factor,
                packed.address(),
                shape.packed_width(),
                part.channels(&sizes),
                &sizes,
            )?;
        }
        self.gather(
            dout,
            out_gradient.address(),
            shape.width(),
            Part::Queries.channels(&sizes),
            &sizes,
        )?;
        self.along(
            [along, out_gradient.address(), out.address()],
            shape,
            sizes.group,
        )?;
        let softmax = self.by_factors("attention_backward_f32", "attention_backward_bf16");
        for block in sizes.blocks() {
            let multiply = |product, out, a, b, add| {
                self.multiply_batch(&Multiplication {
                    product,
                    factors: self.factors(),
                    out,
                    a,
                    b,
                    batch: block.pairs.len(),
                    add,
                })
            };
            let to_scores = sizes.scores_product(&block);
            let [of_q, of_dout] = [q, dout].map(|at| sizes.of_queries(at, bytes, &block));
            let [of_k, of_v] = [k, v].map(|at| sizes.of_keys(at, bytes, &block));
            let [of_p, of_ds] = [p, ds].map(|at| sizes.of_scores(at, &block));
            multiply(
                to_scores,
                sizes.of_scores(scores, &block),
                of_q,
                of_k,
                false,
            )?;
            multiply(to_scores, sizes.of_scores(dp, &block), of_dout, of_v, false)?;
            let mut arguments = vec![
                p.into(),
                ds.into(),
                scores.into(),
                dp.into(),
                log_sums.into(),
                along.into(),
            ];
            arguments.extend(sizes.place(&block));
            self.launch_warps(softmax, sizes.score_rows(&block) as usize, &arguments)?;
            let of_dq = sizes.of_queries(dq, f32_bytes, &block);
            let [of_dk, of_dv] = [dk, dv].map(|at| sizes.of_keys(at, f32_bytes, &block));
            let not_the_first = block.tokens.end < shape.tokens;
            multiply(sizes.queries_product(&block), of_dq, of_ds, of_k, false)?;
            multiply(
                sizes.keys_product(&block),
                of_dk,
                of_ds,
                of_q,
                not_the_first,
            )?;
            multiply(
                sizes.keys_product(&block),
                of_dv,
                of_p,
                of_dout,
                not_the_first,
            )?;
        }
        for (gradient, part) in [(dq, Part::Queries), (dk, Part::Keys), (dv, Part::Values)] {
            self.scatter(
                packed_gradient.address(),
                gradient,
                shape.packed_width(),
                part.channels(&sizes),
                &sizes,
            )?;
        }
        Ok(())
    }

    fn gather(
        &self,
        out: Address,
        source: Address,
        source_width: usize,
        channels: [usize; 3],
        sizes: &Sizes,
    ) -> Result<()> {
        let kernel = self.by_factors("attention_gather_f32", "attention_gather_bf16");
        self.rearrange(kernel, [out, source], source_width, channels, sizes)
    }

    fn scatter(
        &self,
        out: Address,
        source: Address,
        out_width: usize,
        channels: [usize; 3],
        sizes: &Sizes,
    ) -> Result<()> {
        self.rearrange(
            "attention_scatter",
            [out, source],
            out_width,
            channels,
            sizes,
        )
    }

    fn rearrange(
        &self,
        kernel: &'static str,
        [out, source]: [Address; 2],
        row_width: usize,
        [offset, channels, group_width]: [usize; 3],
        sizes: &Sizes,
    ) -> Result<()> {
        self.launch(
            kernel,
            [sizes.shape.rows(), 1],
            &[
                out.into(),
                source.into(),
                to_u32(row_width).into(),
                to_u32(offset).into(),
                to_u32(channels).into(),
                to_u32(group_width).into(),
                to_u32(sizes.shape.tokens).into(),
            ],
        )
    }
}

fn assert_shapes(shape: AttentionShape, packed: usize, out: usize, log_sums: usize) {
    assert_eq!(
        (packed, out, log_sums),
        (
            shape.rows() * shape.packed_width(),
            shape.rows() * shape.width(),
            shape.rows() * shape.heads
        ),
        "shapes of an attention"
    );
}
