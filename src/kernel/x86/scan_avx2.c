/* Owns: the scan kernels of AVX2. */
#include "kernel/scan.h"

#include <math.h>
#include <string.h>

#include "kernel/x86/lanes_avx2.h"

HELPER lanes load(const float *x) {
    return _mm256_loadu_ps(x);
}
HELPER void store(float *y, lanes v) {
    _mm256_storeu_ps(y, v);
}
HELPER lanes load_some(const float *x, int64_t n) {
    float part[W] = {0};
    memcpy(part, x, (size_t)n * sizeof *x);
    return load(part);
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    float part[W];
    store(part, v);
    memcpy(y, part, (size_t)n * sizeof *y);
}
HELPER lanes divide(lanes a, lanes b) {
    return _mm256_div_ps(a, b);
}
HELPER lanes root(lanes x) {
    return _mm256_sqrt_ps(x);
}
HELPER lanes nearest(lanes x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
HELPER lanes where_below(lanes a, lanes b, lanes yes, lanes no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
#include "kernel/exponential.h"
/* 2^128 is no float: the exponent goes on in two halves. NaN comes out as x - x. */
HELPER lanes power(lanes x) {
    const lanes clamped = _mm256_max_ps(_mm256_min_ps(x, splat(129)), splat(-127));
    const lanes n = nearest(clamped), f = subtract(clamped, n), p = LN_POWER_NEAR_5(f);
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    const __m256i rest = _mm256_sub_epi32(whole, half);
    const lanes low = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)),
                high = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    const lanes y = _mm256_andnot_ps(_mm256_cmp_ps(x, splat(-126), _CMP_LT_OQ), multiply(multiply(p, low), high));
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
/* 2^(a b): 3 * 2^22 + n has the nearest integer in its last bits, which go to the exponent; the product is not rounded.
 * Above 2^127 it is inf, NaN stays. */
HELPER lanes power_of_product(lanes a, lanes b) {
    const lanes magic = splat(0x1.8p23f), shifted = multiply_add(a, b, magic), n = subtract(shifted, magic);
    const lanes f = _mm256_fmsub_ps(a, b, n);
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    const lanes p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(LN_POWER_NEAR_5(f)), exponent));
    const lanes y = _mm256_andnot_ps(_mm256_cmp_ps(n, splat(-126), _CMP_LT_OQ), p);
    return _mm256_blendv_ps(y, add(n, splat(INFINITY)), _mm256_cmp_ps(n, splat(127), _CMP_NLE_UQ));
}
HELPER lanes fold_two(lanes a, lanes b) {
    return add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
}
HELPER lanes fold_four(lanes a, lanes b) {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return add(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
}
HELPER lanes fold_rest(const lanes *x) {
    return add(_mm256_permute2f128_ps(x[0], x[1], 0x20), _mm256_permute2f128_ps(x[0], x[1], 0x31));
}

#define LN_SCAN_NAME "scan__avx2"
#define LN_SCAN_SET void ln_scan_fill_avx2(ln_scan_kernels *kernels)
#include "kernel/scan_body.h"
