/* Decode attention over q4_0 pages, two units of 16 tokens at a time: waiting, masks and the vote on bases are paid
 * once for both, and each has products to do while the other waits.
 *
 *     score = sum_b step_b (q . code - 8 sum(q)) of blocks b of 32,   output_b = sum_j weight_j step_jb (code_jb - 8).
 *
 * Four bits become an f16 by a mask alone: the low bits of an f16 are its number times 2^-24, exactly, and four bits
 * further up 16 times that, which the other operand or the last factor takes away. What 2^-24 asks of the range of the
 * other operand: queries are scaled by rows to 2^14 .. 2^15; weights may be up to 2^`top`, top so that no weight times
 * step passes 2^15, and bases move where a score or a step has grown beyond what was allowed for.
 *
 * Each warp has a ring of its own, which its lanes fill with keys, values, keys, values of two units that lie there in
 * a row, so that no lane is idle. Of a segment's last unit that has no second, the copy has it twice. */
#ifndef LN_KERNEL_CUDA_DECODE_PAIRS_CUH
#define LN_KERNEL_CUDA_DECODE_PAIRS_CUH

#include "kernel/cuda/decode_warp.cuh"

namespace ln {

/* Eight codes of four bits as pairs (i, i + 4), times 2^-24, of odd i times 16 more. */
static __device__ __forceinline__ uint32_t tiny_pair(uint32_t word, int i) {
    return (i < 2 ? word : word >> 8) & (i % 2 ? 0x00f000f0u : 0x000f000fu);
}
/* 2^e; -126 <= e <= 127. */
static __device__ __forceinline__ float power_of_two(int e) {
    return __uint_as_float((uint32_t)(127 + e) << 23);
}
/* The e of 2^e <= |x| < 2^(e + 1), at least `least`. */
static __device__ __forceinline__ int exponent_of(float x, int least) {
    return max((int)(__float_as_uint(x) >> 23 & 255u) - 127, least);
}

/* As decode_queries; scale: what makes scores of the products. total: -8 times the sum of a block, as products have it.
 */
template <class SHAPE> struct pair_queries {
    static constexpr int WORDS = SHAPE::SIZE / 8;
    uint32_t word[SHAPE::COLUMNS][WORDS];
    float total[SHAPE::COLUMNS][SHAPE::blocks][2], scale[SHAPE::COLUMNS][2];

    __device__ __forceinline__ void load(const decode_run &run, const decode_segment &at) {
        const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, tile = tile_number(run);
        const ln_cuda_tensor &query = run.of.query;
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++) {
            const int row = tile * SHAPE::rows + 8 * t + g;
            const decode_place place = place_of(run, at.sequence, at.head, row);
            const int64_t from = place.token * query.token_stride + place.head * query.head_stride + c * 8;
            float x[SHAPE::blocks][8] = {}, most = 0;
#pragma unroll
            for (int j = 0; j < SHAPE::blocks; j++) {
                if (row < run.rows) load_eight(x[j], query.data, from + 32 * j, run.query_element);
#pragma unroll
                for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(x[j][i]));
            }
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            const int up = 14 - exponent_of(most, -100);
#pragma unroll
            for (int j = 0; j < SHAPE::blocks; j++) put(t, j, x[j], power_of_two(up));
            const float factor = power_of_two(min(24 - up, 127)) * (run.cap_scale > 0 ? run.cap_scale : run.scale);
            scale[t][0] = __shfl_sync(~0u, factor, c * 8);
            scale[t][1] = __shfl_sync(~0u, factor, c * 8 + 4);
        }
    }
    __device__ __forceinline__ void put(int t, int j, const float (&x)[8], float up) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float by = i % 2 ? up / 16 : up;
            const uint32_t pair = pack_half(x[i] * by, x[i + 4] * by);
            word[t][4 * j + i] = pair;
            sum = fmaf(half_float(pair & 0xffffu) + half_float(pair >> 16), i % 2 ? 16.0f : 1.0f, sum);
        }
        sum *= -8 * power_of_two(-24);
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int from = (int)threadIdx.x % 4 * 8;
        total[t][j][0] = __shfl_sync(~0u, sum, from);
        total[t][j][1] = __shfl_sync(~0u, sum, from + 4);
    }
};

/* Steps of values: word[b][h] has those of block b of tokens 2 c + 8 h and the one after; of this lane's block
 * (g modulo blocks) as left operands, rows of which are blocks. */
template <class SHAPE> struct pair_steps {
    uint32_t own[2];
    __device__ __forceinline__ void load(const char *values) {
        const int lane = threadIdx.x % 32;
        const uint2 two = *step_at(values, lane / 4 % SHAPE::blocks);
        own[0] = two.x, own[1] = two.y;
    }
    static __device__ __forceinline__ const uint2 *step_at(const char *values, int block) {
        return (const uint2 *)(values + SHAPE::tile_codes) + (int)threadIdx.x % 4 * SHAPE::blocks + block;
    }
};

/* As decode_state. Weights are 2^(score - from), at most 2^top; top -inf: no key was seen. Element 2 h + e of an output
 * is 2^-24 (16^h) times what it stands for, with codes as they are: rest is what their 8 adds, rows of it blocks. */
template <class SHAPE> struct pair_state {
    float from[SHAPE::COLUMNS][2], top[SHAPE::COLUMNS][2], sum[SHAPE::COLUMNS][2];
    float output[SHAPE::COLUMNS][SHAPE::SIZE / 16][4], rest[SHAPE::COLUMNS][4];
    uint32_t bound; /* of steps, two f16 */

    __device__ __forceinline__ void open() {
        bound = 0;
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++) {
#pragma unroll
            for (int e = 0; e < 2; e++) from[t][e] = sum[t][e] = 0, top[t][e] = -CUDART_INF_F;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                rest[t][k] = 0;
#pragma unroll
                for (int i = 0; i < SHAPE::SIZE / 16; i++) output[t][i][k] = 0;
            }
        }
    }

    __device__ __forceinline__ void move(float (&exponent)[2][SHAPE::COLUMNS][4], uint32_t steps) {
        enum { ROOM = 6, MOST = 15 }; /* log2: what weights may still grow; the largest product with a step */
        float step = fmaxf(half_float(steps & 0xffffu), half_float(steps >> 16));
#pragma unroll
        for (int i = 1; i < 32; i *= 2) step = fmaxf(step, __shfl_xor_sync(~0u, step, i));
        const float allowed = half_float(bound & 0xffffu);
        int e2 = exponent_of(allowed * 1.001f, 0); /* of the largest f16: 16 */
        if (!(step <= allowed)) e2 = min(exponent_of(step, -2) + 2, 16);
        bound = e2 < 16 ? (uint32_t)(e2 + 15) << 10 | (uint32_t)(e2 + 15) << 26 : 0x7bff7bffu;
        const float highest = (float)(MOST - e2);
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++) {
            float factor[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float by = fmaxf(fmaxf(exponent[0][t][e], exponent[0][t][2 + e]),
                                 fmaxf(exponent[1][t][e], exponent[1][t][2 + e]));
                by = fmaxf(by, __shfl_xor_sync(~0u, by, 4));
                by = fmaxf(by, __shfl_xor_sync(~0u, by, 8));
                by = fmaxf(by, __shfl_xor_sync(~0u, by, 16));
                const bool first = top[t][e] == -CUDART_INF_F, none = first && by == -CUDART_INF_F;
                const float shift = !none && (first || by > highest) ? by - (highest - ROOM) : 0.0f;
                factor[e] = first ? 1.0f : exponential(-shift);
                top[t][e] = none ? top[t][e] : highest;
                from[t][e] += shift;
                sum[t][e] *= factor[e];
#pragma unroll
                for (int u = 0; u < 2; u++) exponent[u][t][e] -= shift, exponent[u][t][2 + e] -= shift;
            }
#pragma unroll
            for (int k = 0; k < 4; k++) {
                rest[t][k] *= factor[k % 2];
#pragma unroll
                for (int i = 0; i < SHAPE::SIZE / 16; i++) output[t][i][k] *= factor[k % 2];
            }
        }
    }

    /* Scores become weights. */
    __device__ __forceinline__ void weigh(float (&score)[2][SHAPE::COLUMNS][4], const pair_steps<SHAPE> (&steps)[2],
                                          const pair_queries<SHAPE> &query) {
        const uint32_t most =
            half_most(half_most(steps[0].own[0], steps[0].own[1]), half_most(steps[1].own[0], steps[1].own[1]));
        bool grown = half_above(most, bound);
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float &x = score[i / 2][t][i % 2 * 2 + e];
                    x = fmaf(x, query.scale[t][e], -from[t][e]);
                }
                const float high =
                    fmaxf(fmaxf(score[0][t][e], score[0][t][2 + e]), fmaxf(score[1][t][e], score[1][t][2 + e]));
                grown = grown || high > top[t][e];
            }
        if (__any_sync(~0u, grown)) move(score, most);
#pragma unroll
        for (int u = 0; u < 2; u++)
#pragma unroll
            for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    score[u][t][k] = exponential(score[u][t][k]);
                    sum[t][k % 2] += score[u][t][k];
                }
    }

    /* The warp's results go where the block merges them. */
    __device__ __forceinline__ void give(const decode_merge &merge) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float all = sum[t][e];
#pragma unroll
                for (int step = 4; step < 32; step *= 2) all += __shfl_xor_sync(~0u, all, step);
                const int row = warp * SHAPE::rows + 8 * t + 2 * c + e;
                if (g == 0) {
                    merge.base[row] = top[t][e] == -CUDART_INF_F && all == 0 ? -CUDART_INF_F : from[t][e];
                    merge.sum[row] = all;
                }
                float *to = merge.output + row * decode_row(SHAPE::SIZE) + 4 * g;
#pragma unroll
                for (int b = 0; b < SHAPE::blocks; b++) {
                    const float less = -8 * __shfl_sync(~0u, rest[t][e], 4 * b + c), up = power_of_two(24);
                    const float(&low)[4] = output[t][2 * b], (&high)[4] = output[t][2 * b + 1];
                    *(float4 *)(to + 32 * b) = {fmaf(low[e], up, less), fmaf(low[2 + e], up / 16, less),
                                                fmaf(high[e], up, less), fmaf(high[2 + e], up / 16, less)};
                }
            }
    }
};

template <class SHAPE> struct pair_work {
    using shape = SHAPE;
    using queries = pair_queries<SHAPE>;
    using state = pair_state<SHAPE>;
    static constexpr int each = 2;

    static __device__ __forceinline__ void scores(float (&score)[SHAPE::COLUMNS][4], const char *keys,
                                                  const queries &query) {
        decode_granules<SHAPE, false> key;
        key.load(keys);
#pragma unroll
        for (int b = 0; b < SHAPE::blocks; b++) {
            uint32_t left[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    left[i / 2][i % 2 * 2 + half] = tiny_pair(key.code[2 * b + half], i);
            const float step[2] = {step_of<SHAPE::FORMAT>(key.scale[b], 0), step_of<SHAPE::FORMAT>(key.scale[b], 1)};
#pragma unroll
            for (int t = 0; t < SHAPE::COLUMNS; t++) {
                const float(&total)[2] = query.total[t][b];
                const float first[4] = {total[0], total[1], total[0], total[1]};
                float part[4];
                product_half(part, left[0], query.word[t] + 4 * b, first);
                add_product_half(part, left[1], query.word[t] + 4 * b + 2);
#pragma unroll
                for (int k = 0; k < 4; k++) score[t][k] = fmaf(step[k / 2], part[k], score[t][k]);
            }
        }
    }

    static __device__ __forceinline__ void outputs(state &all, const char *values, const pair_steps<SHAPE> &steps,
                                                   const float (&weight)[SHAPE::COLUMNS][4]) {
        decode_granules<SHAPE, true> value;
        value.load_codes(values);
        uint32_t right[SHAPE::COLUMNS][2];
        const uint32_t rows[4] = {steps.own[0], steps.own[0], steps.own[1], steps.own[1]};
#pragma unroll
        for (int t = 0; t < SHAPE::COLUMNS; t++) {
#pragma unroll
            for (int h = 0; h < 2; h++)
                right[t][h] = transpose_matrix(pack_half(weight[t][2 * h], weight[t][2 * h + 1]));
            add_product_half(all.rest[t], rows, right[t]);
        }
#pragma unroll
        for (int b = 0; b < SHAPE::blocks; b++) {
            const uint2 step = *pair_steps<SHAPE>::step_at(values, b);
            uint32_t left[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    left[i / 2][i % 2 + 2 * half] = tiny_pair(value.code[2 * b + half], i);
#pragma unroll
            for (int t = 0; t < SHAPE::COLUMNS; t++) {
                const uint32_t scaled[2] = {half_times(right[t][0], step.x), half_times(right[t][1], step.y)};
                add_product_half(all.output[t][2 * b], left[0], scaled);
                add_product_half(all.output[t][2 * b + 1], left[1], scaled);
            }
        }
    }

    /* Of pairs that are not seen as a whole, or of which the segment has one unit. */
    static __device__ __forceinline__ void cut(float (&score)[2][SHAPE::COLUMNS][4], const decode_run &run,
                                               const decode_segment &at, int token, char *stage) {
        const int end = (at.first + at.end) * LN_CUDA_TILE;
#pragma unroll
        for (int u = 0; u < 2; u++) {
            mask<SHAPE>(score[u], run, at, token + LN_CUDA_TILE * u, end);
            clear_values<SHAPE>(stage + (2 * u + 1) * SHAPE::tile, run, at, token + LN_CUDA_TILE * u, end);
        }
    }

    static __device__ __forceinline__ bool take(const decode_run &run, const decode_segment &at, int unit, char *stage,
                                                const queries &query, state &all) {
        const int token = (at.first + unit) * LN_CUDA_TILE;
        float score[2][SHAPE::COLUMNS][4] = {};
#pragma unroll
        for (int u = 0; u < 2; u++) scores(score[u], stage + u * SHAPE::stage, query);
        if (run.cap_scale > 0)
#pragma unroll
            for (int i = 0; i < 8 * SHAPE::COLUMNS; i++) {
                float &x = score[i % 2][i / 8][i / 2 % 4];
                const float scale = query.scale[i / 8][i / 2 % 2];
                x = decode_tangent(x * scale) * run.scale * reciprocal(scale);
            }
        const decode_sight seen = seen_by_all(run, at.length);
        const bool whole = token >= seen.low && token + 2 * LN_CUDA_TILE <= seen.high && unit + 2 <= at.end;
        if (!whole) cut(score, run, at, token, stage);
        pair_steps<SHAPE> steps[2];
#pragma unroll
        for (int u = 0; u < 2; u++) steps[u].load(stage + u * SHAPE::stage + SHAPE::tile);
        all.weigh(score, steps, query);
#pragma unroll
        for (int u = 0; u < 2; u++) outputs(all, stage + u * SHAPE::stage + SHAPE::tile, steps[u], score[u]);
        return !whole;
    }
    static __device__ __forceinline__ void give(state &all, const decode_merge &merge) {
        all.give(merge);
    }
};

/* ---- the copies ---- */

template <class SHAPE> struct pair_ring {
    static constexpr int stage_bytes = 2 * SHAPE::stage, pieces = SHAPE::tile / 16;
    char *stages; /* for this lane's pieces */
    int stage;
    decode_cursor next;      /* unit, page: of the first of the two */
    int second;              /* page of the other */
    const int32_t *table;    /* of the sequence */
    const char *key, *value; /* of page 0, this lane's pieces */

    __device__ __forceinline__ void settle(const decode_run &run) {
        if (next.unit >= next.at.end) {
            while (next.unit >= next.at.end && next.at.left > 0) {
                segment_next(run, next.at);
                next.unit = 2 * next.warp;
            }
            if (next.unit >= next.at.end) return;
            places(run);
        }
        const int tile = next.at.first + next.unit, other = next.at.first + min(next.unit + 1, next.at.end - 1);
        if (run.of.page_table) {
            next.page = table[tile >> (run.page_shift - 4)], second = table[other >> (run.page_shift - 4)];
        } else {
            next.page = second = next.at.sequence;
        }
    }
    __device__ __forceinline__ void places(const decode_run &run) {
        const int lane = threadIdx.x % 32;
        table = run.of.page_table + next.at.sequence * run.of.table_stride;
        key = (const char *)run.of.key.data + next.at.head * run.of.key.head_stride + lane * 16;
        value = (const char *)run.of.value.data + next.at.head * run.of.value.head_stride + lane * 16;
    }
    __device__ __forceinline__ void copy(const decode_run &run) {
        if (cursor_valid(next)) {
            const int lane = threadIdx.x % 32, mask = (1 << (run.page_shift - 4)) - 1;
            const int tile = next.at.first + next.unit, other = next.at.first + min(next.unit + 1, next.at.end - 1);
            const int64_t one = (tile & mask) * pieces, two = (other & mask) * pieces;
            const char *from[5] = {key + ((int64_t)next.page * run.key.page + one) * 16,
                                   value + ((int64_t)next.page * run.value.page + one) * 16,
                                   key + ((int64_t)second * run.key.page + two) * 16,
                                   value + ((int64_t)second * run.value.page + two) * 16, NULL};
            char *to = stages + stage * stage_bytes;
#pragma unroll
            for (int p = 0; p < 4 * pieces; p += 32) {
                const int t = p / pieces, rest = (t + 1) * pieces - p; /* pieces that are of tile t */
                const char *at = from[t] + (p - t * pieces) * 16;
                if (rest < 32 && t < 3) at = lane < rest ? at : from[t + 1] - rest * 16;
                if (t < 3 || rest >= 32 || lane < rest) copy_piece(to + p * 16, at, true);
            }
            next.unit += 2 * SHAPE::WARPS;
            settle(run);
        }
        copies_commit();
    }
    __device__ __forceinline__ void turn() {
        if (++stage == SHAPE::STAGES) stage = 0;
    }
    __device__ __forceinline__ void open(const decode_run &run, const decode_segment &first) {
        const int warp = threadIdx.x / 32;
        next = {first, first.begin + 2 * warp, 0, warp};
        places(run);
        settle(run);
#pragma unroll 1
        for (int i = 0; i < SHAPE::STAGES; i++, turn()) copy(run);
    }
    __device__ __forceinline__ char *await(const decode_run &) {
        copies_wait<SHAPE::STAGES - 1>();
        __syncwarp();
        return stages + stage * stage_bytes - (int)threadIdx.x % 32 * 16;
    }
    __device__ __forceinline__ void leave(const decode_run &run, bool) {
        __syncwarp();
        copy(run);
        turn();
    }
    static __device__ __forceinline__ void meet() {
        __syncthreads();
    }
};

template <class SHAPE> struct pair_room {
    static constexpr int ring_bytes = SHAPE::WARPS * SHAPE::STAGES * pair_ring<SHAPE>::stage_bytes,
                         shared_bytes = ring_bytes + decode_merge_bytes(SHAPE::SIZE, SHAPE::rows, SHAPE::WARPS);
};

template <class SHAPE>
static __global__ void __launch_bounds__(SHAPE::threads, SHAPE::BLOCKS)
    decode_pairs(const __grid_constant__ decode_run run) {
    char *memory = block_memory();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    let_next_start();
    wait_for_previous();
    pair_ring<SHAPE> ring = {
        memory + warp * SHAPE::STAGES * pair_ring<SHAPE>::stage_bytes + lane * 16, 0, {}, 0, NULL, NULL, NULL};
    decode_block<pair_work<SHAPE>>(run, ring, memory + pair_room<SHAPE>::ring_bytes);
    copies_wait<0>();
}

template <class SHAPE> static ln_cuda_code pair_start(void *const *arguments, int blocks, void *stream) {
    const decode_run *of = (const decode_run *)arguments[0];
    const ln_cuda_code code = launch_early(decode_pairs<SHAPE>, dim3((unsigned)blocks), dim3(SHAPE::threads),
                                           (int)pair_room<SHAPE>::shared_bytes, stream, *of);
    return code || !of->joined ? code : join_start<SHAPE::SIZE, SHAPE::rows>(*of, stream);
}

template <int SIZE, int COLUMNS, int WARPS, int STAGES, int BLOCKS>
static ln_cuda_decode_kernel pair_kernel(const char *name) {
    using shape = decode_shape<LN_CUDA_PAGE_Q4_0, SIZE, COLUMNS, WARPS, STAGES, LANE_ORDER, BLOCKS>;
    static_assert(shape::blocks <= 8, "rows of a product for blocks");
    return {name,
            LN_CUDA_PAGE_Q4_0,
            SIZE,
            SIZE,
            shape::rows,
            shape::threads,
            pair_room<shape>::shared_bytes,
            BLOCKS,
            false,
            4,
            9,
            false,
            pair_start<shape>};
}

} // namespace ln

#endif
