/* Latent attention (MLA, DeepSeek-V2) decoded with absorbed projections, for compute capability 8.0 and newer: one key
 * of 576 elements a token, whose first 512 are the value, and many query heads that share it.
 *
 * A block has 16 or 64 rows (queries in shared memory, outputs in registers) and walks its share of tiles of 32 keys:
 *
 *     wait for tile t ; ask for tile t + 1 ; part[k] = query * key^T over a part k of the 576 elements ;
 *     weight = 2^(scale sum_k part[k] - base) ; output = factor * output + weight * value.
 *
 * Warps divide the first product by rows, halves of the keys and parts of the sum, the second by rows and columns of
 * the value; between the two a few threads have a row, its base and its sum. Weights take the place of the scores that
 * their own row has been read from. Invariant: a stage is asked for again after the meeting that all warps reach with
 * their products of it done; tokens that no row sees are zeros in shared memory, whatever pages hold.
 *
 * Rows of 1152 bytes lie without gaps, their pieces of 16 bytes exchanged within each 128 by the number of the row, so
 * that the eight rows of a matrix meet all banks. */
#include "kernel/cuda/decode_codes.cuh"
#include "kernel/cuda/decode_merge.cuh"
#include "kernel/cuda/decode_table.h"
#include "kernel/cuda/decode_work.cuh"

namespace ln {

namespace latent {

enum { KEY = 576, VALUE = 512, KEYS = 32, UNIT_SHIFT = 5, STAGES = 2, ROW_BYTES = KEY * 2, PIECES = ROW_BYTES / 16 };
enum { STAGE_BYTES = KEYS * ROW_BYTES, SCORE_ROW = KEYS + 4 /* floats */ };

template <int ROWS_, int WARPS_, bool HALF_> struct latent_shape {
    static constexpr int ROWS = ROWS_, WARPS = WARPS_, THREADS = 32 * WARPS;
    static constexpr bool HALF = HALF_;                                         /* f16 */
    static constexpr int TALL = ROWS < 32 ? 1 : 2, GROUPS = ROWS / (16 * TALL); /* TALL: 16 rows each, of a warp */
    static constexpr int PARTS = WARPS / GROUPS / 2, COLUMNS = VALUE / (WARPS / GROUPS);       /* of a warp */
    static constexpr int STEPS = KEY / 16 / PARTS, LANES = THREADS / ROWS, OWN = KEYS / LANES; /* LANES: of a row */
    static constexpr int UNROLLED = TALL == 1 ? 3 : 1; /* of copies; more cost registers that 64 rows do not leave */
    static constexpr int query_bytes = ROWS * ROW_BYTES, score_bytes = ROWS * SCORE_ROW * 4;
    static constexpr int scores_at = query_bytes + STAGES * STAGE_BYTES;
    static constexpr int factors_at = scores_at + PARTS * score_bytes, shared_bytes = factors_at + ROWS * 8;
    static_assert(STEPS * PARTS * 16 == KEY && OWN % 4 == 0 && ROWS <= THREADS, "warps do not divide the products");
};

static __device__ __forceinline__ char *piece_of(char *rows, int row, int piece) {
    return rows + row * ROW_BYTES + (piece / 8 * 8 + (piece % 8 ^ row % 8)) * 16;
}

/* ---- copies ---- */

/* The next tile to ask for, of a segment ahead of the products; its pages are known a tile before. */
struct cursor {
    decode_segment at;
    int unit;
    int page[2]; /* of its first and its last 16 tokens; less than 0: no row sees any of them */
};

static __device__ __forceinline__ void cursor_settle(const decode_run &run, cursor &next) {
    while (next.unit >= next.at.end && next.at.left > 0) {
        segment_next(run, next.at);
        next.unit = next.at.begin;
    }
    if (next.unit >= next.at.end) return;
    const decode_sight seen = seen_by_some(run, next.at.length);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int token = (next.at.first + next.unit) * KEYS + 16 * i;
        const bool inside = token + 16 > seen.low && token < seen.high;
        next.page[i] = !inside ? -1
                       : run.of.page_table
                           ? run.of.page_table[next.at.sequence * run.of.table_stride + (token >> run.page_shift)]
                           : next.at.sequence;
    }
}

template <class SHAPE>
static __device__ __forceinline__ void copy_tile(const decode_run &run, cursor &next, char *stage) {
    if (next.unit < next.at.end) {
        const decode_sight seen = seen_by_some(run, next.at.length);
        const int first = (next.at.first + next.unit) * KEYS, mask = (1 << run.page_shift) - 1;
        const char *from[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            from[i] = (const char *)run.of.key.data + max(next.page[i], 0) * run.of.key.page_stride +
                      (int64_t)((first + 16 * i) & mask) * run.of.key.token_stride;
#pragma unroll SHAPE::UNROLLED
        for (int i = (int)threadIdx.x; i < KEYS * PIECES; i += SHAPE::THREADS) {
            const int row = i / PIECES, piece = i % PIECES, token = first + row;
            const bool inside = token >= seen.low && token < seen.high;
            const char *row_from = (row < 16 ? from[0] : from[1]) + (int64_t)(row % 16) * run.of.key.token_stride;
            copy_piece(piece_of(stage, row, piece), inside ? row_from + piece * 16 : (const char *)run.of.key.data,
                       inside);
        }
        next.unit++;
        cursor_settle(run, next);
    }
    copies_commit();
}

/* ---- a block ---- */

template <class SHAPE> struct block {
    static constexpr bool HALF = SHAPE::HALF;
    const decode_run &run;
    char *memory;
    int warp, lane, group, among; /* group: of rows; among: of the warps that share them */
    float output[SHAPE::TALL][SHAPE::COLUMNS / 8][4];
    float base, sum; /* of this thread's row in the softmax; sum: of its own keys */

    __device__ __forceinline__ char *stage(int i) { return memory + SHAPE::query_bytes + i * STAGE_BYTES; }
    __device__ __forceinline__ float *scores(int part, int row) {
        return (float *)(memory + SHAPE::scores_at + part * SHAPE::score_bytes) + row * SCORE_ROW;
    }
    __device__ __forceinline__ float *factors() { return (float *)(memory + SHAPE::factors_at); }
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
            *(uint4 *)piece_of(memory, row, piece) = {pack_as<HALF>(x[0], x[1]), pack_as<HALF>(x[2], x[3]),
                                                      pack_as<HALF>(x[4], x[5]), pack_as<HALF>(x[6], x[7])};
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
            load_matrices<false>(right, piece_of(tile, half * 16 + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
            for (int t = 0; t < SHAPE::TALL; t++) {
                uint32_t left[4];
                const int row = (group * SHAPE::TALL + t) * 16 + lane % 16;
                load_matrices<false>(left, piece_of(memory, row, 2 * step + lane / 16));
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
        for (int i = 0; i < SHAPE::OWN; i += 4) {
            float4 four = {0, 0, 0, 0};
#pragma unroll
            for (int part = 0; part < SHAPE::PARTS; part++)
                add_scaled(four, *(const float4 *)(scores(part, row) + own + i), 1.0f);
            x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
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
                    right, piece_of(tile, k * 16 + lane % 16, among * (SHAPE::COLUMNS / 8) + 2 * j + lane / 16));
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
        __syncthreads(); /* factors have been read */
        if (threadIdx.x % SHAPE::LANES == 0) factors()[own_row()] = base, factors()[SHAPE::ROWS + own_row()] = sum;
        __syncthreads();
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
        __syncthreads(); /* before the next segment's factors */
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

template <class SHAPE>
static __global__ void __launch_bounds__(SHAPE::THREADS, 1)
    decode_latent_portable(const __grid_constant__ decode_run run) {
    const int warp = (int)threadIdx.x / 32, across = SHAPE::WARPS / SHAPE::GROUPS;
    block<SHAPE> one = {run, block_memory(), warp, (int)threadIdx.x % 32, warp / across, warp % across, {}, 0, 0};
    int share, stage = 0;
    decode_segment at = segment_first(run, &share);
    cursor next = {at, at.begin, {}};
    cursor_settle(run, next);
    copy_tile<SHAPE>(run, next, one.stage(0));
    while (at.begin < at.end) {
        one.open(at);
#pragma unroll 1
        for (int unit = at.begin; unit < at.end; unit++) {
            char *tile = one.stage(stage);
            stage ^= 1;
            copies_wait<0>();
            __syncthreads(); /* the tile is here, and the one before it no longer needed */
            copy_tile<SHAPE>(run, next, one.stage(stage));
            one.score(tile);
            __syncthreads();
            one.weigh(at, (at.first + unit) * KEYS);
            __syncthreads();
            one.add_values(tile);
        }
        one.close(at, share);
        if (at.left == 0) break;
        segment_next(run, at);
    }
    copies_wait<0>();
    decode_nothing(run, VALUE, (int)threadIdx.x, SHAPE::THREADS);
}

template <class SHAPE> static ln_cuda_code latent_start(void *const *arguments, int blocks, void *stream) {
    const decode_run *run = (const decode_run *)arguments[0];
    const ln_cuda_code code = launch(decode_latent_portable<SHAPE>, dim3((unsigned)blocks), dim3(SHAPE::THREADS),
                                     (int)SHAPE::shared_bytes, stream, *run);
    return code ? code : join_start<VALUE, SHAPE::ROWS>(*run, stream);
}

/* Of 16 rows: what every device has room for. */
template <int ROWS, int WARPS, bool HALF> static ln_cuda_decode_kernel latent_kernel(const char *name) {
    using shape = latent_shape<ROWS, WARPS, HALF>;
    static_assert(ROWS > 16 || shape::shared_bytes <= 101376, "too little shared memory");
    return {name,
            HALF ? LN_CUDA_PAGE_F16 : LN_CUDA_PAGE_BF16,
            KEY,
            VALUE,
            ROWS,
            shape::THREADS,
            shape::shared_bytes,
            1,
            false,
            UNIT_SHIFT,
            8,
            true,
            latent_start<shape>};
}

} // namespace latent

} // namespace ln

using namespace ln::latent;

const ln_cuda_decode_kernel ln_cuda_decode_latent_portable_kernels[] = {
    latent_kernel<16, 4, false>("portable latent 16"),
    latent_kernel<64, 8, false>("portable latent 64"),
    latent_kernel<16, 4, true>("portable latent f16 16"),
    latent_kernel<64, 8, true>("portable latent f16 64"),
};
const int ln_cuda_decode_latent_portable_count =
    sizeof ln_cuda_decode_latent_portable_kernels / sizeof ln_cuda_decode_latent_portable_kernels[0];
