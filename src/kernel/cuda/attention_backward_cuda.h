/* Gradients of exact attention on an NVIDIA GPU (attention_cuda.h), from what the forward pass left.
 *
 *     weight = exp(score - lse), change = output_gradient value^T, part = rowsum(output_gradient * output),
 *     slope = weight * (change - part) [* (1 - (score / cap)^2)],
 *     query_gradient = scale slope key,   key_gradient = scale slope^T query,   value_gradient = weight^T
 *     output_gradient,   sink_gradient = -sum over queries of exp(sink - lse) part.
 *
 * Factors of a bias are columns of queries and keys here too (attention_cuda.h). Their gradients are columns of the
 * packed gradients: with x = high + low, the sum over slopes of x is that of high and that of low.
 *
 * Lists of tiles are turned about: each tile of keys has the list of the tiles of queries that see some of it, of all
 * heads that share it (attention_backward_lists.cu).
 *
 * Gradients of keys and values are summed over the query heads that share them. Every sum is taken in a fixed order, so
 * that the bits are the same in every run on the same kind of device. */
#ifndef LN_KERNEL_CUDA_ATTENTION_BACKWARD_H
#define LN_KERNEL_CUDA_ATTENTION_BACKWARD_H

#include "kernel/cuda/attention_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_backward {
    ln_cuda_attention attention; /* of the forward pass; output_float32 tells what its output is */
    bool gradient_float32; /* gradients are float32, else of the type of queries, which the output's gradient has too */
} ln_cuda_backward;

/* One tile of queries of every head: rows of the tensors, the position of its first query, and the tiles of keys that
 * it sees, first_tile .. end_tile - 1 of its sequence. */
typedef struct ln_cuda_backward_rows {
    int32_t query, rows, position, key, keys, first_tile, end_tile, filler;
} ln_cuda_backward_rows;

/* How the tiles of keys of one sequence and head meet its tiles of queries; see attention_backward_cuda.cu. */
enum { LN_CUDA_UP, LN_CUDA_DOWN, LN_CUDA_ROUND };

/* One tile of keys of one key-value head: tile number `tile` of its sequence, whose first key is row `key` of the
 * tensors and which has `keys` keys. It visits query tiles first .. end - 1, numbered over the batch, of each head;
 * with lists its visits are those at first .. end - 1 of the plan's table. */
typedef struct ln_cuda_backward_task {
    int32_t key, tile, keys, head, first, end;
    int32_t order;           /* LN_CUDA_UP: from first upward; _DOWN: from end - 1 downward; _ROUND: from start */
    int32_t start;           /* _ROUND: the first visited; */
    int32_t member, members; /* this is tile `member` of a company of `members` tiles that visit together, */
    int32_t before, filler;  /* and each query tile has had so many tiles of former companies */
} ln_cuda_backward_task;

/* A tile of queries of a head that a tile of keys meets, with lists. */
typedef struct ln_cuda_backward_visit {
    int32_t head, tile;
    int32_t turn; /* how many tiles of keys come to it before this one */
    int32_t seen; /* bit k + 2 q: keys 64 k .. 64 k + 63 of the one are seen by queries 64 q .. of the other */
} ln_cuda_backward_visit;
enum { LN_CUDA_SEEN = 15 }; /* all that there are: bits of what a kernel's tiles do not have are set */

/* One compiled kernel. */
typedef struct ln_cuda_backward_kernel {
    const char *name;
    int key_size, value_size, queries, keys; /* queries, keys: of a tile */
    int wide_key_size, wide_value_size;      /* columns of its tiles: at least as many */
    int options, threads, shared_bytes;
    int major; /* 9: sm_90a alone; 8: sm_80 and newer */
    ln_cuda_code (*start)(void *const *arguments, int blocks, void *stream);
} ln_cuda_backward_kernel;

typedef struct ln_cuda_backward_plan {
    ln_cuda_device device;
    const ln_cuda_backward_kernel *kernel;
    int64_t tiles, tasks;   /* of queries of one head; of keys of all key-value heads */
    int64_t places, visits; /* with lists: tiles of queries of all heads, pairs that meet */
    int64_t blocks;
    int64_t tables;      /* bytes */
    int64_t workspace;   /* bytes, aligned to 256 */
    int64_t packed_size; /* columns of a query or key with its factors; 0: there are none */
    char why[LN_CUDA_WHY];
} ln_cuda_backward_plan;

/* The table of kernels, best first, ended by a row that cannot start. */
const ln_cuda_backward_kernel *ln_cuda_backward_kernels(int row);

/* Chooses a kernel; `kernel` not NULL: takes that one or fails. */
ln_cuda_code ln_cuda_backward_plan_make(const ln_cuda_backward *backward, const ln_cuda_device *device,
                                        const ln_cuda_backward_kernel *kernel, ln_cuda_backward_plan *plan);

/* What lies in the plan's tables, one after the other; the last four with lists alone. */
typedef struct ln_cuda_backward_tables {
    ln_cuda_backward_rows *tiles;   /* [tiles] */
    ln_cuda_backward_task *tasks;   /* [tasks] */
    ln_cuda_backward_visit *visits; /* [visits] */
    int32_t *starts, *listed;       /* [places + 1], [visits]: tile t of queries of head h sees tiles of keys
                                       listed[starts[h * tiles + t]] .. listed[starts[h * tiles + t + 1] - 1] */
    int32_t *ends;                  /* [tasks + 1], for those who fill the tables */
} ln_cuda_backward_tables;
ln_cuda_backward_tables ln_cuda_backward_tables_at(const ln_cuda_backward_plan *plan, void *tables);
/* Fills plan->tables bytes on the host, aligned to 16. */
void ln_cuda_backward_tables_make(const ln_cuda_backward *backward, const ln_cuda_backward_plan *plan, void *tables);
/* Fills a workspace on the device from the tables; waits for the stream. Once for a plan. Two runs may not use one
 * workspace at the same time. */
ln_cuda_code ln_cuda_backward_prepare(const ln_cuda_backward_plan *plan, const void *tables, void *workspace,
                                      void *stream);

typedef struct ln_cuda_backward_tensors {
    ln_cuda_tensor query, key, value, output_gradient; /* bf16 or f16 */
    ln_cuda_tensor output;
    const float *log_sum_exp; /* [query tokens, heads], of the forward pass */
    const float *sinks;       /* [heads], as scores of a key without value that the lse has in it; NULL: none */
    ln_cuda_tensor query_gradient, key_gradient, value_gradient;
    float *sink_gradient;                     /* [heads]; NULL: not wanted */
    const float *query_factors, *key_factors; /* [query tokens, heads, rank], [key tokens, key_value_heads, rank] */
    float *query_factors_gradient, *key_factors_gradient; /* NULL: not wanted */
} ln_cuda_backward_tensors;

/* Starts the work on the stream of the plan's device, which must be the current one; may be captured in a graph. */
ln_cuda_code ln_cuda_backward_run(const ln_cuda_backward *backward, const ln_cuda_backward_plan *plan,
                                  const ln_cuda_backward_tensors *tensors, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
