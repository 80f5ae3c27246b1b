/* Owns: the scan kernels of AVX-512. */
#include "kernel/scan.h"
#include "kernel/x86/lanes_avx512.h"

HELPER __mmask16 first_lanes(int64_t n) {
    return (__mmask16)((1u << n) - 1);
}
HELPER lanes load(const float *x) {
    return _mm512_loadu_ps(x);
}
HELPER void store(float *y, lanes v) {
    _mm512_storeu_ps(y, v);
}
HELPER lanes load_some(const float *x, int64_t n) {
    return _mm512_maskz_loadu_ps(first_lanes(n), x);
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    _mm512_mask_storeu_ps(y, first_lanes(n), v);
}
HELPER lanes divide(lanes a, lanes b) {
    return _mm512_div_ps(a, b);
}
HELPER lanes root(lanes x) {
    return _mm512_sqrt_ps(x);
}
HELPER lanes nearest(lanes x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
HELPER lanes where_below(lanes a, lanes b, lanes yes, lanes no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}
#include "kernel/exponential.h"
/* Rounded to nearest, so that it is exact at 0 and best for decays close to 1, whose errors add up over many steps.
 * Numbers below the normal ones are left out, as they may be slow. */
HELPER lanes power(lanes x) {
    const lanes f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, splat(-126), _CMP_NLT_UQ), LN_POWER_NEAR_5(f), subtract(x, f));
}
/* 2^(a b): 3 * 2^22 + n has the nearest integer in its last bits, and the product is not rounded. */
HELPER lanes power_of_product(lanes a, lanes b) {
    const lanes magic = splat(0x1.8p23f), n = subtract(multiply_add(a, b, magic), magic);
    const lanes f = _mm512_fmsub_ps(a, b, n);
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, splat(-126), _CMP_NLT_UQ), LN_POWER_NEAR_5(f), n);
}
HELPER lanes fold_two(lanes a, lanes b) {
    return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
HELPER lanes fold_four(lanes a, lanes b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
HELPER lanes fold_halves(lanes a, lanes b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
HELPER lanes fold_rest(const lanes *x) {
    return fold_halves(fold_halves(x[0], x[1]), fold_halves(x[2], x[3]));
}

#define LN_SCAN_NAME "scan__avx512"
#define LN_SCAN_SET void ln_scan_fill_avx512(ln_scan_kernels *kernels)
#include "kernel/scan_body.h"
