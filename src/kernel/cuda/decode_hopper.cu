/* The decode kernels for compute capability 9.0: columns of rows, warps, stages and blocks as measured best
 * (docs/cuda-ladder-decode.md). Plain rows come by the copy engine; in short contexts, where what counts is how many
 * things happen one after the other, warps load them to registers. Codes in tiles of 8 rows are faster when lanes copy
 * for themselves, with more warps: the warp that copies costs registers, which are given to warps by fours. */
#include "kernel/cuda/decode_bulk.cuh"
#include "kernel/cuda/decode_latent.cuh"
#include "kernel/cuda/decode_pairs.cuh"
#include "kernel/cuda/decode_portable.cuh"
#include "kernel/cuda/decode_short.cuh"
#include "kernel/cuda/decode_table.h"

using namespace ln;

template <int FORMAT, int SIZE, int STAGES> static ln_cuda_decode_kernel codes_kernel(const char *name) {
    return lane_kernel<decode_shape<FORMAT, SIZE, 1, 8, STAGES, LANE_ORDER, 2>, 9>(name);
}

#define LN_PLAIN(format, name)                                                                                         \
    short_kernel<format, 128, 1, 8, 1>(name " 128 x 8, short"),                                                        \
        short_kernel<format, 128, 2, 8, 1>(name " 128 x 16, short"),                                                   \
        short_kernel<format, 64, 1, 6, 2>(name " 64 x 8, short"),                                                      \
        bulk_kernel<format, 128, 1, 4, 2, 2>(name " 128 x 8"), bulk_kernel<format, 128, 2, 4, 2, 2>(name " 128 x 16"), \
        bulk_kernel<format, 64, 1, 12, 2, 1>(name " 64 x 8"), bulk_kernel<format, 64, 2, 8, 2, 1>(name " 64 x 16"),    \
        bulk_kernel<format, 192, 1, 8, 1, 1>(name " 192 x 8"), bulk_kernel<format, 192, 2, 7, 1, 1>(name " 192 x 16"), \
        bulk_kernel<format, 256, 1, 6, 1, 1>(name " 256 x 8")
#define LN_WIDE_CODES(format, name)                                                                               \
    bulk_kernel<format, 128, 2, 3, 4, 2>(name " 128 x 16"), bulk_kernel<format, 64, 2, 7, 3, 1>(name " 64 x 16"), \
        bulk_kernel<format, 96, 2, 3, 4, 2>(name " 96 x 16")
#define LN_CODES(format, name, stages)                                                                           \
    codes_kernel<format, 128, stages>(name " 128 x 8"), codes_kernel<format, 64, stages>(name " 64 x 8"),        \
        codes_kernel<format, 96, stages>(name " 96 x 8"), bulk_kernel<format, 192, 1, 3, 3, 2>(name " 192 x 8"), \
        bulk_kernel<format, 256, 1, 3, 3, 2>(name " 256 x 8"), LN_WIDE_CODES(format, name)

const ln_cuda_decode_kernel ln_cuda_decode_hopper_kernels[] = {
    LN_PLAIN(LN_CUDA_PAGE_BF16, "bf16"),
    LN_PLAIN(LN_CUDA_PAGE_F16, "f16"),
    LN_CODES(LN_CUDA_PAGE_Q8_0, "q8_0", 2),
    pair_kernel<128, 1, 6, 2, 2>("q4_0 128 x 8"),
    pair_kernel<64, 1, 6, 2, 2>("q4_0 64 x 8"),
    pair_kernel<96, 1, 6, 2, 2>("q4_0 96 x 8"),
    pair_kernel<192, 1, 8, 2, 1>("q4_0 192 x 8"),
    pair_kernel<256, 1, 8, 2, 1>("q4_0 256 x 8"),
    LN_WIDE_CODES(LN_CUDA_PAGE_Q4_0, "q4_0"),
    LN_CODES(LN_CUDA_PAGE_Q4, "q4", 4),
    LN_CODES(LN_CUDA_PAGE_Q2, "q2", 4),
    {"latent 64 x 64", LN_CUDA_PAGE_BF16, latent::KEY, latent::VALUE, latent::ROWS, latent::THREADS,
     latent::SHARED_BYTES, 1, false, latent::UNIT_SHIFT, 9, true, latent::start<false>},
    {"latent f16 64 x 64", LN_CUDA_PAGE_F16, latent::KEY, latent::VALUE, latent::ROWS, latent::THREADS,
     latent::SHARED_BYTES, 1, false, latent::UNIT_SHIFT, 9, true, latent::start<true>},
};
const int ln_cuda_decode_hopper_count = sizeof ln_cuda_decode_hopper_kernels / sizeof ln_cuda_decode_hopper_kernels[0];
