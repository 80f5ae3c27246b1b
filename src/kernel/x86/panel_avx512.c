/* Owns: the F32 form on AVX-512: 32 rows x 12 tokens, 24 sums in registers.
 *
 * A step loads 2 vectors of weights and 12 activations (each for both strips) for 24 multiply-adds. A panel of 256
 * columns is 32 KB: it stays in the first cache while all tokens pass. */
#include <immintrin.h>

#define LN_STEP_512(sums, w, x) _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sums)
#include "kernel/x86/panel_512.h"
#include "kernel/x86/panel_unpack.h"

enum { ROWS = 32, COLUMNS = 256 };

/* A row of a block format as decode gives it, bit for bit. */
static void unpack_blocks(linnet_type type, const unsigned char *from, int64_t columns, float *to) {
    _Alignas(64) uint8_t u[COLUMNS];
    _Alignas(64) float scale[COLUMNS / 16], minimum[COLUMNS / 16];
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

/* One row of columns to floats. */
static void unpack_row(const ln_format *format, linnet_type type, const unsigned char *from, int64_t columns,
                       float *to) {
    if (format->unpack) {
        unpack_blocks(type, from, columns, to);
        return;
    }
    if (type == LINNET_F32) {
        memcpy(to, from, (size_t)columns * 4);
        return;
    }
    for (int64_t c = 0; c < columns; c += 16) {
        const __mmask16 mask = ln_row_mask(columns - c);
        const __m256i half = _mm256_maskz_loadu_epi16(mask, from + 2 * c);
        const __m512 bf16 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        _mm512_mask_storeu_ps(to + c, mask, type == LINNET_F16 ? _mm512_cvtph_ps(half) : bf16);
    }
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
        ln_transpose_rows(values, sizeof *values, padded / 16, strip);
    }
}

static void panel_f32(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                      const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    (void)type;
    ln_panel_run_512(panel, 4, rows, column, columns, x, first, tokens, y, y_stride);
}

void ln_panel_fill_avx512(ln_matmul_kernels *kernels) {
    for (int exact = 0; exact < 2; exact++)
        ln_panel_fill(kernels, exact, ln_panel_any,
                      (ln_panel_slot){"panel_f32_32x12__avx512", LN_FORM_F32, ROWS, COLUMNS, pack_f32, panel_f32});
}
