/* Decode attention of short contexts, whose warps load keys and values straight into the registers in which the
 * products need them: what counts there is how many things happen one after the other.
 *
 * So which block does what does not depend on lengths: block i of the n of a sequence and head has units
 * i w .. i w + w - 1 of every n w of them, one for each of its w warps. Lengths, queries and the numbers of pages are
 * read together; then keys and values; then the last block that has units joins the results (decode_merge.cuh). It is
 * right for any length, but balances none. */
#ifndef LN_KERNEL_CUDA_DECODE_SHORT_CUH
#define LN_KERNEL_CUDA_DECODE_SHORT_CUH

#include "kernel/cuda/decode_warp.cuh"

namespace ln {

template <class SHAPE> struct short_pieces {
    uint4 keys[SHAPE::SIZE / 32][2], values[SHAPE::SIZE / 64][4];
    __device__ __forceinline__ uint4 key(int j, int half) const { return keys[j][half]; }
    __device__ __forceinline__ uint4 value(int j, int i) const { return values[j][i]; }

    /* `from`: token 0 of the unit. Of tokens outside low .. high - 1 one inside is read again: their weights are 0. */
    __device__ __forceinline__ void load_keys(const char *from, int64_t stride, int low, int high) {
        const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const char *at = from + min(max(g + 8 * half, low), high - 1) * stride + c * 16;
#pragma unroll
            for (int j = 0; j < SHAPE::SIZE / 32; j++) keys[j][half] = *(const uint4 *)(at + j * 64);
        }
    }
    __device__ __forceinline__ void load_values(const char *from, int64_t stride, int low, int high) {
        const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = 2 * c + i % 2 + 8 * (i / 2);
            const char *at = from + min(max(token, low), high - 1) * stride + g * 16;
#pragma unroll
            for (int j = 0; j < SHAPE::SIZE / 64; j++) values[j][i] = *(const uint4 *)(at + j * 128);
        }
    }
    /* Of tile `tile` of a sequence, which is on that page. */
    __device__ __forceinline__ void load_keys(const decode_run &run, const decode_segment &at, int tile, int page) {
        const decode_sight some = seen_by_some(run, at.length);
        const ln_cuda_page_part &part = run.of.key;
        const int token = tile * LN_CUDA_TILE, inside = token & ((1 << run.page_shift) - 1);
        load_keys((const char *)part.data + page * part.page_stride + at.head * part.head_stride +
                      inside * part.token_stride,
                  part.token_stride, some.low - token, some.high - token);
    }
    __device__ __forceinline__ void load_values(const decode_run &run, const decode_segment &at, int tile, int page) {
        const decode_sight some = seen_by_some(run, at.length);
        const ln_cuda_page_part &part = run.of.value;
        const int token = tile * LN_CUDA_TILE, inside = token & ((1 << run.page_shift) - 1);
        load_values((const char *)part.data + page * part.page_stride + at.head * part.head_stride +
                        inside * part.token_stride,
                    part.token_stride, some.low - token, some.high - token);
    }
};

struct short_meet {
    static __device__ __forceinline__ void meet() { __syncthreads(); }
};

static __device__ __forceinline__ int short_page(const decode_run &run, int sequence, int tile) {
    return run.of.page_table ? run.of.page_table[sequence * run.of.table_stride + (tile >> (run.page_shift - 4))]
                             : sequence;
}

/* One unit, of a page. */
template <class SHAPE, bool FIRST>
static __device__ __forceinline__ void short_unit(const decode_run &run, const decode_segment &at, int unit, int page,
                                                  const decode_queries<SHAPE> &query, decode_state<SHAPE> &state) {
    const decode_sight all = seen_by_all(run, at.length);
    const int token = (at.first + unit) * LN_CUDA_TILE;
    short_pieces<SHAPE> pieces;
    pieces.load_keys(run, at, at.first + unit, page);
    pieces.load_values(run, at, at.first + unit, page);
    float score[SHAPE::COLUMNS][4];
    plain_scores<SHAPE, 2>(score, pieces, query);
    cap_scores<SHAPE>(score, run);
    if (token < all.low || token + LN_CUDA_TILE > all.high) mask<SHAPE>(score, run, at, token);
    if (FIRST)
        state.weigh_first(score, run.scale);
    else
        state.weigh(score, run.scale);
    plain_outputs<SHAPE>(state, pieces, score);
}

/* What a warp makes of the units that are its own: unit `from` of the block's, then every `step` on. */
template <class SHAPE>
static __device__ __forceinline__ void short_units(const decode_run &run, decode_segment &at, int from, int step,
                                                   decode_state<SHAPE> &state) {
    decode_queries<SHAPE> query;
    /* Without a window the first page is known before the length; the table has room for the largest one. */
    int page = run.window || run.tiles_most == 0 ? 0 : short_page(run, at.sequence, min(from, run.tiles_most - 1));
    at.length = run.of.lengths[at.sequence];
    query.load(run, at);
    at.units = decode_units(run, at.length, &at.first);
    state.open();
    if (from >= at.units) return;
    if (run.window) page = short_page(run, at.sequence, at.first + from);
    const int other = from + step < at.units ? short_page(run, at.sequence, at.first + from + step) : 0;
    short_unit<SHAPE, true>(run, at, from, page, query, state);
    page = other;
#pragma unroll 1
    for (int unit = from + step; unit < at.units; unit += step) {
        const int next = unit + step < at.units ? short_page(run, at.sequence, at.first + unit + step) : 0;
        short_unit<SHAPE, false>(run, at, unit, page, query, state);
        page = next;
    }
}

/* ---- the kernel ---- */

template <class SHAPE>
static __global__ void __launch_bounds__(SHAPE::threads, SHAPE::BLOCKS)
    decode_short(const __grid_constant__ decode_run run) {
    let_next_start();
    wait_for_previous();
    constexpr int warps = SHAPE::WARPS;
    const int tile = tile_number(run), share = share_number(run);
    const int of = quotient(share, run.splits), own = share - of * run.splits;
    decode_segment at = {};
    at.sequence = quotient(of, run.key_value_heads), at.head = of - at.sequence * run.key_value_heads;
    if (at.sequence >= run.sequences) return;
    decode_state<SHAPE> state;
    short_units<SHAPE>(run, at, own * warps + (int)threadIdx.x / 32, run.splits * warps, state);
    const int count = min(run.splits, (at.units + warps - 1) / warps);
    if (own >= count) {
        if (own == 0) decode_nothing_of(run, at.sequence, at.head, SHAPE::SIZE, (int)threadIdx.x, SHAPE::threads);
        return;
    }
    const decode_merge merge = decode_merge_open(block_memory(), SHAPE::SIZE, SHAPE::rows, warps);
    give_result<SHAPE>(state, merge);
    __syncthreads();
    constexpr int64_t part = SHAPE::rows * (SHAPE::SIZE + 2);
    float *parts = run.partial + ((int64_t)of * run.splits * run.tiles + tile) * part;
    decode_finish<SHAPE::SIZE, SHAPE::rows, warps, short_meet, SHAPE::AT_ONCE>(
        run, at.sequence, at.head, {parts, parts, run.tiles * part, count, own}, merge, true);
}

template <class SHAPE> static ln_cuda_code short_start(void *const *arguments, int blocks, void *stream) {
    const decode_run *of = (const decode_run *)arguments[0];
    return launch_early(decode_short<SHAPE>, dim3((unsigned)blocks), dim3(SHAPE::threads),
                        (int)decode_merge_bytes(SHAPE::SIZE, SHAPE::rows, SHAPE::WARPS), stream, *of);
}

template <int FORMAT, int SIZE, int COLUMNS, int WARPS, int BLOCKS>
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
            true,
            4,
            9,
            false,
            short_start<shape>};
}

} // namespace ln

#endif
