// The two ends of a model: the embedding, and the loss of a row of logits.

// Row i of out is row tokens[i] of table. A block for each row.
extern "C" __global__ void embedding(float* __restrict__ out, const float* __restrict__ table,
                                     const u32* __restrict__ tokens, u32 width) {
    out += (u64)blockIdx.x * width;
    table += (u64)tokens[blockIdx.x] * width;
    for (u32 channel = threadIdx.x; channel < width; channel += THREADS) {
        out[channel] = table[channel];
    }
}

// The embedding's gradient, first half: the sum over each piece of the rows that read one token. A block for each piece.
//
// order: the rows, those of one token together, in order. starts: where each piece begins in it, and where the last
// ends. partial: [pieces, width].
extern "C" __global__ void embedding_partial(float* __restrict__ partial, const float* __restrict__ out_gradient,
                                             const u32* __restrict__ order, const u32* __restrict__ starts, u32 width) {
    const u32 first = starts[blockIdx.x];
    const u32 end = starts[blockIdx.x + 1];
    partial += (u64)blockIdx.x * width;
    for (u32 channel = threadIdx.x; channel < width; channel += THREADS) {
        float sum = 0.0f;
#pragma unroll 4
        for (u32 index = first; index < end; index++) {
            sum += out_gradient[(u64)order[index] * width + channel];
        }
        partial[channel] = sum;
    }
}

// Second half: adds the pieces of each token, in order. A block for each distinct token.
//
// tokens: the distinct ones. piece_starts: where each one's pieces begin, and where the last ends.
extern "C" __global__ void embedding_add(float* __restrict__ table_gradient, const float* __restrict__ partial,
                                         const u32* __restrict__ tokens, const u32* __restrict__ piece_starts,
                                         u32 width) {
    const u32 first = piece_starts[blockIdx.x];
    const u32 end = piece_starts[blockIdx.x + 1];
    table_gradient += (u64)tokens[blockIdx.x] * width;
    for (u32 channel = threadIdx.x; channel < width; channel += THREADS) {
        float sum = 0.0f;
#pragma unroll 4
        for (u32 piece = first; piece < end; piece++) {
            sum += partial[(u64)piece * width + channel];
        }
        table_gradient[channel] += sum;
    }
}

// losses = -log softmax(logits)[target], and the gradients of the logits times `share`, as factors, unless there is no
// room for them. A block for each row of logits [rows, vocabulary].
template <typename T>
__device__ inline void cross_entropy(float* __restrict__ losses, T* __restrict__ gradient,
                                     const float* __restrict__ logits, const u32* __restrict__ targets, u32 vocabulary,
                                     float share) {
    logits += (u64)blockIdx.x * vocabulary;
    const u32 target = targets[blockIdx.x];
    Denominator denominator = {minus_infinity(), 0.0f};
#pragma unroll 4
    for (u32 token = threadIdx.x; token < vocabulary; token += THREADS) {
        denominator.take(logits[token]);
    }
    const float largest = block_max(denominator.largest);
    const float sum = block_sum(denominator.scaled_to(largest));
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = largest + logf(sum) - logits[target];
    }
    if (gradient == 0) {
        return;
    }
    gradient += (u64)blockIdx.x * vocabulary;
    const float of_one = share / sum;
#pragma unroll 4
    for (u32 token = threadIdx.x; token < vocabulary; token += THREADS) {
        const float probability = expf(logits[token] - largest) * of_one;
        gradient[token] = as_factor<T>(token == target ? probability - share : probability);
    }
}

extern "C" __global__ void cross_entropy_f32(float* losses, float* gradient, const float* logits, const u32* targets,
                                             u32 vocabulary, float share) {
    cross_entropy<float>(losses, gradient, logits, targets, vocabulary, share);
}

extern "C" __global__ void cross_entropy_bf16(float* losses, Bf16* gradient, const float* logits, const u32* targets,
                                              u32 vocabulary, float share) {
    cross_entropy<Bf16>(losses, gradient, logits, targets, vocabulary, share);
}
