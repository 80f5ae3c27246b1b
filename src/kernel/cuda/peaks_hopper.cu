/* The rate of products of warp groups: two groups a multiprocessor multiply the same two tiles of random numbers in
 * shared memory again and again, 64 x 64 by 64 x 256 each, sums in registers. */
#include "kernel/cuda/hopper.cuh"
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/peaks_random.cuh"
#include "kernel/cuda/peaks_table.h"

namespace ln {

enum { THREADS = 256, ROWS = 64, RIGHT = 256, COLUMNS = 64, TILE_BYTES = (2 * ROWS + RIGHT) * COLUMNS * 2 };

static __global__ void __launch_bounds__(THREADS, 1) peak_products(int64_t rounds, float *sums) {
    char *shared = (char *)(((uintptr_t)block_memory() + 1023) & ~(uintptr_t)1023);
    for (int i = threadIdx.x; i < TILE_BYTES / 4; i += THREADS) ((uint32_t *)shared)[i] = random_pair(i);
    stores_to_async();
    __syncthreads();
    const int group = threadIdx.x / 128;
    const uint64_t left = tile_descriptor<COLUMNS, ROWS>(shared + group * ROWS * COLUMNS * 2),
                   right = tile_descriptor<COLUMNS, RIGHT>(shared + 2 * ROWS * COLUMNS * 2);
    float sum[RIGHT / 2];
#pragma unroll
    for (int i = 0; i < RIGHT / 2; i++) sum[i] = 0;
    for (int64_t round = 0; round < rounds; round++) {
        products_open();
#pragma unroll
        for (int k = 0; k < COLUMNS / 16; k++) product<RIGHT>::shared<true>(sum, left + 2 * k, right + 2 * k);
        products_commit();
        products_wait<0>();
        hold(sum);
    }
    float all = 0;
#pragma unroll
    for (int i = 0; i < RIGHT / 2; i++) all += sum[i];
    sums[blockIdx.x * THREADS + threadIdx.x] = all;
}

} // namespace ln

extern "C" ln_cuda_code ln_cuda_peaks_hopper(const ln_cuda_device *device, int64_t rounds, float *sums, void *stream,
                                             double *operations) {
    *operations = 2.0 * 2 * ln::ROWS * ln::RIGHT * ln::COLUMNS * (double)rounds * device->multiprocessors;
    return ln::launch(ln::peak_products, dim3((unsigned)device->multiprocessors), dim3(ln::THREADS),
                      ln::TILE_BYTES + 1024, stream, rounds, sums);
}
