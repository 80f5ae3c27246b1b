/* Weights as product_cuda.h lays them out, seen by a thread. */
#ifndef LN_KERNEL_CUDA_WEIGHT_CUH
#define LN_KERNEL_CUDA_WEIGHT_CUH

#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/product_cuda.h"

namespace ln {

/* Where the codes of 8 columns of one row of a tile begin, of a warp's lanes: lane 4 (row % 8) + column / 8 % 4. In a
 * word of Q4_0, column j is the lower half of byte j and column 4 + j the upper; Q8_0 has bytes in order of the
 * columns, row g before row g + 8. */
struct weight_place {
    int64_t tile;
    int lane, upper, half; /* upper: row % 16 / 8; half: column % 64 / 32 */
};
static __device__ __forceinline__ weight_place place_of(int64_t columns, int64_t row, int64_t column) {
    const int64_t tiles = (columns + LN_CUDA_TILE_COLUMNS - 1) / LN_CUDA_TILE_COLUMNS;
    return {row / 16 * tiles + column / 64, (int)(row % 8 * 4 + column / 8 % 4), (int)(row % 16 / 8),
            (int)(column % 64 / 32)};
}
static __device__ __forceinline__ int64_t scale_place(const weight_place &at) {
    return at.tile * 32 + at.lane / 4 * 4 + at.half * 2 + at.upper;
}
static __device__ __forceinline__ int64_t q8_place(const weight_place &at) {
    return at.tile * 1024 + at.half * 512 + at.lane * 16 + at.upper * 8;
}
static __device__ __forceinline__ int64_t q4_place(const weight_place &at) {
    return at.tile * 512 + at.lane * 16 + at.half * 8 + at.upper * 4;
}

/* Four weights from a column on that is a multiple of four; for single rows, not for products. */
static __device__ __forceinline__ void weights_at(const ln_cuda_weight &weight, int64_t row, int64_t column,
                                                  float (&value)[4]) {
    if (weight.kind == LN_CUDA_WEIGHT_BF16) {
        const __nv_bfloat16 *from =
            (const __nv_bfloat16 *)weight.codes + row * ((weight.columns + 63) / 64 * 64) + column;
#pragma unroll
        for (int k = 0; k < 4; k++) value[k] = __bfloat162float(from[k]);
        return;
    }
    const weight_place at = place_of(weight.columns, row, column);
    const float scale = __half2float(((const __half *)weight.scales)[scale_place(at)]);
    const bool bytes = weight.kind == LN_CUDA_WEIGHT_Q8_0;
    const uint32_t word =
        *(const uint32_t *)((const char *)weight.codes + (bytes ? q8_place(at) + column % 8 : q4_place(at)));
#pragma unroll
    for (int k = 0; k < 4; k++)
        value[k] = scale * (float)(bytes ? (int)(signed char)(word >> 8 * k)
                                         : (int)(word >> (8 * k + (int)(column % 8)) & 15) - 8);
}

} // namespace ln

#endif
