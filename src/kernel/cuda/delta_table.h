/* The tables of the walking kernels of the delta rules, and the starts of the first kernels. */
#ifndef LN_KERNEL_CUDA_DELTA_TABLE_H
#define LN_KERNEL_CUDA_DELTA_TABLE_H

#include "kernel/cuda/delta_chunk.cuh"

extern const ln_cuda_delta_kernel ln_cuda_delta_hopper_kernels[], ln_cuda_delta_portable_kernels[];
extern const int ln_cuda_delta_hopper_count, ln_cuda_delta_portable_count;

/* Makes the records of all chunks. */
ln_cuda_code ln_cuda_delta_chunks(const ln::delta_run &run, void *stream);
ln_cuda_code ln_cuda_delta_key_chunks(const ln::delta_run &run, void *stream);

#endif
