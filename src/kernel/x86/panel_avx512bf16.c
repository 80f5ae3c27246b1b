/* Owns: the BF16 form on AVX-512 BF16, for weights of 16 bits: 32 rows x 12 tokens, 24 sums in registers.
 *
 * The instruction rounds each of its two additions to nearest and takes subnormals as zero. */
#include <immintrin.h>

#define LN_STEP_512(sums, w, x) _mm512_dpbf16_ps(sums, (__m512bh)(w), (__m512bh)(x))
#include "kernel/x86/pack_512.h"
#include "kernel/x86/panel_512.h"

enum { ROWS = 32 };

/* A row of a block format, rounded to bf16. Writes whole groups of 32. */
static void unpack_blocks(linnet_type type, const unsigned char *from, int64_t columns, uint16_t *to) {
    _Alignas(64) uint8_t u[LN_BF16_COLUMNS_512];
    _Alignas(64) float scale[LN_BF16_COLUMNS_512 / 16], minimum[LN_BF16_COLUMNS_512 / 16];
    const bool has_minimum = ln_format_of(type)->has_minimum;
    const __m512i offset = _mm512_set1_epi32(ln_unpack_offset(type));
    ln_unpack_row_512(type, from, columns, u, scale, minimum);
    for (int64_t c = 0; c < columns; c += 32) {
        __m512 w[2];
        for (int i = 0; i < 2; i++) {
            const __m128i bytes = _mm_load_si128((const __m128i *)(const void *)(u + c + 16 * i));
            const __m512i q = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), offset);
            w[i] = _mm512_mul_ps(_mm512_set1_ps(scale[c / 16 + i]), _mm512_cvtepi32_ps(q));
            if (has_minimum) w[i] = _mm512_add_ps(w[i], _mm512_set1_ps(minimum[c / 16 + i]));
        }
        _mm512_storeu_si512(to + c, (__m512i)_mm512_cvtne2ps_pbh(w[1], w[0]));
    }
}

/* One row of columns to bf16. */
static void unpack_row(linnet_type type, const unsigned char *from, int64_t columns, uint16_t *to) {
    if (type == LINNET_BF16) {
        memcpy(to, from, (size_t)columns * 2);
        return;
    }
    if (type != LINNET_F16 && type != LINNET_F32) {
        unpack_blocks(type, from, columns, to);
        return;
    }
    _Alignas(64) float values[LN_BF16_COLUMNS_512];
    ln_decode_row_512(type, from, columns, values);
    const int64_t whole = columns / 16 * 16; /* masked stores are slow to read back */
    for (int64_t c = 0; c < whole; c += 16)
        _mm256_storeu_si256((__m256i *)(void *)(to + c), (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(values + c)));
    if (whole < columns)
        _mm256_mask_storeu_epi16(to + whole, ln_row_mask(columns - whole),
                                 (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(values + whole)));
}

void ln_pack_bf16_512(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                      int64_t columns, void *panel) {
    _Alignas(64) uint16_t values[LN_STRIP][LN_BF16_COLUMNS_512];
    const int64_t padded = ln_panel_padded(columns);
    const unsigned char *from = (const unsigned char *)weight + ln_format_bytes(type, column);
    uint16_t *strip = panel;
    for (int64_t r = 0; r < rows; r += LN_STRIP, strip += padded * LN_STRIP, from += LN_STRIP * row_bytes) {
        const int64_t here = ln_min_i64(LN_STRIP, rows - r);
        if (type == LINNET_BF16 && here == LN_STRIP && columns == padded) {
            ln_transpose_rows(from, row_bytes, padded / 32, strip);
            continue;
        }
        if (here < LN_STRIP || columns < padded) memset(values, 0, sizeof values);
        for (int64_t i = 0; i < here; i++) unpack_row(type, from + (uint64_t)i * row_bytes, columns, values[i]);
        ln_transpose_rows(values, sizeof *values, padded / 32, strip);
    }
}

static void panel_bf16(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                       const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    (void)type;
    ln_panel_run_512(panel, 2, rows, column, columns, x, first, tokens, y, y_stride);
}

void ln_panel_fill_avx512bf16(ln_matmul_kernels *kernels) {
    ln_panel_fill(kernels, 0, ln_panel_halves,
                  (ln_panel_slot){"panel_bf16_32x12__avx512bf16", LN_FORM_BF16, ROWS, LN_BF16_COLUMNS_512,
                                  ln_pack_bf16_512, panel_bf16});
}
