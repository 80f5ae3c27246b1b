/* The delta rule, gated delta rule and KDA on an NVIDIA GPU.
 *
 *     S' = diag(e^decay) S,   u = beta (value - S'^T key),   S = S' + key u^T,   output = scale S^T query
 *
 * for every token of every head, S [key_size, value_size] in float32 (Schlag et al. 2021, arXiv 2102.11174; Yang et
 * al. 2024, arXiv 2412.06464; Kimi Team 2025, arXiv 2510.26692). Decays are natural logarithms, -inf .. 0: none, one a
 * token and head, or one for each key channel.
 *
 * Work goes by chunks of 64 tokens in two kernels. The first makes of each chunk and head, all at once, what does not
 * depend on the state: a record in the workspace. The second walks the chunks of a sequence, the state in registers.
 * Where heads are too few to fill the device, sequences are cut into segments: a first walk finds what each makes of
 * any state, A S + B, and the second walks all of them at once. */
#ifndef LN_KERNEL_CUDA_DELTA_H
#define LN_KERNEL_CUDA_DELTA_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LN_CUDA_DELTA_CHUNK = 64 };

typedef enum ln_cuda_delta_decay {
    LN_CUDA_DECAY_NONE,
    LN_CUDA_DECAY_HEAD, /* [tokens, heads] */
    LN_CUDA_DECAY_KEY   /* [tokens, heads, key_size] */
} ln_cuda_delta_decay;

typedef struct ln_cuda_delta {
    int64_t heads, key_heads; /* value head h reads query and key head h / (heads / key_heads) */
    bool tiled_heads;         /* or h % key_heads */
    int64_t key_size, value_size;
    int64_t sequences;
    const int64_t *offsets; /* on the host, [sequences + 1], ascending from 0 */
    float scale;
    ln_cuda_delta_decay decay;
    bool normalise_keys; /* queries and keys are first divided by (sum of squares + 1e-6)^1/2 */
    bool output_float32; /* output is float32, else bf16 */
    int64_t segment;     /* chunks of a segment, where a kernel can cut sequences; 0: chosen; -1: no segments */
} ln_cuda_delta;

/* Memory on the device. */
typedef struct ln_cuda_delta_tensors {
    ln_cuda_tensor query, key;  /* bf16, [tokens, key_heads, key_size] */
    ln_cuda_tensor value;       /* bf16, [tokens, heads, value_size] */
    const float *beta;          /* [tokens, heads], without gaps; 0 .. 2 */
    const float *decay;         /* without gaps, those of keys aligned to 16; NULL where there is none */
    ln_cuda_tensor output;      /* [tokens, heads, value_size] */
    const float *state_in;      /* [slot, heads, key_size, value_size]; NULL: zeros */
    float *state_out;           /* likewise; NULL: not wanted; may be state_in */
    const int64_t *state_slots; /* [sequences], of both; NULL: sequence s has slot s */
} ln_cuda_delta_tensors;

/* One compiled kernel that walks the chunks. */
typedef struct ln_cuda_delta_kernel {
    const char *name;
    int key_size, columns;     /* columns: of values that one block takes */
    int sharers;               /* blocks of one head that copy for each other, or 1 */
    ln_cuda_delta_decay decay; /* KEY, or HEAD, which also does NONE */
    int threads, shared_bytes, major;
    bool many; /* preferred where there are many sequences and heads */
    /* Starts it; arguments: the descriptions of query, key, value for the copy engine (of major 9), and the run. NULL:
     * the end of the table. */
    ln_cuda_code (*start)(void *const *arguments, int64_t blocks, void *stream);
    /* Starts what finds the states that segments begin with: `parts` segments with one after them, of `joins`
     * sequences. NULL: sequences are not cut into segments. */
    ln_cuda_code (*summarise)(void *const *arguments, int64_t parts, int64_t joins, void *stream);
} ln_cuda_delta_kernel;

typedef struct ln_cuda_delta_plan {
    ln_cuda_device device;
    const ln_cuda_delta_kernel *kernel;
    int64_t chunks;
    int64_t segment;             /* chunks of a segment: long sequences of few heads are cut; 0: none is */
    int64_t texts, parts, joins; /* sequences and segments; segments with one after them; sequences cut */
    int64_t workspace;           /* bytes, aligned to 256 */
    char why[LN_CUDA_WHY];
} ln_cuda_delta_plan;

/* The table of kernels, best first, ended by a row that cannot start. */
const ln_cuda_delta_kernel *ln_cuda_delta_kernels(int row);

/* Chooses a kernel; `kernel` not NULL: takes that one or fails. */
ln_cuda_code ln_cuda_delta_plan_make(const ln_cuda_delta *delta, const ln_cuda_device *device,
                                     const ln_cuda_delta_kernel *kernel, ln_cuda_delta_plan *plan);
/* Fills the tables of a workspace on the device; waits for the stream. Once for a plan. Two runs may not use one
 * workspace at the same time. */
ln_cuda_code ln_cuda_delta_prepare(const ln_cuda_delta *delta, const ln_cuda_delta_plan *plan, void *workspace,
                                   void *stream);
/* Starts the work on the stream of the plan's device, which must be the current one; may be captured in a graph. */
ln_cuda_code ln_cuda_delta_forward(const ln_cuda_delta *delta, const ln_cuda_delta_plan *plan,
                                   const ln_cuda_delta_tensors *tensors, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
