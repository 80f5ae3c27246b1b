/* The NEON dot kernels of the block formats against INT8 activations, once for plain NEON and once with the dot product
 * instructions: the file that includes this defines dot16 (16 products in four lanes).
 *
 * 256 weights at a time are unpacked to the stack as signed bytes with 16 scales (and minimums), for groups g of 16:
 *     y += sum over g of xs_g scale_g sum(q xq)  +  sum over g of xs_g minimum_g sum(xq)
 * A row and token has two accumulators, group g going to the accumulator g mod 2, and one for the minimums: the order
 * is the same for any number of rows and tokens. */
#ifndef LN_KERNEL_ARM_DOT_NEON_BODY_H
#define LN_KERNEL_ARM_DOT_NEON_BODY_H

#include <arm_neon.h>
#include <string.h>

#include "kernel/dot.h"

#define LN_INLINE static inline __attribute__((always_inline))

typedef struct ln_unpacked {
    int8_t q[256];
    float scale[16], minimum[16];
} ln_unpacked;

typedef void (*ln_unpack_neon)(const unsigned char *p, ln_unpacked *w);

LN_INLINE float ln_load_half(const unsigned char *p) {
    float16_t half;
    memcpy(&half, p, 2);
    return (float)half;
}

/* ---- eight blocks of 32; block j of `bytes` bytes ---- */

LN_INLINE void ln_block_halves(const unsigned char *p, int bytes, float to[16]) {
    uint16_t halves[8];
    for (int j = 0; j < 8; j++) memcpy(halves + j, p + j * bytes, 2);
    const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(halves));
    const float32x4_t low = vcvt_f32_f16(vget_low_f16(h)), high = vcvt_f32_f16(vget_high_f16(h));
    vst1q_f32(to, vzip1q_f32(low, low));
    vst1q_f32(to + 4, vzip2q_f32(low, low));
    vst1q_f32(to + 8, vzip1q_f32(high, high));
    vst1q_f32(to + 12, vzip2q_f32(high, high));
}

/* 32 values from the nibbles at p and, where there are any, the fifth bits. */
LN_INLINE void ln_nibbles(const unsigned char *p, const unsigned char *fifth, int offset, int8_t *q) {
    const uint8x16_t v = vld1q_u8(p);
    uint8x16_t low = vandq_u8(v, vdupq_n_u8(15)), high = vshrq_n_u8(v, 4);
    if (fifth) {
        const uint8x16_t tests = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
        const uint8x16_t a = vcombine_u8(vdup_n_u8(fifth[0]), vdup_n_u8(fifth[1]));
        const uint8x16_t b = vcombine_u8(vdup_n_u8(fifth[2]), vdup_n_u8(fifth[3]));
        low = vorrq_u8(low, vandq_u8(vtstq_u8(a, tests), vdupq_n_u8(16)));
        high = vorrq_u8(high, vandq_u8(vtstq_u8(b, tests), vdupq_n_u8(16)));
    }
    const int8x16_t down = vdupq_n_s8((int8_t)offset);
    vst1q_s8(q, vsubq_s8(vreinterpretq_s8_u8(low), down));
    vst1q_s8(q + 16, vsubq_s8(vreinterpretq_s8_u8(high), down));
}

LN_INLINE void ln_unpack_neon_q8_0(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) memcpy(w->q + 32 * j, p + 34 * j + 2, 32);
    ln_block_halves(p, 34, w->scale);
}
LN_INLINE void ln_unpack_neon_q4_0(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) ln_nibbles(p + 18 * j + 2, NULL, 8, w->q + 32 * j);
    ln_block_halves(p, 18, w->scale);
}
LN_INLINE void ln_unpack_neon_q4_1(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) ln_nibbles(p + 20 * j + 4, NULL, 0, w->q + 32 * j);
    ln_block_halves(p, 20, w->scale);
    ln_block_halves(p + 2, 20, w->minimum);
}
LN_INLINE void ln_unpack_neon_q5_0(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) ln_nibbles(p + 22 * j + 6, p + 22 * j + 2, 16, w->q + 32 * j);
    ln_block_halves(p, 22, w->scale);
}
LN_INLINE void ln_unpack_neon_q5_1(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) ln_nibbles(p + 24 * j + 8, p + 24 * j + 4, 0, w->q + 32 * j);
    ln_block_halves(p, 24, w->scale);
    ln_block_halves(p + 2, 24, w->minimum);
}

/* ---- blocks of 256 ---- */

/* Bits `shift` and up of the 16 bytes at p. */
LN_INLINE uint8x16_t ln_field(const unsigned char *p, int shift, int keep) {
    return vandq_u8(vshlq_u8(vld1q_u8(p), vdupq_n_s8((int8_t)-shift)), vdupq_n_u8((uint8_t)keep));
}
/* Bit j of the 16 bytes at p, moved to the value `worth`. */
LN_INLINE uint8x16_t ln_bit(const unsigned char *p, int j, int worth) {
    return vandq_u8(vtstq_u8(vld1q_u8(p), vdupq_n_u8((uint8_t)(1 << j))), vdupq_n_u8((uint8_t)worth));
}
LN_INLINE void ln_store(uint8x16_t u, int offset, int8_t *q) {
    vst1q_s8(q, vsubq_s8(vreinterpretq_s8_u8(u), vdupq_n_s8((int8_t)offset)));
}

/* factor * 16 signed bytes */
LN_INLINE void ln_scaled(float factor, int8x16_t bytes, float to[16]) {
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    vst1q_f32(to, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), factor));
    vst1q_f32(to + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))), factor));
    vst1q_f32(to + 8, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), factor));
    vst1q_f32(to + 12, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))), factor));
}

/* Group g of 16 is half g mod 2 of the 32 values j = g / 2. */
LN_INLINE void ln_unpack_neon_q2_k(const unsigned char *p, ln_unpacked *w) {
    for (int g = 0; g < 16; g++)
        ln_store(ln_field(p + 16 + g / 8 * 32 + g % 2 * 16, g / 2 % 4 * 2, 3), 0, w->q + 16 * g);
    const uint8x16_t both = vld1q_u8(p);
    ln_scaled(ln_load_half(p + 80), vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), w->scale);
    ln_scaled(-ln_load_half(p + 82), vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), w->minimum);
}

LN_INLINE void ln_unpack_neon_q3_k(const unsigned char *p, ln_unpacked *w) {
    for (int g = 0; g < 16; g++) {
        const uint8x16_t low = ln_field(p + 32 + g / 8 * 32 + g % 2 * 16, g / 2 % 4 * 2, 3);
        ln_store(vorrq_u8(low, ln_bit(p + g % 2 * 16, g / 2, 4)), 4, w->q + 16 * g);
    }
    uint32_t tops;
    memcpy(&tops, p + 104, 4);
    const int32_t shifts[4] = {0, -2, -4, -6};
    const uint8x8_t packed = vld1_u8(p + 96);
    const uint8x16_t low = vcombine_u8(vand_u8(packed, vdup_n_u8(15)), vshr_n_u8(packed, 4));
    const uint8x16_t top = vreinterpretq_u8_u32(vshlq_u32(vdupq_n_u32(tops), vld1q_s32(shifts)));
    const uint8x16_t scale = vorrq_u8(low, vshlq_n_u8(vandq_u8(top, vdupq_n_u8(3)), 4));
    ln_scaled(ln_load_half(p + 108), vsubq_s8(vreinterpretq_s8_u8(scale), vdupq_n_s8(32)), w->scale);
}

/* Scales and minimums of Q4_K and Q5_K, each twice: see unpack_six_bits in number/format.c. */
LN_INLINE void ln_six_bits(const unsigned char *p, ln_unpacked *w) {
    uint32_t a, b, c;
    memcpy(&a, p + 4, 4);
    memcpy(&b, p + 8, 4);
    memcpy(&c, p + 12, 4);
    const uint64_t s = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030), m = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
    const int8x8_t scales = vcreate_s8(s << 32 | (a & 0x3f3f3f3f)), minimums = vcreate_s8(m << 32 | (b & 0x3f3f3f3f));
    ln_scaled(ln_load_half(p), vcombine_s8(vzip1_s8(scales, scales), vzip2_s8(scales, scales)), w->scale);
    ln_scaled(-ln_load_half(p + 2), vcombine_s8(vzip1_s8(minimums, minimums), vzip2_s8(minimums, minimums)),
              w->minimum);
}

LN_INLINE void ln_unpack_neon_q4_k(const unsigned char *p, ln_unpacked *w) {
    for (int g = 0; g < 16; g++)
        ln_store(ln_field(p + 16 + g / 4 * 32 + g % 2 * 16, g / 2 % 2 * 4, 15), 0, w->q + 16 * g);
    ln_six_bits(p, w);
}
LN_INLINE void ln_unpack_neon_q5_k(const unsigned char *p, ln_unpacked *w) {
    for (int g = 0; g < 16; g++) {
        const uint8x16_t low = ln_field(p + 48 + g / 4 * 32 + g % 2 * 16, g / 2 % 2 * 4, 15);
        ln_store(vorrq_u8(low, ln_bit(p + 16 + g % 2 * 16, g / 2, 16)), 0, w->q + 16 * g);
    }
    ln_six_bits(p, w);
}
LN_INLINE void ln_unpack_neon_q6_k(const unsigned char *p, ln_unpacked *w) {
    for (int g = 0; g < 16; g++) {
        const uint8x16_t low = ln_field(p + g / 8 * 64 + g % 4 * 16, g / 4 % 2 * 4, 15);
        const uint8x16_t top = ln_field(p + 128 + g / 8 * 32 + g % 2 * 16, g / 2 % 4 * 2, 3);
        ln_store(vorrq_u8(low, vshlq_n_u8(top, 4)), 32, w->q + 16 * g);
    }
    ln_scaled(ln_load_half(p + 208), vreinterpretq_s8_u8(vld1q_u8(p + 192)), w->scale);
}

/* ---- dot ---- */

typedef struct ln_sums {
    float32x4_t part[4];
} ln_sums;

LN_INLINE float ln_total(ln_sums y) {
    const float32x4_t sum = vaddq_f32(vaddq_f32(y.part[0], y.part[1]), vaddq_f32(y.part[2], y.part[3]));
    const float32x2_t half = vadd_f32(vget_low_f32(sum), vget_high_f32(sum));
    return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
}

LN_INLINE const unsigned char *ln_token_row(const ln_activation *x, int64_t token) {
    return x->data + (uint64_t)token * x->row_bytes;
}

static inline int32x4_t dot16(int8x16_t q, int8x16_t xq);

LN_INLINE void ln_multiply_int8(const ln_unpacked *w, bool has_minimum, const int8_t *xq, const float *xs,
                                const int32_t *xsum, int groups, ln_sums *y) {
    for (int g = 0; g < groups; g++) {
        const float32x4_t dot = vcvtq_f32_s32(dot16(vld1q_s8(w->q + 16 * g), vld1q_s8(xq + 16 * g)));
        y->part[g & 1] = vfmaq_n_f32(y->part[g & 1], dot, w->scale[g] * xs[g / 2]);
    }
    for (int g = 0; has_minimum && g < groups; g += 2) {
        const float32x2_t minimum = vmul_n_f32(vld1_f32(w->minimum + g), xs[g / 2]);
        const float32x2_t sum = vfma_f32(vget_low_f32(y->part[2]), minimum, vcvt_f32_s32(vld1_s32(xsum + g)));
        y->part[2] = vcombine_f32(sum, vdup_n_f32(0));
    }
}

LN_INLINE void ln_int8_rows(int64_t tokens, ln_unpack_neon unpack, int block, int bytes, bool has_minimum,
                            const unsigned char *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x,
                            int64_t first, float *y, int64_t y_stride) {
    const int step = 256 / block * bytes;
    const unsigned char *end = weight + (uint64_t)rows * row_bytes;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        ln_sums sum[LN_DOT_PASS];
        ln_unpacked w;
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = vdupq_n_f32(0);
        for (int64_t c = 0; c < x->columns; c += 256, p += step) {
            const int groups = x->columns - c < 256 ? (int)((x->columns - c) / 16) : 16;
            unsigned char copy[256 * 2];
            const unsigned char *from = groups == 16 ? p : ln_dot_end(p, groups / 2 * bytes, step, end - p, copy);
            ln_dot_prefetch(p, step);
            unpack(from, &w);
            for (int64_t t = 0; t < tokens; t++) {
                const unsigned char *row = ln_token_row(x, first + t);
                ln_multiply_int8(&w, has_minimum, (const int8_t *)row + c, ln_int8_scales(row, x->padded) + c / 32,
                                 ln_int8_sums(row, x->padded) + c / 16, groups, sum + t);
            }
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = ln_total(sum[t]);
    }
}

#define LN_DEFINE_INT8(name, NAME, block, bytes, has_minimum) \
    LN_DOT_KERNEL(fast_##name, ln_int8_rows, ln_unpack_neon_##name, block, bytes, has_minimum)
LN_BLOCK_FORMATS(LN_DEFINE_INT8)

#define LN_FILL_INT8(name, NAME, suffix) \
    kernels->dot[0][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_int8__" suffix, LN_FORM_INT8, fast_##name};

#endif
