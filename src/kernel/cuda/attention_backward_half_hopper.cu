/* The kernels for compute capability 9.0, f16. */
#include "kernel/cuda/attention_backward_hopper_rows.cuh"

const ln_cuda_backward_kernel ln_cuda_backward_hopper_half_kernels[] = {LN_BACKWARD_ROWS(LN_CUDA_HALF, " f16")};
const int ln_cuda_backward_hopper_half_count =
    sizeof ln_cuda_backward_hopper_half_kernels / sizeof ln_cuda_backward_hopper_half_kernels[0];
