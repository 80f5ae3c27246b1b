/* Owns: the BF16 and INT8 forms on AMX tiles.
 *
 * A tile product is C[16 tokens][16 rows] += A[16 tokens][64 bytes] B[16 dwords][16 rows]: a strip of a panel is a
 * column of B tiles just as it lies, and a prepared activation row is a row of A.
 *
 * BF16 (any format of 16 bits or less, unpacked to bf16): 32 tokens x 32 rows, 2 x 2 tiles of sums, loaded from and
 * stored to y itself. A step loads 4 tiles for 4 products, all of which the first two caches can feed: 32 tokens x 512
 * columns of activations (32 KB) stay in the first while the strips (128 KB) stream from the second.
 *
 * INT8 (where tiles have no bf16): a group of columns with one weight scale is one product, of 32 or 16 bytes a row,
 * so its counters must leave the tile for vector registers: 16 tokens x 16 rows of sums stay there, and two tiles of
 * counters take turns. Unsigned strips against signed activations:
 *   sums += float(n - offset sum x) * scale_w * scale_x + minimum_w * (scale_x * sum x)
 *
 * Which is faster, by arithmetic: a bf16 product does 8192 multiply-adds in 16 cycles. An int8 one of 32 columns does
 * as many, but then 16 vectors of counters are stored, loaded, corrected, converted and added: 40 cycles or more.
 * Unpacking to bf16 costs 0.3 cycles a weight, which 40 tokens earn back. So block formats go to BF16 as well. */
#include <string.h>

#include "kernel/x86/amx.h"
#include "kernel/x86/pack_512.h"
#include "kernel/x86/panel_512.h"

enum { TOKENS = 16, BF16_ROWS = 128, INT8_ROWS = 32 };

/* Less than a tile of tokens is copied to rows of this, the others zero. */
typedef struct few_tokens {
    _Alignas(64) unsigned char x[2 * TOKENS][1024 + 64];
    _Alignas(64) float y[2 * TOKENS][2 * LN_STRIP];
} few_tokens;

/* ---- BF16 ---- */

typedef struct bf16_tile {
    const unsigned char *strip[2];
    const unsigned char *x;
    int64_t x_bytes;
    int64_t steps; /* of 32 columns */
    float *y;      /* [32 tokens][32 rows] */
    int64_t y_bytes;
    bool add;
} bf16_tile;

static void run_bf16(const bf16_tile *p) {
    ln_amx_fence();
    const unsigned char *a = p->x, *b0 = p->strip[0], *b1 = p->strip[1];
    const int64_t a_bytes = p->x_bytes, next = TOKENS * a_bytes;
    float *y0 = p->y, *y1 = y0 + TOKENS * (p->y_bytes / 4);
    if (p->add) {
        _tile_loadd(0, y0, p->y_bytes);
        _tile_loadd(1, y0 + LN_STRIP, p->y_bytes);
        _tile_loadd(2, y1, p->y_bytes);
        _tile_loadd(3, y1 + LN_STRIP, p->y_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < p->steps; k++, a += 64, b0 += 1024, b1 += 1024) {
        _tile_loadd(4, a, a_bytes);
        _tile_loadd(6, b0, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + next, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, y0, p->y_bytes);
    _tile_stored(1, y0 + LN_STRIP, p->y_bytes);
    _tile_stored(2, y1, p->y_bytes);
    _tile_stored(3, y1 + LN_STRIP, p->y_bytes);
}

/* A part of a tile's tokens and rows, through copies. */
static void run_bf16_part(bf16_tile p, int64_t rows, int64_t tokens, few_tokens *few) {
    float *y = p.y;
    const int64_t y_stride = p.y_bytes / 4, row_bytes = p.steps * 64;
    if (tokens < 2 * TOKENS) {
        for (int64_t t = 0; t < 2 * TOKENS; t++) {
            if (t < tokens)
                memcpy(few->x[t], p.x + t * p.x_bytes, (size_t)row_bytes);
            else
                memset(few->x[t], 0, (size_t)row_bytes);
        }
        p.x = few->x[0];
        p.x_bytes = sizeof few->x[0];
    }
    memset(few->y, 0, sizeof few->y);
    if (p.add)
        for (int64_t t = 0; t < tokens; t++) memcpy(few->y[t], y + t * y_stride, (size_t)rows * 4);
    p.y = few->y[0];
    p.y_bytes = sizeof few->y[0];
    run_bf16(&p);
    for (int64_t t = 0; t < tokens; t++) memcpy(y + t * y_stride, few->y[t], (size_t)rows * 4);
}

static void panel_bf16(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                       const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    const ln_amx_shape shape = ln_amx_shape_of(64);
    const int64_t strip_bytes = ln_strip_bytes(LN_FORM_BF16, type, columns);
    few_tokens few;
    ln_amx_configure(&shape);
    for (int64_t t = 0; t < tokens; t += 2 * TOKENS) {
        for (int64_t r = 0; r < rows; r += 2 * LN_STRIP) {
            const unsigned char *strip = (const unsigned char *)panel + r / LN_STRIP * strip_bytes;
            const int64_t some_rows = ln_min_i64(2 * LN_STRIP, rows - r);
            const int64_t some_tokens = ln_min_i64(2 * TOKENS, tokens - t);
            const bf16_tile p = {
                .strip = {strip, some_rows > LN_STRIP ? strip + strip_bytes : strip},
                .x = x->data + (uint64_t)(first + t) * x->row_bytes + (column - x->begin) * 2,
                .x_bytes = (int64_t)x->row_bytes,
                .steps = ln_panel_padded(columns) / 32,
                .y = y + (first + t) * y_stride + r,
                .y_bytes = y_stride * 4,
                .add = column > 0,
            };
            if (some_rows < 2 * LN_STRIP || some_tokens < 2 * TOKENS)
                run_bf16_part(p, some_rows, some_tokens, &few);
            else
                run_bf16(&p);
        }
    }
    ln_amx_release();
}

/* ---- INT8 ---- */

typedef struct int8_tile {
    const unsigned char *strip;
    int minus_offset;
    int64_t groups, padded;
    const unsigned char *x; /* q of the first token */
    int64_t x_bytes;
    const float *x_scale; /* of the first token; the others follow at x_floats */
    const int32_t *x_sum;
    int64_t x_floats;
    int64_t tokens; /* that count, of 16 */
    __mmask16 mask;
    float *y;
    int64_t y_stride;
    bool add;
} int8_tile;

#define LN_COUNT_GROUP(tile, counts, a, b) \
    do {                                   \
        _tile_zero(tile);                  \
        _tile_loadd(4, (a), p->x_bytes);   \
        _tile_loadd(6, (b), 64);           \
        _tile_dpbsud(tile, 4, 6);          \
        _tile_stored(tile, (counts), 64);  \
    } while (0)

LN_INLINE void add_group(const int8_tile *p, int64_t g, const int group, const bool has_minimum,
                         const int32_t (*counts)[LN_STRIP], __m512 *sums) {
    const float *scale = (const float *)(const void *)(p->strip + p->padded * LN_STRIP) + g * LN_STRIP;
    const __m512 w = _mm512_load_ps(scale);
    const __m512 minimum = has_minimum ? _mm512_load_ps(scale + p->groups * LN_STRIP) : w;
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; t++) {
        const int64_t token = t < p->tokens ? t : 0;
        const float factor = p->x_scale[token * p->x_floats + g * group / 32];
        const int32_t *s = p->x_sum + token * p->x_floats + g * (group / 16);
        const int32_t sum = group == 32 ? s[0] + s[1] : s[0];
        __m512i n = _mm512_load_si512(counts[t]);
        if (!has_minimum) n = _mm512_add_epi32(n, _mm512_set1_epi32(p->minus_offset * sum));
        sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(n), _mm512_mul_ps(w, _mm512_set1_ps(factor)), sums[t]);
        if (has_minimum) sums[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(factor * (float)sum), sums[t]);
    }
}

LN_INLINE void run_int8(const int8_tile *p, const int group, const bool has_minimum) {
    _Alignas(64) int32_t counts[2][TOKENS][LN_STRIP];
    __m512 sums[TOKENS];
    const unsigned char *a = p->x, *b = p->strip;
    for (int t = 0; t < TOKENS; t++) sums[t] = _mm512_setzero_ps();
    ln_amx_fence();
    LN_COUNT_GROUP(0, counts[0], a, b);
    for (int64_t g = 0; g < p->groups; g += 2) { /* the number of groups is even: columns go by 64 */
        a += group;
        b += group * LN_STRIP;
        LN_COUNT_GROUP(1, counts[1], a, b);
        add_group(p, g, group, has_minimum, (const int32_t(*)[LN_STRIP])counts[0], sums);
        a += group;
        b += group * LN_STRIP;
        if (g + 2 < p->groups) LN_COUNT_GROUP(0, counts[0], a, b);
        add_group(p, g + 1, group, has_minimum, (const int32_t(*)[LN_STRIP])counts[1], sums);
    }
    for (int64_t t = 0; t < p->tokens; t++) ln_store_sums(p->y + t * p->y_stride, p->mask, sums[t], p->add);
}

static void run_32(const int8_tile *p) {
    run_int8(p, 32, false);
}
static void run_32_minimum(const int8_tile *p) {
    run_int8(p, 32, true);
}
static void run_16(const int8_tile *p) {
    run_int8(p, 16, false);
}
static void run_16_minimum(const int8_tile *p) {
    run_int8(p, 16, true);
}

static void panel_int8(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                       const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    static void (*const runs[2][2])(const int8_tile *) = {{run_32, run_32_minimum}, {run_16, run_16_minimum}};
    const int group = ln_panel_group(type);
    const bool has_minimum = ln_format_of(type)->has_minimum;
    const ln_amx_shape shape = ln_amx_shape_of(group);
    const int64_t padded = ln_panel_padded(columns), strip_bytes = ln_strip_bytes(LN_FORM_INT8, type, columns);
    const int64_t at = column - x->begin;
    few_tokens few;
    ln_amx_configure(&shape);
    for (int64_t t = 0; t < tokens; t += TOKENS) {
        const unsigned char *row = x->data + (uint64_t)(first + t) * x->row_bytes;
        int8_tile p = {
            .minus_offset = -ln_unpack_offset(type),
            .groups = padded / group,
            .padded = padded,
            .x = row + at,
            .x_bytes = (int64_t)x->row_bytes,
            .x_scale = (const float *)(const void *)(row + x->padded) + at / 32,
            .x_sum = (const int32_t *)(const void *)(row + x->padded + x->padded / 8) + at / 16,
            .x_floats = (int64_t)x->row_bytes / 4,
            .tokens = ln_min_i64(TOKENS, tokens - t),
            .y_stride = y_stride,
            .add = column > 0,
        };
        if (p.tokens < TOKENS) {
            for (int64_t i = 0; i < p.tokens; i++) memcpy(few.x[i], p.x + i * p.x_bytes, (size_t)padded);
            for (int64_t i = p.tokens; i < TOKENS; i++) memset(few.x[i], 0, (size_t)padded);
            p.x = few.x[0];
            p.x_bytes = sizeof few.x[0];
        }
        for (int64_t r = 0; r < rows; r += LN_STRIP) {
            p.strip = (const unsigned char *)panel + r / LN_STRIP * strip_bytes;
            p.mask = ln_row_mask(rows - r);
            p.y = y + (first + t) * y_stride + r;
            runs[group == 16][has_minimum](&p);
        }
    }
    ln_amx_release();
}

void ln_panel_fill_amx(unsigned cpu, ln_matmul_kernels *kernels) {
    if (cpu & LN_CPU_AMX_INT8)
        ln_panel_fill(kernels, 0, ln_panel_blocks,
                      (ln_panel_slot){"panel_int8_16x16__amx", LN_FORM_INT8, INT8_ROWS, LN_INT8_COLUMNS_512,
                                      ln_pack_int8_512, panel_int8});
    if (cpu & LN_CPU_AMX_BF16) {
        const ln_panel_slot slot = {"panel_bf16_32x32__amx", LN_FORM_BF16,     BF16_ROWS,
                                    LN_BF16_COLUMNS_512,     ln_pack_bf16_512, panel_bf16};
        ln_panel_fill(kernels, 0, ln_panel_halves, slot);
        ln_panel_fill(kernels, 0, ln_panel_blocks, slot);
    }
}
