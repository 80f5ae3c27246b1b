/* The kernels of the delta rule's backward for compute capability 9.0. */
#include "kernel/cuda/delta_backward_hopper.cuh"
#include "kernel/cuda/delta_backward_start.cuh"

using namespace ln;

#define LN_ROW(key, walk_stages, stages, name)                                               \
    {                                                                                        \
        name, key, LN_CUDA_DECAY_HEAD, delta_backward_bytes<group_products, key, walk_stages, stages>(), 9, \
            delta_backward_start<group_products, key, walk_stages, stages>                   \
    }

const ln_cuda_delta_backward_kernel ln_cuda_delta_backward_hopper[] = {
    LN_ROW(128, 3, 2, "group 128"),
    LN_ROW(128, 2, 2, "group 128 w2"),
    LN_ROW(64, 3, 2, "group 64"),
};
const int ln_cuda_delta_backward_hopper_count =
    sizeof ln_cuda_delta_backward_hopper / sizeof ln_cuda_delta_backward_hopper[0];
