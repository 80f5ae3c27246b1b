/* f16. */
#ifndef LN_EMULATOR_CUDA_FP16_H
#define LN_EMULATOR_CUDA_FP16_H

#include "half_numbers.h"

LN_HALF(__half, __half2, __half_raw, of_f16, f16_of)
typedef __half half;
typedef __half2 half2;

static inline __half __float2half(float x) {
    return x;
}
static inline __half __float2half_rn(float x) {
    return x;
}
static inline __half __double2half(double x) {
    return x;
}
static inline float __half2float(__half x) {
    return x;
}
static inline __half2 __floats2half2_rn(float x, float y) {
    return {x, y};
}
static inline __half2 __float22half2_rn(float2 x) {
    return {x.x, x.y};
}
static inline __half2 __float2half2_rn(float x) {
    return {x, x};
}
static inline float2 __half22float2(__half2 x) {
    return {x.x, x.y};
}
static inline __half2 __halves2half2(__half x, __half y) {
    return {x, y};
}
static inline __half2 __half2half2(__half x) {
    return {x, x};
}
static inline __half __low2half(__half2 x) {
    return x.x;
}
static inline __half __high2half(__half2 x) {
    return x.y;
}
static inline unsigned short __half_as_ushort(__half x) {
    return x.__x;
}
static inline __half __ushort_as_half(unsigned short x) {
    return __half_raw{x};
}

#endif
