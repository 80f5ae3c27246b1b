/* A vector of AVX-512 and what every family of kernels does with it. */
#ifndef LN_KERNEL_X86_LANES_AVX512_H
#define LN_KERNEL_X86_LANES_AVX512_H

#include <immintrin.h>

#define HELPER static inline __attribute__((always_inline))

enum { W = 16 };
typedef __m512 lanes;

HELPER lanes splat(float x) {
    return _mm512_set1_ps(x);
}
HELPER lanes add(lanes a, lanes b) {
    return _mm512_add_ps(a, b);
}
HELPER lanes subtract(lanes a, lanes b) {
    return _mm512_sub_ps(a, b);
}
HELPER lanes multiply(lanes a, lanes b) {
    return _mm512_mul_ps(a, b);
}
HELPER lanes multiply_add(lanes a, lanes b, lanes c) {
    return _mm512_fmadd_ps(a, b, c);
}
HELPER lanes larger(lanes a, lanes b) {
    return _mm512_max_ps(a, b);
}

#endif
