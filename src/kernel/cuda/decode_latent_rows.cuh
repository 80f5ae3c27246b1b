/* What a block of latent attention (decode_latent_portable.cu says what that is) with 16, 32 or 64 rows does with a
 * tile of 32 keys that it has been brought:
 *
 *     part[k] = query * key^T over a part k of the 576 elements,   weight = 2^(scale sum_k part[k] - base),
 *     output = factor * output + weight * value.
 *
 * Warps divide the first product by rows, halves of the keys and parts of the sum, the second by rows and columns of
 * the value; between the two a few threads have a row, its base and its sum. Weights take the place of the scores that
 * their own row has been read from. Invariant: score, weigh and add_values of a tile are separated by meetings of all
 * warps; whoever copies sees to it that tokens that no row sees are zeros in shared memory, whatever pages hold.
 *
 * A tile is nine panels of 64 columns; of each row of a panel, 128 bytes, the pieces of 16 are exchanged by the number
 * of the row, so that the eight rows of a matrix meet all banks. */
#ifndef LN_KERNEL_CUDA_DECODE_LATENT_ROWS_CUH
#define LN_KERNEL_CUDA_DECODE_LATENT_ROWS_CUH

#include "kernel/cuda/decode_codes.cuh"
#include "kernel/cuda/decode_merge.cuh"
#include "kernel/cuda/decode_work.cuh"

namespace ln {

namespace latent_rows {

enum { KEY = 576, VALUE = 512, KEYS = 32, UNIT_SHIFT = 5, PIECES = KEY / 8, STAGE_BYTES = KEYS * KEY * 2 };
enum { SCORE_ROW = KEYS + 4 /* floats */ };

/* PARITIES: places for scores, 2 where a warp may begin a tile before all have left the one before. */
template <int ROWS_, int WARPS_, int STAGES_, int PARITIES_, bool HALF_> struct latent_shape {
    static constexpr int ROWS = ROWS_, WARPS = WARPS_, THREADS = 32 * WARPS, STAGES = STAGES_, PARITIES = PARITIES_;
    static constexpr bool HALF = HALF_;                                         /* f16 */
    static constexpr int TALL = ROWS < 32 ? 1 : 2, GROUPS = ROWS / (16 * TALL); /* TALL: 16 rows each, of a warp */
    static constexpr int ACROSS = WARPS / GROUPS, PARTS = ACROSS / 2, COLUMNS = VALUE / ACROSS; /* of a warp */
    static constexpr int STEPS = KEY / 16 / PARTS, LANES = THREADS / ROWS, OWN = KEYS / LANES;  /* LANES: of a row */
    static constexpr int UNROLLED = ROWS < 64 ? 3 : 1; /* of copies; more cost registers that 64 rows do not leave */
    static constexpr int query_bytes = ROWS * KEY * 2, score_bytes = ROWS * SCORE_ROW * 4;
    static constexpr int scores_at = query_bytes + STAGES * STAGE_BYTES;
    static constexpr int factors_at = scores_at + PARITIES * PARTS * score_bytes;
    static constexpr int shared_bytes = factors_at + PARITIES * ROWS * 8;
    static_assert(STEPS * PARTS * 16 == KEY && OWN % 2 == 0 && LANES <= 32, "warps do not divide the products");
};

template <int ROWS> static __device__ __forceinline__ char *piece_of(char *tile, int row, int piece) {
    return tile + piece / 8 * (ROWS * 128) + row * 128 + (piece % 8 ^ row % 8) * 16;
}

template <class SHAPE, class MEETING> struct block {
    static constexpr bool HALF = SHAPE::HALF;
    const decode_run &run;
    char *memory;
    int lane, group, among; /* group: of rows; among: of the warps that share them */
    int parity;             /* which of the places for scores the tile has */
    float output[SHAPE::TALL][SHAPE::COLUMNS / 8][4];
    float base, sum; /* of this thread's row in the softmax; sum: of its own keys */

    __device__ __forceinline__ char *stage(int i) { return memory + SHAPE::query_bytes + i * STAGE_BYTES; }
    __device__ __forceinline__ float *scores(int part, int row) {
        return (float *)(memory + SHAPE::scores_at + (parity * SHAPE::PARTS + part) * SHAPE::score_bytes) +
               row * SCORE_ROW;
    }
    __device__ __forceinline__ float *factors() {
        return (float *)(memory + SHAPE::factors_at) + parity * SHAPE::ROWS * 2;
    }
    __device__ __forceinline__ int row0() const { return (int)blockIdx.x % run.tiles * SHAPE::ROWS; }
    __device__ __forceinline__ int own_row() const { return (int)threadIdx.x / SHAPE::LANES; }

    __device__ __forceinline__ void open(const decode_segment &at) {
#pragma unroll 1
        for (int i = (int)threadIdx.x; i < SHAPE::ROWS * PIECES; i += SHAPE::THREADS) {
            const int row = i / PIECES, piece = i % PIECES;
            float x[8] = {};
            if (row0() + row < run.rows) {
                const decode_place place = place_of(run, at.sequence, at.head, row0() + row);
                load_eight(x, run.of.query.data,
                           place.token * run.of.query.token_stride + place.head * run.of.query.head_stride + piece * 8,
                           run.query_element);
            }
            *(uint4 *)piece_of<SHAPE::ROWS>(memory, row, piece) = {pack_as<HALF>(x[0], x[1]), pack_as<HALF>(x[2], x[3]),
                                                                   pack_as<HALF>(x[4], x[5]),
                                                                   pack_as<HALF>(x[6], x[7])};
        }
#pragma unroll
        for (int t = 0; t < SHAPE::TALL; t++)
#pragma unroll
            for (int j = 0; j < SHAPE::COLUMNS / 8; j++)
#pragma unroll
                for (int k = 0; k < 4; k++) output[t][j][k] = 0;
        base = -CUDART_INF_F, sum = 0;
    }

    /* This warp's rows and 16 keys, over its part of the elements. */
    __device__ __forceinline__ void score(char *tile) {
        const int half = among % 2, part = among / 2;
        float result[SHAPE::TALL][2][4] = {};
#pragma unroll 3
        for (int step = part * SHAPE::STEPS; step < (part + 1) * SHAPE::STEPS; step++) {
            uint32_t right[4];
            load_matrices<false>(right,
                                 piece_of<KEYS>(tile, half * 16 + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
            for (int t = 0; t < SHAPE::TALL; t++) {
                uint32_t left[4];
                const int row = (group * SHAPE::TALL + t) * 16 + lane % 16;
                load_matrices<false>(left, piece_of<SHAPE::ROWS>(memory, row, 2 * step + lane / 16));
                add_product_as<HALF>(result[t][0], left, right);
                add_product_as<HALF>(result[t][1], left, right + 2);
            }
        }
#pragma unroll
        for (int t = 0; t < SHAPE::TALL; t++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float *to = scores(part, (group * SHAPE::TALL + t) * 16 + lane / 4 + 8 * r) + half * 16 + lane % 4 * 2;
                *(float2 *)to = {result[t][0][2 * r], result[t][0][2 * r + 1]};
                *(float2 *)(to + 8) = {result[t][1][2 * r], result[t][1][2 * r + 1]};
            }
    }

    /* Exponents of this thread's keys of its row. `key`: the tile's first. */
    __device__ __forceinline__ void read_scores(float (&x)[SHAPE::OWN], const decode_segment &at, int key) {
        const int row = own_row(), own = (int)threadIdx.x % SHAPE::LANES * SHAPE::OWN;
#pragma unroll
        for (int i = 0; i < SHAPE::OWN; i += 2) {
            x[i] = x[i + 1] = 0;
#pragma unroll
            for (int part = 0; part < SHAPE::PARTS; part++) {
                const float2 two = *(const float2 *)(scores(part, row) + own + i);
                x[i] += two.x, x[i + 1] += two.y;
            }
        }
        const decode_sight seen = seen_by_row(run, at.length, row0() + row);
#pragma unroll
        for (int i = 0; i < SHAPE::OWN; i++) {
            if (run.cap_scale > 0) x[i] = decode_tangent(x[i] * run.cap_scale);
            x[i] *= run.scale;
            if (key + own + i < seen.low || key + own + i >= seen.high) x[i] = -CUDART_INF_F;
        }
    }

    /* Scores become weights, and rows learn by what their outputs are to be multiplied before: a base moves when an
     * exponent is above 8. */
    __device__ __forceinline__ void weigh(const decode_segment &at, int key) {
        float x[SHAPE::OWN], most = -CUDART_INF_F, factor = 1;
        read_scores(x, at, key);
#pragma unroll
        for (int i = 0; i < SHAPE::OWN; i++) most = fmaxf(most, x[i]);
#pragma unroll
        for (int step = 1; step < SHAPE::LANES; step *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
        if (most > base + 8 || base == -CUDART_INF_F) {
            factor = merge_factor(base, most);
            base = most;
            sum *= factor;
        }
        const float from = base == -CUDART_INF_F ? 0 : base;
        uint32_t *to = (uint32_t *)scores(0, own_row()) + (int)threadIdx.x % SHAPE::LANES * (SHAPE::OWN / 2);
        __syncwarp(); /* the row has been read by all its threads, which are of one warp */
#pragma unroll
        for (int i = 0; i < SHAPE::OWN; i += 2) {
            const float low = exponential(x[i] - from), high = exponential(x[i + 1] - from);
            sum += low + high;
            to[i / 2] = pack_as<HALF>(low, high);
        }
        if (threadIdx.x % SHAPE::LANES == 0) factors()[own_row()] = factor;
    }

    /* This warp's rows and columns. */
    __device__ __forceinline__ void add_values(char *tile) {
#pragma unroll
        for (int t = 0; t < SHAPE::TALL; t++) {
            const float *factor = factors() + (group * SHAPE::TALL + t) * 16 + lane / 4;
            const float low = factor[0], high = factor[8];
            if (!__any_sync(~0u, low != 1 || high != 1)) continue;
#pragma unroll
            for (int j = 0; j < SHAPE::COLUMNS / 8; j++) {
                output[t][j][0] *= low, output[t][j][1] *= low;
                output[t][j][2] *= high, output[t][j][3] *= high;
            }
        }
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            uint32_t left[SHAPE::TALL][4];
#pragma unroll
            for (int t = 0; t < SHAPE::TALL; t++)
                load_matrices<false>(left[t], (const char *)scores(0, (group * SHAPE::TALL + t) * 16 + lane % 16) +
                                                  (2 * k + lane / 16) * 16);
#pragma unroll
            for (int j = 0; j < SHAPE::COLUMNS / 16; j++) {
                uint32_t right[4];
                load_matrices<true>(
                    right, piece_of<KEYS>(tile, k * 16 + lane % 16, among * (SHAPE::COLUMNS / 8) + 2 * j + lane / 16));
#pragma unroll
                for (int t = 0; t < SHAPE::TALL; t++) {
                    add_product_as<HALF>(output[t][2 * j], left[t], right);
                    add_product_as<HALF>(output[t][2 * j + 1], left[t], right + 2);
                }
            }
        }
    }

    /* The rows' outputs and sums: final where the segment is this block's alone, else for the kernel that joins. */
    __device__ __forceinline__ void close(const decode_segment &at, int share) {
        const int share_index = (int)blockIdx.x / run.tiles, tile = (int)blockIdx.x % run.tiles;
        const decode_shares shares = shares_of(at, share);
#pragma unroll
        for (int step = 1; step < SHAPE::LANES; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
        MEETING::meet(); /* factors have been read */
        if (threadIdx.x % SHAPE::LANES == 0) factors()[own_row()] = base, factors()[SHAPE::ROWS + own_row()] = sum;
        MEETING::meet();
#pragma unroll
        for (int t = 0; t < SHAPE::TALL; t++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int inside = (group * SHAPE::TALL + t) * 16 + lane / 4 + 8 * r;
                if (row0() + inside >= run.rows) continue;
                const float from = factors()[inside], all = factors()[SHAPE::ROWS + inside];
                if (shares.count == 1)
                    store_final(at, t, r, row0() + inside, from, all);
                else
                    store_part(partial_of<VALUE, SHAPE::ROWS>(run, share_index, tile, shares.first == share_index), t,
                               r, inside, from, all);
            }
        MEETING::meet(); /* before the next segment's factors */
    }
    __device__ __forceinline__ void store_part(float *to, int t, int r, int inside, float from, float all) {
        float *at = to + inside * VALUE + among * SHAPE::COLUMNS + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < SHAPE::COLUMNS / 8; j++)
            __stcg((float2 *)(at + 8 * j), make_float2(output[t][j][2 * r], output[t][j][2 * r + 1]));
        if (among == 0 && lane % 4 == 0) {
            __stcg(to + SHAPE::ROWS * VALUE + inside, from);
            __stcg(to + SHAPE::ROWS * (VALUE + 1) + inside, all);
        }
    }
    __device__ __forceinline__ void store_final(const decode_segment &at, int t, int r, int row, float from,
                                                float all) {
        const decode_place place = place_of(run, at.sequence, at.head, row);
        float lse;
        const float inverse = close_row(run, place.head, from, all, &lse);
        const int64_t to = place.token * run.of.output.token_stride + place.head * run.of.output.head_stride +
                           among * SHAPE::COLUMNS + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < SHAPE::COLUMNS / 8; j++) {
            const float low = output[t][j][2 * r] * inverse, high = output[t][j][2 * r + 1] * inverse;
            if (run.output_float32)
                *(float2 *)((float *)run.of.output.data + to + 8 * j) = make_float2(low, high);
            else
                *(uint32_t *)((__nv_bfloat16 *)run.of.output.data + to + 8 * j) = pack(low, high);
        }
        if (run.of.log_sum_exp && among == 0 && lane % 4 == 0)
            run.of.log_sum_exp[place.token * run.heads + place.head] = lse;
    }
};

} // namespace latent_rows

} // namespace ln

#endif
