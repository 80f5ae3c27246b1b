/* Owns: the attention kernels of AVX-512: 12 rows x 32 columns in registers, 24 sums of the 32 registers. */
#include "kernel/attend_sets.h"
#include "kernel/x86/lanes_avx512.h"

enum { VECTORS = 2, ROWS = 12 };

HELPER __mmask16 first_lanes(int n) {
    return (__mmask16)((1u << n) - 1);
}
HELPER lanes load(const float *x, int n) {
    return n == W ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(first_lanes(n), x);
}
HELPER void store(float *y, lanes v, int n) {
    if (n == W)
        _mm512_storeu_ps(y, v);
    else
        _mm512_mask_storeu_ps(y, first_lanes(n), v);
}
HELPER __m256i load_halves(const uint16_t *x, int n) {
    return n == W ? _mm256_loadu_si256((const __m256i *)(const void *)x) : _mm256_maskz_loadu_epi16(first_lanes(n), x);
}
HELPER lanes load_f16(const uint16_t *x, int n) {
    return _mm512_cvtph_ps(load_halves(x, n));
}
HELPER lanes load_bf16(const uint16_t *x, int n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves(x, n)), 16));
}
HELPER lanes load_q8(const int8_t *x, int n) {
    const __m128i bytes =
        n == W ? _mm_loadu_si128((const __m128i *)(const void *)x) : _mm_maskz_loadu_epi8(first_lanes(n), x);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
HELPER lanes load_q4(const uint8_t *x, int up, int n) {
    const __m128i bytes =
        n == W ? _mm_loadu_si128((const __m128i *)(const void *)x) : _mm_maskz_loadu_epi8(first_lanes(n), x);
    const __m512i shifted = _mm512_srl_epi32(_mm512_cvtepu8_epi32(bytes), _mm_cvtsi32_si128(up));
    const __m512i code = _mm512_and_si512(shifted, _mm512_set1_epi32(15));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(code, _mm512_set1_epi32(8)));
}
HELPER lanes load_bits(const unsigned char *x, int up, int mask) {
    const __m512i v = _mm512_srl_epi32(_mm512_loadu_si512(x), _mm_cvtsi32_si128(up));
    return _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(mask)));
}
HELPER lanes divide(lanes a, lanes b) {
    return _mm512_div_ps(a, b);
}
HELPER lanes smaller(lanes a, lanes b) {
    return _mm512_min_ps(a, b);
}
#include "kernel/exponential.h"
HELPER lanes power_of_two(lanes x) {
    enum { TOWARD_MINUS_INFINITY = 1 };
    const lanes f = _mm512_reduce_ps(x, TOWARD_MINUS_INFINITY); /* 0 for -inf */
    return _mm512_scalef_ps(LN_POWER_FLOOR_5(f), x);
}
HELPER float largest(lanes v) {
    return _mm512_reduce_max_ps(v);
}
HELPER bool any_above(lanes a, lanes b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
}
HELPER lanes keep(lanes v, unsigned bits) {
    return _mm512_maskz_mov_ps((__mmask16)bits, v);
}
/* 4 x 4 blocks inside the quarters of four rows, then the quarters. */
HELPER void transpose_lanes(lanes x[W]) {
    lanes y[W];
    for (int i = 0; i < W; i += 4) {
        const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[i], x[i + 1])),
                      b = _mm512_castps_pd(_mm512_unpackhi_ps(x[i], x[i + 1])),
                      c = _mm512_castps_pd(_mm512_unpacklo_ps(x[i + 2], x[i + 3])),
                      d = _mm512_castps_pd(_mm512_unpackhi_ps(x[i + 2], x[i + 3]));
        y[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        y[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        y[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        y[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    enum { EVEN = 0x88, ODD = 0xdd };
    for (int i = 0; i < 4; i++) {
        const lanes a = _mm512_shuffle_f32x4(y[i], y[i + 4], EVEN), b = _mm512_shuffle_f32x4(y[i], y[i + 4], ODD),
                    c = _mm512_shuffle_f32x4(y[i + 8], y[i + 12], EVEN),
                    d = _mm512_shuffle_f32x4(y[i + 8], y[i + 12], ODD);
        x[i] = _mm512_shuffle_f32x4(a, c, EVEN);
        x[i + 8] = _mm512_shuffle_f32x4(a, c, ODD);
        x[i + 4] = _mm512_shuffle_f32x4(b, d, EVEN);
        x[i + 12] = _mm512_shuffle_f32x4(b, d, ODD);
    }
}

#define LN_ATTEND_NAME "attend__avx512"
#define LN_ATTEND_SET void ln_attend_fill_avx512(ln_attend_kernels *kernels)
#include "kernel/attend_body.h"
