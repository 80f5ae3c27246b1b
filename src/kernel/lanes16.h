/* Sixteen lanes of the compiler's vectors, whatever the instruction set of the file that includes this, and elementary
 * functions of them.
 *
 * e^x = 2^n 2^f with n = round(x / ln 2), f = (x - n ln 2) / ln 2, ln 2 split in two parts (Cody and Waite 1980) and
 * the polynomial of degree 6 of kernel/exponential.h: relative error below 2e-7 (measured over all floats by
 * tests/test_vector.c). Above 88.72 it is inf, below -87.33 it is 0. No operation is fused, so each instruction set
 * gives the same bits. */
#ifndef LN_KERNEL_LANES16_H
#define LN_KERNEL_LANES16_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernel/exponential.h"

enum { LANES = 16 };
typedef float lanes __attribute__((vector_size(64), may_alias));
typedef int32_t lanes_int __attribute__((vector_size(64), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE lanes splat(float value) {
    return value - (lanes){0};
}

INLINE lanes multiply_add(lanes a, lanes b, lanes c) {
    return a * b + c;
}

INLINE lanes load(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE void store(float *y, lanes v) {
    memcpy(y, &v, sizeof v);
}

/* The first `n` lanes from memory, the others `fill`. */
INLINE lanes load_some(const float *x, int64_t n, float fill) {
    float part[LANES];
    for (int i = 0; i < LANES; i++) part[i] = i < n ? x[i] : fill;
    return load(part);
}

INLINE void store_some(float *y, lanes v, int64_t n) {
    float part[LANES];
    store(part, v);
    memcpy(y, part, (size_t)n * sizeof *y);
}

INLINE lanes choose(lanes_int condition, lanes yes, lanes no) {
    return (lanes)((condition & (lanes_int)yes) | (~condition & (lanes_int)no));
}

INLINE float sum_lanes(lanes v) {
    float part[LANES];
    store(part, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

INLINE lanes exponential_lanes(lanes x) {
    const lanes high = splat(88.7228394f), low = splat(-87.3365448f), magic = splat(12582912.0f);
    lanes clamped = choose(x > high, high, x);
    clamped = choose(clamped < low, low, clamped);
    const lanes shifted = clamped * splat(1.44269502f) + magic, n = shifted - magic;
    const lanes r = (clamped - n * splat(0.693145752f)) - n * splat(1.42860677e-6f);
    const lanes f = r * splat(1.44269502f), p = LN_POWER_NEAR_6(f);
    /* Twice half the exponent: 2^128 would not be a float. */
    const lanes_int exponent = (lanes_int)shifted - (lanes_int)magic, half = exponent >> 1, rest = exponent - half;
    lanes y = p * (lanes)((half + 127) << 23) * (lanes)((rest + 127) << 23);
    y = choose(x > high, splat(INFINITY), y);
    return choose(x < low, splat(0), y);
}

INLINE lanes tanh_lanes(lanes x) {
    return splat(1) - splat(2) / (exponential_lanes(x + x) + splat(1));
}

INLINE lanes sigmoid_lanes(lanes x) {
    return splat(1) / (splat(1) + exponential_lanes(-x));
}

/* log(1 + e) for 0 <= e <= 1: 2 artanh(s), s = e / (2 + e) <= 1/3, by its series; the first term left out is 2e-9. */
INLINE lanes log1p_lanes(lanes e) {
    const lanes s = e / (splat(2) + e), q = s * s;
    lanes sum = splat(1.0f / 15);
    for (int k = 13; k > 0; k -= 2) sum = sum * q + splat(1.0f / (float)k);
    return (s + s) * sum;
}

/* log(1 / (1 + e^-x)) */
INLINE lanes log_sigmoid_lanes(lanes x) {
    const lanes size = choose(x < splat(0), -x, x);
    return choose(x < splat(0), x, splat(0)) - log1p_lanes(exponential_lanes(-size));
}

/* The lanes of a row from here on, `left` of them, and nothing behind its end. */
INLINE lanes load_left(const float *x, int64_t left) {
    return left >= LANES ? load(x) : load_some(x, left, 0);
}
INLINE void store_left(float *y, lanes v, int64_t left) {
    if (left >= LANES)
        store(y, v);
    else
        store_some(y, v, left);
}

#endif
