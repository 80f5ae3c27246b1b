/* A vector of AVX2 and what every family of kernels does with it. */
#ifndef LN_KERNEL_X86_LANES_AVX2_H
#define LN_KERNEL_X86_LANES_AVX2_H

#include <immintrin.h>

#define HELPER static inline __attribute__((always_inline))

enum { W = 8 };
typedef __m256 lanes;

HELPER lanes splat(float x) {
    return _mm256_set1_ps(x);
}
HELPER lanes add(lanes a, lanes b) {
    return _mm256_add_ps(a, b);
}
HELPER lanes subtract(lanes a, lanes b) {
    return _mm256_sub_ps(a, b);
}
HELPER lanes multiply(lanes a, lanes b) {
    return _mm256_mul_ps(a, b);
}
HELPER lanes multiply_add(lanes a, lanes b, lanes c) {
    return _mm256_fmadd_ps(a, b, c);
}
HELPER lanes larger(lanes a, lanes b) {
    return _mm256_max_ps(a, b);
}

#endif
