/* Owns: the delta kernels of AVX-512. */
#include "kernel/delta.h"
#include "kernel/x86/lanes_avx512.h"
#include "kernel/x86/panel_512.h"

typedef __mmask16 lanes_mask;
HELPER lanes_mask lanes_below(int64_t n) {
    return (__mmask16)(n >= W ? 0xffff : n > 0 ? (1u << n) - 1 : 0);
}
HELPER lanes multiply_where(lanes_mask mask, lanes a, lanes b) {
    return _mm512_mask_mul_ps(a, mask, a, b);
}

HELPER void turn_keys(float *to, const float *key, int64_t n, int64_t columns) {
    for (int64_t c = 0; c < columns; c += W, to += W * W) {
        __m512i v[W];
#pragma GCC unroll 16
        for (int j = 0; j < W; j++) v[j] = j < n ? _mm512_loadu_si512(key + j * columns + c) : _mm512_setzero_si512();
        ln_transpose_16(v);
#pragma GCC unroll 16
        for (int j = 0; j < W; j++) _mm512_storeu_si512(to + j * W, v[j]);
    }
}

#define LN_DELTA_NAME "avx512"
#define LN_DELTA_SET void ln_delta_fill_avx512(ln_delta_kernels *kernels)
#include "kernel/delta_body.h"
