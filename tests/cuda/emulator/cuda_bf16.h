/* bf16. */
#ifndef LN_EMULATOR_CUDA_BF16_H
#define LN_EMULATOR_CUDA_BF16_H

#include "half_numbers.h"

LN_HALF(__nv_bfloat16, __nv_bfloat162, __nv_bfloat16_raw, of_bf16, bf16_of)
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

static inline __nv_bfloat16 __float2bfloat16(float x) {
    return x;
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    return x;
}
static inline __nv_bfloat16 __double2bfloat16(double x) {
    return x;
}
static inline float __bfloat162float(__nv_bfloat16 x) {
    return x;
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {x, y};
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 x) {
    return {x.x, x.y};
}
static inline __nv_bfloat162 __float2bfloat162_rn(float x) {
    return {x, x};
}
static inline float2 __bfloat1622float2(__nv_bfloat162 x) {
    return {x.x, x.y};
}
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return {x, y};
}
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) {
    return {x, x};
}
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 x) {
    return x.x;
}
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 x) {
    return x.y;
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
    return x.__x;
}
static inline short __bfloat16_as_short(__nv_bfloat16 x) {
    return (short)x.__x;
}
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) {
    return __nv_bfloat16_raw{x};
}

#endif
