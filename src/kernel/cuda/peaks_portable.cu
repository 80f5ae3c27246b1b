/* The rate of products of warps (16 x 16 by 16 x 8), operands and sums in registers. */
#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/peaks_random.cuh"
#include "kernel/cuda/peaks_table.h"

namespace ln {

enum { THREADS = 512, CHAINS = 8 /* products under way in a warp */ };

static __global__ void __launch_bounds__(THREADS) peak_warp_products(int64_t rounds, float *sums) {
    uint32_t left[4], right[CHAINS][2];
    float sum[CHAINS][4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) left[i] = random_pair(threadIdx.x * 4 + i);
#pragma unroll
    for (int i = 0; i < 2 * CHAINS; i++) right[i / 2][i % 2] = random_pair(4 * THREADS + threadIdx.x * 2 * CHAINS + i);
    for (int64_t round = 0; round < rounds; round++)
#pragma unroll
        for (int i = 0; i < CHAINS; i++) add_product(sum[i], left, right[i]);
    float all = 0;
#pragma unroll
    for (int i = 0; i < 4 * CHAINS; i++) all += sum[i / 4][i % 4];
    sums[blockIdx.x * THREADS + threadIdx.x] = all;
}

} // namespace ln

extern "C" ln_cuda_code ln_cuda_peaks_portable(const ln_cuda_device *device, int64_t rounds, float *sums, void *stream,
                                               double *operations) {
    const int blocks = 2 * device->multiprocessors;
    *operations = 2.0 * 16 * 16 * 8 * ln::CHAINS * (ln::THREADS / 32) * (double)rounds * blocks;
    return ln::launch(ln::peak_warp_products, dim3((unsigned)blocks), dim3(ln::THREADS), 0, stream, rounds, sums);
}
