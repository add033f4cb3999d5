//! The kernels' sources, and their names.

/// Threads of every block: `THREADS` in `kernels/common.cuh`.
pub const THREADS: u32 = 256;

/// Threads of a warp: a row of scores is worked through by one.
pub(crate) const LANES: u32 = 32;

/// All kernels as one CUDA C++ source without any header.
pub const SOURCE: &str = concat!(
    include_str!("kernels/common.cuh"),
    include_str!("kernels/tensor.cuh"),
    include_str!("kernels/squares.cuh"),
    include_str!("kernels/elementwise.cu"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/attention.cu"),
    include_str!("kernels/attention_fused.cu"),
    include_str!("kernels/attention_fused_backward.cu"),
    include_str!("kernels/loss.cu"),
    include_str!("kernels/optimizers.cu"),
);

/// The kernels of [`SOURCE`].
pub const NAMES: &[&str] = &[
    "fill",
    "round_to_bf16",
    "add_columns",
    "swiglu_f32",
    "swiglu_bf16",
    "swiglu_backward_f32",
    "swiglu_backward_bf16",
    "silu",
    "silu_backward",
    "relu",
    "relu_backward",
    "rotate",
    "rotate_back_bf16",
    "rms_norm_f32",
    "rms_norm_bf16",
    "rms_norm_backward",
    "rms_norm_scale_partial",
    "add_partial_sums",
    "attention_gather_f32",
    "attention_gather_bf16",
    "attention_scatter",
    "attention_softmax_f32",
    "attention_softmax_bf16",
    "attention_along",
    "attention_backward_f32",
    "attention_backward_bf16",
    "attention_fused_forward_64",
    "attention_fused_forward_128",
    "attention_fused_forward_small_128",
    "attention_fused_queries_64",
    "attention_fused_queries_128",
    "attention_fused_keys_64",
    "attention_fused_keys_128",
    "embedding",
    "embedding_partial",
    "embedding_add",
    "cross_entropy_f32",
    "cross_entropy_bf16",
    "squared_norm_partial",
    "adam",
    "momentum",
    "blend",
];

/// Shared memory for a block of an A100; an H100 has 227 KiB, consumers' cards of the same time 99.
pub const SHARED_BYTES_OF_A100: u32 = 163 << 10;

/// Bytes of shared memory that every launch of a kernel asks for, beside what the kernel declares.
pub fn shared_bytes(kernel: &str) -> u32 {
    const TILE: u32 = 64;
    // Keys and values, or queries and gradients: a tile of each is worked on, and one is on its way.
    const TILES: u32 = 4;
    const QUERIES: u32 = 256;
    const FACTOR_BYTES: u32 = 2;
    // A logarithm and a sum for each query of two tiles.
    const SUMS_BYTES: u32 = 2 * 2 * TILE * 4;
    let rows = |width: u32, rows: u32| rows * width * FACTOR_BYTES;
    match kernel {
        "attention_fused_forward_64" => rows(64, QUERIES + TILES * TILE),
        "attention_fused_forward_128" => rows(128, QUERIES + TILES * TILE),
        "attention_fused_forward_small_128" => rows(128, QUERIES / 2 + TILES * TILE),
        "attention_fused_queries_64" => rows(64, TILES * TILE),
        "attention_fused_queries_128" => rows(128, TILES * TILE),
        "attention_fused_keys_64" => rows(64, TILES * TILE) + SUMS_BYTES,
        "attention_fused_keys_128" => rows(128, TILES * TILE) + SUMS_BYTES,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that is not named is not loaded.
    #[test]
    fn every_kernel_of_the_sources_is_named() {
        let in_sources: Vec<&str> = SOURCE
            .split("extern \"C\" __global__ void ")
            .skip(1)
            .map(|rest| {
                rest.trim_start_matches("__launch_bounds__(THREADS, 1)")
                    .trim_start()
            })
            .map(|rest| rest.split('(').next().unwrap())
            .collect();
        assert_eq!(in_sources, NAMES);
    }

    #[test]
    fn blocks_are_of_the_size_that_the_sources_have() {
        assert!(SOURCE.contains(&format!("static const u32 THREADS = {THREADS};")));
        assert!(SOURCE.contains(&format!("static const u32 LANES = {LANES};")));
    }
}
