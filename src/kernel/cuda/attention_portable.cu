/* Exact attention forward for compute capability 8.0 and newer: one block a task, a warp for 16 queries, products of
 * 16 x 8 x 16 with operands loaded from shared memory.
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

template <int SIZE> struct padded { static constexpr int row = SIZE + 8; };

template <int SIZE, int ROWS, int THREADS>
static __device__ __forceinline__ void copy_rows(__nv_bfloat16 *to, const ln_cuda_tensor &from, int head, int64_t token,
                                                 int rows) {
    const __nv_bfloat16 *base = (const __nv_bfloat16 *)from.data + token * from.token_stride + head * from.head_stride;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * SIZE / 8; i += THREADS) {
        const int row = i / (SIZE / 8), column = i % (SIZE / 8) * 8;
        const bool inside = row < rows;
        copy_piece(to + row * padded<SIZE>::row + column, base + (inside ? row * from.token_stride + column : 0),
                   inside);
    }
    copies_commit();
}
static __device__ __forceinline__ void copies_meet() {
    copies_wait<0>();
    __syncthreads();
}

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int WARPS, int OPTIONS>
static __global__ void __launch_bounds__(32 * WARPS) attention_portable(const __grid_constant__ attention_run run) {
    constexpr bool HALF = (OPTIONS & LN_CUDA_HALF) != 0;
    constexpr int rows = 16 * WARPS, threads = 32 * WARPS;
    constexpr int key_row = padded<KEY_SIZE>::row, value_row = padded<VALUE_SIZE>::row;
    __nv_bfloat16 *query = (__nv_bfloat16 *)block_memory(), *key = query + rows * key_row,
                  *value = key + KEYS * key_row;
    const ln_cuda_task task = run.tasks[blockIdx.x];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp * 16 + lane / 4;
    const int shared_head = task.head / run.group;

    softmax<KEYS> weights;
    weights.open();
    float output[VALUE_SIZE / 2];
#pragma unroll
    for (int i = 0; i < VALUE_SIZE / 2; i++) output[i] = 0;

    const sight whole = whole_blocks<KEYS>(run, task, rows);
    const __nv_bfloat16 *query_part = query + (warp * 16 + lane % 16) * key_row + lane / 16 * 8;
    const __nv_bfloat16 *key_part = key + (lane / 16 * 8 + lane % 8) * key_row + lane / 8 % 2 * 8;
    const __nv_bfloat16 *value_part = value + lane % 16 * value_row + lane / 16 * 8;
    if (task.first_block < task.end_block) {
        const int begin = run.block_at(task.end_block - 1) * KEYS;
        copy_rows<KEY_SIZE, rows, threads>(query, run.query, task.head, task.query, task.rows);
        copy_rows<KEY_SIZE, KEYS, threads>(key, run.key, shared_head, task.key + begin, task.keys - begin);
    }
    for (int place = task.end_block - 1; place >= task.first_block; place--) {
        const int block = run.block_at(place);
        copies_meet();
        copy_rows<VALUE_SIZE, KEYS, threads>(value, run.value, shared_head, task.key + block * KEYS,
                                             task.keys - block * KEYS);
        float score[KEYS / 2] = {};
#pragma unroll
        for (int k = 0; k < KEY_SIZE; k += 16) {
            uint32_t left[4];
            load_matrices<false>(left, query_part + k);
#pragma unroll
            for (int j = 0; j < KEYS; j += 16) {
                uint32_t right[4];
                load_matrices<false>(right, key_part + j * key_row + k);
                add_product_as<HALF>(score + j / 2, left, right);
                add_product_as<HALF>(score + j / 2 + 4, left, right + 2);
            }
        }
        if constexpr ((OPTIONS & LN_CUDA_CAP) != 0) softmax<KEYS>::cap(score, run.cap_scale);
        if (block < whole.low || block >= whole.high)
            softmax<KEYS>::template mask<(OPTIONS & LN_CUDA_WINDOW) != 0>(score, run, task.position + row, task.keys,
                                                                          block * KEYS);
        float factor[2];
        uint32_t weight[KEYS / 4];
        if (weights.template step<false>(score, run.scale, factor)) softmax<KEYS>::rescale(output, factor);
        softmax<KEYS>::template convert<HALF>(score, weight);
        copies_meet();
        if (place > task.first_block)
            copy_rows<KEY_SIZE, KEYS, threads>(key, run.key, shared_head, task.key + run.block_at(place - 1) * KEYS,
                                               KEYS);
#pragma unroll
        for (int k = 0; k < KEYS; k += 16)
#pragma unroll
            for (int j = 0; j < VALUE_SIZE; j += 16) {
                uint32_t right[4];
                load_matrices<true>(right, value_part + k * value_row + j);
                add_product_as<HALF>(output + j / 2, weight + k / 4, right);
                add_product_as<HALF>(output + j / 2 + 4, weight + k / 4, right + 2);
            }
    }
    float inverse[2], lse[2];
    weights.close(inverse, lse, sink_of(run, task.head));
    store_rows<VALUE_SIZE, HALF>(run, task, row, output, inverse, lse);
}

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int WARPS>
static constexpr int portable_bytes = 2 *
                                      ((16 * WARPS + KEYS) * padded<KEY_SIZE>::row + KEYS * padded<VALUE_SIZE>::row);

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int WARPS, int OPTIONS>
static ln_cuda_code portable_start(void *const *arguments, int blocks, void *stream) {
    return launch(attention_portable<KEY_SIZE, VALUE_SIZE, KEYS, WARPS, OPTIONS>, dim3((unsigned)blocks),
                  dim3(32 * WARPS), portable_bytes<KEY_SIZE, VALUE_SIZE, KEYS, WARPS>, stream,
                  *(const attention_run *)arguments[0]);
}

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int WARPS, int OPTIONS>
static ln_cuda_kernel portable_kernel(const char *name) {
    return {name,
            KEY_SIZE,
            VALUE_SIZE,
            16 * WARPS,
            KEYS,
            OPTIONS,
            32 * WARPS,
            portable_bytes<KEY_SIZE, VALUE_SIZE, KEYS, WARPS>,
            8,
            true,
            portable_start<KEY_SIZE, VALUE_SIZE, KEYS, WARPS, OPTIONS>};
}

} // namespace ln

using namespace ln;

#define LN_PAIR(key_size, value_size, keys, warps, options, name)                    \
    portable_kernel<key_size, value_size, keys, warps, (options)>("portable " name), \
        portable_kernel<key_size, value_size, keys, warps, (options) | LN_CUDA_HALF>("portable " name " f16")
#define LN_ROWS(key_size, value_size, keys, warps, options, name)                 \
    LN_PAIR(key_size, value_size, keys, warps, (options) | LN_CUDA_WINDOW, name), \
        LN_PAIR(key_size, value_size, keys, warps, (options) | LN_CUDA_WINDOW | LN_CUDA_CAP, name " cap")

/* Those with lists have 64 rows, of which tiles of any size are made; those without a cap, keys with factors. */
const ln_cuda_kernel ln_cuda_portable_kernels[] = {
    LN_ROWS(128, 128, 64, 8, 0, "128 x 64"),
    LN_ROWS(64, 64, 64, 8, 0, "64: 128 x 64"),
    LN_ROWS(256, 256, 64, 4, LN_CUDA_LISTS, "256: 64 x 64"),
    LN_ROWS(96, 96, 64, 8, 0, "96: 128 x 64"),
    LN_ROWS(192, 128, 64, 4, LN_CUDA_LISTS, "192/128: 64 x 64"),
    LN_ROWS(192, 192, 64, 4, LN_CUDA_LISTS, "192: 64 x 64"),
    LN_ROWS(128, 128, 64, 4, LN_CUDA_LISTS, "64 x 64"),
    LN_ROWS(64, 64, 64, 4, LN_CUDA_LISTS, "64: 64 x 64"),
    LN_ROWS(96, 96, 64, 4, LN_CUDA_LISTS, "96: 64 x 64"),
    LN_PAIR(128, 64, 64, 4, LN_CUDA_WINDOW | LN_CUDA_LISTS, "128/64: 64 x 64"),
    LN_PAIR(128, 96, 64, 4, LN_CUDA_WINDOW | LN_CUDA_LISTS, "128/96: 64 x 64"),
    LN_PAIR(256, 128, 64, 4, LN_CUDA_WINDOW | LN_CUDA_LISTS, "256/128: 64 x 64"),
    LN_PAIR(256, 192, 64, 4, LN_CUDA_WINDOW | LN_CUDA_LISTS, "256/192: 64 x 64"),
};
const int ln_cuda_portable_count = sizeof ln_cuda_portable_kernels / sizeof ln_cuda_portable_kernels[0];
