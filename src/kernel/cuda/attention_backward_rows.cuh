/* What all kernels of the backward pass of attention share: the run, which pairs are seen, and gradients on their way
 * out of accumulators.
 *
 * Scores lie transposed in the accumulators: keys are rows, queries columns (hopper.cuh tells the places). Numbers that
 * belong to queries, lse and part, are therefore read by column: rows_place puts the four that a thread needs of 16
 * queries next to each other. */
#ifndef LN_KERNEL_CUDA_ATTENTION_BACKWARD_ROWS_CUH
#define LN_KERNEL_CUDA_ATTENTION_BACKWARD_ROWS_CUH

#include "kernel/cuda/attention_backward_cuda.h"
#include "kernel/cuda/attention_rows.cuh"

namespace ln {

/* What a kernel is given beside its tensors; the same for all of them. */
struct backward_run {
    ln_cuda_tensor query, key, value, output, output_gradient, query_gradient, key_gradient, value_gradient;
    const float *log_sum_exp, *sinks;
    float *sink_gradient;
    const ln_cuda_backward_rows *tiles;
    const ln_cuda_backward_task *tasks;
    const ln_cuda_backward_visit *visits; /* with lists, else NULL */
    const int32_t *starts, *listed;       /* likewise */
    float *rows;    /* [head][tile][lse, part][tile_queries]: lse by log2(e), infinite for a row that sees nothing */
    float *sums;    /* of query gradients, [head][tile][block of 64 x 64][j][thread][4], the places of accumulators */
    int *turns;     /* [head][tile]: how many tiles of keys were added; 0 before a run */
    unsigned *next; /* 0 before and after a run */
    int task_count, tile_count, tile_queries, tile_keys, heads, group, query_tokens;
    int key_size, value_size, wide_key_size;
    int causal, window;   /* window 0: none */
    float scale;          /* of scores, with log2(e) in it; with a cap: cap * log2(e) */
    float cap_scale;      /* 2 scale / cap, with log2(e) in it */
    float gradient_scale; /* of gradients of queries and keys */
    int output_float32, gradient_float32, half;
    int packed_float32; /* gradients of queries and keys are float32 */
};

/* One of two numbers of a word. */
template <bool HALF> static __device__ __forceinline__ float unpack_as(uint32_t both, int which) {
    if (HALF) return __half2float(__ushort_as_half((unsigned short)(which ? both >> 16 : both)));
    return __uint_as_float(which ? both & 0xffff0000u : both << 16);
}
/* Where the number of a query of a tile lies. */
static __device__ __forceinline__ int rows_place(int row) {
    return row / 16 * 16 + row % 8 / 2 * 4 + row % 16 / 8 * 2 + row % 2;
}

/* Columns low .. high - 1 of a tile of queries see the key; position: of the tile's first query. */
static __device__ __forceinline__ sight key_sight(const backward_run &run, int key, int keys, int position) {
    sight seen = {-(1 << 30), 1 << 30};
    if (run.causal) seen.low = key - position;
    if (run.window) {
        seen.high = key - position + run.window;
        if (!run.causal) seen.low = key - position - run.window + 1;
    }
    if (key >= keys) seen.high = seen.low;
    return seen;
}
/* Whether some pair of the tiles is not seen. */
static __device__ __forceinline__ bool tiles_cut(const backward_run &run, int key, int tile_keys, int keys,
                                                 int position, int tile_queries) {
    const int last_key = key + tile_keys - 1, last = position + tile_queries - 1;
    if (last_key >= keys || (run.causal && last_key > position)) return true;
    return run.window && (last - key >= run.window || (!run.causal && last_key - position >= run.window));
}

/* Which of the tiles of keys that a query tile sees comes how manieth to it. */
static __device__ __forceinline__ int turn_of(const ln_cuda_backward_task &task, const ln_cuda_backward_rows &rows,
                                              int tile) {
    if (task.order == LN_CUDA_UP) return rows.end_tile - 1 - task.tile;
    if (task.order == LN_CUDA_DOWN) return task.tile - rows.first_tile;
    /* Member k starts at floor(k tiles / members): those that started at or before this tile come first, the last of
     * them in front, and then the others, the last of them in front. */
    const int tiles = task.end - task.first, at = tile - task.first;
    const int started = min(task.members, ((at + 1) * task.members + tiles - 1) / tiles);
    return task.before + started - 1 - task.member + (task.member < started ? 0 : task.members);
}

/* The tile of queries of a head that a task visits as its n-th of `count`. */
static __device__ __forceinline__ int visited(const ln_cuda_backward_task &task, int n) {
    if (task.order == LN_CUDA_UP) return task.first + n;
    if (task.order == LN_CUDA_DOWN) return task.end - 1 - n;
    return task.start + n < task.end ? task.start + n : task.start + n - (task.end - task.first);
}
/* A task's steps: its visits of one head after the other. */
static __device__ __forceinline__ int steps_of(const backward_run &run, const ln_cuda_backward_task &task) {
    return run.visits ? task.end - task.first : (task.end - task.first) * run.group;
}
static __device__ __forceinline__ ln_cuda_backward_visit visit_of(const backward_run &run,
                                                                  const ln_cuda_backward_task &task, int step) {
    if (run.visits) return run.visits[task.first + step];
    const int count = task.end - task.first, tile = visited(task, step % count);
    return {task.head * run.group + step / count, tile, turn_of(task, run.tiles[tile], tile), LN_CUDA_SEEN};
}

/* Rows `row` and `row + 8` of accumulators, 64 rows a warp group: element 4 j + 2 half + c. Columns from `first`. */
template <int SIZE, bool HALF>
static __device__ __forceinline__ void store_gradient(const ln_cuda_tensor &to, int float32, int64_t token, int head,
                                                      int row, int rows, int first, int size,
                                                      const float (&sum)[SIZE / 2], float scale) {
    const int lane = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const bool inside = row + 8 * half < rows;
        const int64_t at = (token + row + 8 * half) * to.token_stride + head * to.head_stride + first;
        if (float32) {
#pragma unroll
            for (int j = 0; j < SIZE / 8; j++) {
                const float2 pair = {sum[4 * j + 2 * half] * scale, sum[4 * j + 2 * half + 1] * scale};
                if (inside && first + 8 * j < size) *(float2 *)((float *)to.data + at + 8 * j + 2 * lane) = pair;
            }
        } else {
#pragma unroll
            for (int j = 0; j < SIZE / 8; j += 4) {
                uint32_t word[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    word[i] =
                        pack_as<HALF>(sum[4 * (j + i) + 2 * half] * scale, sum[4 * (j + i) + 2 * half + 1] * scale);
                transpose_quad(word);
                if (inside && first + 8 * (j + lane) < size)
                    *(uint4 *)((__nv_bfloat16 *)to.data + at + 8 * (j + lane)) = {word[0], word[1], word[2], word[3]};
            }
        }
    }
}

} // namespace ln

#endif
