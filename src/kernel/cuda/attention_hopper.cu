#include "kernel/cuda/attention_hopper_rows.cuh"

const ln_cuda_kernel ln_cuda_hopper_kernels[] = {LN_HOPPER_ROWS(0)};
const int ln_cuda_hopper_count = sizeof ln_cuda_hopper_kernels / sizeof ln_cuda_hopper_kernels[0];
