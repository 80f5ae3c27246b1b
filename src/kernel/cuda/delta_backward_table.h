/* The compiled kernels of each file, best first, and what they are given. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_TABLE_H
#define LN_KERNEL_CUDA_DELTA_BACKWARD_TABLE_H

#include "kernel/cuda/delta_backward_cuda.h"

namespace ln {

struct delta_backward_chunk {
    int token, rows; /* its first token, how many */
};

struct delta_backward_run {
    ln_cuda_tensor query, key, value, output_gradient;
    ln_cuda_tensor query_gradient, key_gradient, value_gradient;
    const float *beta, *decay, *state_in, *state_out_gradient;
    float *beta_gradient, *decay_gradient, *state_in_gradient;
    const int64_t *state_slots;
    /* The workspace. */
    const delta_backward_chunk *chunks;
    const int *first_chunk;         /* [sequences + 1] */
    char *pairs;                    /* of a chunk and head: T, P */
    char *keys;                     /* K~, K^, Q~, of decays a channel */
    char *states, *state_gradients; /* of a chunk, head and 64 values: S^T before it, D^T after it */
    char *values;                   /* V' */
    ln_cuda_tensor residual;        /* beta R as bf16: the gradient of values, or as it would be */
    float *records;
    float *totals;       /* of a block, of decays a channel: sums over value heads */
    void *narrowed;      /* output gradients as bf16, where they came as float32 */
    ln_cuda_tensor wide; /* these */
    int64_t tokens;
    float scale;
    int chunk_count, sequences, heads, key_heads, group, slices, multiprocessors;
    bool tiled, normalise, gradients_bf16;
};

} // namespace ln

extern const ln_cuda_delta_backward_kernel ln_cuda_delta_backward_hopper[], ln_cuda_delta_backward_portable[];
extern const int ln_cuda_delta_backward_hopper_count, ln_cuda_delta_backward_portable_count;

#endif
