// Squares of 16 x 16 numbers that the lanes of a warp hold together, and the rows in shared memory that they come from.

// Rows of a square, and its columns.
static const u32 SIDE = 16;

// Where a lane's numbers lie in a square: in the rows lane_row() and 8 further down, in the columns lane_column(), the next
// one, and 8 further to the right of both.
__device__ inline u32 lane_row() {
    return threadIdx.x % LANES / 4;
}

__device__ inline u32 lane_column() {
    return threadIdx.x % LANES % 4 * 2;
}

// Factors, as four matrices of 8 x 8: upper left, lower left, upper right, lower right.
struct Square {
    u32 of[4];
};

// Sums of products: left and right half; of each the upper two numbers of a lane, then the lower two.
struct Sums {
    float of[2][4];

    __device__ inline void clear() {
        for (u32 half = 0; half < 2; half++) {
            for (u32 i = 0; i < 4; i++) {
                of[half][i] = 0.0f;
            }
        }
    }

    // As factors: a lane holds the same numbers of both.
    __device__ inline Square rounded() const {
        Square square;
        square.of[0] = factor_pair(of[0][0], of[0][1]);
        square.of[1] = factor_pair(of[0][2], of[0][3]);
        square.of[2] = factor_pair(of[1][0], of[1][1]);
        square.of[3] = factor_pair(of[1][2], of[1][3]);
        return square;
    }

    // += left right^T.
    __device__ inline void add_by_rows(const Square& left, const Square& right) {
        multiply_add(of[0], left.of, right.of[0], right.of[2]);
        multiply_add(of[1], left.of, right.of[1], right.of[3]);
    }

    // += left right. right: each of its four matrices transposed.
    __device__ inline void add_by_columns(const Square& left, const Square& right) {
        multiply_add(of[0], left.of, right.of[0], right.of[1]);
        multiply_add(of[1], left.of, right.of[2], right.of[3]);
    }
};

// Rows of WIDTH factors in shared memory, at a multiple of a row's bytes. Lanes that load a square read 16 bytes of each of
// 8 rows at once: within a row these pieces change places, so that the 8 lie in different banks.
template <u32 WIDTH>
struct Rows {
    static const u32 BYTES = WIDTH * sizeof(Bf16);
    static const u32 PIECE_BYTES = 16;
    static const u32 PIECES = BYTES / PIECE_BYTES;

    u32 start;

    // COPIERS threads, of which this is one, begin to copy COUNT rows, the first at base[from], the others `stride` apart.
    // Those beyond `there` become zeros.
    template <u32 COUNT, u32 COPIERS>
    __device__ inline void begin_copy(u32 copier, const Bf16* base, u32 from, u32 stride, u32 there) const {
        const u32 piece = copier % PIECES;
        from += piece * (PIECE_BYTES / sizeof(Bf16));
        // More at a time would need registers that sums have.
#pragma unroll 2
        for (u32 i = 0; i < COUNT; i += COPIERS / PIECES) {
            const u32 row = i + copier / PIECES;
            const bool is_there = row < there;
            // Where nothing is read the address still has to be one.
            begin_copy_16(start + row * BYTES + (piece ^ row % 8) * PIECE_BYTES,
                          base + (is_there ? from + row * stride : 0), is_there);
        }
    }

    // The piece that a lane reads of the 16 rows and 16 channels from there on: lanes 0 to 15 read the left half.
    __device__ inline u32 lane_piece(u32 row, u32 channel) const {
        const u32 lane = threadIdx.x % LANES;
        const u32 of_lane = lane % SIDE * BYTES + (lane / SIDE ^ lane % 8) * PIECE_BYTES;
        // The channel's bits are those of a piece's number, and none above them.
        return start + row * BYTES + (of_lane ^ channel * (u32)sizeof(Bf16));
    }

    // 16 rows and 16 channels from there on.
    __device__ inline Square square(u32 row, u32 channel) const {
        Square square;
        load_matrices(square.of, lane_piece(row, channel));
        return square;
    }

    // The same, each of its four matrices transposed.
    __device__ inline Square transposed(u32 row, u32 channel) const {
        Square square;
        load_matrices_transposed(square.of, lane_piece(row, channel));
        return square;
    }
};

// 16 rows for a warp to keep, by way of shared memory at `start`, which it has to itself.
template <u32 WIDTH>
__device__ inline void keep_rows(Square (&squares)[WIDTH / SIDE], u32 start, const Bf16* base, u32 from, u32 stride,
                                 u32 there) {
    const Rows<WIDTH> rows = {start};
    rows.template begin_copy<SIDE, LANES>(threadIdx.x % LANES, base, from, stride, there);
    finish_copies();
    __syncwarp();
#pragma unroll
    for (u32 index = 0; index < WIDTH / SIDE; index++) {
        squares[index] = rows.square(0, index * SIDE);
    }
}

// 16 rows of results, the first at base[at], as many as are `there`. scale: of the upper and the lower 8.
template <u32 WIDTH>
__device__ inline void write_rows(float* base, u32 at, u32 stride, const Sums (&sums)[WIDTH / SIDE],
                                  const float (&scale)[2], u32 there) {
#pragma unroll
    for (u32 lower = 0; lower < 2; lower++) {
        const u32 row = lane_row() + lower * 8;
        if (row >= there) {
            continue;
        }
        float* const of_row = base + (at + row * stride + lane_column());
#pragma unroll
        for (u32 index = 0; index < WIDTH / SIDE; index++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const float* const pair = sums[index].of[half] + 2 * lower;
                store_pair(of_row + index * SIDE + half * 8, pair[0] * scale[lower], pair[1] * scale[lower]);
            }
        }
    }
}
