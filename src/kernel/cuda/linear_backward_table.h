/* The kernels behind the walks of a gradient. */
#ifndef LN_KERNEL_CUDA_LINEAR_BACKWARD_TABLE_H
#define LN_KERNEL_CUDA_LINEAR_BACKWARD_TABLE_H

#include "kernel/cuda/linear_backward_cuda.h"

/* What they are given; rows are float32 [tokens][heads][size]. */
typedef struct ln_cuda_linear_finish {
    ln_cuda_linear_tensors tensors;
    ln_cuda_linear_gradients gradients;
    const float *query_rows, *key_rows, *value_rows;
    float *along, *skip;                /* [tokens][heads] */
    ln_cuda_linear_slots before, after; /* states, and their gradients divided by the scale */
    int64_t tokens;
    int heads, key_heads, group, tiled, key_size, value_size, output_float32;
    float scale;
} ln_cuda_linear_finish;

/* Sums over heads that share keys, products along channels; then the gradients of decays, by
 * segments. */
ln_cuda_code ln_cuda_linear_finish_rows(const ln_cuda_linear_finish *finish, void *stream);
ln_cuda_code ln_cuda_linear_finish_decays(const ln_cuda_linear_finish *finish, const ln_cuda_linear_task *tasks,
                                          int task_count, bool of_keys, void *stream);

#endif
