/* Gradients of exact attention on an NVIDIA GPU (attention_cuda.h), from what the forward pass left.
 *
 *     weight = exp(score - lse), change = output_gradient value^T, part = rowsum(output_gradient * output),
 *     slope = weight * (change - part) [* (1 - (score / cap)^2)],
 *     query_gradient = scale slope key,   key_gradient = scale slope^T query,   value_gradient = weight^T
 *     output_gradient,   sink_gradient = -sum over queries of exp(sink - lse) part.
 *
 * Not yet with factors of a bias (rank) and lists of tiles: a plan says so.
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
 * tensors and which has `keys` keys. It visits query tiles first .. end - 1, numbered over the batch. */
typedef struct ln_cuda_backward_task {
    int32_t key, tile, keys, head, first, end;
    int32_t order;           /* LN_CUDA_UP: from first upward; _DOWN: from end - 1 downward; _ROUND: from start */
    int32_t start;           /* _ROUND: the first visited; */
    int32_t member, members; /* this is tile `member` of a company of `members` tiles that visit together, */
    int32_t before, filler;  /* and each query tile has had so many tiles of former companies */
} ln_cuda_backward_task;

/* One compiled kernel. */
typedef struct ln_cuda_backward_kernel {
    const char *name;
    int key_size, value_size, queries, keys; /* queries, keys: of a tile */
    int wide_key_size;                       /* of the query gradient's sums: key_size rounded up */
    int options, threads, shared_bytes;
    int major; /* 9: sm_90a alone; 8: sm_80 and newer */
    ln_cuda_code (*start)(void *const *arguments, int blocks, void *stream);
} ln_cuda_backward_kernel;

typedef struct ln_cuda_backward_plan {
    ln_cuda_device device;
    const ln_cuda_backward_kernel *kernel;
    int64_t tiles, tasks; /* of queries of one head; of keys of all key-value heads */
    int64_t blocks;
    int64_t workspace; /* bytes, aligned to 256 */
    char why[LN_CUDA_WHY];
} ln_cuda_backward_plan;

/* The table of kernels, best first, ended by a row that cannot start. */
const ln_cuda_backward_kernel *ln_cuda_backward_kernels(int row);

/* Chooses a kernel; `kernel` not NULL: takes that one or fails. */
ln_cuda_code ln_cuda_backward_plan_make(const ln_cuda_backward *backward, const ln_cuda_device *device,
                                        const ln_cuda_backward_kernel *kernel, ln_cuda_backward_plan *plan);
/* The plan's tables on the host, [plan->tiles] and [plan->tasks]. */
void ln_cuda_backward_tables(const ln_cuda_backward *backward, const ln_cuda_backward_plan *plan,
                             ln_cuda_backward_rows *tiles, ln_cuda_backward_task *tasks);
/* Fills a workspace on the device from the tables; waits for the stream. Once for a plan. Two runs may not use one
 * workspace at the same time. */
ln_cuda_code ln_cuda_backward_prepare(const ln_cuda_backward_plan *plan, const ln_cuda_backward_rows *tiles,
                                      const ln_cuda_backward_task *tasks, void *workspace, void *stream);

typedef struct ln_cuda_backward_tensors {
    ln_cuda_tensor query, key, value, output_gradient; /* bf16 or f16 */
    ln_cuda_tensor output;
    const float *log_sum_exp; /* [query tokens, heads], of the forward pass */
    const float *sinks;       /* [heads], as scores of a key without value that the lse has in it; NULL: none */
    ln_cuda_tensor query_gradient, key_gradient, value_gradient;
    float *sink_gradient; /* [heads]; NULL: not wanted */
} ln_cuda_backward_tensors;

/* Starts the work on the stream of the plan's device, which must be the current one; may be captured in a graph. */
ln_cuda_code ln_cuda_backward_run(const ln_cuda_backward *backward, const ln_cuda_backward_plan *plan,
                                  const ln_cuda_backward_tensors *tensors, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
