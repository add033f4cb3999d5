//! What a pass asks of a card, counted: bytes that its memory moves and multiplications that its tensor cores make.
//!
//! From these follows what no card can go below. A kernel is counted as if it read and wrote each number once; what it
//! reads a second time should come from the cache.

use crate::driver::{Address, Argument, Launch, Multiplication};

/// All launches of one kernel, or all products of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Of the kernel, or what else it is.
    pub name: &'static str,
    /// How often it was asked for.
    pub calls: u64,
    /// Bytes read and bytes written.
    pub bytes: u64,
    /// Multiplications and additions on tensor cores.
    pub operations: u64,
}

impl Cost {
    const fn once(name: &'static str, bytes: u64, operations: u64) -> Self {
        Self {
            name,
            calls: 1,
            bytes,
            operations,
        }
    }

    /// Seconds that it takes at least, on a card that moves and computes so much in a second.
    pub fn floor_s(&self, bytes_per_s: f64, operations_per_s: f64) -> f64 {
        f64::max(
            self.bytes as f64 / bytes_per_s,
            self.operations as f64 / operations_per_s,
        )
    }
}

/// Costs added up by their names.
#[derive(Debug, Default)]
pub(crate) struct Tally(Vec<Cost>);

impl Tally {
    pub(crate) fn add(&mut self, cost: Cost) {
        let Some(known) = self.0.iter_mut().find(|known| known.name == cost.name) else {
            return self.0.push(cost);
        };
        known.calls += cost.calls;
        known.bytes += cost.bytes;
        known.operations += cost.operations;
    }

    /// Those that move most first.
    pub(crate) fn take(&mut self) -> Vec<Cost> {
        let mut costs = std::mem::take(&mut self.0);
        costs.sort_by_key(|cost| std::cmp::Reverse(cost.bytes));
        costs
    }
}

/// Of a copy on the card.
pub(crate) const fn of_copy(bytes: usize) -> Cost {
    Cost::once("copy", 2 * bytes as u64, 0)
}

pub(crate) fn of_product(multiplication: &Multiplication) -> Cost {
    let product = multiplication.product;
    let [rows, columns, inner, batch] = [
        product.rows,
        product.columns,
        product.inner,
        multiplication.batch,
    ]
    .map(|count| count as u64);
    let factors = (rows + columns) * inner * multiplication.factors.bytes() as u64;
    let passes_over_result = if multiplication.add { 2 } else { 1 };
    let result = passes_over_result * rows * columns * size_of::<f32>() as u64;
    // Those of attention come in batches, one for each key-value head.
    let name = if batch > 1 {
        "product of a batch"
    } else {
        "product"
    };
    Cost::once(
        name,
        batch * (factors + result),
        2 * batch * rows * columns * inner,
    )
}

/// By the arguments in their order in the sources. Small tables that every block reads are not counted.
pub(crate) fn of_launch(launch: &Launch<'_>) -> Cost {
    let number = |place: usize| match launch.arguments[place] {
        Argument::U32(number) => u64::from(number),
        Argument::U64(number) => number,
        Argument::Address(_) | Argument::F32(_) => {
            panic!("argument {place} of {} counts nothing", launch.kernel)
        }
    };
    if let Some(cost) = of_fused_attention(launch, number) {
        return cost;
    }
    let is_given = |place: usize| launch.arguments[place] != Argument::Address(Address(0));
    let blocks = u64::from(launch.blocks[0]);
    let bytes = match launch.kernel {
        "fill" => 4 * number(1),
        "round_to_bf16" => 6 * number(2),
        "add_columns" => blocks * 12 * number(4),
        "swiglu_f32" => blocks * 12 * number(2),
        "swiglu_bf16" => blocks * 10 * number(2),
        "swiglu_backward_f32" => blocks * 24 * number(4),
        "swiglu_backward_bf16" => blocks * 18 * number(4),
        "silu" => 8 * number(2),
        "silu_backward" => 16 * number(2),
        "relu" => 8 * number(1),
        "relu_backward" => 12 * number(2),
        "rotate" => blocks * 16 * number(4) * number(5),
        "rotate_back_bf16" => blocks * 6 * number(7),
        "rms_norm_f32" => blocks * 8 * number(4),
        "rms_norm_bf16" => blocks * 6 * number(4),
        "rms_norm_backward" => blocks * number(5) * if number(6) == 1 { 16 } else { 12 },
        "rms_norm_scale_partial" => 8 * number(4) * number(6),
        "add_partial_sums" => 4 * number(2) * number(3),
        "attention_gather_f32" | "attention_scatter" => blocks * 8 * number(4),
        "attention_gather_bf16" => blocks * 6 * number(4),
        "attention_softmax_f32" => number(3) * 8 * number(5),
        "attention_softmax_bf16" => number(3) * 6 * number(5),
        "attention_along" => 8 * number(3) * number(7),
        "attention_backward_f32" => number(6) * 16 * number(8),
        "attention_backward_bf16" => number(6) * 12 * number(8),
        "embedding" => blocks * 8 * number(3),
        // Of each piece at least one row.
        "embedding_partial" => blocks * 8 * number(4),
        "embedding_add" => blocks * 12 * number(4),
        "cross_entropy_f32" => blocks * number(4) * if is_given(1) { 8 } else { 4 },
        "cross_entropy_bf16" => blocks * number(4) * if is_given(1) { 6 } else { 4 },
        "squared_norm_partial" => 4 * number(2),
        "adam" => 28 * number(4),
        "momentum" => 16 * number(3),
        "blend" => {
            number(4)
                * if launch.arguments[1] == Argument::F32(0.0) {
                    8
                } else {
                    12
                }
        }
        other => panic!("nobody has said what {other} moves"),
    };
    Cost::once(launch.kernel, bytes, 0)
}

/// Queries, keys and values are read once, and so are gradients; multiplications are those of keys that a query sees.
fn of_fused_attention(launch: &Launch<'_>, number: impl Fn(usize) -> u64) -> Option<Cost> {
    let (kernel, width) = launch.kernel.rsplit_once('_')?;
    let kernel = kernel.trim_end_matches("_small");
    let (products, sizes) = match kernel {
        "attention_fused_forward" => (2, 3),
        "attention_fused_queries" => (3, 5),
        "attention_fused_keys" => (4, 5),
        _ => return None,
    };
    let width: u64 = width.parse().expect("it is named after a width");
    let [tokens, heads, key_value_heads] = [0, 1, 2].map(|i| number(sizes + i));
    let blocks = u64::from(launch.blocks[0]);
    let sequences = match kernel {
        "attention_fused_keys" => blocks / key_value_heads,
        _ => blocks * number(sizes + 3) / heads,
    };
    let rows = sequences * tokens;
    let [of_queries, of_keys] = [heads, 2 * key_value_heads].map(|heads| rows * heads * width);
    // Logarithms, and going back what lies along each output.
    let for_each_query = 4 * rows * heads;
    let bytes = match kernel {
        "attention_fused_forward" => 2 * (of_queries + of_keys) + 4 * of_queries + for_each_query,
        "attention_fused_queries" => 8 * of_queries + 2 * of_keys + 2 * for_each_query,
        _ => 4 * of_queries + 6 * of_keys + 2 * for_each_query,
    };
    let pairs = sequences * heads * tokens * (tokens + 1) / 2;
    Some(Cost::once(
        launch.kernel,
        bytes,
        products * 2 * pairs * width,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sequences of 100 tokens, 8 heads of 64 channels, of which 4 share keys.
    #[test]
    fn fused_attention_costs_what_its_shapes_say() {
        let pointer = Argument::Address(Address(256));
        let cost = |kernel, pointers: usize, blocks, rest: &[u32]| {
            let mut arguments = vec![pointer; pointers];
            arguments.extend([100, 8, 2].map(Argument::U32));
            arguments.extend(rest.iter().copied().map(Argument::U32));
            of_launch(&Launch {
                kernel,
                blocks: [blocks, 2],
                arguments: &arguments,
            })
        };
        let forward = cost("attention_fused_forward_64", 3, 4, &[4]);
        let queries = cost("attention_fused_queries_64", 5, 4, &[4]);
        let keys = cost("attention_fused_keys_64", 5, 4, &[]);
        let pairs = 2 * 8 * 100 * 101 / 2;
        let operations = [forward, queries, keys].map(|cost| cost.operations / (2 * 64 * pairs));
        assert_eq!(operations, [2, 3, 4]);
        let [packed, out, keys_and_values, logarithms] = [12, 8, 4, 8].map(|of| 200 * of * 64);
        let logarithms = logarithms / 64;
        assert_eq!(forward.bytes, 2 * packed + 4 * out + 4 * logarithms);
        assert_eq!(queries.bytes, 2 * (packed + out) + 4 * out + 8 * logarithms);
        assert_eq!(
            keys.bytes,
            2 * (packed + out) + 4 * keys_and_values + 8 * logarithms
        );
    }
}
