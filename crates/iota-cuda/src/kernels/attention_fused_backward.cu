// The way back of attention_fused.cu.

// Of a score and the gradient of its probability: the probability again, and the gradient of the scaled score,
// P (dP - along). Both are 0 for a key that is later than the query; there are such in squares on the diagonal only.
__device__ inline void soften_backward(float& score, float& gradient, float log_sum, float along, float scale,
                                       bool is_later) {
    score = is_later ? 0.0f : power_of_two(fmaf(score, scale, -log_sum) * LOG2_E);
    gradient = is_later ? 0.0f : score * (gradient - along);
}

// Gradients of queries. Blocks are as going forward.
template <u32 WIDTH>
__device__ inline void fused_backward_queries(float* __restrict__ packed_gradient, const Bf16* __restrict__ packed,
                                              const Bf16* __restrict__ out_gradient, const float* __restrict__ log_sums,
                                              const float* __restrict__ along, u32 tokens, u32 heads,
                                              u32 key_value_heads, u32 heads_together, float scale) {
    const u32 SQUARES = WIDTH / SIDE;
    const u32 packed_width = (heads + 2 * key_value_heads) * WIDTH;
    const WarpOfQueries warp = WarpOfQueries::find<SIDE>(tokens, heads, heads_together);
    const u32 there = rows_from(warp.first, tokens);
    const u32 first_row = warp.sequence * tokens + warp.first;

    const KeysAndValues<WIDTH> passing =
        KeysAndValues<WIDTH>::seen_by(warp, packed, tokens, heads, key_value_heads, 0);
    Square queries[SQUARES];
    Square slopes[SQUARES];
    const u32 at_queries = first_row * packed_width + warp.head * WIDTH;
    const u32 own = threadIdx.x / LANES * SIDE * Rows<WIDTH>::BYTES;
    keep_rows<WIDTH>(queries, own, packed, at_queries, packed_width, there);
    keep_rows<WIDTH>(slopes, own + WARPS * SIDE * Rows<WIDTH>::BYTES, out_gradient,
                     (first_row * heads + warp.head) * WIDTH, heads * WIDTH, there);
    // Where they were, tiles come.
    __syncthreads();
    passing.begin_copy(0);
    const u32 of_head = (warp.sequence * heads + warp.head) * tokens + warp.first;
    float log_sum[2];
    float along_row[2];
#pragma unroll
    for (u32 lower = 0; lower < 2; lower++) {
        const u32 row = lane_row() + lower * 8;
        log_sum[lower] = row < there ? log_sums[of_head + row] : 0.0f;
        along_row[lower] = row < there ? along[of_head + row] : 0.0f;
    }

    Sums sums[SQUARES];
#pragma unroll
    for (u32 index = 0; index < SQUARES; index++) {
        sums[index].clear();
    }
    const u32 keys_seen = there > 0 ? warp.first + SIDE : 0;
    for (u32 tile = 0; tile < warp.tiles; tile++) {
        tile_arrives();
        if (tile + 1 < warp.tiles) {
            passing.begin_copy(tile + 1);
        }
        const Rows<WIDTH> keys = passing.tile_of_keys(tile);
        const Rows<WIDTH> values = passing.tile_of_values(tile);
#pragma unroll 1
        for (u32 row = 0; row < TILE && tile * TILE + row < keys_seen; row += SIDE) {
            const u32 first_key = tile * TILE + row;
            Sums scores;
            Sums gradients;
            scores.clear();
            gradients.clear();
#pragma unroll
            for (u32 index = 0; index < SQUARES; index++) {
                scores.add_by_rows(queries[index], keys.square(row, index * SIDE));
                gradients.add_by_rows(slopes[index], values.square(row, index * SIDE));
            }
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                const u32 lower = i % 4 / 2;
                const u32 column = i / 4 * 8 + lane_column() + i % 2;
                const u32 of_query = lower * 8 + lane_row();
                soften_backward(scores.of[i / 4][i % 4], gradients.of[i / 4][i % 4], log_sum[lower], along_row[lower],
                                scale, first_key == warp.first && column > of_query);
            }
            const Square rounded = gradients.rounded();
#pragma unroll
            for (u32 index = 0; index < SQUARES; index++) {
                sums[index].add_by_columns(rounded, keys.transposed(row, index * SIDE));
            }
        }
    }
    const float scales[2] = {scale, scale};
    write_rows<WIDTH>(packed_gradient, at_queries, packed_width, sums, scales, there);
}

// Queries and gradients of the heads that share a key-value head, one head after the other, as they pass by, with what is
// known of each query: two tiles of each in shared memory.
template <u32 WIDTH>
struct QueriesOfGroup {
    static const u32 ROWS_BYTES = TILE * Rows<WIDTH>::BYTES;
    static const u32 SUMS_BYTES = 2 * TILE * sizeof(float);

    const Bf16* packed;
    const Bf16* out_gradient;
    const float* log_sums;
    const float* along;
    u32 tokens;
    u32 heads;
    u32 stride;
    // The sequence's first row.
    u32 first_row;
    u32 first_head;
    u32 first_tile;

    // Tiles of a head.
    __device__ inline u32 tiles() const {
        return (tokens + TILE - 1) / TILE - first_tile;
    }

    // The first query of a tile.
    __device__ inline u32 first_of(u32 number) const {
        return (first_tile + number % tiles()) * TILE;
    }

    static __device__ inline Rows<WIDTH> queries(u32 buffer) {
        return {buffer * 2 * ROWS_BYTES};
    }

    static __device__ inline Rows<WIDTH> gradients(u32 buffer) {
        return {(buffer * 2 + 1) * ROWS_BYTES};
    }

    // For each query of the tile the logarithm of its denominator; then along, in the same order.
    static __device__ inline u32 sums(u32 buffer) {
        return 4 * ROWS_BYTES + buffer * SUMS_BYTES;
    }

    // Begins to copy a tile, counted from the first of the first head. What is beyond the end becomes zeros, and so adds
    // nothing to any gradient.
    __device__ inline void begin_copy(u32 number) const {
        const u32 buffer = number % 2;
        const u32 head = first_head + number / tiles();
        const u32 first = first_of(number);
        const u32 there = rows_from(first, tokens);
        const u32 row = first_row + first;
        queries(buffer).template begin_copy<TILE, THREADS>(threadIdx.x, packed, row * stride + head * WIDTH, stride,
                                                           there);
        gradients(buffer).template begin_copy<TILE, THREADS>(
            threadIdx.x, out_gradient, (row * heads + head) * WIDTH, heads * WIDTH, there);
        if (threadIdx.x < 2 * TILE) {
            const u32 query = threadIdx.x % TILE;
            const bool is_there = query < there;
            const u32 from = first_row * heads + head * tokens + first + (is_there ? query : 0);
            begin_copy_4(sums(buffer) + threadIdx.x * sizeof(float), (threadIdx.x < TILE ? log_sums : along) + from,
                         is_there);
        }
    }
};

// Gradients of keys and values. Scores are transposed here: a row for each key.
//
// blockIdx.x: sequences and key-value heads; blockIdx.y: blocks of keys, the first ones first, since most queries see these.
template <u32 WIDTH>
__device__ inline void fused_backward_keys(float* __restrict__ packed_gradient, const Bf16* __restrict__ packed,
                                           const Bf16* __restrict__ out_gradient, const float* __restrict__ log_sums,
                                           const float* __restrict__ along, u32 tokens, u32 heads,
                                           u32 key_value_heads, float scale) {
    const u32 SQUARES = WIDTH / SIDE;
    const u32 packed_width = (heads + 2 * key_value_heads) * WIDTH;
    const u32 group = heads / key_value_heads;
    const u32 key_value_head = blockIdx.x % key_value_heads;
    const u32 first_row = blockIdx.x / key_value_heads * tokens;
    const u32 first_tile = blockIdx.y * (WARPS * SIDE / TILE);
    const u32 first_key = blockIdx.y * (WARPS * SIDE) + threadIdx.x / LANES * SIDE;
    const u32 there = rows_from(first_key, tokens);

    const QueriesOfGroup<WIDTH> passing = {packed, out_gradient, log_sums,  along,                  tokens,
                                           heads,  packed_width, first_row, key_value_head * group, first_tile};
    const u32 at_keys = (first_row + first_key) * packed_width + (heads + key_value_head) * WIDTH;
    const u32 at_values = at_keys + key_value_heads * WIDTH;
    Square keys[SQUARES];
    Square values[SQUARES];
    const u32 own = threadIdx.x / LANES * SIDE * Rows<WIDTH>::BYTES;
    keep_rows<WIDTH>(keys, own, packed, at_keys, packed_width, there);
    keep_rows<WIDTH>(values, own + WARPS * SIDE * Rows<WIDTH>::BYTES, packed, at_values, packed_width, there);
    // Where they were, tiles come.
    __syncthreads();
    passing.begin_copy(0);

    Sums key_sums[SQUARES];
    Sums value_sums[SQUARES];
#pragma unroll
    for (u32 index = 0; index < SQUARES; index++) {
        key_sums[index].clear();
        value_sums[index].clear();
    }
    const u32 tiles = group * passing.tiles();
    for (u32 tile = 0; tile < tiles; tile++) {
        tile_arrives();
        if (tile + 1 < tiles) {
            passing.begin_copy(tile + 1);
        }
        const u32 first_of_tile = passing.first_of(tile);
        const Rows<WIDTH> queries = passing.queries(tile % 2);
        const Rows<WIDTH> slopes = passing.gradients(tile % 2);
        const float* const sums_of_queries = reinterpret_cast<const float*>(launch_memory() + passing.sums(tile % 2));
#pragma unroll 1
        for (u32 row = 0; row < TILE; row += SIDE) {
            const u32 first_query = first_of_tile + row;
            if (first_query < first_key || first_query >= tokens) {
                continue;
            }
            Sums scores;
            Sums gradients;
            scores.clear();
            gradients.clear();
#pragma unroll
            for (u32 index = 0; index < SQUARES; index++) {
                scores.add_by_rows(keys[index], queries.square(row, index * SIDE));
                gradients.add_by_rows(values[index], slopes.square(row, index * SIDE));
            }
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                const u32 column = i / 4 * 8 + lane_column() + i % 2;
                const u32 of_key = i % 4 / 2 * 8 + lane_row();
                const float log_sum = sums_of_queries[row + column];
                const float along_column = sums_of_queries[TILE + row + column];
                soften_backward(scores.of[i / 4][i % 4], gradients.of[i / 4][i % 4], log_sum, along_column, scale,
                                first_query == first_key && of_key > column);
            }
            const Square probabilities = scores.rounded();
            const Square rounded = gradients.rounded();
#pragma unroll
            for (u32 index = 0; index < SQUARES; index++) {
                value_sums[index].add_by_columns(probabilities, slopes.transposed(row, index * SIDE));
                key_sums[index].add_by_columns(rounded, queries.transposed(row, index * SIDE));
            }
        }
    }
    const float of_keys[2] = {scale, scale};
    const float of_values[2] = {1.0f, 1.0f};
    write_rows<WIDTH>(packed_gradient, at_keys, packed_width, key_sums, of_keys, there);
    write_rows<WIDTH>(packed_gradient, at_values, packed_width, value_sums, of_values, there);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_fused_queries_64(float* packed_gradient, const Bf16* packed, const Bf16* out_gradient,
                               const float* log_sums, const float* along, u32 tokens, u32 heads, u32 key_value_heads,
                               u32 heads_together, float scale) {
    fused_backward_queries<64>(packed_gradient, packed, out_gradient, log_sums, along, tokens, heads, key_value_heads,
                               heads_together, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_fused_queries_128(float* packed_gradient, const Bf16* packed, const Bf16* out_gradient,
                                const float* log_sums, const float* along, u32 tokens, u32 heads, u32 key_value_heads,
                                u32 heads_together, float scale) {
    fused_backward_queries<128>(packed_gradient, packed, out_gradient, log_sums, along, tokens, heads,
                                key_value_heads, heads_together, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_fused_keys_64(float* packed_gradient, const Bf16* packed, const Bf16* out_gradient,
                            const float* log_sums, const float* along, u32 tokens, u32 heads, u32 key_value_heads,
                            float scale) {
    fused_backward_keys<64>(packed_gradient, packed, out_gradient, log_sums, along, tokens, heads, key_value_heads,
                            scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_fused_keys_128(float* packed_gradient, const Bf16* packed, const Bf16* out_gradient,
                             const float* log_sums, const float* along, u32 tokens, u32 heads, u32 key_value_heads,
                             float scale) {
    fused_backward_keys<128>(packed_gradient, packed, out_gradient, log_sums, along, tokens, heads, key_value_heads,
                             scale);
}
