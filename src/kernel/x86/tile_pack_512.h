/* Operands of products of bf16 (kernel/tile.h). Two rows rounded and interleaved make dwords of pairs along k; where
 * the pairs lie along rows, rounding alone makes them, and a transposition of 16 x 16 dwords brings either to its
 * place. */
#ifndef LN_KERNEL_X86_TILE_PACK_512_H
#define LN_KERNEL_X86_TILE_PACK_512_H

#include "base/checked.h"
#include "kernel/tile.h"
#include "kernel/x86/panel_512.h"

/* The first n of 16, the others 0; n may be negative. */
LN_INLINE __m512 ln_tile_load(const float *x, int64_t n) {
    if (n >= 16) return _mm512_loadu_ps(x);
    return n <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), x);
}
/* 32 values of a row. */
LN_INLINE __m512i ln_tile_round(const float *x, int64_t n) {
    const __m512 low = ln_tile_load(x, n), high = n > 16 ? ln_tile_load(x + 16, n - 16) : _mm512_setzero_ps();
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
/* low[i], high[i] */
LN_INLINE __m512i ln_tile_interleave(__m512 low, __m512 high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

static inline void ln_tile_rows_512(uint16_t *a, int64_t a_stride, const float *x, int64_t x_stride, int64_t m,
                                    int64_t k) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = 0; c < k; c += 32)
            _mm512_storeu_si512(a + i * a_stride + c, ln_tile_round(x + i * x_stride + c, k - c));
}

static inline void ln_tile_rows_turned_512(uint16_t *a, int64_t a_stride, const float *x, int64_t x_stride,
                                           const float *factors, int64_t m, int64_t k) {
    for (int64_t r = 0; r < k; r += 32)
        for (int64_t c = 0; c < m; c += 16) {
            __m512i v[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                __m512 pair[2];
                for (int p = 0; p < 2; p++) {
                    const int64_t row = r + 2 * i + p;
                    pair[p] = row < k ? ln_tile_load(x + row * x_stride + c, m - c) : _mm512_setzero_ps();
                    if (factors && row < k) pair[p] = _mm512_mul_ps(pair[p], _mm512_set1_ps(factors[row]));
                }
                v[i] = ln_tile_interleave(pair[0], pair[1]);
            }
            ln_transpose_16(v);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(a + (c + i) * a_stride + r, v[i]);
        }
}

static inline void ln_tile_pairs_512(uint32_t *b, int64_t b_stride, const float *x, int64_t x_stride, int64_t k,
                                     int64_t n) {
    for (int64_t r = 0; r < ln_tile_whole(k, 32); r += 2) {
        const float *row = x + r * x_stride;
        for (int64_t c = 0; c < n; c += 16)
            _mm512_storeu_si512(
                b + r / 2 * b_stride + c,
                ln_tile_interleave(r < k ? ln_tile_load(row + c, n - c) : _mm512_setzero_ps(),
                                   r + 1 < k ? ln_tile_load(row + x_stride + c, n - c) : _mm512_setzero_ps()));
    }
}

static inline void ln_tile_pairs_turned_512(uint32_t *b, int64_t b_stride, const float *x, int64_t x_stride, int64_t k,
                                            int64_t n) {
    for (int64_t j = 0; j < n; j += 16)
        for (int64_t c = 0; c < k; c += 32) {
            __m512i v[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                v[i] = j + i < n ? ln_tile_round(x + (j + i) * x_stride + c, k - c) : _mm512_setzero_si512();
            ln_transpose_16(v);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(b + (c / 2 + i) * b_stride + j, v[i]);
        }
}

#endif
