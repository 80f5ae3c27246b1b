/* Exact attention on an NVIDIA GPU: what the CUDA side offers to C. Plain C; streams are `void *` (a cudaStream_t),
 * tensors lie on the device, and nothing here prints, exits, allocates device memory or waits for the device, except
 * ln_cuda_attention_prepare where it says so.
 *
 *     score[i][j] = cap(scale * query[i] . key[j]) for the keys j that query i sees,
 *     output[i] = sum_j exp(score[i][j] - lse[i]) value[j],   lse[i] = log(sum_j exp(score[i][j])).
 *
 * A plan cuts the queries of all heads into tasks: one tile of queries, one head, and the run of key blocks that the
 * tile sees. Tasks lie in the order in which they should start: the longest first, heads together that share the
 * second-level cache. They are independent, so that the order changes no bit of the result. */
#ifndef LN_KERNEL_CUDA_ATTENTION_H
#define LN_KERNEL_CUDA_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ln_cuda_code {
    LN_CUDA_OK,
    LN_CUDA_NO_DEVICE,   /* none, or none that the driver can use */
    LN_CUDA_OLD_DRIVER,  /* older than the runtime that this was built with */
    LN_CUDA_UNSUPPORTED, /* no kernel for this shape or device: plan.why says which */
    LN_CUDA_ARGUMENT,
    LN_CUDA_OUT_OF_MEMORY,
    LN_CUDA_FAILED /* the device reported an error */
} ln_cuda_code;

/* What a device can do, read once. */
typedef struct ln_cuda_device {
    int index, major, minor, multiprocessors;
    int64_t block_shared_bytes, cache_bytes;
} ln_cuda_device;

ln_cuda_code ln_cuda_device_read(int index, ln_cuda_device *device);

typedef struct ln_cuda_attention {
    int64_t heads, key_value_heads; /* query head h reads key-value head h / (heads / key_value_heads) */
    int64_t key_size, value_size;
    int64_t sequences;
    const int64_t *query_offsets, *key_offsets; /* on the host, [sequences + 1], ascending from 0 */
    float scale, soft_cap;                      /* scale > 0; soft_cap 0: none */
    bool causal;         /* query i of n stands at position i + m - n of m keys: key <= position */
    int64_t window;      /* position - key < window and, unless causal, key - position < window; 0: none */
    bool output_float32; /* output is float32, else bf16 */
} ln_cuda_attention;

/* One tile of queries of one head: its first query is row `query` of the tensors and stands at `position`; it sees
 * key blocks first_block .. end_block - 1 of the sequence whose first key is row `key` of the tensors. */
typedef struct ln_cuda_task {
    int32_t query, rows, position, key, keys, head, first_block, end_block;
} ln_cuda_task;

enum { LN_CUDA_WINDOW = 1, LN_CUDA_CAP = 2 }; /* options that a kernel was compiled with */

/* One compiled kernel. */
typedef struct ln_cuda_kernel {
    const char *name;
    int key_size, value_size, rows, keys; /* rows, keys: of a tile */
    int options, threads, shared_bytes;
    int major;       /* 9: sm_90a alone; 8: sm_80 and newer */
    bool short_rows; /* preferred for short sequences and narrow windows */
    const void *function;
} ln_cuda_kernel;

typedef struct ln_cuda_attention_plan {
    ln_cuda_device device;
    const ln_cuda_kernel *kernel;
    int64_t tasks, workspace; /* bytes, aligned to 256 */
    char why[320];            /* which kernel, and why not a faster one */
} ln_cuda_attention_plan;

/* The table of kernels, best first, ended by a row without a function. */
const ln_cuda_kernel *ln_cuda_attention_kernels(int row);

/* Chooses a kernel; `kernel` not NULL: takes that one or fails. */
ln_cuda_code ln_cuda_attention_plan_make(const ln_cuda_attention *attention, const ln_cuda_device *device,
                                         const ln_cuda_kernel *kernel, ln_cuda_attention_plan *plan);
/* The tasks of the plan, [plan->tasks], on the host. */
void ln_cuda_attention_tasks(const ln_cuda_attention *attention, const ln_cuda_attention_plan *plan,
                             ln_cuda_task *tasks);
/* Fills a workspace on the device from `tasks`; waits for the stream. Once for a plan: running leaves the workspace
 * as it was. Two runs may not use one workspace at the same time. */
ln_cuda_code ln_cuda_attention_prepare(const ln_cuda_attention_plan *plan, const ln_cuda_task *tasks, void *workspace,
                                       void *stream);

/* Elements at token * token_stride + head * head_stride + i; strides in elements, multiples of 8; data aligned to 16.
 */
typedef struct ln_cuda_tensor {
    void *data;
    int64_t token_stride, head_stride;
} ln_cuda_tensor;

typedef struct ln_cuda_attention_tensors {
    ln_cuda_tensor query, key, value; /* bf16 */
    ln_cuda_tensor output;
    float *log_sum_exp; /* [query tokens, heads]; NULL: not wanted */
} ln_cuda_attention_tensors;

/* Starts the work on the stream of the plan's device, which must be the current one; may be captured in a graph. */
ln_cuda_code ln_cuda_attention_forward(const ln_cuda_attention *attention, const ln_cuda_attention_plan *plan,
                                       const ln_cuda_attention_tensors *tensors, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
