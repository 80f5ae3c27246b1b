/* The kernels of linear attention for compute capability 9.0: as many stages as shared memory holds. */
#include "kernel/cuda/linear_hopper.cuh"
#include "kernel/cuda/linear_table.h"

using namespace ln;

const ln_cuda_linear_kernel ln_cuda_linear_hopper_kernels[] = {
    hopper_kernel<128, 2, 3, 6>("hopper 128: 128 columns"), hopper_kernel<128, 1, 2, 3>("hopper 128: 64 columns"),
    hopper_kernel<64, 2, 4, 6>("hopper 64: 128 columns"),   hopper_kernel<64, 1, 3, 4>("hopper 64: 64 columns"),
    hopper_kernel<128, 2, 2, 3, true>("hopper 128 keys"),
};
const int ln_cuda_linear_hopper_count = sizeof ln_cuda_linear_hopper_kernels / sizeof ln_cuda_linear_hopper_kernels[0];
