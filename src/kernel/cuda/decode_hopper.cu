/* The decode kernels for compute capability 9.0. */
#include "kernel/cuda/decode_bulk.cuh"
#include "kernel/cuda/decode_latent.cuh"
#include "kernel/cuda/decode_table.h"

using namespace ln;

const ln_cuda_decode_kernel ln_cuda_decode_hopper_kernels[] = {
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 1, 8, 2, 1>("bulk bf16 128 w8 s2 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 1, 8, 1, 1>("bulk bf16 128 w8 s1 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 1, 12, 1, 1>("bulk bf16 128 w12 s1 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 1, 6, 2, 1>("bulk bf16 128 w6 s2 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 1, 4, 3, 1>("bulk bf16 128 w4 s3 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 1, 4, 4, 1>("bulk bf16 128 w4 s4 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 1, 4, 2, 2>("bulk bf16 128 w4 s2 b2"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 1, 4, 1, 3>("bulk bf16 128 w4 s1 b3"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 2, 4, 3, 1>("bulk bf16 128 c2 w4 s3 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 128, 2, 8, 1, 1>("bulk bf16 128 c2 w8 s1 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 64, 1, 8, 3, 1>("bulk bf16 64 w8 s3 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 192, 1, 4, 2, 1>("bulk bf16 192 w4 s2 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 256, 1, 4, 2, 1>("bulk bf16 256 w4 s2 b1"),
    bulk_kernel<LN_CUDA_PAGE_BF16, 256, 1, 8, 1, 1>("bulk bf16 256 w8 s1 b1"),
    bulk_kernel<LN_CUDA_PAGE_F16, 128, 1, 8, 2, 1>("bulk f16 128 w8 s2 b1"),
    bulk_kernel<LN_CUDA_PAGE_Q8_0, 128, 1, 8, 2, 1>("bulk q8_0 128 w8 s2 b1"),
    bulk_kernel<LN_CUDA_PAGE_Q8_0, 128, 1, 8, 1, 2>("bulk q8_0 128 w8 s1 b2"),
    bulk_kernel<LN_CUDA_PAGE_Q4_0, 128, 1, 8, 3, 2>("bulk q4_0 128 w8 s3 b2"),
    bulk_kernel<LN_CUDA_PAGE_Q4_0, 128, 1, 12, 3, 1>("bulk q4_0 128 w12 s3 b1"),
    bulk_kernel<LN_CUDA_PAGE_Q4_0, 128, 1, 4, 2, 4>("bulk q4_0 128 w4 s2 b4"),
    bulk_kernel<LN_CUDA_PAGE_Q4, 128, 1, 4, 2, 4>("bulk q4 128 w4 s2 b4"),
    bulk_kernel<LN_CUDA_PAGE_Q2, 128, 1, 4, 2, 4>("bulk q2 128 w4 s2 b4"),
    {"latent 64 x 64", LN_CUDA_PAGE_BF16, latent::KEY, latent::VALUE, latent::ROWS, latent::THREADS,
     latent::SHARED_BYTES, 1, 1, latent::UNIT_SHIFT, 9, true, latent::start},
};
const int ln_cuda_decode_hopper_count = sizeof ln_cuda_decode_hopper_kernels / sizeof ln_cuda_decode_hopper_kernels[0];
