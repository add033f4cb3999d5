// What all kernels share: types, rounding, sums over a warp and a block.
//
// These sources are CUDA C++ without any header, so that they compile at run time wherever the driver is. The tests also
// compile them for the host, against tests/it/emulator/emulator.hpp, and run them thread by thread.
//
// Sums are made in an order that depends on shapes only, and nothing is added with atomics: the same inputs give the same
// bits on the same card. Every pointer is to f32 unless it says otherwise. Blocks have THREADS threads.

typedef unsigned int u32;
typedef unsigned long long u64;

// A bf16 number, as the upper half of an f32.
struct Bf16 {
    unsigned short bits;
};

static const u32 THREADS = 256;
static const u32 LANES = 32;
static const u32 WARPS = THREADS / LANES;
static const u32 ALL_LANES = 0xffffffffu;

__device__ inline float minus_infinity() {
    return __uint_as_float(0xff800000u);
}

// A number as the factor of a matrix product: as it is, or rounded to the nearest bf16, ties to even.
template <typename T>
__device__ inline T as_factor(float x);

template <>
__device__ inline float as_factor<float>(float x) {
    return x;
}

template <>
__device__ inline Bf16 as_factor<Bf16>(float x) {
    const u32 bits = __float_as_uint(x);
    Bf16 rounded;
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        // Adding to it could turn a NaN into an infinity.
        rounded.bits = (unsigned short)((bits >> 16) | 0x40u);
    } else {
        rounded.bits = (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
    return rounded;
}

__device__ inline float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

// The first element of a thread that goes through all elements, and the distance to its next.
__device__ inline u64 first_element() {
    return (u64)blockIdx.x * THREADS + threadIdx.x;
}

__device__ inline u64 element_step() {
    return (u64)gridDim.x * THREADS;
}

// The sum over a warp, in every lane.
template <typename T>
__device__ inline T warp_sum(T x) {
    for (u32 distance = LANES / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

__device__ inline float warp_max(float x) {
    for (u32 distance = LANES / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

// The sum over a block, in every thread. All threads of the block must call it.
template <typename T>
__device__ inline T block_sum(T x) {
    __shared__ T of_warps[WARPS];
    x = warp_sum(x);
    if (threadIdx.x % LANES == 0) {
        of_warps[threadIdx.x / LANES] = x;
    }
    __syncthreads();
    T total = 0;
    for (u32 warp = 0; warp < WARPS; warp++) {
        total += of_warps[warp];
    }
    // Before somebody calls it again and writes.
    __syncthreads();
    return total;
}

__device__ inline float block_max(float x) {
    __shared__ float of_warps[WARPS];
    x = warp_max(x);
    if (threadIdx.x % LANES == 0) {
        of_warps[threadIdx.x / LANES] = x;
    }
    __syncthreads();
    float largest = minus_infinity();
    for (u32 warp = 0; warp < WARPS; warp++) {
        largest = fmaxf(largest, of_warps[warp]);
    }
    __syncthreads();
    return largest;
}

// A softmax's denominator in one pass: the largest score so far, and the sum of exp(score - largest).
struct Denominator {
    float largest;
    float sum;

    __device__ inline void take(float score) {
        if (score > largest) {
            sum *= expf(largest - score);
            largest = score;
        }
        sum += expf(score - largest);
    }

    // Of a thread that may have seen nothing, in units of the largest score of all threads.
    __device__ inline float scaled_to(float of_all) const {
        return sum * expf(largest - of_all);
    }
};
