/* The kernels for compute capability 9.0. Tiles are as large as 240 registers a thread (two groups; 160 with three) and
 * 227 KB of shared memory allow. */
#include "kernel/cuda/attention_hopper.cuh"
#include "kernel/cuda/attention_table.h"

using namespace ln;

enum { WINDOW = LN_CUDA_WINDOW, CAP = LN_CUDA_WINDOW | LN_CUDA_CAP };

#define LN_ROWS(key_size, value_size, keys, groups, options, name, short_rows)                                       \
    hopper_kernel<key_size, value_size, keys, groups, (options)>("hopper " name, short_rows),                        \
        hopper_kernel<key_size, value_size, keys, groups, (options) | WINDOW>("hopper " name " window", short_rows), \
        hopper_kernel<key_size, value_size, keys, groups, (options) | CAP>("hopper " name " cap", short_rows)

const ln_cuda_kernel ln_cuda_hopper_kernels[] = {
    hopper_kernel<128, 128, 80, 3, TURNS>("hopper 128: 192 x 80", false),
    LN_ROWS(128, 128, 128, 2, TURNS | HELD, "128: 128 x 128", true),
    LN_ROWS(64, 64, 128, 3, TURNS, "64: 192 x 128", true),
    LN_ROWS(256, 256, 80, 2, 0, "256: 128 x 80", true),
    LN_ROWS(96, 96, 96, 3, TURNS, "96: 192 x 96", true),
    LN_ROWS(192, 128, 128, 2, TURNS, "192/128: 128 x 128", true),
    LN_ROWS(192, 192, 112, 2, TURNS, "192: 128 x 112", true),
};
const int ln_cuda_hopper_count = sizeof ln_cuda_hopper_kernels / sizeof ln_cuda_hopper_kernels[0];
