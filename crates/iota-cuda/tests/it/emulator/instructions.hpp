// Kernels that run an instruction of tensor.hpp once, for the tests that compare it with what it is documented to do.

static u32 register_of(Bf16 first, Bf16 second) {
    return first.bits | (u32)second.bits << 16;
}

// out = left right. left: [16, 16], right: [16, 8]. Where a lane's numbers lie is as documented for mma.m16n8k16, register by
// register.
extern "C" __global__ void test_multiply(float* out, const Bf16* left, const Bf16* right) {
    if (threadIdx.x >= LANES) {
        return;
    }
    const u32 group = threadIdx.x / 4;
    const u32 pair = 2 * (threadIdx.x % 4);
    const u32 a[4] = {
        register_of(left[group * 16 + pair], left[group * 16 + pair + 1]),
        register_of(left[(group + 8) * 16 + pair], left[(group + 8) * 16 + pair + 1]),
        register_of(left[group * 16 + pair + 8], left[group * 16 + pair + 9]),
        register_of(left[(group + 8) * 16 + pair + 8], left[(group + 8) * 16 + pair + 9]),
    };
    const u32 b[2] = {
        register_of(right[pair * 8 + group], right[(pair + 1) * 8 + group]),
        register_of(right[(pair + 8) * 8 + group], right[(pair + 9) * 8 + group]),
    };
    float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply_add(c, a, b[0], b[1]);
    out[group * 8 + pair] = c[0];
    out[group * 8 + pair + 1] = c[1];
    out[(group + 8) * 8 + pair] = c[2];
    out[(group + 8) * 8 + pair + 1] = c[3];
}

// Copies 32 rows of 8 numbers to places in shared memory, so far apart, and loads them as four matrices. out: [lanes, 4].
// waits: whether each lane waits for what it copies before it is read; meets: whether the lanes then meet at a barrier.
extern "C" __global__ void test_load(u32* out, const Bf16* rows, u32 place, u32 apart, u32 transposed, u32 waits,
                                     u32 meets) {
    if (threadIdx.x >= LANES) {
        return;
    }
    const u32 row = place + apart * threadIdx.x;
    begin_copy_16(row, rows + 8 * threadIdx.x, true);
    if (waits) {
        finish_copies();
    }
    if (meets) {
        __syncwarp();
    }
    u32 matrices[4];
    if (transposed) {
        load_matrices_transposed(matrices, row);
    } else {
        load_matrices(matrices, row);
    }
    for (u32 matrix = 0; matrix < 4; matrix++) {
        out[4 * threadIdx.x + matrix] = matrices[matrix];
    }
    finish_copies();
}
