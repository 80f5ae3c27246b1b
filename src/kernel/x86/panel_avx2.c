/* Owns: the F32 form on AVX2: 16 rows x 6 tokens, 12 sums in registers.
 *
 * Int8 has no form here: without VNNI its exact products take as many instructions as multiply-adds of float32, which
 * keep the activations as they are. */
#include <immintrin.h>

#include "kernel/panel.h"

#define LN_INLINE static inline __attribute__((always_inline))

enum { ROWS = 32, COLUMNS = 256 };

/* ---- packing ---- */

/* to[j * LN_STRIP + i] = from[i * COLUMNS + j], i and j below 8 */
LN_INLINE void transpose_8(const float *from, float *to) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_load_ps(from + i * COLUMNS);
    for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        a[4 * i] = _mm256_shuffle_ps(b[4 * i], b[4 * i + 2], 0x44);
        a[4 * i + 1] = _mm256_shuffle_ps(b[4 * i], b[4 * i + 2], 0xee);
        a[4 * i + 2] = _mm256_shuffle_ps(b[4 * i + 1], b[4 * i + 3], 0x44);
        a[4 * i + 3] = _mm256_shuffle_ps(b[4 * i + 1], b[4 * i + 3], 0xee);
    }
    for (int j = 0; j < 4; j++) {
        _mm256_store_ps(to + j * LN_STRIP, _mm256_permute2f128_ps(a[j], a[4 + j], 0x20));
        _mm256_store_ps(to + (4 + j) * LN_STRIP, _mm256_permute2f128_ps(a[j], a[4 + j], 0x31));
    }
}

static void unpack_row(const ln_format *format, linnet_type type, const unsigned char *from, int64_t columns,
                       float *to) {
    if (type != LINNET_F16 && type != LINNET_BF16) {
        format->decode(from, to, columns);
        return;
    }
    const int64_t whole = columns / 8 * 8;
    for (int64_t c = 0; c < whole; c += 8) {
        const __m128i half = _mm_loadu_si128((const __m128i *)(const void *)(from + 2 * c));
        const __m256 bf16 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
        _mm256_storeu_ps(to + c, type == LINNET_F16 ? _mm256_cvtph_ps(half) : bf16);
    }
    format->decode(from + 2 * whole, to + whole, columns - whole);
}

static void pack_f32(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                     int64_t columns, void *panel) {
    _Alignas(64) float values[LN_STRIP][COLUMNS];
    const ln_format *format = ln_format_of(type);
    const int64_t padded = ln_panel_padded(columns);
    const unsigned char *from = (const unsigned char *)weight + ln_format_bytes(type, column);
    float *strip = panel;
    for (int64_t r = 0; r < rows; r += LN_STRIP, strip += padded * LN_STRIP) {
        const int64_t here = ln_min_i64(LN_STRIP, rows - r);
        if (here < LN_STRIP || columns < padded) memset(values, 0, sizeof values);
        for (int64_t i = 0; i < here; i++)
            unpack_row(format, type, from + (uint64_t)(r + i) * row_bytes, columns, values[i]);
        for (int i = 0; i < LN_STRIP; i += 8)
            for (int64_t c = 0; c < padded; c += 8) transpose_8(values[i] + c, strip + c * LN_STRIP + i);
    }
}

/* ---- the dense kernel ---- */

typedef struct tile {
    const float *strip;
    int64_t rows, columns;
    const unsigned char *x;
    uint64_t x_bytes;
    float *y;
    int64_t y_stride;
    bool add;
} tile;

LN_INLINE void store_sums(const tile *p, float *y, __m256 low, __m256 high) {
    _Alignas(32) float sums[LN_STRIP];
    if (p->rows >= LN_STRIP) {
        _mm256_storeu_ps(y, p->add ? _mm256_add_ps(_mm256_loadu_ps(y), low) : low);
        _mm256_storeu_ps(y + 8, p->add ? _mm256_add_ps(_mm256_loadu_ps(y + 8), high) : high);
        return;
    }
    _mm256_store_ps(sums, low);
    _mm256_store_ps(sums + 8, high);
    for (int64_t r = 0; r < p->rows; r++) y[r] = p->add ? y[r] + sums[r] : sums[r];
}

LN_INLINE void run_tile(const tile *p, int64_t token, const int tokens) {
    __m256 low[6], high[6];
    const uint64_t stride = p->x_bytes;
    const unsigned char *x = p->x + (uint64_t)token * stride, *x3 = x + 3 * stride;
    const float *w = p->strip;
    for (int t = 0; t < tokens; t++) low[t] = high[t] = _mm256_setzero_ps();
    for (int64_t c = 0; c < p->columns; c++, w += LN_STRIP, x += 4, x3 += 4) {
        const __m256 a = _mm256_load_ps(w), b = _mm256_load_ps(w + 8);
#pragma GCC unroll 6
        for (int t = 0; t < tokens; t++) {
            const unsigned char *place = (t < 3 ? x : x3) + (uint64_t)(t % 3) * stride;
            const __m256 value = _mm256_broadcast_ss((const float *)(const void *)place);
            low[t] = _mm256_fmadd_ps(a, value, low[t]);
            high[t] = _mm256_fmadd_ps(b, value, high[t]);
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < tokens; t++) store_sums(p, p->y + (token + t) * p->y_stride, low[t], high[t]);
}

static void panel_f32(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                      const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    (void)type;
    for (int64_t r = 0; r < rows; r += LN_STRIP) {
        const tile p = {
            .strip = (const float *)panel + r * ln_panel_padded(columns),
            .rows = rows - r,
            .columns = columns,
            .x = x->data + (uint64_t)first * x->row_bytes + (column - x->begin) * 4,
            .x_bytes = x->row_bytes,
            .y = y + first * y_stride + r,
            .y_stride = y_stride,
            .add = column > 0,
        };
        int64_t t = 0;
        for (; t + 6 <= tokens; t += 6) run_tile(&p, t, 6);
        for (; t + 3 <= tokens; t += 3) run_tile(&p, t, 3);
        for (; t < tokens; t++) run_tile(&p, t, 1);
    }
}

void ln_panel_fill_avx2(ln_matmul_kernels *kernels) {
    for (int exact = 0; exact < 2; exact++)
        ln_panel_fill(kernels, exact, ln_panel_any,
                      (ln_panel_slot){"panel_f32_16x6__avx2", LN_FORM_F32, ROWS, COLUMNS, pack_f32, panel_f32});
}
