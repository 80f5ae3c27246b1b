/* Owns: the softmax kernels of AVX-512. */
#include "kernel/softmax.h"
#include "kernel/x86/lanes_avx512.h"

enum { VECTORS = 4 };

HELPER __mmask16 first_lanes(int64_t n) {
    return (__mmask16)((1u << n) - 1);
}
HELPER lanes load(const float *x) {
    return _mm512_loadu_ps(x);
}
HELPER void store(float *y, lanes v) {
    _mm512_storeu_ps(y, v);
}
HELPER void stream(float *y, lanes v) {
    _mm512_stream_ps(y, v);
}
HELPER void after_streams(void) {
    _mm_sfence();
}
HELPER lanes load_some(const float *x, int64_t n, float fill) {
    return _mm512_mask_loadu_ps(splat(fill), first_lanes(n), x);
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    _mm512_mask_storeu_ps(y, first_lanes(n), v);
}
HELPER bool all_within(const lanes *x, lanes limit) {
    __mmask16 within = _mm512_cmp_ps_mask(x[0], limit, _CMP_LE_OQ);
    for (int v = 1; v < VECTORS; v++) within = _mm512_mask_cmp_ps_mask(within, x[v], limit, _CMP_LE_OQ);
    return within == 0xffff;
}
HELPER lanes keep_above(lanes v, lanes x, lanes limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GT_OQ), v);
}
/* As in softmax_avx2.c. */
HELPER lanes reference_of(float e) {
    return splat(0x1.8p23f - e);
}
#include "kernel/exponential.h"
HELPER lanes power(lanes x, lanes reference) {
    const lanes high = splat(0x1.715476p0f), low = splat(0x1.4ae0cp-26f);
    const lanes shifted = multiply_add(x, high, reference), n = subtract(shifted, reference);
    const lanes f = multiply_add(x, low, _mm512_fmsub_ps(x, high, n));
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(LN_POWER_NEAR_5(f)), exponent));
}

#define LN_SOFTMAX_NAME "softmax__avx512"
#define LN_SOFTMAX_SET void ln_softmax_fill_avx512(ln_softmax_kernels *kernels)
#include "kernel/softmax_body.h"
