// Operations on each element or row by itself.

extern "C" __global__ void fill(float* __restrict__ out, u64 elements, float value) {
    for (u64 i = first_element(); i < elements; i += element_step()) {
        out[i] = value;
    }
}

// out: bf16.
extern "C" __global__ void round_to_bf16(Bf16* __restrict__ out, const float* __restrict__ x, u64 elements) {
#pragma unroll 4
    for (u64 i = first_element(); i < elements; i += element_step()) {
        out[i] = as_factor<Bf16>(x[i]);
    }
}

// A block for each row.
extern "C" __global__ void add_columns(float* __restrict__ out, u32 out_width, const float* __restrict__ source,
                                       u32 source_width, u32 columns) {
    out += (u64)blockIdx.x * out_width;
    source += (u64)blockIdx.x * source_width;
    for (u32 column = threadIdx.x; column < columns; column += THREADS) {
        out[column] += source[column];
    }
}

// hidden = silu(gate) up, as factors. A block for each row of hidden [rows, width]; gate_up: [rows, 2 width].
template <typename T>
__device__ inline void swiglu(T* __restrict__ hidden, const float* __restrict__ gate_up, u32 width) {
    hidden += (u64)blockIdx.x * width;
    const float* gate = gate_up + (u64)blockIdx.x * 2 * width;
    const float* up = gate + width;
#pragma unroll 4
    for (u32 channel = threadIdx.x; channel < width; channel += THREADS) {
        const float x = gate[channel];
        hidden[channel] = as_factor<T>(x * sigmoid(x) * up[channel]);
    }
}

extern "C" __global__ void swiglu_f32(float* hidden, const float* gate_up, u32 width) {
    swiglu<float>(hidden, gate_up, width);
}

extern "C" __global__ void swiglu_bf16(Bf16* hidden, const float* gate_up, u32 width) {
    swiglu<Bf16>(hidden, gate_up, width);
}

// The derivative of x sigmoid(x), from sigmoid(x) and the product.
__device__ inline float silu_slope(float open, float silu) {
    return open * (1.0f - silu) + silu;
}

// From gate and up and the gradient of hidden to their gradient and hidden itself, both as factors. A block for each row.
// An f32 result may lie where its argument does.
template <typename T>
__device__ inline void swiglu_backward(T* gate_up_gradient, T* hidden, const float* gate_up, const float* hidden_gradient,
                                       u32 width) {
    hidden += (u64)blockIdx.x * width;
    hidden_gradient += (u64)blockIdx.x * width;
    gate_up_gradient += (u64)blockIdx.x * 2 * width;
    gate_up += (u64)blockIdx.x * 2 * width;
    for (u32 channel = threadIdx.x; channel < width; channel += THREADS) {
        const float gradient = hidden_gradient[channel];
        const float x = gate_up[channel];
        const float factor = gate_up[width + channel];
        const float open = sigmoid(x);
        const float silu = x * open;
        hidden[channel] = as_factor<T>(silu * factor);
        gate_up_gradient[channel] = as_factor<T>(gradient * factor * silu_slope(open, silu));
        gate_up_gradient[width + channel] = as_factor<T>(gradient * silu);
    }
}

extern "C" __global__ void swiglu_backward_f32(float* gate_up_gradient, float* hidden, const float* gate_up,
                                               const float* hidden_gradient, u32 width) {
    swiglu_backward<float>(gate_up_gradient, hidden, gate_up, hidden_gradient, width);
}

extern "C" __global__ void swiglu_backward_bf16(Bf16* __restrict__ gate_up_gradient, Bf16* __restrict__ hidden,
                                                const float* __restrict__ gate_up,
                                                const float* __restrict__ hidden_gradient, u32 width) {
    swiglu_backward<Bf16>(gate_up_gradient, hidden, gate_up, hidden_gradient, width);
}

extern "C" __global__ void silu(float* __restrict__ out, const float* __restrict__ x, u64 elements) {
    for (u64 i = first_element(); i < elements; i += element_step()) {
        out[i] = x[i] * sigmoid(x[i]);
    }
}

// In place: x becomes silu(x), the gradient of that becomes the gradient of x.
extern "C" __global__ void silu_backward(float* __restrict__ x, float* __restrict__ gradient, u64 elements) {
    for (u64 i = first_element(); i < elements; i += element_step()) {
        const float open = sigmoid(x[i]);
        const float silu = x[i] * open;
        gradient[i] *= silu_slope(open, silu);
        x[i] = silu;
    }
}

extern "C" __global__ void relu(float* __restrict__ x, u64 elements) {
    for (u64 i = first_element(); i < elements; i += element_step()) {
        // Not a maximum: a NaN becomes 0, as on the CPU.
        x[i] = x[i] > 0.0f ? x[i] : 0.0f;
    }
}

extern "C" __global__ void relu_backward(float* __restrict__ gradient, const float* __restrict__ out, u64 elements) {
    for (u64 i = first_element(); i < elements; i += element_step()) {
        gradient[i] = out[i] > 0.0f ? gradient[i] : 0.0f;
    }
}

// One rotary pair, turned.
struct Pair {
    float first;
    float second;
};

__device__ inline Pair turned(float first, float second, float cosine, float sine) {
    Pair pair;
    pair.first = first * cosine - second * sine;
    pair.second = first * sine + second * cosine;
    return pair;
}

// Turns the rotary pairs of the first `heads` heads of each row, in place. A block for each row.
//
// packed: [rows, packed_width]; cosines, sines: [positions, half]; sign: 1 forward, -1 back.
extern "C" __global__ void rotate(float* __restrict__ packed, const float* __restrict__ cosines,
                                  const float* __restrict__ sines, u32 tokens, u32 heads, u32 half, u32 packed_width,
                                  float sign) {
    packed += (u64)blockIdx.x * packed_width;
    const u64 position = blockIdx.x % tokens;
    cosines += position * half;
    sines += position * half;
    for (u32 pair = threadIdx.x; pair < heads * half; pair += THREADS) {
        const u32 channel = pair % half;
        float* first = packed + (u64)(pair / half) * 2 * half + channel;
        float* second = first + half;
        const Pair result = turned(*first, *second, cosines[channel], sign * sines[channel]);
        *first = result.first;
        *second = result.second;
    }
}

// The same back, as factors, of all channels. out: bf16, [rows, packed_width].
extern "C" __global__ void rotate_back_bf16(Bf16* __restrict__ out, const float* __restrict__ packed,
                                            const float* __restrict__ cosines, const float* __restrict__ sines,
                                            u32 tokens, u32 heads, u32 half, u32 packed_width) {
    out += (u64)blockIdx.x * packed_width;
    packed += (u64)blockIdx.x * packed_width;
    const u64 position = blockIdx.x % tokens;
    cosines += position * half;
    sines += position * half;
    for (u32 pair = threadIdx.x; pair < packed_width / 2; pair += THREADS) {
        const u32 channel = pair % half;
        const u32 first = pair / half * 2 * half + channel;
        const u32 second = first + half;
        // Values are not turned.
        const bool turns = pair < heads * half;
        const float cosine = turns ? cosines[channel] : 1.0f;
        const float sine = turns ? -sines[channel] : 0.0f;
        const Pair result = turned(packed[first], packed[second], cosine, sine);
        out[first] = as_factor<Bf16>(result.first);
        out[second] = as_factor<Bf16>(result.second);
    }
}
