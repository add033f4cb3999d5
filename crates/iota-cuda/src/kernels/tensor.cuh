// What tensor cores need: small matrices that the lanes of a warp hold together, and copies to shared memory that go on
// while a warp computes. Cards of compute capability 8.0 have them all.
//
// Here each is one instruction, and where its operands lie is said by NVIDIA's "PTX ISA", under mma.m16n8k16, ldmatrix and
// cp.async. On a host, tests/it/emulator/tensor.hpp has the same functions, written from that description.

#ifdef __CUDACC__

// The memory that a launch asks for, aligned to 256 bytes. Below, places in it are counted in bytes from its start.
__device__ inline char* launch_memory() {
    extern __shared__ __align__(256) char memory[];
    return memory;
}

__device__ inline u32 shared_address(u32 place) {
    return (u32)__cvta_generic_to_shared(launch_memory()) + place;
}

// sums += left right. left: 16 x 16, right: 16 x 8, both bf16, two to a register; sums: 16 x 8. All lanes of a warp.
__device__ inline void multiply_add(float (&sums)[4], const u32 (&left)[4], u32 right_low, u32 right_high) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_low), "r"(right_high));
}

// Four matrices of 8 x 8 numbers of two bytes from shared memory. Lanes 0 to 7 say where the rows of the first are, 16
// bytes each at multiples of as many, lanes 8 to 15 those of the second, and so on. All lanes of a warp.
__device__ inline void load_matrices(u32 (&matrices)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each of the four transposed.
__device__ inline void load_matrices_transposed(u32 (&matrices)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Begins to copy 16 bytes to a place in shared memory, past the first cache; or, if they are not there, to fill as many with zeros.
// Both are at multiples of as many.
__device__ inline void begin_copy_16(u32 to, const void* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

// The same for 4 bytes.
__device__ inline void begin_copy_4(u32 to, const void* from, bool is_there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(is_there ? 4 : 0)
                 : "memory");
}

// Waits for the copies that this thread has begun. What others have begun is there after a barrier behind their waits.
__device__ inline void finish_copies() {
    asm volatile("cp.async.wait_all;" : : : "memory");
}

// Two numbers as factors in one register, the first in the lower half.
__device__ inline u32 factor_pair(float first, float second) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// 2 to the power of x, two units in the last place off at most; 0 instead of what is smaller than any normal number.
__device__ inline float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// Two numbers, at an address that is aligned to both together.
__device__ inline void store_pair(float* at, float first, float second) {
    *reinterpret_cast<float2*>(at) = make_float2(first, second);
}

#endif
