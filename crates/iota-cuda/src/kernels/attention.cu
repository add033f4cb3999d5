// What attention needs beside matrix products.
//
// A pair is a sequence and a key-value head. For products, each pair's queries lie as [tokens * group, head_width], the
// heads of a group one after the other within a token, and its keys and values as [tokens, head_width]: then a block of
// queries is one left factor for all heads of the group. Scores: [tokens * group, keys] with rows `stride` apart.

// From [rows, source_width] to [pairs, tokens, group_width], as factors. A block for each row of the source.
//
// group_width: channels of a key-value head's group of heads; channels: all of those, from `offset` on.
template <typename T>
__device__ inline void gather(T* __restrict__ out, const float* __restrict__ source, u32 source_width, u32 offset,
                              u32 channels, u32 group_width, u32 tokens) {
    const u64 sequence = blockIdx.x / tokens;
    const u64 token = blockIdx.x % tokens;
    const u64 heads = channels / group_width;
    source += (u64)blockIdx.x * source_width + offset;
#pragma unroll 4
    for (u32 channel = threadIdx.x; channel < channels; channel += THREADS) {
        const u64 pair = sequence * heads + channel / group_width;
        out[(pair * tokens + token) * group_width + channel % group_width] = as_factor<T>(source[channel]);
    }
}

extern "C" __global__ void attention_gather_f32(float* out, const float* source, u32 source_width, u32 offset,
                                                u32 channels, u32 group_width, u32 tokens) {
    gather<float>(out, source, source_width, offset, channels, group_width, tokens);
}

extern "C" __global__ void attention_gather_bf16(Bf16* out, const float* source, u32 source_width, u32 offset,
                                                 u32 channels, u32 group_width, u32 tokens) {
    gather<Bf16>(out, source, source_width, offset, channels, group_width, tokens);
}

// The other way round: from [pairs, tokens, group_width] to channels of [rows, out_width]. A block for each row.
extern "C" __global__ void attention_scatter(float* __restrict__ out, const float* __restrict__ source, u32 out_width,
                                             u32 offset, u32 channels, u32 group_width, u32 tokens) {
    const u64 sequence = blockIdx.x / tokens;
    const u64 token = blockIdx.x % tokens;
    const u64 heads = channels / group_width;
    out += (u64)blockIdx.x * out_width + offset;
#pragma unroll 4
    for (u32 channel = threadIdx.x; channel < channels; channel += THREADS) {
        const u64 pair = sequence * heads + channel / group_width;
        out[channel] = source[(pair * tokens + token) * group_width + channel % group_width];
    }
}

// Where a row of scores belongs.
struct ScoreRow {
    u32 token;
    // In [pairs, tokens, group].
    u64 among_queries;
    // In log_sums, [sequences, heads, tokens].
    u64 among_log_sums;
};

// `row` of a block of `queries` tokens from `first_token` on, of pairs from `first_pair` on.
__device__ inline ScoreRow score_row(u64 row, u32 first_pair, u32 first_token, u32 queries, u32 group,
                                     u32 key_value_heads, u32 tokens) {
    const u64 pair = first_pair + row / (queries * group);
    const u32 within = (u32)(row % (queries * group));
    const u64 sequence = pair / key_value_heads;
    const u64 head = pair % key_value_heads * group + within % group;
    ScoreRow place;
    place.token = first_token + within / group;
    place.among_queries = (pair * tokens + place.token) * group + within % group;
    place.among_log_sums = (sequence * key_value_heads * group + head) * tokens + place.token;
    return place;
}

// Causal softmax of each row of scores, and the logarithm of its denominator. A warp for each row.
//
// probabilities: factors, like scores; 0 for later keys. keys: columns, those of the block's last query at least.
template <typename T>
__device__ inline void softmax(T* __restrict__ probabilities, float* __restrict__ log_sums,
                               const float* __restrict__ scores, u64 rows, u32 stride, u32 keys, float scale,
                               u32 first_pair, u32 first_token, u32 queries, u32 group, u32 key_value_heads,
                               u32 tokens) {
    const u64 row = (u64)blockIdx.x * WARPS + threadIdx.x / LANES;
    if (row >= rows) {
        return;
    }
    const u32 lane = threadIdx.x % LANES;
    const ScoreRow place = score_row(row, first_pair, first_token, queries, group, key_value_heads, tokens);
    scores += row * stride;
    probabilities += row * stride;
    const u32 visible = place.token + 1;
    Denominator denominator = {minus_infinity(), 0.0f};
    for (u32 key = lane; key < visible; key += LANES) {
        denominator.take(scores[key] * scale);
    }
    const float largest = warp_max(denominator.largest);
    const float sum = warp_sum(denominator.scaled_to(largest));
    if (lane == 0) {
        log_sums[place.among_log_sums] = largest + logf(sum);
    }
    const float share = 1.0f / sum;
    for (u32 key = lane; key < keys; key += LANES) {
        const float probability = key < visible ? expf(scores[key] * scale - largest) * share : 0.0f;
        probabilities[key] = as_factor<T>(probability);
    }
}

extern "C" __global__ void attention_softmax_f32(float* probabilities, float* log_sums, const float* scores, u64 rows,
                                                 u32 stride, u32 keys, float scale, u32 first_pair, u32 first_token,
                                                 u32 queries, u32 group, u32 key_value_heads, u32 tokens) {
    softmax<float>(probabilities, log_sums, scores, rows, stride, keys, scale, first_pair, first_token, queries, group,
                   key_value_heads, tokens);
}

extern "C" __global__ void attention_softmax_bf16(Bf16* probabilities, float* log_sums, const float* scores, u64 rows,
                                                  u32 stride, u32 keys, float scale, u32 first_pair, u32 first_token,
                                                  u32 queries, u32 group, u32 key_value_heads, u32 tokens) {
    softmax<Bf16>(probabilities, log_sums, scores, rows, stride, keys, scale, first_pair, first_token, queries, group,
                  key_value_heads, tokens);
}

// along = sum over a head's channels of out_gradient * out. A warp for each token and head.
//
// along: [pairs, tokens, group].
extern "C" __global__ void attention_along(float* __restrict__ along, const float* __restrict__ out_gradient,
                                           const float* __restrict__ out, u64 rows_and_heads, u32 heads, u32 group,
                                           u32 tokens, u32 head_width) {
    const u64 index = (u64)blockIdx.x * WARPS + threadIdx.x / LANES;
    if (index >= rows_and_heads) {
        return;
    }
    const u32 lane = threadIdx.x % LANES;
    float sum = 0.0f;
    for (u32 channel = lane; channel < head_width; channel += LANES) {
        sum += out_gradient[index * head_width + channel] * out[index * head_width + channel];
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        const u64 row = index / heads;
        const u64 head = index % heads;
        const u64 pair = row / tokens * (heads / group) + head / group;
        along[(pair * tokens + row % tokens) * group + head % group] = sum;
    }
}

// From scores and the gradients of probabilities: the probabilities again, and the gradients of unscaled scores,
// dS = P (dP - along) scale. A warp for each row.
template <typename T>
__device__ inline void softmax_backward(T* __restrict__ probabilities, T* __restrict__ score_gradient,
                                        const float* __restrict__ scores, const float* __restrict__ gradient,
                                        const float* __restrict__ log_sums, const float* __restrict__ along, u64 rows,
                                        u32 stride, u32 keys, float scale, u32 first_pair, u32 first_token, u32 queries,
                                        u32 group, u32 key_value_heads, u32 tokens) {
    const u64 row = (u64)blockIdx.x * WARPS + threadIdx.x / LANES;
    if (row >= rows) {
        return;
    }
    const ScoreRow place = score_row(row, first_pair, first_token, queries, group, key_value_heads, tokens);
    const float log_sum = log_sums[place.among_log_sums];
    const float along_row = along[place.among_queries];
    const u64 start = row * stride;
    for (u32 key = threadIdx.x % LANES; key < keys; key += LANES) {
        float probability = 0.0f;
        float slope = 0.0f;
        if (key <= place.token) {
            probability = expf(scores[start + key] * scale - log_sum);
            slope = probability * (gradient[start + key] - along_row) * scale;
        }
        probabilities[start + key] = as_factor<T>(probability);
        score_gradient[start + key] = as_factor<T>(slope);
    }
}

extern "C" __global__ void attention_backward_f32(float* probabilities, float* score_gradient, const float* scores,
                                                  const float* gradient, const float* log_sums, const float* along,
                                                  u64 rows, u32 stride, u32 keys, float scale, u32 first_pair,
                                                  u32 first_token, u32 queries, u32 group, u32 key_value_heads,
                                                  u32 tokens) {
    softmax_backward<float>(probabilities, score_gradient, scores, gradient, log_sums, along, rows, stride, keys, scale,
                            first_pair, first_token, queries, group, key_value_heads, tokens);
}

extern "C" __global__ void attention_backward_bf16(Bf16* probabilities, Bf16* score_gradient, const float* scores,
                                                   const float* gradient, const float* log_sums, const float* along,
                                                   u64 rows, u32 stride, u32 keys, float scale, u32 first_pair,
                                                   u32 first_token, u32 queries, u32 group, u32 key_value_heads,
                                                   u32 tokens) {
    softmax_backward<Bf16>(probabilities, score_gradient, scores, gradient, log_sums, along, rows, stride, keys, scale,
                           first_pair, first_token, queries, group, key_value_heads, tokens);
}
