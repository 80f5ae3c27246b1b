/* Rounding numbers to the two digits of ln_cuda_digits. */
#ifndef LN_KERNEL_CUDA_DIGITS_CUH
#define LN_KERNEL_CUDA_DIGITS_CUH

#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/product_cuda.h"

namespace ln {

/* Of a block of 32 columns whose largest is `most`, which is infinite where the block is not finite: it becomes NaN. */
struct digit_scale {
    float step, inverse;
};
static __device__ __forceinline__ digit_scale digits_scale(float most) {
    if (!(most < CUDART_INF_F)) return {CUDART_NAN_F, 0};
    return {most * (1.0f / 32512), most > 1e-30f ? 32512 * reciprocal(most) : 0};
}
/* |x|, infinite where it is no number. */
static __device__ __forceinline__ float digits_size(float x) {
    return fabsf(x) <= 3.4e38f ? fabsf(x) : CUDART_INF_F;
}
/* Four columns, one after the other. */
static __device__ __forceinline__ void digits_of(const float (&x)[4], float inverse, uint32_t *high, uint32_t *low) {
    *high = *low = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int value = inverse > 0 ? __float2int_rn(x[k] * inverse) : 0, upper = (value + 128) >> 8;
        *high |= (uint32_t)(upper & 255) << 8 * k;
        *low |= (uint32_t)((value - 256 * upper) & 255) << 8 * k;
    }
}
/* Where four columns from a multiple of four on are, of a token's high digits; its low ones are `columns` later. */
static __device__ __forceinline__ int64_t digits_place(int64_t column) {
    return column / 64 * 64 + column % 32 / 8 * 16 + column % 64 / 32 * 8 + column % 8;
}

} // namespace ln

#endif
