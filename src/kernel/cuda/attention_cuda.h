/* Exact attention on an NVIDIA GPU.
 *
 *     score[i][j] = cap(scale * query[i] . key[j]) + query_factor[i] . key_factor[j]   for the keys j that query i
 * sees, output[i] = sum_j exp(score[i][j] - lse[i]) value[j],   lse[i] = log(exp(sink) + sum_j exp(score[i][j])).
 *
 * A plan cuts the queries of all heads into tasks: one tile of queries, one head, and the run of key blocks that the
 * tile sees. Tasks lie in the order in which they should start: the longest first, heads together that share the
 * second-level cache. They are independent, so that the order changes no bit of the result.
 *
 * A bias of low rank (P257) needs no kernel of its own: [scale query, query_factor] . [key, key_factor] is the whole
 * score. Factors are float32; they go through 2-byte products as high and low halves, three columns for each. */
#ifndef LN_KERNEL_CUDA_ATTENTION_H
#define LN_KERNEL_CUDA_ATTENTION_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_attention {
    int64_t heads, key_value_heads; /* query head h reads key-value head h / (heads / key_value_heads) */
    int64_t key_size, value_size;
    int64_t sequences;
    const int64_t *query_offsets, *key_offsets; /* on the host, [sequences + 1], ascending from 0 */
    float scale, soft_cap;                      /* scale > 0; soft_cap 0: none */
    bool causal;         /* query i of n stands at position i + m - n of m keys: key <= position */
    int64_t window;      /* position - key < window and, unless causal, key - position < window; 0: none */
    bool output_float32; /* output is float32, else bf16 or f16 as the rest is */
    bool half;           /* query, key and value are f16, else bf16 */
    int64_t rank;        /* of the bias; 0: none. Not with a cap */
    /* Which key tiles the query tiles of the (only) sequence see: for list l = head * query tiles + tile, or l = tile
     * where all heads share them, tiles listed[list_offsets[l]] .. listed[list_offsets[l + 1] - 1], ascending; on the
     * host. Sizes are multiples of 64. query_tile 0: all that the other options allow. */
    int64_t query_tile, key_tile;
    bool list_per_head;
    const int64_t *list_offsets;
    const int32_t *listed;
} ln_cuda_attention;

/* One tile of queries of one head: its first query is row `query` of the tensors and stands at `position`; it sees
 * key blocks first_block .. end_block - 1 of the sequence whose first key is row `key` of the tensors. With lists these
 * are places in the plan's table of blocks. */
typedef struct ln_cuda_task {
    int32_t query, rows, position, key, keys, head, first_block, end_block;
} ln_cuda_task;

/* What a kernel was compiled with. */
enum { LN_CUDA_WINDOW = 1, LN_CUDA_CAP = 2, LN_CUDA_LISTS = 4, LN_CUDA_HALF = 8 };

/* One compiled kernel. */
typedef struct ln_cuda_kernel {
    const char *name;
    int key_size, value_size, rows, keys; /* rows, keys: of a tile */
    int options, threads, shared_bytes;
    int major;       /* 9: sm_90a alone; 8: sm_80 and newer */
    bool short_rows; /* preferred for short sequences and narrow windows */
    /* Starts it; `arguments` are the descriptions for the copy engine (of 9) and the run. NULL: the end of the table.
     */
    ln_cuda_code (*start)(void *const *arguments, int blocks, void *stream);
} ln_cuda_kernel;

typedef struct ln_cuda_attention_plan {
    ln_cuda_device device;
    const ln_cuda_kernel *kernel;
    int64_t tasks, blocks; /* blocks: entries of the table of blocks, with lists */
    int64_t tables;        /* bytes that ln_cuda_attention_tasks writes */
    int64_t workspace;     /* bytes, aligned to 256 */
    int64_t packed_size;   /* columns of a query or key with its factors; 0: there are none */
    char why[LN_CUDA_WHY];
} ln_cuda_attention_plan;

/* The table of kernels, best first, ended by a row that cannot start. */
const ln_cuda_kernel *ln_cuda_attention_kernels(int row);

/* Chooses a kernel; `kernel` not NULL: takes that one or fails. */
ln_cuda_code ln_cuda_attention_plan_make(const ln_cuda_attention *attention, const ln_cuda_device *device,
                                         const ln_cuda_kernel *kernel, ln_cuda_attention_plan *plan);
/* On the host: the tasks of the plan, [plan->tasks], and behind them the table of blocks, int32 [plan->blocks];
 * plan->tables bytes. */
void ln_cuda_attention_tasks(const ln_cuda_attention *attention, const ln_cuda_attention_plan *plan,
                             ln_cuda_task *tasks);
/* Fills a workspace on the device from `tasks`; waits for the stream. Once for a plan: running leaves the workspace
 * as it was. Two runs may not use one workspace at the same time. */
ln_cuda_code ln_cuda_attention_prepare(const ln_cuda_attention_plan *plan, const ln_cuda_task *tasks, void *workspace,
                                       void *stream);

typedef struct ln_cuda_attention_tensors {
    ln_cuda_tensor query, key, value; /* bf16 or f16 */
    ln_cuda_tensor output;
    float *log_sum_exp;                       /* [query tokens, heads]; NULL: not wanted */
    const float *sinks;                       /* [heads]; NULL: none */
    const float *query_factors, *key_factors; /* [query tokens, heads, rank], [key tokens, key_value_heads, rank] */
} ln_cuda_attention_tensors;

/* Starts the work on the stream of the plan's device, which must be the current one; may be captured in a graph. */
ln_cuda_code ln_cuda_attention_forward(const ln_cuda_attention *attention, const ln_cuda_attention_plan *plan,
                                       const ln_cuda_attention_tensors *tensors, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
