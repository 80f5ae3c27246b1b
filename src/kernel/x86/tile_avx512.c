/* Owns: the tile kernels of AVX-512: 6 rows x 64 columns in registers, 24 sums of the 32 registers. */
#include <stdint.h>

#include "kernel/x86/lanes_avx512.h"
#include "kernel/x86/panel_512.h"

enum { VECTORS = 4 };
#define LN_TILE_VECTORS 4

HELPER __mmask16 first_lanes(int64_t n) {
    return (__mmask16)((1u << n) - 1);
}
HELPER lanes load_some(const float *x, int64_t n) {
    return _mm512_maskz_loadu_ps(first_lanes(n), x);
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    _mm512_mask_storeu_ps(y, first_lanes(n), v);
}
HELPER lanes multiply_first(lanes v, lanes factor, int n) {
    return n <= 0 ? v : _mm512_mask_mul_ps(v, n >= W ? 0xffff : first_lanes(n), v, factor);
}
#include "kernel/exponential.h"
#include "kernel/tile.h"
HELPER lanes exponential_of(lanes x) {
    const lanes high = splat(0x1.715476p0f), low = splat(0x1.4ae0cp-26f), magic = splat(0x1.8p23f);
    const lanes n = subtract(multiply_add(x, high, magic), magic);
    const lanes f = multiply_add(x, low, _mm512_fmsub_ps(x, high, n));
    const __mmask16 kept = _mm512_cmp_ps_mask(x, splat(LN_TILE_LEAST), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(kept, LN_POWER_NEAR_6(f), n);
}
HELPER lanes differences(double x, const double *y, int64_t n) {
    const __m512d all = _mm512_set1_pd(x);
    const __m256 first = _mm512_cvtpd_ps(_mm512_sub_pd(all, _mm512_maskz_loadu_pd((__mmask8)first_lanes(n), y)));
    const __mmask8 rest = (__mmask8)(first_lanes(n) >> 8);
    const __m256 second = _mm512_cvtpd_ps(_mm512_sub_pd(all, _mm512_maskz_loadu_pd(rest, y + 8)));
    return _mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1);
}
HELPER void transpose_lanes(lanes x[W]) {
    __m512i v[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) v[i] = _mm512_castps_si512(x[i]);
    ln_transpose_16(v);
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) x[i] = _mm512_castsi512_ps(v[i]);
}

#define LN_TILE_NAME "tile__avx512"
#define LN_TILE_SET void ln_tile_fill_avx512(ln_tile_kernels *kernels)
#include "kernel/tile_body.h"
