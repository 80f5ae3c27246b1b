/* Owns: the INT8 form on AVX-512 VNNI, for block formats: 32 rows x 6 tokens.
 *
 * For each group of columns with one weight scale (32, or 16):
 *   n = sum q x, in int32, exactly;   sums += float(n) * (scale_w * scale_x) + minimum_w * (scale_x * sum x)
 * The instruction wants one operand unsigned: the strip holds q + offset, and n starts at -offset sum x (formats with a
 * minimum have offset 0). 12 counters and 12 sums are in registers; a group is 8 (or 4)
 * instructions a counter and 3 to add it to its sum. */
#include <immintrin.h>

#include "kernel/dot.h"
#include "kernel/x86/pack_512.h"
#include "kernel/x86/panel_512.h"

enum { ROWS = 32, TOKENS = 6 };

typedef struct tile {
    const unsigned char *strip[2];
    __mmask16 mask[2];
    int minus_offset;
    int64_t groups;         /* of a strip */
    int64_t padded;         /* columns of a strip */
    const unsigned char *x; /* the first token's row; its scales and sums lie at these offsets */
    int64_t column, scales_at, sums_at;
    uint64_t x_bytes;
    float *y;
    int64_t y_stride;
    bool add;
} tile;

/* q of `tokens` rows are read through two pointers and one stride. */
LN_INLINE void run_tile(const tile *p, int64_t token, const int tokens, const int group, const bool has_minimum) {
    const uint64_t stride = p->x_bytes;
    const unsigned char *row = p->x + (uint64_t)token * stride;
    const unsigned char *x[2] = {row + p->column, row + p->column + 3 * stride};
    const float *x_scale = (const float *)(const void *)(row + p->scales_at);
    const int32_t *x_sum = (const int32_t *)(const void *)(row + p->sums_at);
    const unsigned char *wa = p->strip[0], *wb = p->strip[1];
    const float *scale_a = (const float *)(const void *)(wa + p->padded * LN_STRIP);
    const float *scale_b = (const float *)(const void *)(wb + p->padded * LN_STRIP);
    const int minus_offset = p->minus_offset;
    const int64_t minimum_at = p->groups * LN_STRIP, dwords = (int64_t)stride / 4;
    __m512 sums[2][TOKENS];
    for (int t = 0; t < tokens; t++) sums[0][t] = sums[1][t] = _mm512_setzero_ps();
    for (int64_t g = 0; g < p->groups; g++) {
        __m512i n[2][TOKENS];
        int32_t sum[TOKENS];
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++) {
            const int32_t *s = x_sum + t * dwords + g * (group / 16);
            sum[t] = group == 32 ? s[0] + s[1] : s[0];
            n[0][t] = n[1][t] = has_minimum ? _mm512_setzero_si512() : _mm512_set1_epi32(minus_offset * sum[t]);
        }
#pragma GCC unroll 8
        for (int k = 0; k < group / 4; k++) {
            const __m512i a = _mm512_load_si512(wa + 64 * k), b = _mm512_load_si512(wb + 64 * k);
#pragma GCC unroll 6
            for (int t = 0; t < tokens; t++) {
                const __m512i value = ln_dword_512(x[t / 3] + (uint64_t)(t % 3) * stride + 4 * k);
                n[0][t] = _mm512_dpbusd_epi32(n[0][t], a, value);
                n[1][t] = _mm512_dpbusd_epi32(n[1][t], b, value);
            }
        }
        const __m512 sa = _mm512_load_ps(scale_a + g * LN_STRIP), sb = _mm512_load_ps(scale_b + g * LN_STRIP);
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++) {
            const float factor = x_scale[t * dwords + g * group / 32];
            const __m512 f = _mm512_set1_ps(factor);
            sums[0][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(n[0][t]), _mm512_mul_ps(sa, f), sums[0][t]);
            sums[1][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(n[1][t]), _mm512_mul_ps(sb, f), sums[1][t]);
            if (has_minimum) {
                const __m512 total = _mm512_set1_ps(factor * (float)sum[t]);
                sums[0][t] = _mm512_fmadd_ps(_mm512_load_ps(scale_a + minimum_at + g * LN_STRIP), total, sums[0][t]);
                sums[1][t] = _mm512_fmadd_ps(_mm512_load_ps(scale_b + minimum_at + g * LN_STRIP), total, sums[1][t]);
            }
        }
        x[0] += group;
        x[1] += group;
        wa += group * LN_STRIP;
        wb += group * LN_STRIP;
    }
#pragma GCC unroll 6
    for (int t = 0; t < tokens; t++) {
        float *y = p->y + (token + t) * p->y_stride;
        ln_store_sums(y, p->mask[0], sums[0][t], p->add);
        ln_store_sums(y + LN_STRIP, p->mask[1], sums[1][t], p->add);
    }
}

LN_INLINE void run_tokens(const tile *p, int64_t tokens, const int group, const bool has_minimum) {
    int64_t t = 0;
    for (; t + 6 <= tokens; t += 6) run_tile(p, t, 6, group, has_minimum);
    for (; t + 3 <= tokens; t += 3) run_tile(p, t, 3, group, has_minimum);
    for (; t < tokens; t++) run_tile(p, t, 1, group, has_minimum);
}

static void run_32(const tile *p, int64_t tokens) {
    run_tokens(p, tokens, 32, false);
}
static void run_32_minimum(const tile *p, int64_t tokens) {
    run_tokens(p, tokens, 32, true);
}
static void run_16(const tile *p, int64_t tokens) {
    run_tokens(p, tokens, 16, false);
}
static void run_16_minimum(const tile *p, int64_t tokens) {
    run_tokens(p, tokens, 16, true);
}

static void panel_int8(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                       const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    static void (*const runs[2][2])(const tile *, int64_t) = {{run_32, run_32_minimum}, {run_16, run_16_minimum}};
    const int group = ln_panel_group(type);
    const int64_t padded = ln_panel_padded(columns), strip_bytes = ln_strip_bytes(LN_FORM_INT8, type, columns);
    const int64_t at = column - x->begin;
    for (int64_t r = 0; r < rows; r += 2 * LN_STRIP) {
        const unsigned char *strip = (const unsigned char *)panel + r / LN_STRIP * strip_bytes;
        const bool two = rows - r > LN_STRIP;
        const tile p = {
            .strip = {strip, two ? strip + strip_bytes : strip},
            .mask = {ln_row_mask(rows - r), ln_row_mask(rows - r - LN_STRIP)},
            .minus_offset = -ln_unpack_offset(type),
            .groups = padded / group,
            .padded = padded,
            .x = x->data + (uint64_t)first * x->row_bytes,
            .column = at,
            .scales_at = x->padded + at / 32 * 4,
            .sums_at = x->padded + x->padded / 8 + at / 16 * 4,
            .x_bytes = x->row_bytes,
            .y = y + first * y_stride + r,
            .y_stride = y_stride,
            .add = column > 0,
        };
        runs[group == 16][ln_format_of(type)->has_minimum](&p, tokens);
    }
}

void ln_panel_fill_avx512vnni(ln_matmul_kernels *kernels) {
    ln_panel_fill(kernels, 0, ln_panel_blocks,
                  (ln_panel_slot){"panel_int8_32x6__avx512vnni", LN_FORM_INT8, ROWS, LN_INT8_COLUMNS_512,
                                  ln_pack_int8_512, panel_int8});
}
