/* Merging results of rows: each has a base (of exponents), a sum of weights 2^(exponent - base) and the output that
 * belongs to them, and results of disjoint sets of keys become that of their union,
 *
 *     base = max_w base[w],  sum = sum_w 2^(base[w] - base) sum[w],  likewise outputs,
 *
 * first of the warps of a block, in shared memory, then of the blocks of a segment, in the workspace: by the block with
 * the segment's end, or, where they are many and large, by a second kernel that has the whole device. A base of -inf:
 * no key was seen, and the output is not read. Terms are added in a fixed order.
 *
 * The block with the segment's end reads the others' results until they are there. Invariant: a word of the workspace
 * is NOT_YET unless it is a result that was not read yet; no result has these bits, so that each word tells by itself
 * that it has come, and neither fence nor ticket is needed. Who waits has a higher number than those it waits for:
 * they have started before it. */
#ifndef LN_KERNEL_CUDA_DECODE_MERGE_CUH
#define LN_KERNEL_CUDA_DECODE_MERGE_CUH

#include "kernel/cuda/decode_work.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

/* tanh(x ln(2) / 2), as attention_rows.cuh has it. */
static __device__ __forceinline__ float decode_tangent(float x) {
    return fmaf(-2.0f, reciprocal(1.0f + exponential(x)), 1.0f);
}

/* Floats from row to row of outputs: quarters of a warp meet all banks. */
static __host__ __device__ constexpr int decode_row(int size) {
    return size + 4;
}
static __host__ __device__ constexpr int decode_merge_bytes(int size, int rows, int warps) {
    return warps * rows * (decode_row(size) + 2) * 4 + 32;
}

struct decode_merge {
    float *output, *base, *sum; /* [warps][rows]; output: decode_row floats each */
    int *
        open; /* sequence (-1: none), head, origin and units of the segment to be joined at the end; units of a share */
};
static __device__ __forceinline__ decode_merge decode_merge_open(char *memory, int size, int rows, int warps) {
    decode_merge merge;
    merge.output = (float *)memory;
    merge.base = merge.output + warps * rows * decode_row(size);
    merge.sum = merge.base + warps * rows;
    merge.open = (int *)(merge.sum + warps * rows);
    return merge;
}

static __device__ __forceinline__ void add_scaled(float4 &sum, float4 x, float factor) {
    sum.x = fmaf(x.x, factor, sum.x), sum.y = fmaf(x.y, factor, sum.y);
    sum.z = fmaf(x.z, factor, sum.z), sum.w = fmaf(x.w, factor, sum.w);
}

/* A row's base, sum and four of its outputs, of `count` results. */
struct decode_result {
    float base, sum;
    float4 output;
};
static __device__ __forceinline__ decode_result no_result() {
    return {-CUDART_INF_F, 0, {0, 0, 0, 0}};
}
/* 2^(one - base); 0 of a result that saw nothing. */
static __device__ __forceinline__ float merge_factor(float one, float base) {
    return one == -CUDART_INF_F ? 0.0f : exponential(one - base);
}

/* Loops are rolled here and below: code that is run once costs most by being fetched. */
template <int SIZE, int ROWS, int WARPS>
static __device__ __forceinline__ decode_result merge_warps(const decode_merge &merge, int row, int column) {
    decode_result all = no_result();
#pragma unroll
    for (int w = 0; w < WARPS; w++) all.base = fmaxf(all.base, merge.base[w * ROWS + row]);
#pragma unroll 2
    for (int w = 0; w < WARPS; w++) {
        const float factor = merge_factor(merge.base[w * ROWS + row], all.base);
        all.sum = fmaf(merge.sum[w * ROWS + row], factor, all.sum);
        add_scaled(all.output, *(const float4 *)(merge.output + (w * ROWS + row) * decode_row(SIZE) + column), factor);
    }
    return all;
}

/* A row's query token and query head. */
struct decode_place {
    int64_t token;
    int head;
};
static __device__ __forceinline__ decode_place place_of(const decode_run &run, int sequence, int head, int row) {
    return {(int64_t)sequence * run.queries + row / run.group, head * run.group + row % run.group};
}

/* What a row's outputs are to be multiplied by, and its log of the sum of exponentials. */
static __device__ __forceinline__ float close_row(const decode_run &run, int head, float base, float sum, float *lse) {
    float factor = 1;
    if (run.of.sinks) {
        const float sink = run.of.sinks[head] * 1.4426950408889634f, from = base;
        base = fmaxf(from, sink);
        factor = merge_factor(from, base);
        sum = sum * factor + merge_factor(sink, base);
    }
    *lse = base == -CUDART_INF_F ? base : (base + log2f(sum)) * CUDART_LN2_F;
    return base == -CUDART_INF_F ? 0.0f : factor / sum;
}

/* The final four values of a row from `column` on. */
static __device__ __forceinline__ void store_result(const decode_run &run, int sequence, int head, int row, int column,
                                                    const decode_result &all) {
    const decode_place place = place_of(run, sequence, head, row);
    float lse;
    const float inverse = close_row(run, place.head, all.base, all.sum, &lse);
    const int64_t at = place.token * run.of.output.token_stride + place.head * run.of.output.head_stride + column;
    const float4 x = {all.output.x * inverse, all.output.y * inverse, all.output.z * inverse, all.output.w * inverse};
    if (run.output_float32)
        *(float4 *)((float *)run.of.output.data + at) = x;
    else
        *(uint2 *)((__nv_bfloat16 *)run.of.output.data + at) = {pack(x.x, x.y), pack(x.z, x.w)};
    if (run.of.log_sum_exp && column == 0) run.of.log_sum_exp[place.token * run.heads + place.head] = lse;
}

/* ---- blocks ---- */

/* The shares first .. first + count - 1 that have units of a segment. */
struct decode_shares {
    int first, count;
};
static __device__ __forceinline__ decode_shares shares_of(const decode_segment &at, int share) {
    if (share < 0) { /* parts of the sequence and head alone */
        const int each = part_of(at.units, -share);
        return {at.number * -share, quotient(at.units + each - 1, each)};
    }
    const int first = quotient(at.origin, share);
    return {first, quotient(at.origin + at.units - 1, share) - first + 1};
}

/* A share is in the middle of at most one segment that began before it (slot 0), and begins one that goes on (1). */
template <int SIZE, int ROWS>
static __device__ __forceinline__ float *partial_of(const decode_run &run, int share, int tile, bool begins) {
    return run.partial + (((int64_t)share * run.tiles + tile) * 2 + begins) * ROWS * (SIZE + 2);
}

/* The results of a segment: part 0 is at `first`, part p > 0 at others + p * step. */
struct decode_parts {
    float *first, *others;
    int64_t step;
    int count, own; /* own: this block's */
    __device__ __forceinline__ float *part(int p) const { return p ? others + p * step : first; }
};
template <int SIZE, int ROWS>
static __device__ __forceinline__ decode_parts parts_of(const decode_run &run, const decode_shares &shares, int own,
                                                        int tile) {
    return {partial_of<SIZE, ROWS>(run, shares.first, tile, true),
            partial_of<SIZE, ROWS>(run, shares.first, tile, false), (int64_t)run.tiles * 2 * ROWS * (SIZE + 2),
            shares.count, own - shares.first};
}

static __device__ __forceinline__ float not_yet() {
    return __uint_as_float(LN_CUDA_NOT_YET);
}
static __device__ __forceinline__ bool is_there(float x) {
    return __float_as_uint(x) != LN_CUDA_NOT_YET;
}
static __device__ __forceinline__ bool is_there(const float4 &x) {
    return is_there(x.x) && is_there(x.y) && is_there(x.z) && is_there(x.w);
}
/* A NaN with other bits. */
static __device__ __forceinline__ float as_result(float x) {
    return is_there(x) ? x : __uint_as_float(0x7fffffffu);
}

template <int SIZE, int ROWS>
static __device__ __forceinline__ void store_part(float *to, int row, int column, const decode_result &all) {
    store_relaxed((float4 *)(to + row * SIZE + column), float4{as_result(all.output.x), as_result(all.output.y),
                                                               as_result(all.output.z), as_result(all.output.w)});
    if (column == 0) {
        store_relaxed(to + ROWS * SIZE + row, as_result(all.base));
        store_relaxed(to + ROWS * (SIZE + 1) + row, as_result(all.sum));
    }
}

/* `all` and the first `count` parts, AT_ONCE of which are read at once; AWAIT: until they are there. */
template <int SIZE, int ROWS, bool AWAIT, int AT_ONCE>
static __device__ __forceinline__ decode_result merge_parts(const decode_parts &parts, int count, int row, int column,
                                                            decode_result all) {
#pragma unroll 1
    for (int p0 = 0; p0 < count; p0 += AT_ONCE) {
        float base[AT_ONCE], sum[AT_ONCE], most = all.base;
        float4 output[AT_ONCE];
        for (;;) {
            bool there = true;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const float *from = parts.part(min(p0 + i, count - 1));
                base[i] = load_relaxed(from + ROWS * SIZE + row);
                sum[i] = load_relaxed(from + ROWS * (SIZE + 1) + row);
                output[i] = load_relaxed((const float4 *)(from + row * SIZE + column));
            }
            if constexpr (AWAIT)
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++)
                    there = there && is_there(base[i]) && is_there(sum[i]) && is_there(output[i]);
            if (there) break;
            spin_pause();
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) most = fmaxf(most, base[i]);
        const float older = merge_factor(all.base, most);
        all.base = most, all.sum *= older;
        all.output.x *= older, all.output.y *= older, all.output.z *= older, all.output.w *= older;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const float factor = p0 + i < count ? merge_factor(base[i], most) : 0.0f;
            all.sum = fmaf(sum[i], factor, all.sum);
            add_scaled(all.output, output[i], factor);
        }
    }
    return all;
}

/* Parts that every thread has read are not there again. */
template <int SIZE, int ROWS>
static __device__ __forceinline__ void take_parts_away(const decode_parts &parts, int count, int row, int column) {
    const float4 none = {not_yet(), not_yet(), not_yet(), not_yet()};
#pragma unroll 1
    for (int p = 0; p < count; p++) {
        float *to = parts.part(p);
        store_relaxed((float4 *)(to + row * SIZE + column), none);
        if (column == 0) {
            store_relaxed(to + ROWS * SIZE + row, none.x);
            store_relaxed(to + ROWS * (SIZE + 1) + row, none.x);
        }
    }
}

/* Final results of a segment: own(row, column) and the first `count` parts. */
template <int SIZE, int ROWS, int THREADS, class RING, int AT_ONCE, class OWN>
static __device__ __forceinline__ void join_parts(const decode_run &run, int sequence, int head,
                                                  const decode_parts &parts, int count, const OWN &own) {
    constexpr int quarters = SIZE / 4;
    const int row0 = tile_number(run) * ROWS, items = min(ROWS, run.rows - row0) * quarters;
    for (int i = threadIdx.x; i < items; i += THREADS) {
        const int row = i / quarters, column = i % quarters * 4;
        store_result(run, sequence, head, row0 + row, column,
                     merge_parts<SIZE, ROWS, true, AT_ONCE>(parts, count, row, column, own(row, column)));
    }
    RING::meet();
    for (int i = threadIdx.x; i < items; i += THREADS)
        take_parts_away<SIZE, ROWS>(parts, count, i / quarters, i % quarters * 4);
}

/* What is to be done with the results of all warps for a segment. `last`: of this block's. Returns whether the segment
 * is to be joined by this block when it has no more. */
template <int SIZE, int ROWS, int WARPS, class RING, int AT_ONCE>
static __device__ __forceinline__ bool decode_finish(const decode_run &run, int sequence, int head,
                                                     const decode_parts &parts, const decode_merge &merge, bool last) {
    constexpr int quarters = SIZE / 4;
    const int row0 = tile_number(run) * ROWS, items = min(ROWS, run.rows - row0) * quarters;
    const bool joins = parts.count > 1 && parts.own == parts.count - 1 && !run.joined;
    const auto own = [&](int row, int column) { return merge_warps<SIZE, ROWS, WARPS>(merge, row, column); };
    if (joins && last) {
        join_parts<SIZE, ROWS, 32 * WARPS, RING, AT_ONCE>(run, sequence, head, parts, parts.own, own);
        return false;
    }
    for (int i = threadIdx.x; i < items; i += 32 * WARPS) {
        const int row = i / quarters, column = i % quarters * 4;
        if (parts.count == 1)
            store_result(run, sequence, head, row0 + row, column, own(row, column));
        else
            store_part<SIZE, ROWS>(parts.part(parts.own), row, column, own(row, column));
    }
    return joins;
}

/* ---- a kernel that joins what blocks have left ---- */

/* Block (x, y): rows 4 y .. 4 y + 3 of tile x of all (sequence, head, tile). A warp a row. */
template <int SIZE, int ROWS>
static __global__ void __launch_bounds__(128) decode_join(const __grid_constant__ decode_run run) {
    const int tile = (int)blockIdx.x % run.tiles, head = (int)blockIdx.x / run.tiles % run.key_value_heads;
    const int sequence = (int)blockIdx.x / run.tiles / run.key_value_heads, lane = threadIdx.x % 32;
    const int row = (int)blockIdx.y * 4 + (int)threadIdx.x / 32;
    wait_for_previous();
    int before = 0, all = 0, most = 0, unused;
    for (int s = lane; s < run.sequences; s += 32) {
        const int units = decode_units(run, run.of.lengths[s], &unused);
        all += units, most = max(most, units);
        if (s < sequence) before += units;
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        before += __shfl_xor_sync(~0u, before, step);
        all += __shfl_xor_sync(~0u, all, step);
        most = max(most, __shfl_xor_sync(~0u, most, step));
    }
    decode_segment at = {};
    at.number = sequence * run.key_value_heads + head;
    at.units = decode_units(run, run.of.lengths[sequence], &unused);
    at.origin = before * run.key_value_heads + head * at.units;
    if (at.units == 0 || row >= ROWS || tile * ROWS + row >= run.rows) return;
    const decode_shares shares = shares_of(at, share_of(run, all * run.key_value_heads, most));
    if (shares.count == 1) return;
    const decode_parts parts = parts_of<SIZE, ROWS>(run, shares, 0, tile);
    for (int column = lane * 4; column < SIZE; column += 128)
        store_result(run, sequence, head, tile * ROWS + row, column,
                     merge_parts<SIZE, ROWS, false, 8>(parts, parts.count, row, column, no_result()));
}

template <int SIZE, int ROWS> static ln_cuda_code join_start(const decode_run &run, void *stream) {
    return launch_early(decode_join<SIZE, ROWS>,
                        dim3((unsigned)(run.sequences * run.key_value_heads * run.tiles), (unsigned)((ROWS + 3) / 4)),
                        dim3(128), 0, stream, run);
}

/* The results of a key-value head of a sequence without keys, and of all of them. */
static __device__ __forceinline__ void decode_nothing_of(const decode_run &run, int sequence, int head, int size,
                                                         int thread, int threads) {
    const int quarters = size / 4;
    for (int i = thread; i < run.rows * quarters; i += threads)
        store_result(run, sequence, head, i / quarters, i % quarters * 4, no_result());
}
static __device__ __forceinline__ void decode_nothing(const decode_run &run, int size, int thread, int threads) {
    for (int s = (int)blockIdx.x; s < run.sequences; s += (int)gridDim.x) {
        if (run.of.lengths[s] > 0) continue;
        for (int head = 0; head < run.key_value_heads; head++) decode_nothing_of(run, s, head, size, thread, threads);
    }
}

} // namespace ln

#endif
