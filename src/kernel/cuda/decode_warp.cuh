/* What a warp of a decode kernel does with the units of 16 tokens that it has been brought:
 *
 *     score^T (16 tokens x 8 rows) = key * query^T,   weight = softmax(score),
 *     output^T (values x 8 rows) += value^T * weight^T,
 *
 * so that rows are padded to 8 only. Keys and values are left operands as they come, a lane reading pieces of 16 bytes;
 * which elements of a row these are is matched by the order of the query's, which tokens by that of the weights.
 * Weights turn from result to right operand by a transposition of 8 x 8.
 *
 * Line g of the operands is token `row_token(g)` of the unit's first eight, and of its others. */
#ifndef LN_KERNEL_CUDA_DECODE_WARP_CUH
#define LN_KERNEL_CUDA_DECODE_WARP_CUH

#include <limits.h>

#include "kernel/cuda/decode_codes.cuh"
#include "kernel/cuda/decode_merge.cuh"
#include "kernel/cuda/decode_work.cuh"

namespace ln {

/* How plain rows lie in a stage: in the order in which lanes read them; or as they are in memory, by lines of 128 bytes
 * whose eight pieces the copy engine has exchanged by the number of the line (swizzle). */
enum decode_order { LANE_ORDER, LINE_ORDER };

template <int FORMAT_, int SIZE_, int COLUMNS_, int WARPS_, int STAGES_, int ORDER_, int BLOCKS_> struct decode_shape {
    static constexpr int FORMAT = FORMAT_, SIZE = SIZE_, COLUMNS = COLUMNS_, WARPS = WARPS_, STAGES = STAGES_;
    static constexpr int ORDER = ORDER_, BLOCKS = BLOCKS_;
    using codes = page_codes<FORMAT>;
    static constexpr int AT_ONCE = codes::plain ? 4 : 2; /* results that are read at once to be joined */
    static constexpr int rows = 8 * COLUMNS, threads = 32 * WARPS, blocks = SIZE / 32;
    static constexpr int tile_codes = LN_CUDA_TILE * SIZE * codes::bits / 8;
    static constexpr int tile = tile_codes + (codes::plain ? 0 : SIZE), stage = 2 * tile;
    static constexpr int ring_bytes = WARPS * STAGES * stage;
    /* Which token line g of the operands is: such that of rows in LINE_ORDER eight lanes that read at once meet all
     * banks (of size 256, half of them, in values). */
    static __device__ __forceinline__ int row_token(int line) {
        const int c = line / 2;
        if (ORDER == LANE_ORDER || !codes::plain) return line;
        if (SIZE == 64) return line ^ (line & 1) << 2;
        return line % 2 == 0 ? c : 4 + (c ^ (SIZE == 128 ? 2 : SIZE == 256 ? 1 : 0));
    }
    static constexpr int shared_bytes = ring_bytes + decode_merge_bytes(SIZE, rows, WARPS);
};

/* ---- where the copies of a warp are ---- */

/* The next unit of a warp that is to be copied, of a segment ahead of its products. */
struct decode_cursor {
    decode_segment at;
    int unit, page, warp;
};

/* Over the ends of segments; learns the unit's page, long before it is needed. */
static __device__ __forceinline__ void cursor_settle(const decode_run &run, decode_cursor &next) {
    while (next.unit >= next.at.end && next.at.left > 0) {
        segment_next(run, next.at);
        next.unit = next.warp;
    }
    if (next.unit >= next.at.end) return;
    const int tile = next.at.first + next.unit;
    next.page = run.of.page_table
                    ? run.of.page_table[next.at.sequence * run.of.table_stride + (tile >> (run.page_shift - 4))]
                    : next.at.sequence;
}
static __device__ __forceinline__ decode_cursor cursor_open(const decode_run &run, const decode_segment &first,
                                                            int warp) {
    decode_cursor next = {first, first.begin + warp, 0, warp};
    cursor_settle(run, next);
    return next;
}
static __device__ __forceinline__ bool cursor_valid(const decode_cursor &next) {
    return next.unit < next.at.end;
}

/* ---- queries ---- */

/* The rows of a tile as right operands, in the order of the keys' elements: word 4 j + i of a column of rows is pair i
 * of chunk j. total: of codes, the sums of a chunk of rows 2 c and 2 c + 1, times
 * -(bias + middle) where keys have no zeros. */
template <class SHAPE> struct decode_queries {
    static constexpr int WORDS = SHAPE::SIZE / 8;
    uint32_t word[SHAPE::COLUMNS][WORDS];
    float total[SHAPE::codes::biased ? SHAPE::COLUMNS : 1][SHAPE::codes::biased ? SHAPE::blocks : 1][2];

    __device__ __forceinline__ void load(const decode_run &run, const decode_segment &at) {
        const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
        const int tile = tile_number(run);
        const ln_cuda_tensor &query = run.of.query;
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++) {
            const int row = tile * SHAPE::rows + 8 * t + g;
            const bool real = row < run.rows;
            const decode_place place = place_of(run, at.sequence, at.head, row);
            const int64_t from = place.token * query.token_stride + place.head * query.head_stride + c * 8;
            if constexpr (SHAPE::codes::plain)
                if (run.query_element ==
                    (SHAPE::FORMAT == LN_CUDA_PAGE_F16 ? LN_CUDA_ELEMENT_F16 : LN_CUDA_ELEMENT_BF16)) {
#pragma unroll
                    for (int j = 0; j < SHAPE::blocks; j++) {
                        uint4 four = {0, 0, 0, 0};
                        if (real) four = *(const uint4 *)((const uint16_t *)query.data + from + 32 * j);
                        word[t][4 * j] = four.x, word[t][4 * j + 1] = four.y;
                        word[t][4 * j + 2] = four.z, word[t][4 * j + 3] = four.w;
                    }
                    continue;
                }
#pragma unroll
            for (int j = 0; j < SHAPE::blocks; j++) {
                float x[8] = {};
                if (real) load_eight(x, query.data, from + 32 * j, run.query_element);
                put(t, j, x);
            }
        }
    }
    __device__ __forceinline__ void put(int t, int j, const float (&x)[8]) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float low = SHAPE::codes::bits >= 8 ? x[2 * i] : x[i],
                        high = SHAPE::codes::bits >= 8 ? x[2 * i + 1] : x[i + 4];
            const uint32_t pair = SHAPE::FORMAT == LN_CUDA_PAGE_F16 ? pack_half(low, high) : pack(low, high);
            word[t][4 * j + i] = pair;
            sum += __uint_as_float(pair << 16) + __uint_as_float(pair & 0xffff0000u);
        }
        if constexpr (SHAPE::codes::biased) {
            if constexpr (!SHAPE::codes::zeros) sum *= -(float)(SHAPE::codes::bias + SHAPE::codes::middle);
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            const int from = (int)threadIdx.x % 4 * 8;
            total[t][j][0] = __shfl_sync(~0u, sum, from);
            total[t][j][1] = __shfl_sync(~0u, sum, from + 4);
        }
    }
};

/* ---- a unit ---- */

/* What a warp knows of its rows. Element 2 h + e of a score is token g + 8 h of row 2 c + e; element 2 h + e of
 * output[t][m] is value h of pair m of that row. */
template <class SHAPE> struct decode_state {
    float base[SHAPE::COLUMNS][2], sum[SHAPE::COLUMNS][2]; /* sums of this lane's tokens */
    float output[SHAPE::COLUMNS][SHAPE::SIZE / 16][4];
    float rest[SHAPE::codes::zeros ? SHAPE::COLUMNS : 1][SHAPE::codes::zeros ? SHAPE::blocks : 1][2]; /* of zeros */

    __device__ __forceinline__ void open() {
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++) {
#pragma unroll
            for (int e = 0; e < 2; e++) base[t][e] = -CUDART_INF_F, sum[t][e] = 0;
#pragma unroll
            for (int i = 0; i < SHAPE::SIZE / 16; i++)
#pragma unroll
                for (int k = 0; k < 4; k++) output[t][i][k] = 0;
            if constexpr (SHAPE::codes::zeros)
#pragma unroll
                for (int b = 0; b < SHAPE::blocks; b++) rest[t][b][0] = rest[t][b][1] = 0;
        }
    }

    /* Bases move where an exponent has grown above 8: sums and outputs are to be multiplied. */
    __device__ __forceinline__ void move(float (&exponent)[SHAPE::COLUMNS][4]) {
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++) {
            float factor[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float by = fmaxf(exponent[t][e], exponent[t][2 + e]);
                by = fmaxf(by, __shfl_xor_sync(~0u, by, 4));
                by = fmaxf(by, __shfl_xor_sync(~0u, by, 8));
                by = fmaxf(by, __shfl_xor_sync(~0u, by, 16));
                const bool first = base[t][e] == -CUDART_INF_F;
                if (by == -CUDART_INF_F || (!first && by <= 8.0f))
                    by = 0;
                else
                    base[t][e] = first ? by : base[t][e] + by;
                factor[e] = first ? 0 : exponential(-by);
                sum[t][e] *= factor[e];
                exponent[t][e] -= by;
                exponent[t][2 + e] -= by;
            }
#pragma unroll
            for (int i = 0; i < SHAPE::SIZE / 16; i++)
#pragma unroll
                for (int k = 0; k < 4; k++) output[t][i][k] *= factor[k % 2];
            if constexpr (SHAPE::codes::zeros)
#pragma unroll
                for (int b = 0; b < SHAPE::blocks; b++) rest[t][b][0] *= factor[0], rest[t][b][1] *= factor[1];
        }
    }

    /* The same of the first scores, when outputs are 0. */
    __device__ __forceinline__ void weigh_first(float (&score)[SHAPE::COLUMNS][4], float scale) {
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float by = fmaxf(score[t][e], score[t][2 + e]);
                by = fmaxf(by, __shfl_xor_sync(~0u, by, 4));
                by = fmaxf(by, __shfl_xor_sync(~0u, by, 8));
                by = fmaxf(by, __shfl_xor_sync(~0u, by, 16));
                base[t][e] = by * scale;
                const float from = by == -CUDART_INF_F ? 0.0f : base[t][e];
                score[t][e] = exponential(fmaf(score[t][e], scale, -from));
                score[t][2 + e] = exponential(fmaf(score[t][2 + e], scale, -from));
                sum[t][e] = score[t][e] + score[t][2 + e];
            }
    }
    /* Scores become weights. */
    __device__ __forceinline__ void weigh(float (&score)[SHAPE::COLUMNS][4], float scale) {
        bool grown = false;
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const bool first = base[t][e] == -CUDART_INF_F;
                const float from = first ? 0 : base[t][e];
                score[t][e] = fmaf(score[t][e], scale, -from);
                score[t][2 + e] = fmaf(score[t][2 + e], scale, -from);
                grown = grown || fmaxf(score[t][e], score[t][2 + e]) > (first ? -CUDART_INF_F : 8.0f);
            }
        if (__any_sync(~0u, grown)) move(score);
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                score[t][k] = exponential(score[t][k]);
                sum[t][k % 2] += score[t][k];
            }
    }
};

template <class SHAPE>
static __device__ __forceinline__ void multiply_add(float *sum, const uint32_t *left, const uint32_t *right) {
    if constexpr (SHAPE::FORMAT == LN_CUDA_PAGE_F16)
        add_product_half(sum, left, right);
    else
        add_product(sum, left, right);
}

/* Piece `piece` of a token's row in LINE_ORDER. */
template <class SHAPE>
static __device__ __forceinline__ const uint4 *line_piece(const char *tile, int token, int piece) {
    const int line = token * (SHAPE::SIZE / 64) + piece / 8;
    return (const uint4 *)(tile + line * 128 + (piece % 8 ^ line % 8) * 16);
}
/* Elements 32 j + 8 c .. + 7 of the token of line g, or of that of line g + 8 (half 1). */
template <class SHAPE> static __device__ __forceinline__ const uint4 *key_piece(const char *tile, int j, int half) {
    const int lane = threadIdx.x % 32;
    if constexpr (SHAPE::ORDER == LINE_ORDER)
        return line_piece<SHAPE>(tile, SHAPE::row_token(lane / 4) + 8 * half, 4 * j + lane % 4);
    else
        return (const uint4 *)tile + (2 * j + half) * 32 + lane;
}
/* Elements 64 j + 8 g .. + 7 of the token of line 2 c + i % 2 + 8 (i / 2). */
template <class SHAPE> static __device__ __forceinline__ const uint4 *value_piece(const char *tile, int j, int i) {
    const int lane = threadIdx.x % 32;
    if constexpr (SHAPE::ORDER == LINE_ORDER)
        return line_piece<SHAPE>(tile, SHAPE::row_token(lane % 4 * 2 + i % 2) + 8 * (i / 2), 8 * j + lane / 4);
    else
        return (const uint4 *)tile + (4 * j + i) * 32 + lane;
}

/* Plain rows of a unit that lie in a stage: the pieces of this lane. */
template <class SHAPE> struct stage_pieces {
    const char *stage;
    __device__ __forceinline__ uint4 key(int j, int half) const { return *key_piece<SHAPE>(stage, j, half); }
    __device__ __forceinline__ uint4 value(int j, int i) const {
        return *value_piece<SHAPE>(stage + SHAPE::tile, j, i);
    }
    __device__ __forceinline__ uint2 value_end(int i) const {
        return ((const uint2 *)(stage + SHAPE::tile + SHAPE::SIZE / 64 * 2048))[i * 32 + (int)threadIdx.x % 32];
    }
};

/* CHAINS: sums that are added at the end, so that products wait less for each other. */
template <class SHAPE, int CHAINS, class PIECES>
static __device__ __forceinline__ void plain_scores(float (&score)[SHAPE::COLUMNS][4], const PIECES &pieces,
                                                    const decode_queries<SHAPE> &query) {
    float part[CHAINS][SHAPE::COLUMNS][4] = {};
#pragma unroll
    for (int j = 0; j < SHAPE::SIZE / 32; j++) {
        const uint4 low = pieces.key(j, 0), high = pieces.key(j, 1);
        const uint32_t left[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
            for (int step = 0; step < 2; step++)
                multiply_add<SHAPE>(part[(2 * j + step) % CHAINS][t], left[step], query.word[t] + 4 * j + 2 * step);
    }
#pragma unroll
    for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            score[t][k] = part[0][t][k];
#pragma unroll
            for (int i = 1; i < CHAINS; i++) score[t][k] += part[i][t][k];
        }
}

/* Pairs of tokens of two elements, from rows of two tokens each. */
static __device__ __forceinline__ void turn_pairs(uint32_t (&left)[4], uint32_t t0, uint32_t t1, uint32_t t8,
                                                  uint32_t t9) {
    left[0] = __byte_perm(t0, t1, 0x5410);
    left[1] = __byte_perm(t0, t1, 0x7632);
    left[2] = __byte_perm(t8, t9, 0x5410);
    left[3] = __byte_perm(t8, t9, 0x7632);
}

template <class SHAPE, class PIECES>
static __device__ __forceinline__ void plain_outputs(decode_state<SHAPE> &state, const PIECES &pieces,
                                                     const float (&weight)[SHAPE::COLUMNS][4]) {
    constexpr bool half = SHAPE::FORMAT == LN_CUDA_PAGE_F16;
    uint32_t right[SHAPE::COLUMNS][2];
#pragma unroll
    for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            right[t][h] = transpose_matrix(half ? pack_half(weight[t][2 * h], weight[t][2 * h + 1])
                                                : pack(weight[t][2 * h], weight[t][2 * h + 1]));
#pragma unroll
    for (int j = 0; j < SHAPE::SIZE / 64; j++) {
        uint32_t word[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint4 four = pieces.value(j, i);
            word[i][0] = four.x, word[i][1] = four.y, word[i][2] = four.z, word[i][3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t left[4];
            turn_pairs(left, word[0][i], word[1][i], word[2][i], word[3][i]);
#pragma unroll
            for (int t = 0; t < SHAPE::COLUMNS; t++) multiply_add<SHAPE>(state.output[t][4 * j + i], left, right[t]);
        }
    }
    if constexpr (SHAPE::SIZE % 64 != 0) {
        uint2 two[4];
#pragma unroll
        for (int i = 0; i < 4; i++) two[i] = pieces.value_end(i);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t left[4];
            turn_pairs(left, i ? two[0].y : two[0].x, i ? two[1].y : two[1].x, i ? two[2].y : two[2].x,
                       i ? two[3].y : two[3].x);
#pragma unroll
            for (int t = 0; t < SHAPE::COLUMNS; t++)
                multiply_add<SHAPE>(state.output[t][SHAPE::SIZE / 64 * 4 + i], left, right[t]);
        }
    }
}

/* The granules of this lane, and the scales of tokens g (low half) and g + 8 of each block. */
template <class SHAPE, bool VALUES> struct decode_granules {
    static constexpr int BYTES = SHAPE::tile_codes / 32, WORDS = BYTES / 4;
    uint32_t code[WORDS], scale[SHAPE::blocks];

    __device__ __forceinline__ void load_codes(const char *tile) {
        const int lane = threadIdx.x % 32;
        constexpr int whole = WORDS / 4 * 4, left = WORDS % 4;
#pragma unroll
        for (int i = 0; i < whole; i += 4) {
            const uint4 four = ((const uint4 *)tile)[i / 4 * 32 + lane];
            code[i] = four.x, code[i + 1] = four.y, code[i + 2] = four.z, code[i + 3] = four.w;
        }
        if constexpr (left >= 2) {
            const uint2 two = ((const uint2 *)(tile + whole * 128))[lane];
            code[whole] = two.x, code[whole + 1] = two.y;
        }
        if constexpr (left % 2 != 0) code[WORDS - 1] = ((const uint32_t *)(tile + (WORDS - 1) * 128))[lane];
    }
    __device__ __forceinline__ void load(const char *tile) {
        load_codes(tile);
        const int lane = threadIdx.x % 32;
        if constexpr (VALUES && SHAPE::FORMAT == LN_CUDA_PAGE_Q4_0) {
            const uint2 *scales = (const uint2 *)(tile + SHAPE::tile_codes) + lane / 8 * SHAPE::blocks;
#pragma unroll
            for (int b = 0; b < SHAPE::blocks; b++)
                scale[b] = __byte_perm(scales[b].x, scales[b].y, lane / 4 % 2 ? 0x7632 : 0x5410);
            return;
        }
        const char *scales = tile + SHAPE::tile_codes + lane / 4 * (SHAPE::blocks * 4);
        constexpr int step = SHAPE::blocks % 4 == 0 ? 4 : SHAPE::blocks % 2 == 0 ? 2 : 1;
#pragma unroll
        for (int b = 0; b < SHAPE::blocks; b += step) {
            if constexpr (step == 4) {
                const uint4 four = *(const uint4 *)(scales + 4 * b);
                scale[b] = four.x, scale[b + 1] = four.y, scale[b + 2] = four.z, scale[b + 3] = four.w;
            } else if constexpr (step == 2) {
                const uint2 two = *(const uint2 *)(scales + 4 * b);
                scale[b] = two.x, scale[b + 1] = two.y;
            } else {
                scale[b] = *(const uint32_t *)(scales + 4 * b);
            }
        }
    }
};

/* score += step (q . code - (bias + zero) sum(q)): codes have their bias in them. */
template <class SHAPE>
static __device__ __forceinline__ void code_scores(float (&score)[SHAPE::COLUMNS][4], const char *stage,
                                                   const decode_queries<SHAPE> &query) {
    using codes = typename SHAPE::codes;
    decode_granules<SHAPE, false> keys;
    keys.load(stage);
#pragma unroll
    for (int b = 0; b < SHAPE::blocks; b++) {
        uint32_t left[2][4];
        key_operands<codes::bits>(left, keys.code + b * codes::words);
        const float step[2] = {step_of<SHAPE::FORMAT>(keys.scale[b], 0), step_of<SHAPE::FORMAT>(keys.scale[b], 1)};
        const float zero[2] = {zero_of<SHAPE::FORMAT>(keys.scale[b]), zero_of<SHAPE::FORMAT>(keys.scale[b] >> 16)};
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++) {
            float part[4] = {};
            if constexpr (codes::biased && !codes::zeros)
#pragma unroll
                for (int k = 0; k < 4; k++) part[k] = query.total[t][b][k % 2]; /* -bias sum(q) */
            add_product(part, left[0], query.word[t] + 4 * b);
            add_product(part, left[1], query.word[t] + 4 * b + 2);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if constexpr (codes::zeros) part[k] = fmaf(-zero[k / 2], query.total[t][b][k % 2], part[k]);
                score[t][k] = fmaf(step[k / 2], part[k], score[t][k]);
            }
        }
    }
}

template <class SHAPE>
static __device__ __forceinline__ void code_outputs(decode_state<SHAPE> &state, const char *stage,
                                                    const float (&weight)[SHAPE::COLUMNS][4]) {
    using codes = typename SHAPE::codes;
    decode_granules<SHAPE, true> values;
    values.load(stage);
    /* -(bias + middle) in every place: products with it take the bias away at once, before it grows. */
    const uint32_t minus = codes::bits == 4 ? 0xc308c308u : 0xc302c302u;
    const uint32_t bias[4] = {minus, minus, minus, minus};
#pragma unroll
    for (int b = 0; b < SHAPE::blocks; b++) {
        uint32_t left[2][4];
        value_operands<codes::bits>(left, values.code + b * codes::words);
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++) {
            uint32_t right[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float step = step_of<SHAPE::FORMAT>(values.scale[b], h);
                const uint32_t pair = pack(weight[t][2 * h] * step, weight[t][2 * h + 1] * step);
                if constexpr (codes::zeros) {
                    const float zero =
                        zero_of<SHAPE::FORMAT>(values.scale[b] >> 16 * h) - (codes::bias + codes::middle);
                    state.rest[t][b][0] = fmaf(-zero, __uint_as_float(pair << 16), state.rest[t][b][0]);
                    state.rest[t][b][1] = fmaf(-zero, __uint_as_float(pair & 0xffff0000u), state.rest[t][b][1]);
                }
                right[h] = transpose_matrix(pair);
            }
            if constexpr (codes::biased) {
                add_product(state.output[t][2 * b], bias, right);
                add_product(state.output[t][2 * b + 1], bias, right);
            }
            add_product(state.output[t][2 * b], left[0], right);
            add_product(state.output[t][2 * b + 1], left[1], right);
        }
    }
}

template <class SHAPE>
static __device__ __forceinline__ void cap_scores(float (&score)[SHAPE::COLUMNS][4], const decode_run &run) {
    if (run.cap_scale > 0)
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
            for (int k = 0; k < 4; k++) score[t][k] = decode_tangent(score[t][k] * run.cap_scale);
}
/* Scores of keys that their row does not see, or from `end` on, become -inf. `token`: the first of the unit. */
template <class SHAPE>
static __device__ __forceinline__ void mask(float (&score)[SHAPE::COLUMNS][4], const decode_run &run,
                                            const decode_segment &at, int token, int end = INT_MAX) {
    const int lane = threadIdx.x % 32, key = token + SHAPE::row_token(lane / 4);
#pragma unroll
    for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int row = tile_number(run) * SHAPE::rows + 8 * t + 2 * (lane % 4) + e;
            const decode_sight seen = seen_by_row(run, at.length, row);
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (key + 8 * h < seen.low || key + 8 * h >= min(seen.high, end)) score[t][2 * h + e] = -CUDART_INF_F;
        }
}

/* Values of tokens that no row sees may be anything, their scales too: their weights are 0, but 0 times infinity is
 * not.
 */
template <class SHAPE>
static __device__ __forceinline__ void clear_values(char *tile, const decode_run &run, const decode_segment &at,
                                                    int token, int end = INT_MAX) {
    const decode_sight some = seen_by_some(run, at.length);
    constexpr int width = SHAPE::codes::plain ? SHAPE::SIZE * 2 : SHAPE::SIZE / 16; /* bytes of a token */
#pragma unroll 1
    for (int i = (int)threadIdx.x % 32 * 2; i < LN_CUDA_TILE * width; i += 64) {
        const int line = i / width, at = i % width;
        if (token + line >= some.low && token + line < min(some.high, end)) continue;
        char *to = SHAPE::codes::plain
                       ? tile + line * width + at
                       : tile + ln_cuda_scale_place(SHAPE::codes::format, true, SHAPE::SIZE, line, at / 2);
        *(uint16_t *)to = 0;
    }
    __syncwarp();
}

/* Returns whether it has written to the stage. */
template <class SHAPE>
static __device__ __forceinline__ bool take_unit(const decode_run &run, const decode_segment &at, int unit, char *stage,
                                                 const decode_queries<SHAPE> &query, decode_state<SHAPE> &state) {
    const int token = (at.first + unit) * LN_CUDA_TILE;
    float score[SHAPE::COLUMNS][4] = {};
    if constexpr (SHAPE::codes::plain)
        plain_scores<SHAPE, 1>(score, stage_pieces<SHAPE>{stage}, query);
    else
        code_scores<SHAPE>(score, stage, query);
    cap_scores<SHAPE>(score, run);
    const decode_sight all = seen_by_all(run, at.length);
    const bool whole = token >= all.low && token + LN_CUDA_TILE <= all.high;
    if (!whole) {
        mask<SHAPE>(score, run, at, token);
        if constexpr (!SHAPE::codes::plain || SHAPE::ORDER != LANE_ORDER)
            clear_values<SHAPE>(stage + SHAPE::tile, run, at, token);
    }
    state.weigh(score, run.scale);
    if constexpr (SHAPE::codes::plain)
        plain_outputs<SHAPE>(state, stage_pieces<SHAPE>{stage}, score);
    else
        code_outputs<SHAPE>(state, stage + SHAPE::tile, score);
    return !whole;
}

/* ---- the end of a segment ---- */

/* The warp's results go where the block merges them. */
template <class SHAPE>
static __device__ __forceinline__ void give_result(decode_state<SHAPE> &state, const decode_merge &merge) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float sum = state.sum[t][e];
#pragma unroll
            for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
            const int row = warp * SHAPE::rows + 8 * t + 2 * c + e;
            if (g == 0) merge.base[row] = state.base[t][e], merge.sum[row] = sum;
            if constexpr (SHAPE::codes::zeros)
#pragma unroll
                for (int b = 0; b < SHAPE::blocks; b++)
#pragma unroll
                    for (int step = 4; step < 32; step *= 2)
                        state.rest[t][b][e] += __shfl_xor_sync(~0u, state.rest[t][b][e], step);
            float *to = merge.output + row * decode_row(SHAPE::SIZE);
#pragma unroll
            for (int m = 0; m < SHAPE::SIZE / 16; m += 2) {
                const bool eights = SHAPE::codes::plain && m / 4 < SHAPE::SIZE / 64;
                const int column = eights ? m / 4 * 64 + 8 * g + m % 4 * 2 : m / 2 * 32 + 4 * g;
                const float rest = SHAPE::codes::zeros
                                       ? state.rest[SHAPE::codes::zeros ? t : 0][SHAPE::codes::zeros ? m / 2 : 0][e]
                                       : 0;
                *(float4 *)(to + column) = {state.output[t][m][e] + rest, state.output[t][m][2 + e] + rest,
                                            state.output[t][m + 1][e] + rest, state.output[t][m + 1][2 + e] + rest};
            }
        }
}

/* What a block does with units one by one. */
template <class SHAPE> struct unit_work {
    using shape = SHAPE;
    using queries = decode_queries<SHAPE>;
    using state = decode_state<SHAPE>;
    static constexpr int each = 1;
    static __device__ __forceinline__ bool take(const decode_run &run, const decode_segment &at, int unit, char *stage,
                                                const queries &query, state &all) {
        return take_unit<SHAPE>(run, at, unit, stage, query, all);
    }
    static __device__ __forceinline__ void give(state &all, const decode_merge &merge) {
        give_result<SHAPE>(all, merge);
    }
};

/* The segment that began before this block's share and ended in it. */
template <class SHAPE, class RING>
static __device__ __forceinline__ void join_open(const decode_run &run, const decode_merge &merge) {
    decode_segment open = {};
    open.sequence = merge.open[0], open.head = merge.open[1];
    open.origin = merge.open[2], open.units = merge.open[3];
    const decode_parts parts =
        parts_of<SHAPE::SIZE, SHAPE::rows>(run, shares_of(open, merge.open[4]), share_number(run), tile_number(run));
    const auto none = [](int, int) { return no_result(); };
    join_parts<SHAPE::SIZE, SHAPE::rows, SHAPE::threads, RING, SHAPE::AT_ONCE>(run, open.sequence, open.head, parts,
                                                                               parts.count, none);
}

/* The block's work, WORK::each units at a time. RING brings a warp its units in order: open (from the first on), await
 * (the next one), leave (after it was used); meet: all warps that do this work. */
template <class WORK, class RING>
static __device__ __forceinline__ void decode_block(const decode_run &run, RING &ring, char *merging) {
    using SHAPE = typename WORK::shape;
    constexpr int each = WORK::each;
    const int warp = threadIdx.x / 32;
    const decode_merge merge = decode_merge_open(merging, SHAPE::SIZE, SHAPE::rows, SHAPE::WARPS);
    int share;
    decode_segment here = segment_first(run, &share);
    ring.open(run, here);
    /* Kept in shared memory, as registers are what the loop has none of. */
    if (threadIdx.x == 0) merge.open[0] = -1, merge.open[4] = share;
    while (here.begin < here.end) {
        typename WORK::queries query;
        typename WORK::state state;
        query.load(run, here);
        state.open();
#pragma unroll 1
        for (int unit = here.begin + each * warp; unit < here.end; unit += each * SHAPE::WARPS)
            ring.leave(run, WORK::take(run, here, unit, ring.await(run), query, state));
        WORK::give(state, merge);
        RING::meet();
        const decode_parts parts = parts_of<SHAPE::SIZE, SHAPE::rows>(run, shares_of(here, merge.open[4]),
                                                                      share_number(run), tile_number(run));
        const bool open = decode_finish<SHAPE::SIZE, SHAPE::rows, SHAPE::WARPS, RING, SHAPE::AT_ONCE>(
            run, here.sequence, here.head, parts, merge, here.left == 0);
        if (open && threadIdx.x == 0) {
            merge.open[0] = here.sequence, merge.open[1] = here.head;
            merge.open[2] = here.origin, merge.open[3] = here.units;
        }
        if (here.left == 0) {
            if (merge.open[0] >= 0) join_open<SHAPE, RING>(run, merge);
            break;
        }
        RING::meet();
        segment_next(run, here);
    }
    decode_nothing(run, SHAPE::SIZE, (int)threadIdx.x, SHAPE::threads);
}

} // namespace ln

#endif
