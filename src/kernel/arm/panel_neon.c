/* Owns: the F32 form on NEON: 16 rows x 5 tokens, 20 sums in registers.
 *
 * A step takes four columns: a vector of activations a token, whose lanes multiply 4 x 4 vectors of weights. */
#include <arm_neon.h>

#include "kernel/panel.h"

#define LN_INLINE static inline __attribute__((always_inline))

enum { ROWS = 32, COLUMNS = 256, TOKENS = 5 };

/* ---- packing ---- */

static void unpack_row(const ln_format *format, linnet_type type, const unsigned char *from, int64_t columns,
                       float *to) {
    if (type != LINNET_F16 && type != LINNET_BF16) {
        format->decode(from, to, columns);
        return;
    }
    const int64_t whole = columns / 4 * 4;
    for (int64_t c = 0; c < whole; c += 4) {
        const uint16x4_t half = vreinterpret_u16_u8(vld1_u8(from + 2 * c));
        const float32x4_t bf16 = vreinterpretq_f32_u32(vshll_n_u16(half, 16));
        vst1q_f32(to + c, type == LINNET_F16 ? vcvt_f32_f16(vreinterpret_f16_u16(half)) : bf16);
    }
    format->decode(from + 2 * whole, to + whole, columns - whole);
}

/* to[j * LN_STRIP + i] = from[i * COLUMNS + j], i and j below 4 */
LN_INLINE void transpose_4(const float *from, float *to) {
    const float32x4_t a = vld1q_f32(from), b = vld1q_f32(from + COLUMNS);
    const float32x4_t c = vld1q_f32(from + 2 * COLUMNS), d = vld1q_f32(from + 3 * COLUMNS);
    const float32x4x2_t ab = vtrnq_f32(a, b), cd = vtrnq_f32(c, d);
    vst1q_f32(to, vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0])));
    vst1q_f32(to + LN_STRIP, vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1])));
    vst1q_f32(to + 2 * LN_STRIP, vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0])));
    vst1q_f32(to + 3 * LN_STRIP, vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1])));
}

static void pack_f32(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                     int64_t columns, void *panel) {
    float values[LN_STRIP][COLUMNS];
    const ln_format *format = ln_format_of(type);
    const int64_t padded = ln_panel_padded(columns);
    const unsigned char *from = (const unsigned char *)weight + ln_format_bytes(type, column);
    float *strip = panel;
    for (int64_t r = 0; r < rows; r += LN_STRIP, strip += padded * LN_STRIP) {
        const int64_t here = ln_min_i64(LN_STRIP, rows - r);
        if (here < LN_STRIP || columns < padded) memset(values, 0, sizeof values);
        for (int64_t i = 0; i < here; i++)
            unpack_row(format, type, from + (uint64_t)(r + i) * row_bytes, columns, values[i]);
        for (int i = 0; i < LN_STRIP; i += 4)
            for (int64_t c = 0; c < padded; c += 4) transpose_4(values[i] + c, strip + c * LN_STRIP + i);
    }
}

/* ---- the dense kernel ---- */

typedef struct tile {
    const float *strip;
    int64_t rows, steps; /* of four columns */
    const unsigned char *x;
    uint64_t x_bytes;
    float *y;
    int64_t y_stride;
    bool add;
} tile;

LN_INLINE void store_sums(const tile *p, float *y, const float32x4_t *sums) {
    float values[LN_STRIP];
    for (int i = 0; i < 4; i++) vst1q_f32(values + 4 * i, sums[i]);
    const int64_t rows = ln_min_i64(p->rows, LN_STRIP);
    for (int64_t r = 0; r < rows; r++) y[r] = p->add ? y[r] + values[r] : values[r];
}

#define LN_COLUMN(lane)                                                       \
    for (int i = 0; i < 4; i++) {                                             \
        const float32x4_t w = vld1q_f32(strip + (lane)*LN_STRIP + 4 * i);     \
        _Pragma("GCC unroll 5") for (int t = 0; t < tokens; t++) sums[t][i] = \
            vfmaq_laneq_f32(sums[t][i], w, x[t], lane);                       \
    }

LN_INLINE void run_tile(const tile *p, int64_t token, const int tokens) {
    float32x4_t sums[TOKENS][4];
    const unsigned char *from = p->x + (uint64_t)token * p->x_bytes;
    const float *strip = p->strip;
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < 4; i++) sums[t][i] = vdupq_n_f32(0);
    for (int64_t k = 0; k < p->steps; k++, strip += 4 * LN_STRIP, from += 16) {
        float32x4_t x[TOKENS];
#pragma GCC unroll 5
        for (int t = 0; t < tokens; t++) x[t] = vreinterpretq_f32_u8(vld1q_u8(from + (uint64_t)t * p->x_bytes));
        LN_COLUMN(0)
        LN_COLUMN(1)
        LN_COLUMN(2)
        LN_COLUMN(3)
    }
#pragma GCC unroll 5
    for (int t = 0; t < tokens; t++) store_sums(p, p->y + (token + t) * p->y_stride, sums[t]);
}

static void panel_f32(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                      const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    (void)type;
    for (int64_t r = 0; r < rows; r += LN_STRIP) {
        const tile p = {
            .strip = (const float *)panel + r * ln_panel_padded(columns),
            .rows = rows - r,
            .steps = ln_ceil_div(columns, 4),
            .x = x->data + (uint64_t)first * x->row_bytes + (column - x->begin) * 4,
            .x_bytes = x->row_bytes,
            .y = y + first * y_stride + r,
            .y_stride = y_stride,
            .add = column > 0,
        };
        int64_t t = 0;
        for (; t + TOKENS <= tokens; t += TOKENS) run_tile(&p, t, TOKENS);
        for (; t + 2 <= tokens; t += 2) run_tile(&p, t, 2);
        for (; t < tokens; t++) run_tile(&p, t, 1);
    }
}

void ln_panel_fill_neon(ln_matmul_kernels *kernels) {
    for (int exact = 0; exact < 2; exact++)
        ln_panel_fill(kernels, exact, ln_panel_any,
                      (ln_panel_slot){"panel_f32_16x5__neon", LN_FORM_F32, ROWS, COLUMNS, pack_f32, panel_f32});
}
