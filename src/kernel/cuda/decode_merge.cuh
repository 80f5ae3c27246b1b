/* Merging results of rows: each has a base (of exponents), a sum of weights 2^(exponent - base) and the output that
 * belongs to them, and results of disjoint sets of keys become that of their union,
 *
 *     base = max_w base[w],  sum = sum_w 2^(base[w] - base) sum[w],  likewise outputs,
 *
 * first of the warps of a block, in shared memory, then of the blocks of a segment, in the workspace: by the last of
 * them to arrive, or, where they are many and large, by a second kernel that has the whole device. A base of -inf:
 * no key was seen, and the output is not read. Terms are added in the order of warps and of blocks. */
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
    return warps * rows * (decode_row(size) + 2) * 4 + 16;
}

struct decode_merge {
    float *output, *base, *sum; /* [warps][rows]; output: decode_row floats each */
    int *last;
};
static __device__ __forceinline__ decode_merge decode_merge_open(char *memory, int size, int rows, int warps) {
    decode_merge merge;
    merge.output = (float *)memory;
    merge.base = merge.output + warps * rows * decode_row(size);
    merge.sum = merge.base + warps * rows;
    merge.last = (int *)(merge.sum + warps * rows);
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
/* 2^(one - base); 0 of a result that saw nothing. */
static __device__ __forceinline__ float merge_factor(float one, float base) {
    return one == -CUDART_INF_F ? 0.0f : exponential(one - base);
}

template <int SIZE, int ROWS, int WARPS>
static __device__ __forceinline__ decode_result merge_warps(const decode_merge &merge, int row, int column) {
    decode_result all = {-CUDART_INF_F, 0, {0, 0, 0, 0}};
#pragma unroll
    for (int w = 0; w < WARPS; w++) all.base = fmaxf(all.base, merge.base[w * ROWS + row]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float base = merge.base[w * ROWS + row], factor = merge_factor(base, all.base);
        if (base == -CUDART_INF_F) continue;
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
    const int first = at.origin / share;
    return {first, (at.origin + at.units - 1) / share - first + 1};
}

/* A share is in the middle of at most one segment that began before it (slot 0), and begins one that goes on (1). */
template <int SIZE, int ROWS>
static __device__ __forceinline__ float *partial_of(const decode_run &run, int share, int tile, bool begins) {
    return run.partial + (((int64_t)share * run.tiles + tile) * 2 + begins) * ROWS * (SIZE + 2);
}

/* Results of 8 shares at a time are read at once. */
template <int SIZE, int ROWS>
static __device__ __forceinline__ decode_result merge_blocks(const decode_run &run, const decode_shares &shares,
                                                             int tile, int row, int column) {
    enum { AT_ONCE = 8 };
    decode_result all = {-CUDART_INF_F, 0, {0, 0, 0, 0}};
#pragma unroll 1
    for (int p0 = 0; p0 < shares.count; p0 += AT_ONCE) {
        float base[AT_ONCE], sum[AT_ONCE], most = all.base;
        float4 output[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int p = min(p0 + i, shares.count - 1);
            const float *from = partial_of<SIZE, ROWS>(run, shares.first + p, tile, p == 0);
            base[i] = __ldcg(from + ROWS * SIZE + row);
            sum[i] = __ldcg(from + ROWS * (SIZE + 1) + row);
            output[i] = __ldcg((const float4 *)(from + row * SIZE + column));
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) most = fmaxf(most, base[i]);
        const float older = merge_factor(all.base, most);
        all.base = most, all.sum *= older;
        all.output.x *= older, all.output.y *= older, all.output.z *= older, all.output.w *= older;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (p0 + i >= shares.count) continue;
            const float factor = merge_factor(base[i], most);
            all.sum = fmaf(sum[i], factor, all.sum);
            add_scaled(all.output, output[i], factor);
        }
    }
    return all;
}

/* Whether this block is the last of the segment's to have stored its result; all its threads see those of the others.
 */
template <class RING>
static __device__ __forceinline__ bool last_to_arrive(const decode_run &run, const decode_segment &at, int tile,
                                                      int count, const decode_merge &merge) {
    RING::meet();
    if (threadIdx.x == 0) {
        __threadfence();
        unsigned *ticket = run.tickets + ((int64_t)at.sequence * run.key_value_heads + at.head) * run.tiles + tile;
        const bool last = atomicAdd(ticket, 1u) == (unsigned)count - 1;
        if (last) *ticket = 0;
        *merge.last = last;
        __threadfence();
    }
    RING::meet();
    return *merge.last != 0;
}

/* What is to be done with the results of all warps for a segment. */
template <int SIZE, int ROWS, int WARPS, class RING>
static __device__ __forceinline__ void decode_finish(const decode_run &run, const decode_segment &at, int share,
                                                     const decode_merge &merge) {
    constexpr int quarters = SIZE / 4;
    const int own = (int)blockIdx.x / run.tiles, tile = (int)blockIdx.x % run.tiles;
    const int row0 = tile * ROWS, rows = min(ROWS, run.rows - row0);
    const decode_shares shares = shares_of(at, share);
    for (int i = threadIdx.x; i < rows * quarters; i += 32 * WARPS) {
        const int row = i / quarters, column = i % quarters * 4;
        const decode_result all = merge_warps<SIZE, ROWS, WARPS>(merge, row, column);
        if (shares.count == 1) {
            store_result(run, at.sequence, at.head, row0 + row, column, all);
            continue;
        }
        float *to = partial_of<SIZE, ROWS>(run, own, tile, shares.first == own);
        __stcg((float4 *)(to + row * SIZE + column), all.output);
        if (column == 0) {
            __stcg(to + ROWS * SIZE + row, all.base);
            __stcg(to + ROWS * (SIZE + 1) + row, all.sum);
        }
    }
    if (shares.count == 1 || !run.tickets || !last_to_arrive<RING>(run, at, tile, shares.count, merge)) return;
    for (int i = threadIdx.x; i < rows * quarters; i += 32 * WARPS) {
        const int row = i / quarters, column = i % quarters * 4;
        const decode_result all = merge_blocks<SIZE, ROWS>(run, shares, tile, row, column);
        store_result(run, at.sequence, at.head, row0 + row, column, all);
    }
}

/* ---- a kernel that joins what blocks have left ---- */

/* Block (x, y): rows 4 y .. 4 y + 3 of tile x of all (sequence, head, tile). A warp a row. */
template <int SIZE, int ROWS>
static __global__ void __launch_bounds__(128) decode_join(const __grid_constant__ decode_run run) {
    const int tile = (int)blockIdx.x % run.tiles, head = (int)blockIdx.x / run.tiles % run.key_value_heads;
    const int sequence = (int)blockIdx.x / run.tiles / run.key_value_heads, lane = threadIdx.x % 32;
    const int row = (int)blockIdx.y * 4 + (int)threadIdx.x / 32;
    int before = 0, all = 0, unused;
    for (int s = lane; s < run.sequences; s += 32) {
        const int units = decode_units(run, run.of.lengths[s], &unused);
        all += units;
        if (s < sequence) before += units;
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        before += __shfl_xor_sync(~0u, before, step);
        all += __shfl_xor_sync(~0u, all, step);
    }
    decode_segment at = {};
    at.units = decode_units(run, run.of.lengths[sequence], &unused);
    at.origin = before * run.key_value_heads + head * at.units;
    if (at.units == 0 || row >= ROWS || tile * ROWS + row >= run.rows) return;
    const decode_shares shares = shares_of(at, share_of(run, all * run.key_value_heads));
    if (shares.count == 1) return;
    for (int column = lane * 4; column < SIZE; column += 128)
        store_result(run, sequence, head, tile * ROWS + row, column,
                     merge_blocks<SIZE, ROWS>(run, shares, tile, row, column));
}

template <int SIZE, int ROWS> static ln_cuda_code join_start(const decode_run &run, void *stream) {
    return launch(decode_join<SIZE, ROWS>,
                  dim3((unsigned)(run.sequences * run.key_value_heads * run.tiles), (unsigned)((ROWS + 3) / 4)),
                  dim3(128), 0, stream, run);
}

/* The results of sequences without keys. */
static __device__ __forceinline__ void decode_nothing(const decode_run &run, int size, int thread, int threads) {
    for (int s = (int)blockIdx.x; s < run.sequences; s += (int)gridDim.x) {
        if (run.of.lengths[s] > 0) continue;
        const int quarters = size / 4, rows = run.queries * run.heads;
        for (int i = thread; i < rows * quarters; i += threads) {
            const int row = i / quarters % run.rows, head = i / quarters / run.rows;
            const decode_result none = {-CUDART_INF_F, 0, {0, 0, 0, 0}};
            store_result(run, s, head, row, i % quarters * 4, none);
        }
    }
}

} // namespace ln

#endif
