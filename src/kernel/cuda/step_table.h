/* What the host's side of the step and its kernels share. */
#ifndef LN_KERNEL_CUDA_STEP_TABLE_H
#define LN_KERNEL_CUDA_STEP_TABLE_H

#include "kernel/cuda/step_cuda.h"

typedef struct ln_cuda_step_run {
    ln_cuda_step_tensors tensors;
    ln_cuda_step_parts parts;
    int64_t slot_stride, head_stride;
    int sequences, heads, key_heads, key_size, value_size;
    int tiles, blocks_of_head; /* pieces of the columns; blocks that share them */
    float scale;
    bool tiled_heads, normalise_keys, output_float32;
} ln_cuda_step_run;

extern const ln_cuda_step_kernel ln_cuda_portable_steps[];
extern const int ln_cuda_portable_step_count;

#endif
