/* Exact attention forward for compute capability 8.0 and newer: one block a task, four warps of 16 or 32 queries
 * each, products of 16 x 8 x 16 with operands loaded from shared memory. With 32 queries a warp uses what it loads of
 * keys and values twice: shared memory then gives faster than the tensor cores take.
 *
 *     wait for key(n) ; copy value(n) ; score = query * key(n)^T ; weight = softmax(score) ;
 *     wait for value(n) ; copy key(n-1) ; output += weight * value(n).
 *
 * Each copy runs while the other operand is used. Rows in shared memory are 16 bytes longer than they need be, so that
 * eight of them meet all banks. Rows outside the sequence are filled with zeros. */
#include "kernel/cuda/attention_rows.cuh"
#include "kernel/cuda/attention_table.h"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { WARPS = 4, THREADS = 32 * WARPS };

template <int SIZE> struct padded { static constexpr int row = SIZE + 8; };

/* ROWS rows, of which the first `rows` are there. */
template <int SIZE, int ROWS>
static __device__ __forceinline__ void copy_rows(__nv_bfloat16 *to, const ln_cuda_tensor &from, int head, int64_t token,
                                                 int rows) {
    constexpr int pieces = SIZE / 8;
    const __nv_bfloat16 *base = (const __nv_bfloat16 *)from.data + token * from.token_stride + head * from.head_stride;
    if constexpr (THREADS % pieces == 0) { /* a thread keeps its column */
        constexpr int each = THREADS / pieces;
        const int first = threadIdx.x / pieces, column = threadIdx.x % pieces * 8;
        const __nv_bfloat16 *at = base + first * from.token_stride + column;
        to += first * padded<SIZE>::row + column;
#pragma unroll
        for (int row = 0; row < ROWS; row += each, at += each * from.token_stride) {
            const bool inside = row + first < rows;
            copy_piece(to + row * padded<SIZE>::row, inside ? at : base, inside);
        }
    } else {
#pragma unroll 2 /* more takes registers that the products need */
        for (int i = threadIdx.x; i < ROWS * pieces; i += THREADS) {
            const int row = i / pieces, column = i % pieces * 8;
            const bool inside = row < rows;
            copy_piece(to + row * padded<SIZE>::row + column, base + (inside ? row * from.token_stride + column : 0),
                       inside);
        }
    }
    copies_commit();
}
static __device__ __forceinline__ void copies_meet() {
    copies_wait<0>();
    __syncthreads();
}

/* What one warp holds: TILES times 16 queries. */
template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int TILES, int OPTIONS> struct portable_rows {
    static constexpr bool HALF = (OPTIONS & LN_CUDA_HALF) != 0;
    static constexpr int key_row = padded<KEY_SIZE>::row, value_row = padded<VALUE_SIZE>::row;
    softmax<KEYS> weights[TILES];
    float output[TILES][VALUE_SIZE / 2];
    uint32_t weight[TILES][KEYS / 4];

    __device__ __forceinline__ void open() {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            weights[t].open();
#pragma unroll
            for (int i = 0; i < VALUE_SIZE / 2; i++) output[t][i] = 0;
        }
    }
    /* query, key, value: where this lane's rows of operands begin. */
    static __device__ __forceinline__ void score_block(float (&score)[TILES][KEYS / 2], const __nv_bfloat16 *query,
                                                       const __nv_bfloat16 *key) {
#pragma unroll
        for (int k = 0; k < KEY_SIZE; k += 16) {
            uint32_t left[TILES][4];
#pragma unroll
            for (int t = 0; t < TILES; t++) load_matrices<false>(left[t], query + t * 16 * key_row + k);
#pragma unroll
            for (int j = 0; j < KEYS; j += 16) {
                uint32_t right[4];
                load_matrices<false>(right, key + j * key_row + k);
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    add_product_as<HALF>(score[t] + j / 2, left[t], right);
                    add_product_as<HALF>(score[t] + j / 2 + 4, left[t], right + 2);
                }
            }
        }
    }
    __device__ __forceinline__ void soften(float (&score)[TILES][KEYS / 2], const attention_run &run,
                                           const ln_cuda_task &task, const sight &whole, int row, int block) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if constexpr ((OPTIONS & LN_CUDA_CAP) != 0) softmax<KEYS>::cap(score[t], run.cap_scale);
            if (block < whole.low || block >= whole.high)
                softmax<KEYS>::template mask<(OPTIONS & LN_CUDA_WINDOW) != 0>(
                    score[t], run, task.position + row + 16 * t, task.keys, block * KEYS);
            float factor[2];
            if (weights[t].template step<false>(score[t], run.scale, factor)) softmax<KEYS>::rescale(output[t], factor);
            softmax<KEYS>::template convert<HALF>(score[t], weight[t]);
        }
    }
    __device__ __forceinline__ void add_values(const __nv_bfloat16 *value) {
#pragma unroll
        for (int k = 0; k < KEYS; k += 16)
#pragma unroll
            for (int j = 0; j < VALUE_SIZE; j += 16) {
                uint32_t right[4];
                load_matrices<true>(right, value + k * value_row + j);
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    add_product_as<HALF>(output[t] + j / 2, weight[t] + k / 4, right);
                    add_product_as<HALF>(output[t] + j / 2 + 4, weight[t] + k / 4, right + 2);
                }
            }
    }
};

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int TILES, int OPTIONS>
static __global__ void __launch_bounds__(THREADS, 2) attention_portable(const __grid_constant__ attention_run run) {
    constexpr int rows = 16 * WARPS * TILES;
    typedef portable_rows<KEY_SIZE, VALUE_SIZE, KEYS, TILES, OPTIONS> warp_rows;
    constexpr int key_row = warp_rows::key_row, value_row = warp_rows::value_row;
    __nv_bfloat16 *query = (__nv_bfloat16 *)block_memory(), *key = query + rows * key_row,
                  *value = key + KEYS * key_row;
    const ln_cuda_task task = run.tasks[blockIdx.x];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp * 16 * TILES + lane / 4;
    const int shared_head = task.head / run.group;

    warp_rows own;
    own.open();
    const sight whole = whole_blocks<KEYS>(run, task, rows);
    const __nv_bfloat16 *query_part = query + (warp * 16 * TILES + lane % 16) * key_row + lane / 16 * 8;
    const __nv_bfloat16 *key_part = key + (lane / 16 * 8 + lane % 8) * key_row + lane / 8 % 2 * 8;
    const __nv_bfloat16 *value_part = value + lane % 16 * value_row + lane / 16 * 8;
    if (task.first_block < task.end_block) {
        const int begin = run.block_at(task.end_block - 1) * KEYS;
        copy_rows<KEY_SIZE, rows>(query, run.query, task.head, task.query, task.rows);
        copy_rows<KEY_SIZE, KEYS>(key, run.key, shared_head, task.key + begin, task.keys - begin);
    }
    for (int place = task.end_block - 1; place >= task.first_block; place--) {
        const int block = run.block_at(place);
        copies_meet();
        copy_rows<VALUE_SIZE, KEYS>(value, run.value, shared_head, task.key + block * KEYS, task.keys - block * KEYS);
        float score[TILES][KEYS / 2] = {};
        warp_rows::score_block(score, query_part, key_part);
        own.soften(score, run, task, whole, row, block);
        copies_meet();
        if (place > task.first_block)
            copy_rows<KEY_SIZE, KEYS>(key, run.key, shared_head, task.key + run.block_at(place - 1) * KEYS, KEYS);
        own.add_values(value_part);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        float inverse[2], lse[2];
        own.weights[t].close(inverse, lse, sink_of(run, task.head));
        store_rows<VALUE_SIZE, (OPTIONS & LN_CUDA_HALF) != 0>(run, task, row + 16 * t, own.output[t], inverse, lse);
    }
}

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int ROWS>
static constexpr int portable_bytes = 2 * ((ROWS + KEYS) * padded<KEY_SIZE>::row + KEYS * padded<VALUE_SIZE>::row);

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int TILES, int OPTIONS>
static ln_cuda_code portable_start(void *const *arguments, int blocks, void *stream) {
    return launch(attention_portable<KEY_SIZE, VALUE_SIZE, KEYS, TILES, OPTIONS>, dim3((unsigned)blocks), dim3(THREADS),
                  portable_bytes<KEY_SIZE, VALUE_SIZE, KEYS, 16 * WARPS * TILES>, stream,
                  *(const attention_run *)arguments[0]);
}

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int TILES, int OPTIONS>
static ln_cuda_kernel portable_kernel(const char *name) {
    return {name,
            KEY_SIZE,
            VALUE_SIZE,
            16 * WARPS * TILES,
            KEYS,
            OPTIONS,
            THREADS,
            portable_bytes<KEY_SIZE, VALUE_SIZE, KEYS, 16 * WARPS * TILES>,
            8,
            true,
            portable_start<KEY_SIZE, VALUE_SIZE, KEYS, TILES, OPTIONS>};
}

} // namespace ln

using namespace ln;

#define LN_PAIR(key_size, value_size, keys, tiles, options, name)                    \
    portable_kernel<key_size, value_size, keys, tiles, (options)>("portable " name), \
        portable_kernel<key_size, value_size, keys, tiles, (options) | LN_CUDA_HALF>("portable " name " f16")
#define LN_ROWS(key_size, value_size, keys, tiles, options, name)                 \
    LN_PAIR(key_size, value_size, keys, tiles, (options) | LN_CUDA_WINDOW, name), \
        LN_PAIR(key_size, value_size, keys, tiles, (options) | LN_CUDA_WINDOW | LN_CUDA_CAP, name " cap")

/* Those with lists have 64 rows, of which tiles of any size are made; those without a cap, keys with factors. */
const ln_cuda_kernel ln_cuda_portable_kernels[] = {
    LN_ROWS(128, 128, 64, 2, 0, "128 x 64"),
    LN_ROWS(64, 64, 64, 2, 0, "64: 128 x 64"),
    LN_ROWS(256, 256, 64, 1, LN_CUDA_LISTS, "256: 64 x 64"),
    LN_ROWS(96, 96, 64, 2, 0, "96: 128 x 64"),
    LN_ROWS(192, 128, 64, 1, LN_CUDA_LISTS, "192/128: 64 x 64"),
    LN_ROWS(192, 192, 64, 1, LN_CUDA_LISTS, "192: 64 x 64"),
    LN_ROWS(128, 128, 64, 1, LN_CUDA_LISTS, "64 x 64"),
    LN_ROWS(64, 64, 64, 1, LN_CUDA_LISTS, "64: 64 x 64"),
    LN_ROWS(96, 96, 64, 1, LN_CUDA_LISTS, "96: 64 x 64"),
    LN_PAIR(128, 64, 64, 1, LN_CUDA_WINDOW | LN_CUDA_LISTS, "128/64: 64 x 64"),
    LN_PAIR(128, 96, 64, 1, LN_CUDA_WINDOW | LN_CUDA_LISTS, "128/96: 64 x 64"),
    LN_PAIR(256, 128, 64, 1, LN_CUDA_WINDOW | LN_CUDA_LISTS, "256/128: 64 x 64"),
    LN_PAIR(256, 192, 64, 1, LN_CUDA_WINDOW | LN_CUDA_LISTS, "256/192: 64 x 64"),
};
const int ln_cuda_portable_count = sizeof ln_cuda_portable_kernels / sizeof ln_cuda_portable_kernels[0];
