/* The rows of the table of kernels for compute capability 9.0, for bf16 (0, "") or f16 (LN_CUDA_HALF, " f16"). Heads of
 * 96 run in tiles of 128 columns, of which the copy engine fills the last 32 with zeros. */
#ifndef LN_KERNEL_CUDA_ATTENTION_BACKWARD_HOPPER_ROWS_CUH
#define LN_KERNEL_CUDA_ATTENTION_BACKWARD_HOPPER_ROWS_CUH

#include "kernel/cuda/attention_backward_hopper.cuh"
#include "kernel/cuda/attention_backward_table.h"
#include "kernel/cuda/attention_backward_tall.cuh"
#include "kernel/cuda/attention_backward_wide.cuh"

#define LN_BACKWARD_SQUARE(size, wide, queries, options, name, type)                          \
    ln::backward_hopper_kernel<wide, wide, queries, 3, (options)>("hopper " name type, size), \
        ln::backward_hopper_kernel<wide, wide, queries, 3, (options) | LN_CUDA_CAP>("hopper " name " cap" type, size)
#define LN_BACKWARD_WIDE(key_size, value_size, options, name, type)                    \
    ln::backward_wide_kernel<key_size, value_size, 2, (options)>("hopper " name type), \
        ln::backward_wide_kernel<key_size, value_size, 2, (options) | LN_CUDA_CAP>("hopper " name " cap" type)
#define LN_BACKWARD_TALL(key_size, value_size, options, name, type)                 \
    ln::backward_tall_kernel<key_size, value_size, (options)>("hopper " name type), \
        ln::backward_tall_kernel<key_size, value_size, (options) | LN_CUDA_CAP>("hopper " name " cap" type)
#define LN_BACKWARD_ROWS(half, type)                                                \
    LN_BACKWARD_SQUARE(128, 128, 64, (half) | ln::ENGINE, "128: 64 x 128", type),   \
        LN_BACKWARD_SQUARE(64, 64, 128, half, "64: 128 x 128", type),               \
        LN_BACKWARD_SQUARE(96, 128, 64, (half) | ln::ENGINE, "96: 64 x 128", type), \
        LN_BACKWARD_WIDE(256, 256, half, "256: 64 x 64", type),                     \
        LN_BACKWARD_WIDE(192, 192, half, "192: 64 x 64", type),                     \
        LN_BACKWARD_TALL(192, 128, half, "192/128: 64 x 128", type)

#endif
