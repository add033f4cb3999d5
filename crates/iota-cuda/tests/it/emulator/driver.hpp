// As much of NVIDIA's driver, of NVRTC and of cuBLAS as src/card calls, over the emulator, as their documentation has it. So
// that code runs too, with arguments in the order in which C takes them.
//
// A stream does what it is asked for in order, and not before somebody waits for it. The stream of cuBLAS's handle is the one
// of the work; copies on another stream show in the worst light what may happen when nothing orders the two:
//
//   - they begin as soon as what their stream waits for is done: from then on their target is NaN;
//   - they end when somebody waits for an event behind them: by turns after all of the work that may come first, and after
//     none that need not;
//   - if what they copy has changed in between, they copy nothing.

#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <mutex>

typedef int Status;
typedef unsigned long long DevicePointer;

namespace {

const std::size_t MEMORY_BYTES = std::size_t(4) << 30;
std::size_t taken_bytes = 0;

// What was given back, by size: it is handed out again first, so that whoever still writes there is seen.
std::multimap<std::size_t, char*> spare;

// The size lies before an allocation. The rest starts out as NaN.
void* take(std::size_t bytes) {
    const auto found = spare.find(bytes);
    char* memory = nullptr;
    if (found == spare.end()) {
        memory = static_cast<char*>(std::aligned_alloc(256, 256 + (bytes + 255) / 256 * 256));
    } else {
        memory = found->second;
        spare.erase(found);
    }
    *reinterpret_cast<std::size_t*>(memory) = bytes;
    std::memset(memory + 256, 0xff, bytes);
    return memory + 256;
}

std::size_t give(void* address) {
    char* memory = static_cast<char*>(address) - 256;
    const std::size_t bytes = *reinterpret_cast<std::size_t*>(memory);
    spare.emplace(bytes, memory);
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

// One for all the libraries that are made of this file: the stream is told to one, and used by another.
namespace shared {

struct Stream;

// A place in a stream: what an event has captured.
struct Place {
    Stream* stream;
    bool reached;
    // Copies on other streams that may begin now.
    std::vector<std::function<void()>> begin;
};

struct Stream {
    std::deque<std::function<void()>> asked;
    // What was waited for last.
    std::shared_ptr<Place> after;
};

struct Event {
    std::shared_ptr<Place> captured;
};

inline std::recursive_mutex turn;
inline std::map<void*, unsigned> shared_bytes_allowed;
inline Stream* work = nullptr;
// What went wrong in a stream: whoever waits is told, from then on.
inline Status trouble = 0;

} // namespace shared

namespace {

using namespace shared;
typedef std::lock_guard<std::recursive_mutex> Turn;

void ask(void* stream, std::function<void()> item) {
    static_cast<Stream*>(stream)->asked.push_back(std::move(item));
}

void go_on(Stream* stream) {
    const auto item = std::move(stream->asked.front());
    stream->asked.pop_front();
    item();
}

void finish(Stream* stream) {
    while (stream != nullptr && !stream->asked.empty()) {
        go_on(stream);
    }
}

void reach(const std::shared_ptr<Place>& place) {
    while (!place->reached) {
        go_on(place->stream);
    }
}

Status copy(void* to, const void* from, std::size_t bytes, void* stream) {
    const Turn mine(turn);
    if (stream == work) {
        ask(stream, [=] { std::memcpy(to, from, bytes); });
        return trouble;
    }
    const auto begun = std::make_shared<std::vector<char>>();
    const auto begin = [=] {
        const auto start = static_cast<const char*>(from);
        begun->assign(start, start + bytes);
        std::memset(to, 0xff, bytes);
    };
    const auto after = static_cast<Stream*>(stream)->after;
    if (after == nullptr || after->reached) {
        begin();
    } else {
        after->begin.push_back(begin);
    }
    ask(stream, [=] {
        if (std::memcmp(from, begun->data(), bytes) == 0) {
            std::memcpy(to, from, bytes);
        }
    });
    return trouble;
}

} // namespace

extern "C" {

Status cuInit(unsigned) { return 0; }
Status cuGetErrorName(Status, const char** text) { return *text = "an error", 0; }
Status cuGetErrorString(Status, const char** text) { return *text = "of the stand-in", 0; }
Status cuDriverGetVersion(int* version) { return *version = 13000, 0; }
Status cuDeviceGetCount(int* count) { return *count = 1, 0; }
Status cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
Status cuDeviceGetName(char* name, int length, int) { return std::strncpy(name, "emulated card", length), 0; }
Status cuDeviceTotalMem_v2(std::size_t* bytes, int) { return *bytes = MEMORY_BYTES, 0; }
Status cuDeviceGetAttribute(int* value, int attribute, int) {
    // Multiprocessors, the compute capability's first half (the second is 0), and shared memory for a block.
    *value = attribute == 16 ? 1 : attribute == 75 ? 9 : attribute == 97 ? 163 * 1024 : 0;
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
// Dynamic shared memory of a launch, at most: 48 KiB unless more was asked for, of which an A100 has 163 KiB for a block.
Status cuFuncSetAttribute(void* function, int attribute, int value) {
    // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES.
    if (attribute != 8 || value < 0 || value > 163 * 1024) {
        return 1;
    }
    const Turn mine(turn);
    shared_bytes_allowed[function] = value;
    return 0;
}
Status cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared_bytes, void* stream, void** arguments, void** extra) {
    if (z != 1 || block_y != 1 || block_z != 1 || extra != nullptr) {
        return 1;
    }
    const Turn mine(turn);
    const auto allowed = shared_bytes_allowed.find(function);
    if (shared_bytes > (allowed == shared_bytes_allowed.end() ? 48 * 1024 : allowed->second)) {
        return 1;
    }
    const char* const name = static_cast<char*>(function);
    std::vector<std::uint64_t> values;
#define X(kernel)                                                                                                          \
    if (std::strcmp(name, #kernel) == 0) {                                                                                 \
        values = emulator::values(kernel, arguments);                                                                      \
    }
    KERNELS(X)
#undef X
    ask(stream, [=]() mutable {
        const unsigned grid[2] = {x, y};
        std::vector<void*> pointers;
        for (std::uint64_t& value : values) {
            pointers.push_back(&value);
        }
        char message[256];
        if (emulate(name, grid, block_x, shared_bytes, pointers.data(), nullptr, 1, message, sizeof message)) {
            std::fprintf(stderr, "%s: %s\n", name, message);
            trouble = 719;
        }
    });
    return trouble;
}

Status cuStreamCreate(void** stream, unsigned) { return *stream = new Stream, 0; }
Status cuStreamSynchronize(void* stream) {
    const Turn mine(turn);
    finish(work);
    finish(static_cast<Stream*>(stream));
    return trouble;
}
Status cuStreamDestroy_v2(void* stream) {
    work = stream == work ? nullptr : work;
    delete static_cast<Stream*>(stream);
    return 0;
}
Status cuStreamWaitEvent(void* stream, void* event, unsigned) {
    const Turn mine(turn);
    const auto place = static_cast<Event*>(event)->captured;
    if (place == nullptr) {
        return 0;
    }
    static_cast<Stream*>(stream)->after = place;
    ask(stream, [=] { reach(place); });
    return trouble;
}
Status cuEventCreate(void** event, unsigned) { return *event = new Event, 0; }
Status cuEventRecord(void* event, void* stream) {
    const Turn mine(turn);
    const auto place = std::make_shared<Place>(Place{static_cast<Stream*>(stream), false, {}});
    static_cast<Event*>(event)->captured = place;
    ask(stream, [=] {
        place->reached = true;
        for (const auto& begin : place->begin) {
            begin();
        }
    });
    return trouble;
}
Status cuEventSynchronize(void* event) {
    const Turn mine(turn);
    const auto place = static_cast<Event*>(event)->captured;
    static bool work_comes_first = false;
    if (place != nullptr && !place->reached) {
        work_comes_first = !work_comes_first;
        if (work_comes_first) {
            finish(work);
        }
        reach(place);
    }
    return trouble;
}
Status cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), 0; }

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
Status cuMemsetD8Async(DevicePointer at, unsigned char value, std::size_t bytes, void* stream) {
    const Turn mine(turn);
    ask(stream, [=] { std::memset(reinterpret_cast<void*>(at), value, bytes); });
    return trouble;
}
Status cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, std::size_t bytes, void* stream) {
    return copy(reinterpret_cast<void*>(to), from, bytes, stream);
}
Status cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, std::size_t bytes, void* stream) {
    return copy(to, reinterpret_cast<void*>(from), bytes, stream);
}
Status cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, std::size_t bytes, void* stream) {
    return copy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes, stream);
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
Status cublasSetStream_v2(void*, void* stream) { return work = static_cast<Stream*>(stream), 0; }
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
    const Turn mine(turn);
    ask(work, [=] {
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
    });
    return trouble;
}
}
