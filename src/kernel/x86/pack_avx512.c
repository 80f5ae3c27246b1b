/* Owns: packing F32 and INT8 panels with AVX-512: rows of any format unpacked, then 16 of them transposed. (BF16:
 * panel_avx512bf16.c) */
#include <string.h>

#include "kernel/x86/pack_512.h"
#include "kernel/x86/panel_512.h"
#include "kernel/x86/unpack_avx512.h"

LN_INLINE void unpack_row(ln_unpack512 unpack, int64_t block, int64_t bytes, const unsigned char *from, int64_t columns,
                          uint8_t *u, float *scale, float *minimum) {
    unsigned char last[8 * 34] = {0};
    for (int64_t c = 0; c < columns; c += 256, from += 256 / block * bytes) {
        if (columns - c < 256) {
            memcpy(last, from, (size_t)((columns - c) / block * bytes));
            from = last;
        }
        const ln_unpacked w = unpack(from);
        for (int k = 0; k < 4; k++) _mm512_storeu_si512(u + c + 64 * k, w.u[k]);
        _mm512_storeu_ps(scale + c / 16, w.scale);
        _mm512_storeu_ps(minimum + c / 16, w.minimum);
    }
}

/* ---- rows ---- */

void ln_unpack_row_512(linnet_type type, const unsigned char *from, int64_t columns, uint8_t *u, float *scale,
                       float *minimum) {
    switch (type) {
    case LINNET_Q4_0:
        unpack_row(ln_unpack512_q4_0, 32, 18, from, columns, u, scale, minimum);
        break;
    case LINNET_Q4_1:
        unpack_row(ln_unpack512_q4_1, 32, 20, from, columns, u, scale, minimum);
        break;
    case LINNET_Q5_0:
        unpack_row(ln_unpack512_q5_0, 32, 22, from, columns, u, scale, minimum);
        break;
    case LINNET_Q5_1:
        unpack_row(ln_unpack512_q5_1, 32, 24, from, columns, u, scale, minimum);
        break;
    case LINNET_Q8_0:
        unpack_row(ln_unpack512_q8_0, 32, 34, from, columns, u, scale, minimum);
        break;
    case LINNET_Q2_K:
        unpack_row(ln_unpack512_q2_k, 256, 84, from, columns, u, scale, minimum);
        break;
    case LINNET_Q3_K:
        unpack_row(ln_unpack512_q3_k, 256, 110, from, columns, u, scale, minimum);
        break;
    case LINNET_Q4_K:
        unpack_row(ln_unpack512_q4_k, 256, 144, from, columns, u, scale, minimum);
        break;
    case LINNET_Q5_K:
        unpack_row(ln_unpack512_q5_k, 256, 176, from, columns, u, scale, minimum);
        break;
    case LINNET_Q6_K:
        unpack_row(ln_unpack512_q6_k, 256, 210, from, columns, u, scale, minimum);
        break;
    default:
        break;
    }
}

/* A row of a block format as decode gives it, bit for bit. */
static void decode_blocks(linnet_type type, const unsigned char *from, int64_t columns, float *to) {
    _Alignas(64) uint8_t u[LN_BF16_COLUMNS_512];
    _Alignas(64) float scale[LN_BF16_COLUMNS_512 / 16], minimum[LN_BF16_COLUMNS_512 / 16];
    const bool has_minimum = ln_format_of(type)->has_minimum;
    const __m512i offset = _mm512_set1_epi32(ln_unpack_offset(type));
    ln_unpack_row_512(type, from, columns, u, scale, minimum);
    for (int64_t c = 0; c < columns; c += 16) {
        const __m512i q = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)(u + c)));
        const __m512 product =
            _mm512_mul_ps(_mm512_set1_ps(scale[c / 16]), _mm512_cvtepi32_ps(_mm512_sub_epi32(q, offset)));
        _mm512_storeu_ps(to + c, has_minimum ? _mm512_add_ps(product, _mm512_set1_ps(minimum[c / 16])) : product);
    }
}

void ln_decode_row_512(linnet_type type, const unsigned char *from, int64_t columns, float *to) {
    if (type == LINNET_F32) {
        memcpy(to, from, (size_t)columns * 4);
        return;
    }
    if (type != LINNET_F16 && type != LINNET_BF16) {
        decode_blocks(type, from, columns, to);
        return;
    }
    for (int64_t c = 0; c < columns; c += 16) {
        const bool whole = columns - c >= 16; /* masked stores are slow to read back */
        const __mmask16 mask = ln_row_mask(columns - c);
        const __m256i half = whole ? _mm256_loadu_si256((const __m256i *)(const void *)(from + 2 * c))
                                   : _mm256_maskz_loadu_epi16(mask, from + 2 * c);
        const __m512 bf16 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        const __m512 value = type == LINNET_F16 ? _mm512_cvtph_ps(half) : bf16;
        if (whole)
            _mm512_storeu_ps(to + c, value);
        else
            _mm512_mask_storeu_ps(to + c, mask, value);
    }
}

/* ---- panels ---- */

void ln_pack_f32_512(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                     int64_t columns, void *panel) {
    _Alignas(64) float values[LN_STRIP][LN_F32_COLUMNS_512];
    const int64_t padded = ln_panel_padded(columns);
    const unsigned char *from = (const unsigned char *)weight + ln_format_bytes(type, column);
    float *strip = panel;
    for (int64_t r = 0; r < rows; r += LN_STRIP, strip += padded * LN_STRIP) {
        const int64_t here = ln_min_i64(LN_STRIP, rows - r);
        if (here < LN_STRIP || columns < padded) memset(values, 0, sizeof values);
        for (int64_t i = 0; i < here; i++)
            ln_decode_row_512(type, from + (uint64_t)(r + i) * row_bytes, columns, values[i]);
        ln_transpose_rows(values, sizeof *values, padded / 16, strip);
    }
}

/* A factor of each 16 columns, of which every `step`th is kept, to the strip's order. */
static void pack_factors(float (*rows)[LN_INT8_COLUMNS_512 / 16], int step, int64_t sixteens, float *to) {
    for (int64_t g = 0; g < sixteens; g += 16) {
        __m512i v[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) v[i] = _mm512_load_si512(rows[i] + g);
        ln_transpose_16(v);
        for (int i = 0; i < 16 && g + i < sixteens; i += step, to += LN_STRIP) _mm512_store_si512(to, v[i]);
    }
}

void ln_pack_int8_512(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                      int64_t columns, void *panel) {
    _Alignas(64) uint8_t u[LN_STRIP][LN_INT8_COLUMNS_512];
    _Alignas(64) float scale[LN_STRIP][LN_INT8_COLUMNS_512 / 16], minimum[LN_STRIP][LN_INT8_COLUMNS_512 / 16];
    const int64_t padded = ln_panel_padded(columns);
    const int step = ln_panel_group(type) / 16;
    const int64_t strip_bytes = ln_strip_bytes(LN_FORM_INT8, type, columns);
    const unsigned char *from = (const unsigned char *)weight + ln_format_bytes(type, column);
    unsigned char *strip = panel;
    for (int64_t r = 0; r < rows; r += LN_STRIP, strip += strip_bytes) {
        const int64_t here = ln_min_i64(LN_STRIP, rows - r);
        if (here < LN_STRIP) {
            memset(u, 0, sizeof u);
            memset(scale, 0, sizeof scale);
            memset(minimum, 0, sizeof minimum);
        }
        for (int64_t i = 0; i < here; i++)
            ln_unpack_row_512(type, from + (uint64_t)(r + i) * row_bytes, columns, u[i], scale[i], minimum[i]);
        ln_transpose_rows(u, sizeof *u, padded / 64, strip);
        float *scales = (float *)(void *)(strip + padded * LN_STRIP);
        pack_factors(scale, step, padded / 16, scales);
        if (ln_format_of(type)->has_minimum)
            pack_factors(minimum, step, padded / 16, scales + padded / 16 / step * LN_STRIP);
    }
}
