/* The kernels of the delta rule's backward for compute capability 9.0. */
#include "kernel/cuda/delta_backward_hopper.cuh"
#include "kernel/cuda/delta_backward_start.cuh"

using namespace ln;

const ln_cuda_delta_backward_kernel ln_cuda_delta_backward_hopper[] = {
    delta_backward_row<group_products, 128, false, 3, 3>("group 128", 9),
    delta_backward_row<group_products, 64, false, 3, 3>("group 64", 9),
    delta_backward_row<group_products, 128, true, 2, 1>("group channel 128", 9),
    delta_backward_row<group_products, 64, true, 2, 1>("group channel 64", 9),
};
const int ln_cuda_delta_backward_hopper_count =
    sizeof ln_cuda_delta_backward_hopper / sizeof ln_cuda_delta_backward_hopper[0];
