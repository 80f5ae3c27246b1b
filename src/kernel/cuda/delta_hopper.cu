/* The kernels of delta_hopper.cuh that are compiled: size of keys, groups of 64 columns, decays of keys, stages,
 * sharers. */
#include "kernel/cuda/delta_hopper.cuh"
#include "kernel/cuda/delta_table.h"

const ln_cuda_delta_kernel ln_cuda_delta_hopper_kernels[] = {
    ln::delta_hopper_kernel<128, 1, false, 4, 2>("delta, d128, 2 x 64 columns"),
    ln::delta_hopper_kernel<128, 1, false, 4, 1>("delta, d128, 64 columns"),
    ln::delta_hopper_kernel<128, 2, false, 3, 1>("delta, d128, 128 columns"),
    ln::delta_hopper_kernel<128, 1, true, 3, 2>("delta, decays of keys, d128, 2 x 64 columns"),
    ln::delta_hopper_kernel<128, 1, true, 3, 1>("delta, decays of keys, d128, 64 columns"),
    ln::delta_hopper_kernel<128, 2, true, 2, 1>("delta, decays of keys, d128, 128 columns"),
    ln::delta_hopper_kernel<64, 1, false, 4, 1>("delta, d64, 64 columns"),
    ln::delta_hopper_kernel<64, 1, true, 3, 1>("delta, decays of keys, d64, 64 columns"),
};
const int ln_cuda_delta_hopper_count = sizeof ln_cuda_delta_hopper_kernels / sizeof ln_cuda_delta_hopper_kernels[0];
