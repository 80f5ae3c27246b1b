/* Owns: the tile kernels of AVX2: 6 rows x 16 columns in registers, 12 sums of the 16 registers. */
#include <stdint.h>

#include "kernel/x86/lanes_avx2.h"

enum { VECTORS = 2 };
#define LN_TILE_VECTORS 2

HELPER __m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
HELPER lanes load_some(const float *x, int64_t n) {
    return n == W ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, first_lanes(n));
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    if (n == W)
        _mm256_storeu_ps(y, v);
    else
        _mm256_maskstore_ps(y, first_lanes(n), v);
}
HELPER lanes multiply_first(lanes v, lanes factor, int n) {
    if (n <= 0) return v;
    const lanes product = multiply(v, factor);
    return n >= W ? product : _mm256_blendv_ps(v, product, _mm256_castsi256_ps(first_lanes(n)));
}
#include "kernel/exponential.h"
#include "kernel/tile.h"
HELPER lanes exponential_of(lanes x) {
    const lanes high = splat(0x1.715476p0f), low = splat(0x1.4ae0cp-26f), magic = splat(0x1.8p23f);
    const lanes shifted = multiply_add(x, high, magic), n = subtract(shifted, magic);
    const lanes f = multiply_add(x, low, _mm256_fmsub_ps(x, high, n));
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(add(shifted, splat(127))), 23);
    const lanes y = multiply(LN_POWER_NEAR_6(f), _mm256_castsi256_ps(power));
    return _mm256_and_ps(y, _mm256_cmp_ps(x, splat(LN_TILE_LEAST), _CMP_NLT_UQ));
}
HELPER lanes differences(double x, const double *y, int64_t n) {
    double part[W] = {0};
    for (int64_t i = 0; i < n; i++) part[i] = y[i];
    const __m256d all = _mm256_set1_pd(x);
    const __m128 first = _mm256_cvtpd_ps(_mm256_sub_pd(all, _mm256_loadu_pd(part))),
                 second = _mm256_cvtpd_ps(_mm256_sub_pd(all, _mm256_loadu_pd(part + 4)));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(first), second, 1);
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

#define LN_TILE_NAME "tile__avx2"
#define LN_TILE_SET void ln_tile_fill_avx2(ln_tile_kernels *kernels)
#include "kernel/tile_body.h"
