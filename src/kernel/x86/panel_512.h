/* What the AVX-512 panel files share: turning 16 rows into a strip, and the dense kernel of the forms whose step needs
 * no scale.
 *
 * Every form steps along a row in dwords (1 float, 2 bf16, 4 int8), and a strip holds the dwords of 16 rows side by
 * side: so one transposition of 16 x 16 dwords makes all strips. */
#ifndef LN_KERNEL_X86_PANEL_512_H
#define LN_KERNEL_X86_PANEL_512_H

#include <immintrin.h>

#include "kernel/panel.h"

#ifndef LN_INLINE
#define LN_INLINE static inline __attribute__((always_inline))
#endif

/* out[j][i] = in[i][j] for dwords. */
LN_INLINE void ln_transpose_16(__m512i *v) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    /* v[4 i + j]: in each 128-bit lane l, dword 4 l + j of rows 4 i .. 4 i + 3 */
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        v[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i a = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x88), b = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) v[i] = t[i];
}

/* 16 rows of `units` * 64 bytes, row_bytes apart, to a strip. */
static inline void ln_transpose_rows(const void *rows, uint64_t row_bytes, int64_t units, void *strip) {
    const unsigned char *from = rows;
    unsigned char *to = strip;
    for (int64_t u = 0; u < units; u++, from += 64, to += 1024) {
        __m512i v[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) v[i] = _mm512_loadu_si512(from + (uint64_t)i * row_bytes);
        ln_transpose_16(v);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) _mm512_store_si512(to + 64 * i, v[i]);
    }
}

/* Adds or stores 16 sums where `mask` has bits. */
LN_INLINE void ln_store_sums(float *y, __mmask16 mask, __m512 sums, bool add) {
    if (add) sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(mask, y));
    _mm512_mask_storeu_ps(y, mask, sums);
}

LN_INLINE __mmask16 ln_row_mask(int64_t rows) {
    return (__mmask16)(rows >= 16 ? 0xffffu : rows <= 0 ? 0u : (1u << rows) - 1);
}

/* One dword in all lanes. */
LN_INLINE __m512i ln_dword_512(const unsigned char *place) {
    int32_t value;
    memcpy(&value, place, sizeof value);
    return _mm512_set1_epi32(value);
}

typedef struct ln_tile_512 {
    const unsigned char *strip[2];
    __mmask16 mask[2];
    int64_t steps; /* dwords of a row */
    const unsigned char *x;
    uint64_t x_bytes; /* from one token to the next */
    float *y;
    int64_t y_stride;
    bool add;
} ln_tile_512;

#ifdef LN_STEP_512 /* (sums, 16 dwords of weights, one dword of an activation in all lanes) */
/* 32 rows x `tokens` tokens; an odd last strip comes twice, once with an empty mask. */
LN_INLINE void ln_tile_run_512(const ln_tile_512 *tile, int64_t token, const int tokens) {
    __m512 sums[2][12];
    const unsigned char *x[3] = {tile->x + (uint64_t)token * tile->x_bytes};
    const uint64_t stride = tile->x_bytes;
    x[1] = x[0] + 4 * stride;
    x[2] = x[1] + 4 * stride;
    for (int t = 0; t < tokens; t++) sums[0][t] = sums[1][t] = _mm512_setzero_ps();
    const unsigned char *a = tile->strip[0], *b = tile->strip[1];
    for (int64_t k = 0; k < tile->steps; k++, a += 64, b += 64) {
        const __m512i wa = _mm512_load_si512(a), wb = _mm512_load_si512(b);
#pragma GCC unroll 12
        for (int t = 0; t < tokens; t++) {
            const __m512i value = ln_dword_512(x[t / 4] + (uint64_t)(t % 4) * stride);
            sums[0][t] = LN_STEP_512(sums[0][t], wa, value);
            sums[1][t] = LN_STEP_512(sums[1][t], wb, value);
        }
        x[0] += 4;
        x[1] += 4;
        x[2] += 4;
    }
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++) {
        float *y = tile->y + (token + t) * tile->y_stride;
        ln_store_sums(y, tile->mask[0], sums[0][t], tile->add);
        ln_store_sums(y + LN_STRIP, tile->mask[1], sums[1][t], tile->add);
    }
}

/* All tokens by tiles of 12, then the rest. */
static inline void ln_tokens_run_512(const ln_tile_512 *tile, int64_t tokens) {
    int64_t t = 0;
    for (; t + 12 <= tokens; t += 12) ln_tile_run_512(tile, t, 12);
    for (; t + 6 <= tokens; t += 6) ln_tile_run_512(tile, t, 6);
    for (; t + 4 <= tokens; t += 4) ln_tile_run_512(tile, t, 4);
    for (; t + 2 <= tokens; t += 2) ln_tile_run_512(tile, t, 2);
    for (; t < tokens; t++) ln_tile_run_512(tile, t, 1);
}

/* The panel kernel of a form with `bytes` bytes a value. */
LN_INLINE void ln_panel_run_512(const void *panel, int bytes, int64_t rows, int64_t column, int64_t columns,
                                const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    const int64_t padded = ln_panel_padded(columns), strip_bytes = padded * LN_STRIP * bytes;
    for (int64_t r = 0; r < rows; r += 2 * LN_STRIP) {
        const unsigned char *strip = (const unsigned char *)panel + r / LN_STRIP * strip_bytes;
        const bool two = rows - r > LN_STRIP;
        const ln_tile_512 tile = {
            .strip = {strip, two ? strip + strip_bytes : strip},
            .mask = {ln_row_mask(rows - r), ln_row_mask(rows - r - LN_STRIP)},
            .steps = ln_ceil_div(columns * bytes, 4),
            .x = x->data + (uint64_t)first * x->row_bytes + (column - x->begin) * bytes,
            .x_bytes = x->row_bytes,
            .y = y + first * y_stride + r,
            .y_stride = y_stride,
            .add = column > 0,
        };
        ln_tokens_run_512(&tile, tokens);
    }
}
#endif

#endif
