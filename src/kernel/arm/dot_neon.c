/* Owns: preparing activations, and the dot kernels of every format, with plain NEON.
 *
 * Beside the INT8 kernels of dot_neon_body.h: W becomes float32 in registers, 16 values at a time in four vectors,
 * vector i of the row going to the accumulator i mod 4. */
#include <math.h>

#include "kernel/arm/dot_neon_body.h"

/* A pair of products is at most 2 * 128 * 127 < 2^15. */
static inline int32x4_t dot16(int8x16_t q, int8x16_t xq) {
    const int16x8_t low = vmull_s8(vget_low_s8(q), vget_low_s8(xq));
    return vpaddlq_s16(vmlal_s8(low, vget_high_s8(q), vget_high_s8(xq)));
}

/* ---- preparing ---- */

static void prepare_block(const float *x, int8_t *q, float *scale, int32_t *sum) {
    float32x4_t v[8], largest = vdupq_n_f32(0);
    uint32x4_t finite = vdupq_n_u32(~0u);
    for (int i = 0; i < 8; i++) {
        v[i] = vld1q_f32(x + 4 * i);
        largest = vmaxq_f32(largest, vabsq_f32(v[i]));
        finite = vandq_u32(finite, vcleq_f32(vabsq_f32(v[i]), vdupq_n_f32(0x1.fffffep127f)));
    }
    const bool all = vminvq_u32(finite) != 0;
    const float top = vmaxvq_f32(largest);
    if (!all || top < LN_INT8_LEAST) {
        memset(q, 0, 32);
        *scale = all ? 0 : NAN;
        sum[0] = sum[1] = 0;
        return;
    }
    *scale = top / 127;
    for (int half = 0; half < 2; half++) {
        int32x4_t n[4];
        for (int i = 0; i < 4; i++) n[i] = vcvtnq_s32_f32(vmulq_n_f32(v[4 * half + i], 127 / top));
        sum[half] = vaddvq_s32(vaddq_s32(vaddq_s32(n[0], n[1]), vaddq_s32(n[2], n[3])));
        const int16x8_t low = vcombine_s16(vmovn_s32(n[0]), vmovn_s32(n[1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(n[2]), vmovn_s32(n[3]));
        vst1q_s8(q + 16 * half, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
}

static void prepare_int8(const float *x, int64_t columns, int64_t padded, void *row) {
    int8_t *q = row;
    float *scale = (float *)(void *)((unsigned char *)row + padded);
    int32_t *sum = (int32_t *)(void *)((unsigned char *)row + padded + padded / 8);
    for (int64_t i = 0; i < padded; i += 32) {
        float end[32] = {0};
        if (i < columns && columns - i < 32) memcpy(end, x + i, (size_t)(columns - i) * 4);
        prepare_block(columns - i < 32 ? end : x + i, q + i, scale + i / 32, sum + i / 16);
    }
}

/* ---- float32 in registers ---- */

/* 16 floats times the activations of all tokens. */
LN_INLINE void multiply_floats(const float32x4_t w[4], const ln_activation *x, int64_t first, int64_t tokens,
                               int64_t column, ln_sums *sum) {
    for (int64_t t = 0; t < tokens; t++) {
        const float *xt = (const float *)(const void *)ln_token_row(x, first + t) + column;
        for (int k = 0; k < 4; k++) sum[t].part[k] = vfmaq_f32(sum[t].part[k], w[k], vld1q_f32(xt + 4 * k));
    }
}

typedef float32x4_t (*load4)(const unsigned char *p);

LN_INLINE float32x4_t load_f32(const unsigned char *p) {
    return vreinterpretq_f32_u8(vld1q_u8(p));
}
LN_INLINE float32x4_t load_f16(const unsigned char *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
LN_INLINE float32x4_t load_bf16(const unsigned char *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}

LN_INLINE void plain_rows(int64_t tokens, load4 load, int bytes, const unsigned char *weight, uint64_t row_bytes,
                          int64_t rows, const ln_activation *x, int64_t first, float *y, int64_t y_stride) {
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        ln_sums sum[LN_DOT_PASS];
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = vdupq_n_f32(0);
        for (int64_t c = 0; c < x->columns; c += 16, p += 16 * bytes) {
            const unsigned char *from = p;
            unsigned char copy[16 * 4];
            if (x->columns - c < 16) from = ln_dot_end(p, (x->columns - c) * bytes, 16 * bytes, 0, copy);
            float32x4_t w[4];
            ln_dot_prefetch(p, 16 * bytes);
            for (int k = 0; k < 4; k++) w[k] = load(from + 4 * k * bytes);
            multiply_floats(w, x, first, tokens, c, sum);
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = ln_total(sum[t]);
    }
}

LN_INLINE void block_rows(int64_t tokens, ln_unpack_neon unpack, int block, int bytes, bool has_minimum,
                          const unsigned char *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x,
                          int64_t first, float *y, int64_t y_stride) {
    const int step = 256 / block * bytes;
    const unsigned char *end = weight + (uint64_t)rows * row_bytes;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        ln_sums sum[LN_DOT_PASS];
        ln_unpacked unpacked;
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = vdupq_n_f32(0);
        for (int64_t c = 0; c < x->columns; c += 256, p += step) {
            const int groups = x->columns - c < 256 ? (int)((x->columns - c) / 16) : 16;
            unsigned char copy[256 * 2];
            const unsigned char *from = groups == 16 ? p : ln_dot_end(p, groups / 2 * bytes, step, end - p, copy);
            unpack(from, &unpacked);
            for (int g = 0; g < groups; g++) {
                const int8x16_t q = vld1q_s8(unpacked.q + 16 * g);
                const int16x8_t low = vmovl_s8(vget_low_s8(q)), high = vmovl_s8(vget_high_s8(q));
                const int32x4_t wide[4] = {vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)),
                                           vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))};
                const float32x4_t minimum = vdupq_n_f32(has_minimum ? unpacked.minimum[g] : 0);
                float32x4_t w[4];
                for (int k = 0; k < 4; k++) w[k] = vfmaq_n_f32(minimum, vcvtq_f32_s32(wide[k]), unpacked.scale[g]);
                multiply_floats(w, x, first, tokens, c + 16 * g, sum);
            }
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = ln_total(sum[t]);
    }
}

/* ---- the table ---- */

#define LN_DEFINE_PLAIN(name, NAME, bytes) LN_DOT_KERNEL(exact_##name, plain_rows, load_##name, bytes)
#define LN_DEFINE_BLOCK(name, NAME, block, bytes, has_minimum) \
    LN_DOT_KERNEL(exact_##name, block_rows, ln_unpack_neon_##name, block, bytes, has_minimum)
LN_PLAIN_FORMATS(LN_DEFINE_PLAIN)
LN_BLOCK_FORMATS(LN_DEFINE_BLOCK)

void ln_dot_fill_neon(ln_matmul_kernels *kernels) {
    kernels->prepare[LN_FORM_INT8] = prepare_int8;
#define LN_FILL_PLAIN(name, NAME, bytes)                              \
    kernels->dot[0][LINNET_##NAME] = kernels->dot[1][LINNET_##NAME] = \
        (ln_dot_slot){"dot_" #name "_f32__neon", LN_FORM_F32, exact_##name};
#define LN_FILL_BLOCK(name, NAME, block, bytes, has_minimum) \
    LN_FILL_INT8(name, NAME, "neon")                         \
    kernels->dot[1][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_f32__neon", LN_FORM_F32, exact_##name};
    LN_PLAIN_FORMATS(LN_FILL_PLAIN)
    LN_BLOCK_FORMATS(LN_FILL_BLOCK)
}
