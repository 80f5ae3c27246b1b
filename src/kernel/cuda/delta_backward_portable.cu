/* The kernels of the delta rule's backward for compute capability 8.0 and newer. */
#include "kernel/cuda/delta_backward_start.cuh"

using namespace ln;

const ln_cuda_delta_backward_kernel ln_cuda_delta_backward_portable[] = {
    delta_backward_row<warp_products, 128, false, 1, 1>("portable 128", 8),
    delta_backward_row<warp_products, 64, false, 1, 1>("portable 64", 8),
    delta_backward_row<warp_products, 128, true, 1, 1>("portable channel 128", 8),
    delta_backward_row<warp_products, 64, true, 1, 1>("portable channel 64", 8),
};
const int ln_cuda_delta_backward_portable_count =
    sizeof ln_cuda_delta_backward_portable / sizeof ln_cuda_delta_backward_portable[0];
