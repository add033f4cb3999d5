// CUDA C++ on a CPU: enough of it to run the kernels, thread by thread.
//
// A block's threads are contexts that one thread of the host switches between. Each runs until it waits, at
// __syncthreads() for its block or at a shuffle for its warp. Which one goes first, again and again, and in which order
// blocks come, follows from a seed: a kernel that lacks a barrier, or whose blocks depend on each other, gives other
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
// One block at a time, so that what its threads share may be static.
#define __shared__ static

namespace emulator {

struct Index {
    unsigned x, y, z;
};

enum class State { Ready, AtBlockBarrier, AtWarpBarrier, Done };

// A thread that has run its kernel runs the next one, so that contexts are made once; from then on jumps switch between
// them, which, unlike the calls that make contexts, ask nothing of the system.
struct Thread {
    ucontext_t beginning;
    std::vector<char> stack;
    bool begun = false;
    std::jmp_buf place;
    State state;
    Index index;
    // Shuffles so far: alternate between two mailboxes, since a lane may be at most one shuffle ahead of its warp.
    unsigned shuffles;
};

struct Failure {
    std::string message;
};

inline std::vector<std::unique_ptr<Thread>> threads;
inline std::jmp_buf scheduler;
inline Thread* current = nullptr;
inline Index block_index, grid_size;
inline std::vector<std::array<std::array<std::uint64_t, 32>, 2>> mailboxes;
inline void (*entry)(void*) = nullptr;
inline void* entry_argument = nullptr;

// A thread waits, and the scheduler goes on.
inline void wait(State state) {
    current->state = state;
    if (_setjmp(current->place) == 0) {
        _longjmp(scheduler, 1);
    }
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

inline void run_block(unsigned count, Chance& chance) {
    while (threads.size() < count) {
        add_thread();
    }
    mailboxes.resize((count + 31) / 32);
    for (unsigned i = 0; i < count; i++) {
        threads[i]->state = State::Ready;
        threads[i]->index = {i, 0, 0};
        threads[i]->shuffles = 0;
    }
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; i++) {
        order[i] = i;
    }
    for (;;) {
        chance.shuffle(order);
        bool ran = false;
        for (unsigned i : order) {
            if (threads[i]->state == State::Ready) {
                ran = true;
                go_on(threads[i].get());
            }
        }
        bool released = release(State::AtBlockBarrier, 0, count);
        for (unsigned warp = 0; warp < count; warp += 32) {
            released |= release(State::AtWarpBarrier, warp, std::min(warp + 32, count));
        }
        if (!ran && !released) {
            break;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        if (threads[i]->state != State::Done) {
            throw Failure{"threads wait for ever at a barrier that others do not reach"};
        }
    }
}

template <typename T>
T shuffle_xor(T value, unsigned distance) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t), "a shuffle moves up to 8 bytes");
    const unsigned lane = current->index.x % 32;
    auto& mailbox = mailboxes[current->index.x / 32][current->shuffles++ % 2];
    std::memcpy(&mailbox[lane], &value, sizeof value);
    wait(State::AtWarpBarrier);
    std::memcpy(&value, &mailbox[lane ^ distance], sizeof value);
    return value;
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
    emulator::wait(emulator::State::AtBlockBarrier);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned distance) {
    return emulator::shuffle_xor(value, distance);
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
