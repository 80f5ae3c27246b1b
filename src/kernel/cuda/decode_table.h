/* Where the files of decode kernels leave their rows for the table. */
#ifndef LN_KERNEL_CUDA_DECODE_TABLE_H
#define LN_KERNEL_CUDA_DECODE_TABLE_H

#include "kernel/cuda/decode_cuda.h"

extern const ln_cuda_decode_kernel ln_cuda_decode_hopper_kernels[], ln_cuda_decode_portable_kernels[],
    ln_cuda_decode_codes_portable_kernels[], ln_cuda_decode_latent_portable_kernels[];
extern const int ln_cuda_decode_hopper_count, ln_cuda_decode_portable_count, ln_cuda_decode_codes_portable_count,
    ln_cuda_decode_latent_portable_count;

#endif
