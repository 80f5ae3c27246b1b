/* Owns: the portable panel kernel, which every other one overwrites: any format, decoded to the F32 form.
 *
 * An output is the sum over the panel's columns in ascending order, in float32, then added to what the columns of the
 * panels before gave: partial sums of a few hundred terms keep the rounding error small. */
#include "kernel/panel.h"

enum { ROWS = 32, COLUMNS = 256, TOKENS = 4 };

static void pack_strip(const ln_format *format, const unsigned char *weight, uint64_t row_bytes, int64_t rows,
                       int64_t columns, float *strip) {
    float values[COLUMNS];
    memset(strip, 0, (size_t)ln_strip_bytes(LN_FORM_F32, LINNET_F32, columns));
    for (int64_t r = 0; r < rows; r++) {
        format->decode(weight + (uint64_t)r * row_bytes, values, columns);
        for (int64_t c = 0; c < columns; c++) strip[c * LN_STRIP + r] = values[c];
    }
}

static void pack_f32(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                     int64_t columns, void *panel) {
    const unsigned char *from = (const unsigned char *)weight + ln_format_bytes(type, column);
    float *strip = panel;
    for (int64_t r = 0; r < rows; r += LN_STRIP, strip += LN_STRIP * ln_panel_padded(columns))
        pack_strip(ln_format_of(type), from + (uint64_t)r * row_bytes, row_bytes, ln_min_i64(LN_STRIP, rows - r),
                   columns, strip);
}

static void store(const float *sums, int64_t rows, bool first, float *y) {
    for (int64_t r = 0; r < rows; r++) y[r] = first ? sums[r] : y[r] + sums[r];
}

static void panel_f32(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                      const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    (void)type;
    for (int64_t r = 0; r < rows; r += LN_STRIP) {
        const float *strip = (const float *)panel + r * ln_panel_padded(columns);
        for (int64_t t = 0; t < tokens; t += TOKENS) {
            const int64_t count = ln_min_i64(TOKENS, tokens - t);
            const float *row[TOKENS];
            float sums[TOKENS][LN_STRIP] = {{0}};
            for (int64_t i = 0; i < TOKENS; i++)
                row[i] = (const float *)(x->data + (uint64_t)(first + t + ln_min_i64(i, count - 1)) * x->row_bytes) +
                         column - x->begin;
            for (int64_t c = 0; c < columns; c++)
                for (int i = 0; i < TOKENS; i++)
                    for (int j = 0; j < LN_STRIP; j++) sums[i][j] += strip[c * LN_STRIP + j] * row[i][c];
            for (int64_t i = 0; i < count; i++)
                store(sums[i], ln_min_i64(LN_STRIP, rows - r), column == 0, y + (first + t + i) * y_stride + r);
        }
    }
}

void ln_panel_fill_portable(ln_matmul_kernels *kernels) {
    for (int exact = 0; exact < 2; exact++)
        ln_panel_fill(kernels, exact, ln_panel_any,
                      (ln_panel_slot){"panel_f32_16x4__portable", LN_FORM_F32, ROWS, COLUMNS, pack_f32, panel_f32});
}

void ln_panel_choose(unsigned cpu, ln_matmul_kernels *kernels) {
    (void)cpu;
    ln_panel_fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_panel_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_panel_fill_avx512(kernels);
    if (cpu & LN_CPU_AVX512_VNNI) ln_panel_fill_avx512vnni(kernels);
    if (cpu & LN_CPU_AVX512_BF16) ln_panel_fill_avx512bf16(kernels);
    ln_panel_fill_amx(cpu, kernels);
#elif defined(__aarch64__)
    if (cpu & LN_CPU_NEON) ln_panel_fill_neon(kernels);
#endif
}
