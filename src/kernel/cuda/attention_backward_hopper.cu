/* The kernels for compute capability 9.0, bf16. Registers bound the tile: gradients of 128 keys take 128 of a thread's
 * 240, scores and changes of 64 queries 64 more. */
#include "kernel/cuda/attention_backward_hopper_rows.cuh"

const ln_cuda_backward_kernel ln_cuda_backward_hopper_kernels[] = {LN_BACKWARD_ROWS(0, "")};
const int ln_cuda_backward_hopper_count =
    sizeof ln_cuda_backward_hopper_kernels / sizeof ln_cuda_backward_hopper_kernels[0];
