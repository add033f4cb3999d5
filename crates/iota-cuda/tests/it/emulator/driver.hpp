// As much of NVIDIA's driver, of NVRTC and of cuBLAS as src/card calls, over the emulator, as their documentation has it. So
// that code runs too, with arguments in the order in which C takes them. What is asked for is done at once.

typedef int Status;
typedef unsigned long long DevicePointer;

namespace {

const std::size_t MEMORY_BYTES = std::size_t(4) << 30;
std::size_t taken_bytes = 0;

// The size lies before an allocation. The rest starts out as NaN.
void* take(std::size_t bytes) {
    char* memory = static_cast<char*>(std::aligned_alloc(256, 256 + (bytes + 255) / 256 * 256));
    *reinterpret_cast<std::size_t*>(memory) = bytes;
    std::memset(memory + 256, 0xff, bytes);
    return memory + 256;
}

std::size_t give(void* address) {
    char* memory = static_cast<char*>(address) - 256;
    const std::size_t bytes = *reinterpret_cast<std::size_t*>(memory);
    std::free(memory);
    return bytes;
}

float element(const void* matrix, int type, std::size_t index) {
    // CUDA_R_32F is 0, CUDA_R_16BF is 14.
    if (type == 0) {
        return static_cast<const float*>(matrix)[index];
    }
    return __uint_as_float(unsigned(static_cast<const unsigned short*>(matrix)[index]) << 16);
}

} // namespace

extern "C" {

Status cuInit(unsigned) { return 0; }
Status cuDriverGetVersion(int* version) { return *version = 13000, 0; }
Status cuDeviceGetCount(int* count) { return *count = 1, 0; }
Status cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
Status cuDeviceGetName(char* name, int length, int) { return std::strncpy(name, "emulated card", length), 0; }
Status cuDeviceTotalMem_v2(std::size_t* bytes, int) { return *bytes = MEMORY_BYTES, 0; }
Status cuDeviceGetAttribute(int* value, int attribute, int) {
    // Multiprocessors, and the compute capability's halves.
    *value = attribute == 16 ? 1 : attribute == 75 ? 9 : 0;
    return 0;
}
Status cuDevicePrimaryCtxRetain(void** context, int) { return *context = &taken_bytes, 0; }
Status cuDevicePrimaryCtxRelease_v2(int) { return 0; }
Status cuCtxSetCurrent(void* context) { return context == &taken_bytes ? 0 : 201; }

Status cuModuleLoadData(void** module, const void* image) { return *module = const_cast<void*>(image), 0; }
Status cuModuleUnload(void*) { return 0; }
Status cuModuleGetFunction(void** function, void*, const char* name) {
#define X(kernel)                                                                                                          \
    if (std::strcmp(name, #kernel) == 0) {                                                                                 \
        *function = const_cast<char*>(#kernel);                                                                            \
        return 0;                                                                                                          \
    }
    KERNELS(X)
#undef X
    return 500;
}
Status cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared_bytes, void*, void** arguments, void** extra) {
    if (z != 1 || block_y != 1 || block_z != 1 || shared_bytes != 0 || extra != nullptr) {
        return 1;
    }
    const unsigned grid[2] = {x, y};
    char message[256];
    return emulate(static_cast<char*>(function), grid, block_x, arguments, nullptr, 1, message, sizeof message) ? 719 : 0;
}

Status cuStreamCreate(void** stream, unsigned) { return *stream = &taken_bytes, 0; }
Status cuStreamSynchronize(void*) { return 0; }
Status cuStreamDestroy_v2(void*) { return 0; }
Status cuEventCreate(void** event, unsigned) { return *event = &taken_bytes, 0; }
Status cuEventRecord(void*, void*) { return 0; }
Status cuEventSynchronize(void*) { return 0; }
Status cuEventDestroy_v2(void*) { return 0; }

Status cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    *free = MEMORY_BYTES - taken_bytes;
    *total = MEMORY_BYTES;
    return 0;
}
Status cuMemAlloc_v2(DevicePointer* address, std::size_t bytes) {
    if (bytes == 0) {
        return 1;
    }
    if (bytes > MEMORY_BYTES - taken_bytes) {
        return 2;
    }
    taken_bytes += bytes;
    *address = reinterpret_cast<DevicePointer>(take(bytes));
    return 0;
}
Status cuMemFree_v2(DevicePointer address) {
    taken_bytes -= give(reinterpret_cast<void*>(address));
    return 0;
}
Status cuMemHostAlloc(void** address, std::size_t bytes, unsigned) { return *address = take(bytes), 0; }
Status cuMemFreeHost(void* address) { return give(address), 0; }
Status cuMemsetD8Async(DevicePointer at, unsigned char value, std::size_t bytes, void*) {
    std::memset(reinterpret_cast<void*>(at), value, bytes);
    return 0;
}
Status cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, std::size_t bytes, void*) {
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return 0;
}
Status cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, std::size_t bytes, void*) {
    std::memcpy(to, reinterpret_cast<void*>(from), bytes);
    return 0;
}
Status cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, std::size_t bytes, void*) {
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
    return 0;
}

Status nvrtcCreateProgram(void** program, const char*, const char*, int, const char* const*, const char* const*) {
    return *program = &taken_bytes, 0;
}
Status nvrtcCompileProgram(void*, int, const char* const*) { return 0; }
Status nvrtcGetCUBINSize(void*, std::size_t* bytes) { return *bytes = 4, 0; }
Status nvrtcGetCUBIN(void*, char* image) { return std::memcpy(image, "\x7f" "ELF", 4), 0; }
Status nvrtcDestroyProgram(void**) { return 0; }

Status cublasCreate_v2(void** handle) { return *handle = &taken_bytes, 0; }
Status cublasDestroy_v2(void*) { return 0; }
Status cublasSetStream_v2(void*, void*) { return 0; }
Status cublasSetWorkspace_v2(void*, void*, std::size_t) { return 0; }

// C = alpha op(A) op(B) + beta C for each of a batch, column-major: C is [m, n], op(A) is [m, k], op(B) is [k, n].
Status cublasGemmStridedBatchedEx(void*, int turn_a, int turn_b, int m, int n, int k, const void* alpha, const void* a,
                                  int a_type, int lda, long long stride_a, const void* b, int b_type, int ldb,
                                  long long stride_b, const void* beta, void* c, int c_type, int ldc, long long stride_c,
                                  int batch, int compute_type, int) {
    const bool shapes_hold = lda >= (turn_a ? k : m) && ldb >= (turn_b ? n : k) && ldc >= m;
    // CUBLAS_COMPUTE_32F is 68.
    if (!shapes_hold || c_type != 0 || compute_type != 68) {
        return 7;
    }
    const float scale = *static_cast<const float*>(alpha);
    const float keep = *static_cast<const float*>(beta);
    for (long long index = 0; index < batch; index++) {
        for (long long column = 0; column < n; column++) {
            for (long long row = 0; row < m; row++) {
                float sum = 0.0f;
                for (long long term = 0; term < k; term++) {
                    const long long at_a = turn_a ? row * lda + term : term * lda + row;
                    const long long at_b = turn_b ? term * ldb + column : column * ldb + term;
                    sum += element(a, a_type, index * stride_a + at_a) * element(b, b_type, index * stride_b + at_b);
                }
                float& out = static_cast<float*>(c)[index * stride_c + column * ldc + row];
                out = scale * sum + (keep == 0.0f ? 0.0f : keep * out);
            }
        }
    }
    return 0;
}
}
