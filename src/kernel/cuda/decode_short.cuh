/* Decode attention over short contexts, where what counts is how many things happen one after the other: each warp
 * loads the keys and values of its units straight into the registers in which the products need them, all of a unit at
 * once.
 *
 * Which block does what does not depend on lengths: block i of the n of a sequence and head has units i w .. i w + w -
 * 1 of every n w of them, one for each of its w warps. So lengths, queries and the numbers of pages are read together;
 * then keys and values; then the last block that has units joins the results (decode_merge.cuh). */
#ifndef LN_KERNEL_CUDA_DECODE_SHORT_CUH
#define LN_KERNEL_CUDA_DECODE_SHORT_CUH

#include "kernel/cuda/decode_warp.cuh"

namespace ln {

template <class SHAPE> struct short_pieces {
    uint4 keys[SHAPE::SIZE / 32][2], values[SHAPE::SIZE / 64][4];
    __device__ __forceinline__ uint4 key(int j, int half) const { return keys[j][half]; }
    __device__ __forceinline__ uint4 value(int j, int i) const { return values[j][i]; }

    /* key, value: of token 0 of the unit. Of tokens outside low .. high - 1 one inside is read again: their weights
     * are 0. */
    __device__ __forceinline__ void load(const char *key, const char *value, const ln_cuda_decode_tensors &of, int low,
                                         int high) {
        const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const char *from = key + min(max(g + 8 * half, low), high - 1) * of.key.token_stride + c * 16;
#pragma unroll
            for (int j = 0; j < SHAPE::SIZE / 32; j++) keys[j][half] = *(const uint4 *)(from + j * 64);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = 2 * c + i % 2 + 8 * (i / 2);
            const char *from = value + min(max(token, low), high - 1) * of.value.token_stride + g * 16;
#pragma unroll
            for (int j = 0; j < SHAPE::SIZE / 64; j++) values[j][i] = *(const uint4 *)(from + j * 128);
        }
    }
};

struct short_meet {
    static __device__ __forceinline__ void meet() { __syncthreads(); }
};

static __device__ __forceinline__ int short_page(const decode_run &run, int sequence, int tile) {
    return run.of.page_table ? run.of.page_table[sequence * run.of.table_stride + (tile >> (run.page_shift - 4))]
                             : sequence;
}

/* One unit; returns the page of the next. */
template <class SHAPE, bool FIRST>
static __device__ __forceinline__ int short_unit(const decode_run &run, const decode_segment &at, int unit, int step,
                                                 int page, const decode_queries<SHAPE> &query,
                                                 decode_state<SHAPE> &state) {
    const ln_cuda_decode_tensors &of = run.of;
    const decode_sight some = seen_by_some(run, at.length), all = seen_by_all(run, at.length);
    const int tile = at.first + unit, token = tile * LN_CUDA_TILE, inside = token & ((1 << run.page_shift) - 1);
    short_pieces<SHAPE> pieces;
    pieces.load((const char *)of.key.data + page * of.key.page_stride + at.head * of.key.head_stride +
                    inside * of.key.token_stride,
                (const char *)of.value.data + page * of.value.page_stride + at.head * of.value.head_stride +
                    inside * of.value.token_stride,
                of, some.low - token, some.high - token);
    if (unit + step < at.units) page = short_page(run, at.sequence, tile + step);
    float score[SHAPE::COLUMNS][4];
    plain_scores<SHAPE, 2>(score, pieces, query);
    cap_scores<SHAPE>(score, run);
    if (token < all.low || token + LN_CUDA_TILE > all.high) mask<SHAPE>(score, run, at, token);
    if (FIRST)
        state.weigh_first(score, run.scale);
    else
        state.weigh(score, run.scale);
    plain_outputs<SHAPE>(state, pieces, score);
    return page;
}

template <class SHAPE>
static __global__ void __launch_bounds__(SHAPE::threads, SHAPE::BLOCKS)
    decode_short(const __grid_constant__ decode_run run) {
    constexpr int warps = SHAPE::WARPS;
    const int warp = threadIdx.x / 32, tile = tile_number(run), share = share_number(run);
    const int own = share % run.splits, of = share / run.splits;
    decode_segment at = {};
    at.head = of % run.key_value_heads, at.sequence = of / run.key_value_heads;
    decode_queries<SHAPE> query;
    decode_state<SHAPE> state;
    const int unit = own * warps + warp, step = run.splits * warps;
    let_next_start();
    wait_for_previous();
    /* Without a window its first page is known before the length; the table has room for the largest one. */
    int page = run.window || run.tiles_most == 0 ? 0 : short_page(run, at.sequence, min(unit, run.tiles_most - 1));
    at.length = run.of.lengths[at.sequence];
    query.load(run, at);
    at.units = decode_units(run, at.length, &at.first);
    const int count = min(run.splits, (at.units + warps - 1) / warps);
    if (own >= count) {
        if (own == 0) decode_nothing_of(run, at.sequence, at.head, SHAPE::SIZE, (int)threadIdx.x, SHAPE::threads);
        return;
    }
    if (run.window) page = short_page(run, at.sequence, at.first + min(unit, at.units - 1));
    state.open();
    if (unit < at.units) page = short_unit<SHAPE, true>(run, at, unit, step, page, query, state);
#pragma unroll 1
    for (int next = unit + step; next < at.units; next += step)
        page = short_unit<SHAPE, false>(run, at, next, step, page, query, state);
    const decode_merge merge = decode_merge_open(block_memory(), SHAPE::SIZE, SHAPE::rows, warps);
    give_result<SHAPE>(state, merge);
    __syncthreads();
    constexpr int64_t part = SHAPE::rows * (SHAPE::SIZE + 2);
    float *parts = run.partial + ((int64_t)of * run.splits * run.tiles + tile) * part;
    decode_finish<SHAPE::SIZE, SHAPE::rows, warps, short_meet, SHAPE::AT_ONCE>(
        run, at.sequence, at.head, {parts, parts, run.tiles * part, count, own}, merge, true);
}

template <class SHAPE> static ln_cuda_code short_start(void *const *arguments, int blocks, void *stream) {
    return launch_early(decode_short<SHAPE>, dim3((unsigned)blocks), dim3(SHAPE::threads),
                        (int)decode_merge_bytes(SHAPE::SIZE, SHAPE::rows, SHAPE::WARPS), stream,
                        *(const decode_run *)arguments[0]);
}

/* REACH: so many units of a warp at most. */
template <int FORMAT, int SIZE, int COLUMNS, int WARPS, int BLOCKS, int REACH>
static ln_cuda_decode_kernel short_kernel(const char *name) {
    using shape = decode_shape<FORMAT, SIZE, COLUMNS, WARPS, 1, LANE_ORDER, BLOCKS>;
    return {name,
            (ln_cuda_page_format)FORMAT,
            SIZE,
            SIZE,
            shape::rows,
            shape::threads,
            decode_merge_bytes(SIZE, shape::rows, WARPS),
            BLOCKS,
            1,
            4,
            9,
            false,
            short_start<shape>,
            REACH};
}

} // namespace ln

#endif
