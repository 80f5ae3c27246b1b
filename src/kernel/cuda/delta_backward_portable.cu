/* The kernels of the delta rule's backward for compute capability 8.0 and newer. */
#include "kernel/cuda/delta_backward_start.cuh"

using namespace ln;

#define LN_ROW(key, name)                                                             \
    {                                                                                 \
        name, key, LN_CUDA_DECAY_HEAD, delta_backward_bytes<warp_products, key, 1, 1>(), 8, \
            delta_backward_start<warp_products, key, 1, 1>                            \
    }

const ln_cuda_delta_backward_kernel ln_cuda_delta_backward_portable[] = {
    LN_ROW(128, "portable 128"),
    LN_ROW(64, "portable 64"),
};
const int ln_cuda_delta_backward_portable_count =
    sizeof ln_cuda_delta_backward_portable / sizeof ln_cuda_delta_backward_portable[0];
