/* The compiled kernels of each file, best first. */
#ifndef LN_KERNEL_CUDA_ATTENTION_TABLE_H
#define LN_KERNEL_CUDA_ATTENTION_TABLE_H

#include "kernel/cuda/attention_cuda.h"

extern const ln_cuda_kernel ln_cuda_hopper_kernels[], ln_cuda_portable_kernels[];
extern const int ln_cuda_hopper_count, ln_cuda_portable_count;

#endif
