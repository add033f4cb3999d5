// RMSNorm, forward and backward.

// out = x inverse scale, as factors, inverse = 1 / sqrt(mean(x^2) + epsilon). A block for each row.
template <typename T>
__device__ inline void rms_norm(T* __restrict__ out, float* __restrict__ inverse, const float* __restrict__ x,
                                const float* __restrict__ scale, u32 width, float epsilon) {
    out += (u64)blockIdx.x * width;
    x += (u64)blockIdx.x * width;
    float squares = 0.0f;
#pragma unroll 4
    for (u32 channel = threadIdx.x; channel < width; channel += THREADS) {
        squares += x[channel] * x[channel];
    }
    const float of_row = 1.0f / sqrtf(block_sum(squares) / (float)width + epsilon);
    if (threadIdx.x == 0) {
        inverse[blockIdx.x] = of_row;
    }
    // The row comes from the cache this time.
#pragma unroll 4
    for (u32 channel = threadIdx.x; channel < width; channel += THREADS) {
        out[channel] = as_factor<T>(x[channel] * of_row * scale[channel]);
    }
}

extern "C" __global__ void rms_norm_f32(float* out, float* inverse, const float* x, const float* scale, u32 width,
                                        float epsilon) {
    rms_norm<float>(out, inverse, x, scale, width, epsilon);
}

extern "C" __global__ void rms_norm_bf16(Bf16* out, float* inverse, const float* x, const float* scale, u32 width,
                                         float epsilon) {
    rms_norm<Bf16>(out, inverse, x, scale, width, epsilon);
}

// dx = dy scale inverse - x inverse^3 sum(dy scale x) / width, replaced or added. A block for each row.
extern "C" __global__ void rms_norm_backward(float* __restrict__ x_gradient, const float* __restrict__ out_gradient,
                                             const float* __restrict__ x, const float* __restrict__ scale,
                                             const float* __restrict__ inverse, u32 width, u32 add) {
    const u64 row = (u64)blockIdx.x * width;
    x_gradient += row;
    out_gradient += row;
    x += row;
    float along = 0.0f;
#pragma unroll 4
    for (u32 channel = threadIdx.x; channel < width; channel += THREADS) {
        along += out_gradient[channel] * scale[channel] * x[channel];
    }
    const float of_row = inverse[blockIdx.x];
    const float shrink = block_sum(along) * of_row * of_row * of_row / (float)width;
#pragma unroll 4
    for (u32 channel = threadIdx.x; channel < width; channel += THREADS) {
        const float gradient = out_gradient[channel] * scale[channel] * of_row - x[channel] * shrink;
        x_gradient[channel] = add ? x_gradient[channel] + gradient : gradient;
    }
}

// Sums of dy x inverse over a few rows: partial sums of the scale's gradient. A block for THREADS channels
// (blockIdx.y) of so many rows (blockIdx.x).
//
// partial: [blocks of rows, width].
extern "C" __global__ void rms_norm_scale_partial(float* __restrict__ partial, const float* __restrict__ out_gradient,
                                                  const float* __restrict__ x, const float* __restrict__ inverse,
                                                  u32 rows, u32 rows_per_block, u32 width) {
    const u32 channel = blockIdx.y * THREADS + threadIdx.x;
    if (channel >= width) {
        return;
    }
    const u32 first = blockIdx.x * rows_per_block;
    const u32 end = first + rows_per_block < rows ? first + rows_per_block : rows;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 row = first; row < end; row++) {
        const u64 element = (u64)row * width + channel;
        sum += out_gradient[element] * x[element] * inverse[row];
    }
    partial[(u64)blockIdx.x * width + channel] = sum;
}

// Adds the sum of so many rows of partial sums, in order. A thread for each channel.
extern "C" __global__ void add_partial_sums(float* __restrict__ out, const float* __restrict__ partial, u32 rows,
                                            u32 width) {
    const u32 channel = blockIdx.x * THREADS + threadIdx.x;
    if (channel >= width) {
        return;
    }
    float sum = 0.0f;
#pragma unroll 4
    for (u32 row = 0; row < rows; row++) {
        sum += partial[(u64)row * width + channel];
    }
    out[channel] += sum;
}
