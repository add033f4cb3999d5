// Attention without scores in memory, on tensor cores: FlashAttention-2 (Dao, arXiv 2307.08691) for heads of 64 and of 128
// channels, forward, and backward as two kernels.
//
//                        a warp keeps                     what passes by, 64 rows at a time
//   forward              32 queries: sums of values       keys and values (16 where shared memory is scarce)
//   backward, queries    16 queries: their gradients      keys and values
//   backward, keys       16 keys and values: theirs       queries and gradients of outputs, of all heads that share the keys
//
//                 .--- a tile in shared memory, which all warps read, while the next is copied there ---.
//                 |   16 rows   |   16 rows   |   16 rows   |   16 rows   |
//       rows of   .-------------.-------------.
//       a warp    |   scores    |   scores    | ..  squares of 16 x 16, made into probabilities where they are, in registers
//                 '-------------'-------------'
//
// No block adds to what another has written, so there are no atomics. For that, scores are made twice going back: once for
// the gradients of keys and values, once for those of queries.
//
// packed: factors, [sequences * tokens, (heads + 2 key_value_heads) * WIDTH], a token's queries, keys and values one after
// the other; out and out_gradient: [sequences * tokens, heads * WIDTH]; log_sums and along: [sequences, heads, tokens].
// heads is a multiple of key_value_heads. A token sees itself and those before it. Elements are counted in 32 bits.

// Tokens of a tile.
static const u32 TILE = 64;
// Squares of keys that a warp softens at once, forward.
static const u32 STEP_SQUARES = 2;

static const float LOG2_E = 1.4426950408889634f;

// How many of the rows from `first` on there are.
__device__ inline u32 rows_from(u32 first, u32 tokens) {
    return first < tokens ? tokens - first : 0;
}

// What a warp of a block of queries works on: ROWS queries of one head. The heads of a block, `heads_together` of them (1, 2,
// 4 or 8), share keys and values; they have as many queries each as there are warps for them.
//
// blockIdx.x: sequences and heads; blockIdx.y: blocks of queries, the last ones first, since these see most keys.
struct WarpOfQueries {
    u32 sequence;
    u32 head;
    // Its first query.
    u32 first;
    // Tiles of keys that some warp of the block sees.
    u32 tiles;

    template <u32 ROWS>
    static __device__ inline WarpOfQueries find(u32 tokens, u32 heads, u32 heads_together) {
        const u32 warp = threadIdx.x / LANES;
        const u32 warps_of_head = WARPS / heads_together;
        const u32 parts = heads / heads_together;
        const u32 first_of_block = (gridDim.y - 1 - blockIdx.y) * warps_of_head * ROWS;
        const u32 end_of_block = first_of_block + warps_of_head * ROWS;
        WarpOfQueries found;
        found.sequence = blockIdx.x / parts;
        found.head = blockIdx.x % parts * heads_together + warp / warps_of_head;
        found.first = first_of_block + warp % warps_of_head * ROWS;
        found.tiles = ((end_of_block < tokens ? end_of_block : tokens) + TILE - 1) / TILE;
        return found;
    }
};

// Keys and values of a sequence and a key-value head, as they pass by: two tiles of each in shared memory.
template <u32 WIDTH>
struct KeysAndValues {
    const Bf16* packed;
    // Of the first key in `packed`, and from a key to its value.
    u32 first;
    u32 to_values;
    u32 stride;
    u32 tokens;
    // Where the first tile lies.
    u32 start;

    // Those that a warp of queries sees, in tiles from `start` on.
    static __device__ inline KeysAndValues seen_by(const WarpOfQueries& warp, const Bf16* packed, u32 tokens, u32 heads,
                                                   u32 key_value_heads, u32 start) {
        const u32 packed_width = (heads + 2 * key_value_heads) * WIDTH;
        const u32 key_value_head = warp.head / (heads / key_value_heads);
        return {packed,
                warp.sequence * tokens * packed_width + (heads + key_value_head) * WIDTH,
                key_value_heads * WIDTH,
                packed_width,
                tokens,
                start};
    }

    __device__ inline Rows<WIDTH> tile_of_keys(u32 tile) const {
        return {start + tile % 2 * 2 * TILE * Rows<WIDTH>::BYTES};
    }

    __device__ inline Rows<WIDTH> tile_of_values(u32 tile) const {
        return {tile_of_keys(tile).start + TILE * Rows<WIDTH>::BYTES};
    }

    __device__ inline void begin_copy(u32 tile) const {
        const u32 from = first + tile * TILE * stride;
        const u32 there = rows_from(tile * TILE, tokens);
        tile_of_keys(tile).template begin_copy<TILE, THREADS>(threadIdx.x, packed, from, stride, there);
        tile_of_values(tile).template begin_copy<TILE, THREADS>(threadIdx.x, packed, from + to_values, stride, there);
    }
};

// The tile that was begun last has arrived, and nobody reads the one before any more: its memory is free for the next.
__device__ inline void tile_arrives() {
    finish_copies();
    __syncthreads();
}

// A row's softmax so far: its largest score, unscaled, and a lane's part of the sum of exp(score - largest).
struct RowSoFar {
    float largest;
    float sum;
};

// Makes probabilities, up to their denominator, of a lane's part of a row of scores, in the upper or lower half of squares.
// Returns what sums that were made with the row's largest score before are to be multiplied by.
__device__ inline float soften(RowSoFar& row, Sums (&scores)[STEP_SQUARES], u32 lower, float scale_log2) {
    float largest = row.largest;
#pragma unroll
    for (u32 square = 0; square < STEP_SQUARES; square++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            largest = fmaxf(largest, scores[square].of[half][2 * lower]);
            largest = fmaxf(largest, scores[square].of[half][2 * lower + 1]);
        }
    }
    // The four lanes that hold a row.
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
    const float shrink = power_of_two((row.largest - largest) * scale_log2);
    const float shift = largest * scale_log2;
    float sum = row.sum * shrink;
#pragma unroll
    for (u32 square = 0; square < STEP_SQUARES; square++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
#pragma unroll
            for (u32 i = 2 * lower; i < 2 * lower + 2; i++) {
                const float probability = power_of_two(fmaf(scores[square].of[half][i], scale_log2, -shift));
                scores[square].of[half][i] = probability;
                sum += probability;
            }
        }
    }
    row.largest = largest;
    row.sum = sum;
    return shrink;
}

// Scores of keys that are later than the query become those of keys that are not there.
__device__ inline void hide_later_keys(Sums (&scores)[STEP_SQUARES], u32 first_key, u32 first_query) {
    if (first_key + STEP_SQUARES * SIDE <= first_query + 1) {
        return;
    }
#pragma unroll
    for (u32 square = 0; square < STEP_SQUARES; square++) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const u32 key = first_key + square * SIDE + i / 4 * 8 + lane_column() + i % 2;
            const u32 query = first_query + i % 4 / 2 * 8 + lane_row();
            if (key > query) {
                scores[square].of[i / 4][i % 4] = minus_infinity();
            }
        }
    }
}

// PARTS: squares below each other of a warp's queries. Two share every load of keys and values; one takes less shared memory.
template <u32 WIDTH, u32 PARTS>
__device__ inline void fused_forward(float* __restrict__ out, float* __restrict__ log_sums,
                                     const Bf16* __restrict__ packed, u32 tokens, u32 heads, u32 key_value_heads,
                                     u32 heads_together, float scale) {
    const u32 ROWS = PARTS * SIDE;
    const u32 SQUARES = WIDTH / SIDE;
    const u32 packed_width = (heads + 2 * key_value_heads) * WIDTH;
    const u32 lane = threadIdx.x % LANES;
    const WarpOfQueries warp = WarpOfQueries::find<ROWS>(tokens, heads, heads_together);
    const u32 queries_there = rows_from(warp.first, tokens);
    const u32 first_row = warp.sequence * tokens + warp.first;

    const Rows<WIDTH> queries = {threadIdx.x / LANES * ROWS * Rows<WIDTH>::BYTES};
    const KeysAndValues<WIDTH> passing =
        KeysAndValues<WIDTH>::seen_by(warp, packed, tokens, heads, key_value_heads, WARPS * ROWS * Rows<WIDTH>::BYTES);
    queries.template begin_copy<ROWS, LANES>(lane, packed, first_row * packed_width + warp.head * WIDTH, packed_width,
                                             queries_there);
    passing.begin_copy(0);

    Sums sums[PARTS][SQUARES];
    RowSoFar rows[PARTS][2];
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
#pragma unroll
        for (u32 index = 0; index < SQUARES; index++) {
            sums[part][index].clear();
        }
        rows[part][0] = rows[part][1] = {minus_infinity(), 0.0f};
    }
    const float scale_log2 = scale * LOG2_E;
    const u32 keys_seen = queries_there > 0 ? warp.first + ROWS : 0;
    for (u32 tile = 0; tile < warp.tiles; tile++) {
        tile_arrives();
        if (tile + 1 < warp.tiles) {
            passing.begin_copy(tile + 1);
        }
        const Rows<WIDTH> keys = passing.tile_of_keys(tile);
        const Rows<WIDTH> values = passing.tile_of_values(tile);
#pragma unroll 1
        for (u32 row = 0; row < TILE && tile * TILE + row < keys_seen; row += STEP_SQUARES * SIDE) {
            const u32 first_key = tile * TILE + row;
            Sums scores[PARTS][STEP_SQUARES];
#pragma unroll
            for (u32 square = 0; square < STEP_SQUARES; square++) {
#pragma unroll
                for (u32 part = 0; part < PARTS; part++) {
                    scores[part][square].clear();
                }
            }
#pragma unroll
            for (u32 index = 0; index < SQUARES; index++) {
                Square of_queries[PARTS];
#pragma unroll
                for (u32 part = 0; part < PARTS; part++) {
                    of_queries[part] = queries.square(part * SIDE, index * SIDE);
                }
#pragma unroll
                for (u32 square = 0; square < STEP_SQUARES; square++) {
                    const Square of_keys = keys.square(row + square * SIDE, index * SIDE);
#pragma unroll
                    for (u32 part = 0; part < PARTS; part++) {
                        scores[part][square].add_by_rows(of_queries[part], of_keys);
                    }
                }
            }
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) {
                hide_later_keys(scores[part], first_key, warp.first + part * SIDE);
                // Every query sees a key of the first step, so that its largest score is a number from then on.
#pragma unroll
                for (u32 lower = 0; lower < 2; lower++) {
                    const float shrink = soften(rows[part][lower], scores[part], lower, scale_log2);
                    // The more keys a query has seen, the rarer one has a larger score than all before.
                    if (__any_sync(ALL_LANES, shrink != 1.0f)) {
#pragma unroll
                        for (u32 index = 0; index < SQUARES; index++) {
#pragma unroll
                            for (u32 half = 0; half < 2; half++) {
                                sums[part][index].of[half][2 * lower] *= shrink;
                                sums[part][index].of[half][2 * lower + 1] *= shrink;
                            }
                        }
                    }
                }
            }
#pragma unroll
            for (u32 square = 0; square < STEP_SQUARES; square++) {
                Square probabilities[PARTS];
#pragma unroll
                for (u32 part = 0; part < PARTS; part++) {
                    probabilities[part] = scores[part][square].rounded();
                }
#pragma unroll
                for (u32 index = 0; index < SQUARES; index++) {
                    const Square of_values = values.transposed(row + square * SIDE, index * SIDE);
#pragma unroll
                    for (u32 part = 0; part < PARTS; part++) {
                        sums[part][index].add_by_columns(probabilities[part], of_values);
                    }
                }
            }
        }
    }

    out += (first_row * heads + warp.head) * WIDTH;
    log_sums += (warp.sequence * heads + warp.head) * tokens + warp.first;
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
        float share[2];
#pragma unroll
        for (u32 lower = 0; lower < 2; lower++) {
            float sum = rows[part][lower].sum;
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            share[lower] = 1.0f / sum;
            const u32 row = part * SIDE + lower * 8 + lane_row();
            if (row < queries_there && lane % 4 == 0) {
                log_sums[row] = rows[part][lower].largest * scale + logf(sum);
            }
        }
        write_rows<WIDTH>(out, part * SIDE * heads * WIDTH, heads * WIDTH, sums[part], share,
                          queries_there > part * SIDE ? queries_there - part * SIDE : 0);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_fused_forward_64(float* out, float* log_sums, const Bf16* packed, u32 tokens, u32 heads,
                               u32 key_value_heads, u32 heads_together, float scale) {
    fused_forward<64, 2>(out, log_sums, packed, tokens, heads, key_value_heads, heads_together, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_fused_forward_128(float* out, float* log_sums, const Bf16* packed, u32 tokens, u32 heads,
                                u32 key_value_heads, u32 heads_together, float scale) {
    fused_forward<128, 2>(out, log_sums, packed, tokens, heads, key_value_heads, heads_together, scale);
}

// For cards that have less shared memory for a block than an A100.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_fused_forward_small_128(float* out, float* log_sums, const Bf16* packed, u32 tokens, u32 heads,
                                      u32 key_value_heads, u32 heads_together, float scale) {
    fused_forward<128, 1>(out, log_sums, packed, tokens, heads, key_value_heads, heads_together, scale);
}
