/* Owns: the softmax kernels of NEON. */
#include <string.h>

#include "kernel/arm/lanes_neon.h"
#include "kernel/softmax.h"

enum { VECTORS = 4 };

HELPER lanes load(const float *x) {
    return vld1q_f32(x);
}
HELPER void store(float *y, lanes v) {
    vst1q_f32(y, v);
}
HELPER void stream(float *y, lanes v) {
    store(y, v);
}
HELPER void after_streams(void) {}
HELPER lanes load_some(const float *x, int64_t n, float fill) {
    float part[W] = {fill, fill, fill, fill};
    memcpy(part, x, (size_t)n * sizeof *x);
    return load(part);
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    float part[W];
    store(part, v);
    memcpy(y, part, (size_t)n * sizeof *y);
}
HELPER bool all_within(const lanes *x, lanes limit) {
    uint32x4_t within = vcleq_f32(x[0], limit);
    for (int v = 1; v < VECTORS; v++) within = vandq_u32(within, vcleq_f32(x[v], limit));
    return vminvq_u32(within) != 0;
}
HELPER lanes keep_above(lanes v, lanes x, lanes limit) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vcgtq_f32(x, limit)));
}
/* As in x86/softmax_avx2.c. */
HELPER lanes reference_of(float e) {
    return splat(0x1.8p23f - e);
}
#include "kernel/exponential.h"
HELPER lanes power(lanes x, lanes reference) {
    const lanes high = splat(0x1.715476p0f), low = splat(0x1.4ae0cp-26f);
    const lanes shifted = multiply_add(x, high, reference), n = subtract(shifted, reference);
    const lanes f = multiply_add(x, low, multiply_add(x, high, vnegq_f32(n)));
    const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(LN_POWER_NEAR_5(f)), exponent));
}

#define LN_SOFTMAX_NAME "softmax__neon"
#define LN_SOFTMAX_SET void ln_softmax_fill_neon(ln_softmax_kernels *kernels)
#include "kernel/softmax_body.h"
