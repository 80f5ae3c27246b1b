/* The decode kernels of plain pages for compute capability 8.0 and newer. */
#include "kernel/cuda/decode_portable.cuh"
#include "kernel/cuda/decode_table.h"

using namespace ln;

#define LN_SIZES(format, name)                                         \
    portable_kernel<format, 128, 1>("portable " name " 128 x 8"),      \
        portable_kernel<format, 128, 2>("portable " name " 128 x 16"), \
        portable_kernel<format, 64, 1>("portable " name " 64 x 8"),    \
        portable_kernel<format, 64, 2>("portable " name " 64 x 16"),   \
        portable_kernel<format, 96, 1>("portable " name " 96 x 8"),    \
        portable_kernel<format, 96, 2>("portable " name " 96 x 16"),   \
        portable_kernel<format, 192, 1>("portable " name " 192 x 8"),  \
        portable_kernel<format, 256, 1>("portable " name " 256 x 8")

const ln_cuda_decode_kernel ln_cuda_decode_portable_kernels[] = {
    LN_SIZES(LN_CUDA_PAGE_BF16, "bf16"),
    LN_SIZES(LN_CUDA_PAGE_F16, "f16"),
};
const int ln_cuda_decode_portable_count =
    sizeof ln_cuda_decode_portable_kernels / sizeof ln_cuda_decode_portable_kernels[0];
