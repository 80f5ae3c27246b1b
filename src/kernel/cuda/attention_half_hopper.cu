#include "kernel/cuda/attention_hopper_rows.cuh"

const ln_cuda_kernel ln_cuda_hopper_half_kernels[] = {LN_HOPPER_ROWS(LN_CUDA_HALF)};
const int ln_cuda_hopper_half_count = sizeof ln_cuda_hopper_half_kernels / sizeof ln_cuda_hopper_half_kernels[0];
