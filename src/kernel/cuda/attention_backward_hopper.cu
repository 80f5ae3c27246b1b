/* The kernels for compute capability 9.0. Registers bound the tile: gradients of 128 keys take 128 of a thread's 240,
 * scores and changes of 64 queries 64 more. Heads of 96 run in tiles of 128 columns, of which the copy engine fills the
 * last 32 with zeros. */
#include "kernel/cuda/attention_backward_hopper.cuh"
#include "kernel/cuda/attention_backward_table.h"
#include "kernel/cuda/attention_backward_wide.cuh"

using namespace ln;

const ln_cuda_backward_kernel ln_cuda_backward_hopper_kernels[] = {
    backward_hopper_kernel<128, 128, 64, 3, 0>("hopper 128: 64 x 128", 128),
    backward_hopper_kernel<128, 128, 64, 3, UNORDERED>("hopper 128: unordered", 128),
    backward_hopper_kernel<128, 128, 64, 3, LATE>("hopper 128: 64 x 128 late", 128),
    backward_hopper_kernel<128, 128, 64, 3, LN_CUDA_CAP | LATE>("hopper 128: 64 x 128 cap", 128),
    backward_hopper_kernel<64, 64, 128, 3, LATE>("hopper 64: 128 x 128", 64),
    backward_hopper_kernel<64, 64, 128, 3, LN_CUDA_CAP | LATE>("hopper 64: 128 x 128 cap", 64),
    backward_hopper_kernel<128, 128, 64, 3, 0>("hopper 96: 64 x 128", 96),
    backward_hopper_kernel<128, 128, 64, 3, LN_CUDA_CAP | LATE>("hopper 96: 64 x 128 cap", 96),
    backward_wide_kernel<256, 256, 2, 0>("hopper 256: 64 x 64"),
    backward_wide_kernel<256, 256, 2, LN_CUDA_CAP>("hopper 256: 64 x 64 cap"),
    backward_wide_kernel<192, 192, 2, 0>("hopper 192: 64 x 64"),
    backward_wide_kernel<192, 192, 2, LN_CUDA_CAP>("hopper 192: 64 x 64 cap"),
    backward_wide_kernel<192, 128, 2, 0>("hopper 192/128: 64 x 64"),
    backward_wide_kernel<192, 128, 2, LN_CUDA_CAP>("hopper 192/128: 64 x 64 cap"),
};
const int ln_cuda_backward_hopper_count =
    sizeof ln_cuda_backward_hopper_kernels / sizeof ln_cuda_backward_hopper_kernels[0];
