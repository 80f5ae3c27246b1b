/* The kernels for compute capability 9.0. Registers bound the tile: gradients of 128 keys take 128 of a thread's 240,
 * scores and changes of 64 queries 64 more. */
#include "kernel/cuda/attention_backward_hopper.cuh"
#include "kernel/cuda/attention_backward_table.h"

using namespace ln;

const ln_cuda_backward_kernel ln_cuda_backward_hopper_kernels[] = {
    backward_hopper_kernel<128, 128, 64, 2, 0>("hopper 128: 64 x 128", 128),
};
const int ln_cuda_backward_hopper_count =
    sizeof ln_cuda_backward_hopper_kernels / sizeof ln_cuda_backward_hopper_kernels[0];
