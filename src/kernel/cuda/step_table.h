/* What the host's side of the step and its kernels share. */
#ifndef LN_KERNEL_CUDA_STEP_TABLE_H
#define LN_KERNEL_CUDA_STEP_TABLE_H

#include "kernel/cuda/step_cuda.h"

/* What outputs are divided by, dot being scale n . query: max(|dot|, e^-maximum) + 1e-6; max(|dot|, 1); dot + 1e-10. */
typedef enum ln_cuda_step_sum {
    LN_CUDA_STEP_SUM_NONE,
    LN_CUDA_STEP_SUM_MAXIMUM,
    LN_CUDA_STEP_SUM_ONE,
    LN_CUDA_STEP_SUM_PLAIN
} ln_cuda_step_sum;

typedef struct ln_cuda_step_run {
    ln_cuda_step_tensors tensors;
    ln_cuda_step_parts parts;
    ln_cuda_step_sum sum;
    int64_t slot_stride, head_stride;
    int sequences, heads, key_heads, key_size, value_size;
    int tiles, blocks_of_head; /* pieces of the columns; blocks that share them */
    float scale;
    bool tiled_heads, normalise_keys, output_float32;
} ln_cuda_step_run;

extern const ln_cuda_step_kernel ln_cuda_portable_steps[];
extern const int ln_cuda_portable_step_count;

#endif
