// The instructions of src/kernels/tensor.cuh on a CPU, from NVIDIA's "PTX ISA": where operands lie is written as the
// sections on mma.m16n8k16, ldmatrix and cp.async have it, register by register, and apart from how the kernels use it.
//
// Copies to shared memory are shown in the worst light. What they will overwrite is NaN as soon as they are begun, and is
// what was copied when the thread that has begun them has waited for them and then come to a barrier, not before: matrices
// are read by other threads than those that have copied them. Places that are not aligned, or not in the memory that the
// launch has asked for, are failures; so are rows of a matrix of which two lie in the same banks, which a card would read one
// after the other.

namespace emulator {

// Where NVIDIA's documentation says that a lane's group is, and its place there.
inline unsigned group_id() {
    return current->index.x % 32 / 4;
}

inline unsigned thread_in_group() {
    return current->index.x % 32 % 4;
}

inline float from_bf16(unsigned pair, unsigned which) {
    const unsigned bits = (which == 0 ? pair & 0xffffu : pair >> 16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned short to_bf16(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) {
        return 0x7fff;
    }
    const unsigned rest = bits & 0xffffu;
    const unsigned kept = bits >> 16;
    const bool up = rest > 0x8000u || (rest == 0x8000u && kept % 2 == 1);
    return static_cast<unsigned short>(kept + up);
}

inline char* shared_place(unsigned place, std::size_t bytes) {
    if (place % bytes != 0) {
        fail("place " + std::to_string(place) + " in shared memory is not aligned to " + std::to_string(bytes) + " bytes");
    }
    if (place + bytes > shared_bytes) {
        fail("place " + std::to_string(place) + " is beyond the shared memory of the launch");
    }
    return shared_memory.data() + place;
}

inline void load_matrices(unsigned (&matrices)[4], unsigned row, bool transposed) {
    Exchange& exchange = next_exchange();
    exchange.words[current->index.x % 32] = row;
    wait(State::AtWarpBarrier);
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        // 32 banks of 4 bytes: 8 rows of 16 bytes, if each has its own.
        unsigned rows_of_banks[8] = {};
        for (unsigned i = 0; i < 8; i++) {
            if (rows_of_banks[exchange.words[8 * matrix + i] / 16 % 8]++ > 0) {
                fail("rows of a matrix lie in the same banks");
            }
        }
        unsigned short pair[2];
        for (unsigned i = 0; i < 2; i++) {
            const unsigned from_row = transposed ? 2 * thread_in_group() + i : group_id();
            const unsigned from_column = transposed ? group_id() : 2 * thread_in_group() + i;
            const auto address = static_cast<unsigned>(exchange.words[8 * matrix + from_row]);
            std::memcpy(&pair[i], shared_place(address, 16) + 2 * from_column, 2);
        }
        matrices[matrix] = pair[0] | unsigned(pair[1]) << 16;
    }
}

inline void begin_copy(unsigned to, const void* from, unsigned bytes, bool is_there) {
    Copy copy = {shared_place(to, bytes), bytes, {}};
    if (reinterpret_cast<std::uintptr_t>(from) % bytes != 0) {
        fail("what is copied to shared memory is not aligned to " + std::to_string(bytes) + " bytes");
    }
    if (is_there) {
        std::memcpy(copy.values, from, bytes);
    }
    std::memset(copy.to, 0xff, bytes);
    current->copies.push_back(copy);
}

} // namespace emulator

inline char* launch_memory() {
    return emulator::shared_memory.data();
}

inline void multiply_add(float (&sums)[4], const unsigned (&left)[4], unsigned right_low, unsigned right_high) {
    using namespace emulator;
    const unsigned group = group_id();
    const unsigned thread = thread_in_group();
    Exchange& exchange = next_exchange();
    for (unsigned i = 0; i < 8; i++) {
        const unsigned row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
        const unsigned column = 2 * thread + i % 2 + (i >= 4 ? 8 : 0);
        exchange.left[row][column] = from_bf16(left[i / 2], i % 2);
    }
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = 2 * thread + i % 2 + (i >= 2 ? 8 : 0);
        exchange.right[row][group] = from_bf16(i < 2 ? right_low : right_high, i % 2);
    }
    wait(State::AtWarpBarrier);
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = i < 2 ? group : group + 8;
        const unsigned column = 2 * thread + i % 2;
        float sum = 0.0f;
        for (unsigned inner = 0; inner < 16; inner++) {
            sum += exchange.left[row][inner] * exchange.right[inner][column];
        }
        sums[i] += sum;
    }
}

inline void load_matrices(unsigned (&matrices)[4], unsigned row) {
    emulator::load_matrices(matrices, row, false);
}

inline void load_matrices_transposed(unsigned (&matrices)[4], unsigned row) {
    emulator::load_matrices(matrices, row, true);
}

inline void begin_copy_16(unsigned to, const void* from, bool is_there) {
    emulator::begin_copy(to, from, 16, is_there);
}

inline void begin_copy_4(unsigned to, const void* from, bool is_there) {
    emulator::begin_copy(to, from, 4, is_there);
}

inline void finish_copies() {
    std::vector<emulator::Copy>& begun = emulator::current->copies;
    std::vector<emulator::Copy>& finished = emulator::current->finished_copies;
    finished.insert(finished.end(), begun.begin(), begun.end());
    begun.clear();
}

inline unsigned factor_pair(float first, float second) {
    return emulator::to_bf16(first) | unsigned(emulator::to_bf16(second)) << 16;
}

inline float power_of_two(float x) {
    const float power = std::exp2(x);
    return power < 1.17549435e-38f ? 0.0f : power;
}

inline void store_pair(float* at, float first, float second) {
    if (reinterpret_cast<std::uintptr_t>(at) % 8 != 0) {
        emulator::fail("a pair of numbers is not aligned to 8 bytes");
    }
    at[0] = first;
    at[1] = second;
}
