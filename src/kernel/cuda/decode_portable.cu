/* The decode kernels for compute capability 8.0 and newer. */
#include "kernel/cuda/decode_portable.cuh"

#include "kernel/cuda/decode_table.h"

using namespace ln;

const ln_cuda_decode_kernel ln_cuda_decode_portable_kernels[] = {
    decode_kernel<LN_CUDA_PAGE_BF16, 128, 1, 4, 2, 2, 2>("bf16 128 w4 s2 b2 x2"),
    decode_kernel<LN_CUDA_PAGE_BF16, 128, 2, 4, 5, 1>("bf16 128 c2 w4 s5 b1"),
    decode_kernel<LN_CUDA_PAGE_BF16, 64, 1, 8, 5, 1>("bf16 64 w8 s5 b1"),
    decode_kernel<LN_CUDA_PAGE_BF16, 96, 1, 8, 4, 1>("bf16 96 w8 s4 b1"),
    decode_kernel<LN_CUDA_PAGE_BF16, 192, 1, 8, 1, 1>("bf16 192 w8 s1 b1"),
    decode_kernel<LN_CUDA_PAGE_BF16, 256, 1, 4, 3, 1>("bf16 256 w4 s3 b1"),
    decode_kernel<LN_CUDA_PAGE_BF16, 256, 1, 8, 1, 1>("bf16 256 w8 s1 b1"),
    decode_kernel<LN_CUDA_PAGE_F16, 128, 1, 8, 3, 1>("f16 128 w8 s3 b1"),
    decode_kernel<LN_CUDA_PAGE_F16, 96, 1, 8, 4, 1>("f16 96 w8 s4 b1"),
    decode_kernel<LN_CUDA_PAGE_Q8_0, 128, 1, 8, 2, 2>("q8_0 128 w8 s2 b2"),
    decode_kernel<LN_CUDA_PAGE_Q4_0, 128, 1, 8, 4, 2, 4>("q4_0 128 w8 s4 b2 x4"),
    decode_kernel<LN_CUDA_PAGE_Q4_0, 128, 1, 16, 4, 1>("q4_0 128 w16 s4 b1"),
    decode_kernel<LN_CUDA_PAGE_Q4_0, 128, 1, 4, 3, 4>("q4_0 128 w4 s3 b4"),
    decode_kernel<LN_CUDA_PAGE_Q4_0, 96, 1, 8, 8, 1>("q4_0 96 w8 s8 b1"),
    decode_kernel<LN_CUDA_PAGE_Q8_0, 96, 1, 8, 4, 1>("q8_0 96 w8 s4 b1"),
    decode_kernel<LN_CUDA_PAGE_Q4, 128, 1, 8, 4, 2>("q4 128 w8 s4 b2"),
    decode_kernel<LN_CUDA_PAGE_Q4, 192, 1, 8, 4, 1>("q4 192 w8 s4 b1"),
    decode_kernel<LN_CUDA_PAGE_Q2, 128, 1, 8, 6, 2>("q2 128 w8 s6 b2"),
    decode_kernel<LN_CUDA_PAGE_Q2, 96, 1, 8, 8, 1>("q2 96 w8 s8 b1"),
    decode_kernel<LN_CUDA_PAGE_Q2, 256, 1, 4, 4, 1>("q2 256 w4 s4 b1"),
};
const int ln_cuda_decode_portable_count =
    sizeof ln_cuda_decode_portable_kernels / sizeof ln_cuda_decode_portable_kernels[0];
