/* Owns: the attention kernels of AVX2: 6 rows x 16 columns in registers, 12 sums of the 16 registers. */
#include "kernel/attend_sets.h"
#include "kernel/x86/lanes_avx2.h"

enum { VECTORS = 2, ROWS = 6 };

HELPER lanes load(const float *x, int n) {
    (void)n;
    return _mm256_loadu_ps(x);
}
HELPER void store(float *y, lanes v, int n) {
    (void)n;
    _mm256_storeu_ps(y, v);
}
HELPER lanes load_f16(const uint16_t *x, int n) {
    (void)n;
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)x));
}
HELPER lanes load_bf16(const uint16_t *x, int n) {
    (void)n;
    const __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
HELPER lanes load_q8(const int8_t *x, int n) {
    (void)n;
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)x)));
}
HELPER lanes load_q4(const uint8_t *x, int up, int n) {
    (void)n;
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)x));
    const __m256i code = _mm256_and_si256(_mm256_srl_epi32(bytes, _mm_cvtsi32_si128(up)), _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)));
}
HELPER lanes load_bits(const unsigned char *x, int up, int mask) {
    const __m256i v = _mm256_srl_epi32(_mm256_loadu_si256((const __m256i *)(const void *)x), _mm_cvtsi32_si128(up));
    return _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(mask)));
}
HELPER lanes divide(lanes a, lanes b) {
    return _mm256_div_ps(a, b);
}
HELPER lanes smaller(lanes a, lanes b) {
    return _mm256_min_ps(a, b);
}
#include "kernel/exponential.h"
/* x + 3 2^22 + 127 has n + 127 in its last bits, n = round(x): shifted to their place they are 2^n, and 0 for n = -127.
 * A product with them, not a sum of exponents, because it keeps NaN. */
HELPER lanes power_of_two(lanes x) {
    const lanes magic = splat(0x1.8p23f + 127), safe = larger(splat(-127), x), shifted = add(safe, magic);
    const lanes f = subtract(safe, subtract(shifted, magic));
    return multiply(LN_POWER_NEAR_5(f), _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}
HELPER float largest(lanes v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
HELPER bool any_above(lanes a, lanes b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}
HELPER lanes keep(lanes v, unsigned bits) {
    const __m256i one = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i kept = _mm256_and_si256(_mm256_set1_epi32((int)bits), one);
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(kept, one)));
}
/* 4 x 4 blocks inside the halves of four rows, then the halves. */
HELPER void transpose_lanes(lanes x[W]) {
    lanes y[W];
    for (int i = 0; i < W; i += 4) {
        const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(x[i], x[i + 1])),
                      b = _mm256_castps_pd(_mm256_unpackhi_ps(x[i], x[i + 1])),
                      c = _mm256_castps_pd(_mm256_unpacklo_ps(x[i + 2], x[i + 3])),
                      d = _mm256_castps_pd(_mm256_unpackhi_ps(x[i + 2], x[i + 3]));
        y[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
        y[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
        y[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
        y[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm256_permute2f128_ps(y[i], y[i + 4], 0x20);
        x[i + 4] = _mm256_permute2f128_ps(y[i], y[i + 4], 0x31);
    }
}

#define LN_ATTEND_NAME "attend__avx2"
#define LN_ATTEND_SET void ln_attend_fill_avx2(ln_attend_kernels *kernels)
#include "kernel/attend_body.h"
