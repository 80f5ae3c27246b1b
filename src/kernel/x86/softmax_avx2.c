/* Owns: the softmax kernels of AVX2. */
#include <string.h>

#include "kernel/softmax.h"
#include "kernel/x86/lanes_avx2.h"

enum { VECTORS = 4 };

HELPER lanes load(const float *x) {
    return _mm256_loadu_ps(x);
}
HELPER void store(float *y, lanes v) {
    _mm256_storeu_ps(y, v);
}
HELPER void stream(float *y, lanes v) {
    _mm256_stream_ps(y, v);
}
HELPER void after_streams(void) {
    _mm_sfence();
}
HELPER lanes load_some(const float *x, int64_t n, float fill) {
    float part[W] = {fill, fill, fill, fill, fill, fill, fill, fill};
    memcpy(part, x, (size_t)n * sizeof *x);
    return load(part);
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    float part[W];
    store(part, v);
    memcpy(y, part, (size_t)n * sizeof *y);
}
HELPER bool all_within(const lanes *x, lanes limit) {
    lanes within = _mm256_cmp_ps(x[0], limit, _CMP_LE_OQ);
    for (int v = 1; v < VECTORS; v++) within = _mm256_and_ps(within, _mm256_cmp_ps(x[v], limit, _CMP_LE_OQ));
    return _mm256_movemask_ps(within) == 0xff;
}
HELPER lanes keep_above(lanes v, lanes x, lanes limit) {
    return _mm256_and_ps(v, _mm256_cmp_ps(x, limit, _CMP_GT_OQ));
}
/* 3 * 2^22 + n - e has n - e in its last bits; adding them to the exponent of p multiplies it. log2 e = 0x1.715476p0 +
 * 0x1.4ae0cp-26, and a multiply-add takes the first product exactly. */
HELPER lanes reference_of(float e) {
    return splat(0x1.8p23f - e);
}
#include "kernel/exponential.h"
HELPER lanes power(lanes x, lanes reference) {
    const lanes high = splat(0x1.715476p0f), low = splat(0x1.4ae0cp-26f);
    const lanes shifted = multiply_add(x, high, reference), n = subtract(shifted, reference);
    const lanes f = multiply_add(x, low, _mm256_fmsub_ps(x, high, n));
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(LN_POWER_NEAR_5(f)), exponent));
}

#define LN_SOFTMAX_NAME "softmax__avx2"
#define LN_SOFTMAX_SET void ln_softmax_fill_avx2(ln_softmax_kernels *kernels)
#include "kernel/softmax_body.h"
