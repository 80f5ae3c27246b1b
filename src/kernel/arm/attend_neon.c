/* Owns: the attention kernels of NEON: 6 rows x 16 columns in registers, 24 sums of the 32 registers. */
#include "kernel/arm/lanes_neon.h"
#include "kernel/attend_sets.h"

enum { VECTORS = 4, ROWS = 6 };

HELPER lanes load(const float *x, int n) {
    (void)n;
    return vld1q_f32(x);
}
HELPER void store(float *y, lanes v, int n) {
    (void)n;
    vst1q_f32(y, v);
}
HELPER lanes load_f16(const uint16_t *x, int n) {
    (void)n;
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)));
}
HELPER lanes load_bf16(const uint16_t *x, int n) {
    (void)n;
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(x), 16));
}
HELPER lanes load_q8(const int8_t *x, int n) {
    (void)n;
    int32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
HELPER lanes load_q4(const uint8_t *x, int up, int n) {
    (void)n;
    uint32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    const uint8x8_t codes = vreinterpret_u8_u32(vdup_n_u32(four >> up & 0x0f0f0f0fu));
    const int16x8_t wide = vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(codes)), vdupq_n_s16(8));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
HELPER lanes load_bits(const unsigned char *x, int up, int mask) {
    const uint32x4_t v = vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(x)), vdupq_n_s32(-up));
    return vcvtq_f32_u32(vandq_u32(v, vdupq_n_u32((uint32_t)mask)));
}
HELPER lanes divide(lanes a, lanes b) {
    return vdivq_f32(a, b);
}
HELPER lanes smaller(lanes a, lanes b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
#include "kernel/exponential.h"
/* As in x86/attend_avx2.c. */
HELPER lanes power_of_two(lanes x) {
    const lanes magic = vdupq_n_f32(0x1.8p23f + 127), safe = larger(vdupq_n_f32(-127), x), shifted = add(safe, magic);
    const lanes f = subtract(safe, subtract(shifted, magic));
    return multiply(LN_POWER_NEAR_5(f), vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23)));
}
HELPER float largest(lanes v) {
    return vmaxvq_f32(v);
}
HELPER bool any_above(lanes a, lanes b) {
    return vmaxvq_u32(vcgtq_f32(a, b)) != 0;
}
HELPER lanes keep(lanes v, unsigned bits) {
    const uint32x4_t one = {1, 2, 4, 8};
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vtstq_u32(vdupq_n_u32(bits), one)));
}
HELPER void transpose_lanes(lanes x[W]) {
    const float32x4x2_t a = vtrnq_f32(x[0], x[1]), b = vtrnq_f32(x[2], x[3]);
    x[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    x[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    x[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    x[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

#define LN_ATTEND_NAME "attend__neon"
#define LN_ATTEND_SET void ln_attend_fill_neon(ln_attend_kernels *kernels)
#include "kernel/attend_body.h"
