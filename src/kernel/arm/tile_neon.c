/* Owns: the tile kernels of NEON: 6 rows x 16 columns in registers, 24 sums of the 32 registers. */
#include <stdint.h>
#include <string.h>

#include "kernel/arm/lanes_neon.h"

enum { VECTORS = 4 };
#define LN_TILE_VECTORS 4

HELPER lanes load_some(const float *x, int64_t n) {
    float part[W] = {0};
    if (n < W) memcpy(part, x, (size_t)n * sizeof *x);
    return vld1q_f32(n < W ? part : x);
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    float part[W];
    vst1q_f32(n < W ? part : y, v);
    if (n < W) memcpy(y, part, (size_t)n * sizeof *y);
}
HELPER lanes multiply_first(lanes v, lanes factor, int n) {
    const int32x4_t number = {0, 1, 2, 3};
    return vbslq_f32(vcltq_s32(number, vdupq_n_s32(n)), vmulq_f32(v, factor), v);
}
#include "kernel/exponential.h"
#include "kernel/tile.h"
HELPER lanes exponential_of(lanes x) {
    const lanes high = splat(0x1.715476p0f), low = splat(0x1.4ae0cp-26f), magic = splat(0x1.8p23f);
    const lanes shifted = multiply_add(x, high, magic), n = subtract(shifted, magic);
    const lanes f = multiply_add(x, low, vnegq_f32(vfmsq_f32(n, x, high)));
    const int32x4_t power = vshlq_n_s32(vreinterpretq_s32_f32(add(shifted, splat(127))), 23);
    const lanes y = multiply(LN_POWER_NEAR_6(f), vreinterpretq_f32_s32(power));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vcltq_f32(x, splat(LN_TILE_LEAST))));
}
HELPER lanes differences(double x, const double *y, int64_t n) {
    float part[W] = {0};
    for (int64_t i = 0; i < n; i++) part[i] = (float)(x - y[i]);
    return vld1q_f32(part);
}
HELPER void transpose_lanes(lanes x[W]) {
    const float32x4x2_t a = vtrnq_f32(x[0], x[1]), b = vtrnq_f32(x[2], x[3]);
    x[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    x[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    x[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    x[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

#define LN_TILE_NAME "tile__neon"
#define LN_TILE_SET void ln_tile_fill_neon(ln_tile_kernels *kernels)
#include "kernel/tile_body.h"
