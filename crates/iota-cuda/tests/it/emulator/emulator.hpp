// CUDA C++ on a CPU: enough of it to run the kernels, thread by thread.
//
// A block's threads are contexts that one thread of the host switches between. Each runs until it waits, at
// __syncthreads() for its block or, at a shuffle say, for its warp. A warp runs until it waits for its block, so that it is
// as far ahead of the others as barriers let it. Which warp goes first, again and again, which of its threads, and in which
// order blocks come, follows from a seed: a kernel that lacks a barrier, or whose blocks depend on each other, gives other
// results for another seed.
//
// What this cannot show: how the GPU's memory model orders accesses between barriers, misaligned accesses, and speed.

#include <algorithm>
#include <array>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __restrict__
#define __launch_bounds__(...)
// One block at a time, so that what its threads share may be static.
#define __shared__ static

namespace emulator {

struct Index {
    unsigned x, y, z;
};

enum class State { Ready, AtBlockBarrier, AtWarpBarrier, Done, Failed };

// A copy to shared memory that is on its way.
struct Copy {
    char* to;
    unsigned bytes;
    char values[16];
};

// A thread that has run its kernel runs the next one, so that contexts are made once; from then on jumps switch between
// them, which, unlike the calls that make contexts, ask nothing of the system.
struct Thread {
    ucontext_t beginning;
    std::vector<char> stack;
    bool begun = false;
    std::jmp_buf place;
    State state;
    Index index;
    // Exchanges so far: they alternate between two, since a lane may be at most one exchange ahead of its warp.
    unsigned exchanges;
    // Begun, and those that it has waited for since its last barrier.
    std::vector<Copy> copies;
    std::vector<Copy> finished_copies;
};

// What the lanes of a warp show each other.
struct Exchange {
    std::array<std::uint64_t, 32> words;
    float left[16][16];
    float right[16][8];
};

struct Failure {
    std::string message;
};

inline std::vector<std::unique_ptr<Thread>> threads;
inline std::jmp_buf scheduler;
inline Thread* current = nullptr;
inline Index block_index, grid_size;
// Of each warp.
inline std::vector<std::array<Exchange, 2>> exchanges;
// What a launch asks for, and some more that nobody may write to.
inline std::vector<char> shared_memory;
inline std::size_t shared_bytes = 0;
inline std::string trouble;
inline void (*entry)(void*) = nullptr;
inline void* entry_argument = nullptr;

// A thread waits, and the scheduler goes on.
inline void wait(State state) {
    current->state = state;
    if (_setjmp(current->place) == 0) {
        _longjmp(scheduler, 1);
    }
}

// Gives up the launch: nobody can throw from one context to another.
[[noreturn]] inline void fail(const std::string& message) {
    trouble = message;
    wait(State::Failed);
    std::abort();
}

inline void run_thread() {
    for (;;) {
        entry(entry_argument);
        wait(State::Done);
    }
}

// Lets a thread go on until it waits.
inline void go_on(Thread* thread) {
    current = thread;
    if (_setjmp(scheduler) == 0) {
        if (thread->begun) {
            _longjmp(thread->place, 1);
        }
        thread->begun = true;
        setcontext(&thread->beginning);
    }
}

inline void add_thread() {
    threads.push_back(std::make_unique<Thread>());
    Thread& thread = *threads.back();
    thread.stack.resize(64 * 1024);
    getcontext(&thread.beginning);
    thread.beginning.uc_stack.ss_sp = thread.stack.data();
    thread.beginning.uc_stack.ss_size = thread.stack.size();
    thread.beginning.uc_link = nullptr;
    makecontext(&thread.beginning, run_thread, 0);
}

// A stream of numbers: xorshift.
struct Chance {
    std::uint64_t state;
    std::uint64_t next() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state;
    }
    template <typename T>
    void shuffle(std::vector<T>& values) {
        for (std::size_t i = values.size(); i > 1; i--) {
            std::swap(values[i - 1], values[next() % i]);
        }
    }
};

// Sets free all who wait in `state` from `first` to `end`, if nobody there is still on the way.
inline bool release(State state, std::size_t first, std::size_t end) {
    bool some = false;
    for (std::size_t i = first; i < end; i++) {
        if (threads[i]->state == state) {
            some = true;
        } else if (threads[i]->state == State::Done && state == State::AtBlockBarrier) {
            continue;
        } else {
            return false;
        }
    }
    for (std::size_t i = first; some && i < end; i++) {
        if (threads[i]->state == state) {
            threads[i]->state = State::Ready;
        }
    }
    return some;
}

// Lets a warp go on until it waits for its block.
inline bool run_warp(const std::vector<unsigned>& lanes, unsigned first, unsigned end) {
    bool ran = false;
    do {
        for (unsigned i : lanes) {
            if (first + i < end && threads[first + i]->state == State::Ready) {
                ran = true;
                go_on(threads[first + i].get());
                if (threads[first + i]->state == State::Failed) {
                    throw Failure{trouble};
                }
            }
        }
    } while (release(State::AtWarpBarrier, first, end));
    return ran;
}

const std::size_t GUARD_BYTES = 256;

inline void run_block(unsigned count, Chance& chance) {
    while (threads.size() < count) {
        add_thread();
    }
    exchanges.resize((count + 31) / 32);
    shared_memory.assign(shared_bytes + GUARD_BYTES, char(0xff));
    for (unsigned i = 0; i < count; i++) {
        threads[i]->state = State::Ready;
        threads[i]->index = {i, 0, 0};
        threads[i]->exchanges = 0;
        threads[i]->finished_copies.clear();
    }
    std::vector<unsigned> warps;
    for (unsigned first = 0; first < count; first += 32) {
        warps.push_back(first);
    }
    std::vector<unsigned> lanes(32);
    for (unsigned i = 0; i < 32; i++) {
        lanes[i] = i;
    }
    for (;;) {
        bool ran = false;
        chance.shuffle(warps);
        for (unsigned first : warps) {
            chance.shuffle(lanes);
            ran |= run_warp(lanes, first, std::min(first + 32, count));
        }
        if (!release(State::AtBlockBarrier, 0, count) && !ran) {
            break;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        if (threads[i]->state != State::Done) {
            throw Failure{"threads wait for ever at a barrier that others do not reach"};
        }
        if (!threads[i]->copies.empty()) {
            throw Failure{"a thread ends before copies that it has begun"};
        }
    }
    for (std::size_t i = shared_bytes; i < shared_memory.size(); i++) {
        if (shared_memory[i] != char(0xff)) {
            throw Failure{"a thread writes beyond the shared memory of the launch"};
        }
    }
}

// A thread comes to a barrier: what it has waited for is there for all who come to it.
inline void meet(State state) {
    for (const Copy& copy : current->finished_copies) {
        std::memcpy(copy.to, copy.values, copy.bytes);
    }
    current->finished_copies.clear();
    wait(state);
}

inline Exchange& next_exchange() {
    return exchanges[current->index.x / 32][current->exchanges++ % 2];
}

template <typename T>
T shuffle_xor(T value, unsigned distance) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t), "a shuffle moves up to 8 bytes");
    const unsigned lane = current->index.x % 32;
    Exchange& exchange = next_exchange();
    std::memcpy(&exchange.words[lane], &value, sizeof value);
    wait(State::AtWarpBarrier);
    std::memcpy(&value, &exchange.words[lane ^ distance], sizeof value);
    return value;
}

inline bool any(bool value) {
    Exchange& exchange = next_exchange();
    exchange.words[current->index.x % 32] = value;
    wait(State::AtWarpBarrier);
    return std::any_of(exchange.words.begin(), exchange.words.end(), [](std::uint64_t of_lane) { return of_lane != 0; });
}

// What a parameter is called in the list of argument types: pointer, u32, u64 or float.
template <typename T>
struct Kind;
template <typename T>
struct Kind<T*> {
    static const char letter = 'p';
};
template <>
struct Kind<unsigned> {
    static const char letter = 'u';
};
template <>
struct Kind<unsigned long long> {
    static const char letter = 'l';
};
template <>
struct Kind<float> {
    static const char letter = 'f';
};

template <typename... Parameters, std::size_t... Places>
void run(void (*kernel)(Parameters...), void** arguments, const char* kinds, Chance& chance, Index grid, unsigned count,
         std::index_sequence<Places...>) {
    const std::string expected = {Kind<Parameters>::letter...};
    // A driver is not told.
    if (kinds != nullptr && expected != kinds) {
        throw Failure{"its parameters are " + expected + ", not " + kinds};
    }
    auto call = [&] { kernel(*static_cast<Parameters*>(arguments[Places])...); };
    entry = [](void* call_with_arguments) { (*static_cast<decltype(call)*>(call_with_arguments))(); };
    entry_argument = &call;
    grid_size = grid;
    std::vector<Index> blocks;
    for (unsigned y = 0; y < grid.y; y++) {
        for (unsigned x = 0; x < grid.x; x++) {
            blocks.push_back({x, y, 0});
        }
    }
    chance.shuffle(blocks);
    for (Index block : blocks) {
        block_index = block;
        run_block(count, chance);
    }
}

// What lies where the arguments point, for a launch that comes later.
template <typename... Parameters, std::size_t... Places>
std::vector<std::uint64_t> values(void (*)(Parameters...), void** arguments, std::index_sequence<Places...>) {
    std::vector<std::uint64_t> copies(sizeof...(Parameters));
    (std::memcpy(&copies[Places], arguments[Places], sizeof(Parameters)), ...);
    return copies;
}

template <typename... Parameters>
std::vector<std::uint64_t> values(void (*kernel)(Parameters...), void** arguments) {
    return values(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), void** arguments, const char* kinds, Chance& chance, Index grid,
            unsigned count) {
    run(kernel, arguments, kinds, chance, grid, count, std::index_sequence_for<Parameters...>{});
}

} // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block_index)
#define gridDim (emulator::grid_size)

inline void __syncthreads() {
    emulator::meet(emulator::State::AtBlockBarrier);
}

inline void __syncwarp() {
    emulator::meet(emulator::State::AtWarpBarrier);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned distance) {
    return emulator::shuffle_xor(value, distance);
}

inline int __any_sync(unsigned, int value) {
    return emulator::any(value != 0);
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

using std::fmaxf;
