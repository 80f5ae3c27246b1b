/* The kernels for compute capability 9.0, for bf16 or f16 (LN_CUDA_HALF in `number`). Tiles are as large as 240
 * registers a thread (two groups; 160 with three) and 227 KB of shared memory allow. Kernels with lists have tiles of
 * 128 x 64, of which larger tiles are made; keys larger than their values are those with factors. */
#ifndef LN_KERNEL_CUDA_ATTENTION_HOPPER_ROWS_CUH
#define LN_KERNEL_CUDA_ATTENTION_HOPPER_ROWS_CUH

#include "kernel/cuda/attention_hopper.cuh"
#include "kernel/cuda/attention_table.h"

#define LN_ROWS(number, key_size, value_size, keys, groups, options, name, short_rows)                            \
    ln::hopper_kernel<key_size, value_size, keys, groups, (options) | number>("hopper " name, short_rows),        \
        ln::hopper_kernel<key_size, value_size, keys, groups, (options) | number | LN_CUDA_WINDOW>(               \
            "hopper " name " window", short_rows),                                                                \
        ln::hopper_kernel<key_size, value_size, keys, groups, (options) | number | LN_CUDA_WINDOW | LN_CUDA_CAP>( \
            "hopper " name " cap", short_rows)
#define LN_LISTS(number, key_size, value_size, options, name)                                            \
    ln::hopper_kernel<key_size, value_size, 64, 2, (options) | number | LN_CUDA_LISTS | LN_CUDA_WINDOW>( \
        "hopper " name ": 128 x 64 lists", true)
#define LN_FACTORS(number, key_size, value_size, keys, options, name)                      \
    ln::hopper_kernel<key_size, value_size, keys, 2, (options) | number | LN_CUDA_WINDOW>( \
        "hopper " name ": 128 x " #keys " factors", true)

#define LN_HOPPER_ROWS(number)                                                                                        \
    ln::hopper_kernel<128, 128, 80, 3, ln::TURNS | number>("hopper 128: 192 x 80", false),                            \
        LN_ROWS(number, 128, 128, 128, 2, ln::TURNS | ln::HELD, "128: 128 x 128", true),                              \
        LN_ROWS(number, 64, 64, 128, 3, ln::TURNS, "64: 192 x 128", true),                                            \
        LN_ROWS(number, 256, 256, 80, 2, 0, "256: 128 x 80", true),                                                   \
        LN_ROWS(number, 96, 96, 96, 3, ln::TURNS, "96: 192 x 96", true),                                              \
        LN_ROWS(number, 192, 128, 128, 2, ln::TURNS, "192/128: 128 x 128", true),                                     \
        LN_ROWS(number, 192, 192, 112, 2, ln::TURNS, "192: 128 x 112", true),                                         \
        LN_FACTORS(number, 128, 64, 128, ln::TURNS, "128/64"), LN_FACTORS(number, 128, 96, 128, ln::TURNS, "128/96"), \
        LN_FACTORS(number, 256, 128, 96, 0, "256/128"), LN_FACTORS(number, 256, 192, 80, 0, "256/192"),               \
        LN_LISTS(number, 128, 128, ln::TURNS, "128"), LN_LISTS(number, 64, 64, ln::TURNS, "64"),                      \
        LN_LISTS(number, 256, 256, 0, "256"), LN_LISTS(number, 96, 96, ln::TURNS, "96"),                              \
        LN_LISTS(number, 192, 128, ln::TURNS, "192/128"), LN_LISTS(number, 192, 192, ln::TURNS, "192")

#endif
