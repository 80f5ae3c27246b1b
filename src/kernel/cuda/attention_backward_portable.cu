/* Gradients of exact attention for compute capability 8.0 and newer: two kernels of one form, one for keys and values,
 * one for queries, a warp for 16 rows, products of 16 x 8 x 16 with operands loaded from shared memory.
 *
 *     score = own_1 other_1^T ; change = own_2 other_2^T ; weight = exp(score - lse) ; slope = weight (change - part) ;
 *     gradient_1 += slope other_1 ; and of keys and values gradient_2 += weight other_2.
 *
 * Own are the key and value of a tile of keys, others the query and the output's gradient of the queries that see it;
 * or the other way about. Scores are computed twice, 7 products instead of 5, and no block adds to what another one
 * adds to: the order of every sum is the order of the loop. With SPLIT, that many warps have the same rows and
 * different columns of the gradients. Rows in shared memory are 16 bytes longer than they need be, so that eight of
 * them meet all banks. Rows outside the sequence are filled with zeros. */
#include "kernel/cuda/attention_backward_rows.cuh"
#include "kernel/cuda/attention_backward_table.h"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { BACKWARD_ROWS = 64 }; /* of a tile of queries or keys */

template <int SIZE, int ROWS, int THREADS>
static __device__ __forceinline__ void copy_operand(__nv_bfloat16 *to, const ln_cuda_tensor &from, int head,
                                                    int64_t token, int rows, int size) {
    const __nv_bfloat16 *base = (const __nv_bfloat16 *)from.data + token * from.token_stride + head * from.head_stride;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * SIZE / 8; i += THREADS) {
        const int row = i / (SIZE / 8), column = i % (SIZE / 8) * 8;
        const bool inside = row < rows && column < size;
        copy_piece(to + row * (SIZE + 8) + column, base + (inside ? row * from.token_stride + column : 0), inside);
    }
    copies_commit();
}

template <int KEY_SIZE, int VALUE_SIZE, int OTHERS, int SPLIT, int OPTIONS, bool OF_KEYS> struct backward_part {
    static constexpr int threads = BACKWARD_ROWS / 16 * SPLIT * 32, key_row = KEY_SIZE + 8, value_row = VALUE_SIZE + 8;
    static constexpr int bytes = (BACKWARD_ROWS + OTHERS) * (key_row + value_row) * 2;
    static constexpr bool HALF = (OPTIONS & LN_CUDA_HALF) != 0;
    const backward_run &run;
    __nv_bfloat16 *own_one, *own_two, *other_one, *other_two; /* one: query or key; two: output's gradient or value */
    int lane, warp, half;                                     /* of the rows; of the columns */
    float one[KEY_SIZE / SPLIT / 2], two[OF_KEYS ? VALUE_SIZE / SPLIT / 2 : 2];
    float score[OTHERS / 2], change[OTHERS / 2];
    uint32_t weight[OTHERS / 4], slope[OTHERS / 4];

    /* sum = own (16 rows) * other^T */
    template <int SIZE>
    __device__ __forceinline__ void square(float (&sum)[OTHERS / 2], const __nv_bfloat16 *own,
                                           const __nv_bfloat16 *other) {
        const __nv_bfloat16 *from = own + (warp * 16 + lane % 16) * (SIZE + 8) + lane / 16 * 8;
        const __nv_bfloat16 *to = other + (lane / 16 * 8 + lane % 8) * (SIZE + 8) + lane / 8 % 2 * 8;
#pragma unroll
        for (int i = 0; i < OTHERS / 2; i++) sum[i] = 0;
#pragma unroll
        for (int k = 0; k < SIZE; k += 16) {
            uint32_t left[4];
            load_matrices<false>(left, from + k);
#pragma unroll
            for (int j = 0; j < OTHERS; j += 16) {
                uint32_t right[4];
                load_matrices<false>(right, to + j * (SIZE + 8) + k);
                add_product_as<HALF>(sum + j / 2, left, right);
                add_product_as<HALF>(sum + j / 2 + 4, left, right + 2);
            }
        }
    }
    /* sum += left (16 x OTHERS) * other, this warp's columns. */
    template <int SIZE>
    __device__ __forceinline__ void gather(float *sum, const uint32_t *left, const __nv_bfloat16 *other) {
        const __nv_bfloat16 *from = other + lane % 16 * (SIZE + 8) + lane / 16 * 8 + half * (SIZE / SPLIT);
#pragma unroll
        for (int k = 0; k < OTHERS; k += 16)
#pragma unroll
            for (int j = 0; j < SIZE / SPLIT; j += 16) {
                uint32_t right[4];
                load_matrices<true>(right, from + k * (SIZE + 8) + j);
                add_product_as<HALF>(sum + j / 2, left + k / 4, right);
                add_product_as<HALF>(sum + j / 2 + 4, left + k / 4, right + 2);
            }
    }

    /* Scores and changes become weights and slopes. seen: columns of this thread's two rows; lse, part: of the tile of
     * queries, its first column's place where queries are columns. */
    __device__ __forceinline__ void weigh(const sight (&seen)[2], const float *lse, const float *part) {
        float base[2] = {}, minus[2] = {};
        if (!OF_KEYS)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int at = rows_place(warp * 16 + lane / 4 + 8 * i);
                base[i] = lse[at];
                minus[i] = part[at];
            }
#pragma unroll
        for (int i = 0; i < OTHERS / 2; i++) {
            const int row = i / 2 % 2, column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
            const int place = i / 8 * 16 + 4 * (lane % 4) + i % 8 / 4 * 2 + i % 2; /* rows_place(column) */
            const float from = OF_KEYS ? lse[place] : base[row], less = OF_KEYS ? part[place] : minus[row];
            float by = 1;
            if constexpr ((OPTIONS & LN_CUDA_CAP) != 0) {
                score[i] = tangent(score[i] * run.cap_scale);
                by = fmaf(-score[i], score[i], 1.0f);
            }
            float x = exponential(fmaf(score[i], run.scale, -from));
            if (column < seen[row].low || column >= seen[row].high) x = 0;
            score[i] = x;
            change[i] = x == 0 ? 0 : x * by * (change[i] - less);
        }
#pragma unroll
        for (int i = 0; i < OTHERS / 4; i++) {
            weight[i] = pack_as<HALF>(score[2 * i], score[2 * i + 1]);
            slope[i] = pack_as<HALF>(change[2 * i], change[2 * i + 1]);
        }
    }

    __device__ __forceinline__ void open() {
        __nv_bfloat16 *shared = (__nv_bfloat16 *)block_memory();
        own_one = shared, own_two = own_one + BACKWARD_ROWS * key_row;
        other_one = own_two + BACKWARD_ROWS * value_row, other_two = other_one + OTHERS * key_row;
        lane = threadIdx.x % 32, warp = threadIdx.x / 32 / SPLIT, half = threadIdx.x / 32 % SPLIT;
#pragma unroll
        for (int i = 0; i < KEY_SIZE / SPLIT / 2; i++) one[i] = 0;
        if (OF_KEYS)
#pragma unroll
            for (int i = 0; i < VALUE_SIZE / SPLIT / 2; i++) two[i] = 0;
    }
    __device__ __forceinline__ void copy_own(const ln_cuda_tensor &first, const ln_cuda_tensor &second, int head,
                                             int64_t token, int rows) {
        copy_operand<KEY_SIZE, BACKWARD_ROWS, threads>(own_one, first, head, token, rows, run.key_size);
        copy_operand<VALUE_SIZE, BACKWARD_ROWS, threads>(own_two, second, head, token, rows, run.value_size);
    }
    /* `rows` of the others, which start at this token, meet the own. */
    __device__ __forceinline__ void meet(const ln_cuda_tensor &first, const ln_cuda_tensor &second, int head,
                                         int64_t token, int rows, const sight (&seen)[2], const float *lse,
                                         const float *part) {
        __syncthreads();
        copy_operand<KEY_SIZE, OTHERS, threads>(other_one, first, head, token, rows, run.key_size);
        copy_operand<VALUE_SIZE, OTHERS, threads>(other_two, second, head, token, rows, run.value_size);
        copies_wait<0>();
        __syncthreads();
        square<KEY_SIZE>(score, own_one, other_one);
        square<VALUE_SIZE>(change, own_two, other_two);
        weigh(seen, lse, part);
        gather<KEY_SIZE>(one, slope, other_one);
        if constexpr (OF_KEYS) gather<VALUE_SIZE>(two, weight, other_two);
    }
};

template <int KEY_SIZE, int VALUE_SIZE, int OTHERS, int SPLIT, int OPTIONS>
static __global__ void __launch_bounds__(128 * SPLIT, 1) backward_of_keys(const __grid_constant__ backward_run run) {
    backward_part<KEY_SIZE, VALUE_SIZE, OTHERS, SPLIT, OPTIONS, true> part = {run};
    part.open();
    const ln_cuda_backward_task task = run.tasks[blockIdx.x];
    const int first = task.tile * BACKWARD_ROWS, row = part.warp * 16 + part.lane / 4, rows = task.keys - first;
    if (task.first < task.end) part.copy_own(run.key, run.value, task.head, task.key, rows);
    const int steps = steps_of(run, task);
    for (int step = 0; step < steps; step++) {
        const ln_cuda_backward_visit visit = visit_of(run, task, step);
        const ln_cuda_backward_rows queries = run.tiles[visit.tile];
        const float *lse = run.rows + (int64_t)(visit.head * run.tile_count + visit.tile) * 2 * BACKWARD_ROWS;
        for (int from = 0; from < queries.rows; from += OTHERS) {
            const int position = queries.position + from;
            const sight seen[2] = {key_sight(run, first + row, task.keys, position),
                                   key_sight(run, first + row + 8, task.keys, position)};
            part.meet(run.query, run.output_gradient, visit.head, queries.query + from, queries.rows - from, seen,
                      lse + from, lse + BACKWARD_ROWS + from);
        }
    }
    store_gradient<KEY_SIZE / SPLIT, (OPTIONS & LN_CUDA_HALF) != 0>(
        run.key_gradient, run.packed_float32, task.key, task.head, row, rows, part.half * (KEY_SIZE / SPLIT),
        run.key_size, part.one, run.gradient_scale);
    store_gradient<VALUE_SIZE / SPLIT, (OPTIONS & LN_CUDA_HALF) != 0>(
        run.value_gradient, run.gradient_float32, task.key, task.head, row, rows, part.half * (VALUE_SIZE / SPLIT),
        run.value_size, part.two, 1.0f);
}

/* Columns, keys from `first` on, that a query at this position sees. */
static __device__ __forceinline__ sight query_sight(const backward_run &run, int position, int keys, int first) {
    sight seen = {0, keys};
    if (run.causal) seen.high = min(keys, position + 1);
    if (run.window) {
        seen.low = max(0, position - run.window + 1);
        if (!run.causal) seen.high = min(keys, position + run.window);
    }
    return {seen.low - first, seen.high - first};
}

template <int KEY_SIZE, int VALUE_SIZE, int OTHERS, int SPLIT, int OPTIONS>
static __global__ void __launch_bounds__(128 * SPLIT, 1) backward_of_queries(const __grid_constant__ backward_run run) {
    backward_part<KEY_SIZE, VALUE_SIZE, OTHERS, SPLIT, OPTIONS, false> part = {run};
    part.open();
    const ln_cuda_backward_rows tile = run.tiles[blockIdx.x];
    const int head = blockIdx.y, shared_head = head / run.group, row = part.warp * 16 + part.lane / 4;
    const float *lse = run.rows + (int64_t)(head * run.tile_count + blockIdx.x) * 2 * BACKWARD_ROWS;
    const int place = head * run.tile_count + blockIdx.x;
    const int begin = run.starts ? run.starts[place] : tile.first_tile;
    const int end = run.starts ? run.starts[place + 1] : tile.end_tile;
    if (begin < end) part.copy_own(run.query, run.output_gradient, head, tile.query, tile.rows);
    for (int at = begin; at < end; at++) {
        const int first = (run.starts ? run.listed[at] : at) * BACKWARD_ROWS;
        for (int key = first; key < min(tile.keys, first + BACKWARD_ROWS); key += OTHERS) {
            const sight seen[2] = {query_sight(run, tile.position + row, tile.keys, key),
                                   query_sight(run, tile.position + row + 8, tile.keys, key)};
            part.meet(run.key, run.value, shared_head, tile.key + key, tile.keys - key, seen, lse, lse + BACKWARD_ROWS);
        }
    }
    store_gradient<KEY_SIZE / SPLIT, (OPTIONS & LN_CUDA_HALF) != 0>(
        run.query_gradient, run.packed_float32, tile.query, head, row, tile.rows, part.half * (KEY_SIZE / SPLIT),
        run.key_size, part.one, run.gradient_scale);
}

template <int KEY_SIZE, int VALUE_SIZE, int OTHERS, int SPLIT, int OPTIONS>
static ln_cuda_code backward_portable_start(void *const *arguments, int blocks, void *stream) {
    typedef backward_part<KEY_SIZE, VALUE_SIZE, OTHERS, SPLIT, OPTIONS, true> part;
    const backward_run &run = *(const backward_run *)arguments[0];
    const dim3 queries((unsigned)run.tile_count, (unsigned)run.heads);
    ln_cuda_code code = LN_CUDA_OK;
    if (blocks)
        code = launch(backward_of_keys<KEY_SIZE, VALUE_SIZE, OTHERS, SPLIT, OPTIONS>, dim3((unsigned)blocks),
                      dim3(part::threads), part::bytes, stream, run);
    if (code || !run.tile_count) return code;
    return launch(backward_of_queries<KEY_SIZE, VALUE_SIZE, OTHERS, SPLIT, OPTIONS>, queries, dim3(part::threads),
                  part::bytes, stream, run);
}

template <int KEY_SIZE, int VALUE_SIZE, int OTHERS, int SPLIT, int OPTIONS>
static ln_cuda_backward_kernel backward_portable_kernel(const char *name) {
    typedef backward_part<KEY_SIZE, VALUE_SIZE, OTHERS, SPLIT, OPTIONS, true> part;
    return {
        name,          KEY_SIZE,    VALUE_SIZE, BACKWARD_ROWS,
        BACKWARD_ROWS, KEY_SIZE,    VALUE_SIZE, LN_CUDA_WINDOW | OPTIONS,
        part::threads, part::bytes, 8,          backward_portable_start<KEY_SIZE, VALUE_SIZE, OTHERS, SPLIT, OPTIONS>};
}

} // namespace ln

using namespace ln;

#define LN_ROWS(key_size, value_size, others, split, name)                                                         \
    backward_portable_kernel<key_size, value_size, others, split, 0>("portable " name),                            \
        backward_portable_kernel<key_size, value_size, others, split, LN_CUDA_CAP>("portable " name " cap"),       \
        backward_portable_kernel<key_size, value_size, others, split, LN_CUDA_HALF>("portable " name " f16"),      \
        backward_portable_kernel<key_size, value_size, others, split, LN_CUDA_HALF | LN_CUDA_CAP>("portable " name \
                                                                                                  " f16 cap")

const ln_cuda_backward_kernel ln_cuda_backward_portable_kernels[] = {
    LN_ROWS(128, 128, 32, 1, "128"), LN_ROWS(64, 64, 64, 1, "64"),        LN_ROWS(96, 96, 64, 1, "96"),
    LN_ROWS(192, 192, 32, 2, "192"), LN_ROWS(192, 128, 32, 2, "192/128"), LN_ROWS(256, 256, 32, 2, "256"),
};
const int ln_cuda_backward_portable_count =
    sizeof ln_cuda_backward_portable_kernels / sizeof ln_cuda_backward_portable_kernels[0];
