// Finds a kernel by its name. KERNELS(X) is X(name) for every kernel: the tests define it before the sources.

#include <mutex>

// Runs a kernel. shared_bytes: what the launch asks for. kinds: a letter for each argument, or null. Returns 0, or 1 with the reason in `message`.
extern "C" int emulate(const char* name, const unsigned* grid, unsigned threads, unsigned shared_bytes, void** arguments,
                       const char* kinds, std::uint64_t seed, char* message, std::size_t message_bytes) {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> guard(one_at_a_time);
    emulator::Chance chance{seed | 1};
    const emulator::Index size{grid[0], grid[1], 1};
    emulator::shared_bytes = shared_bytes;
    try {
#define X(kernel)                                                                      \
    if (std::strcmp(name, #kernel) == 0) {                                             \
        emulator::launch(kernel, arguments, kinds, chance, size, threads);             \
        return 0;                                                                      \
    }
        KERNELS(X)
#undef X
        throw emulator::Failure{"there is no such kernel"};
    } catch (const emulator::Failure& failure) {
        // They are somewhere in the kernel.
        emulator::threads.clear();
        std::strncpy(message, failure.message.c_str(), message_bytes - 1);
        message[message_bytes - 1] = 0;
        return 1;
    }
}
