/* A vector of NEON and what every family of kernels does with it. */
#ifndef LN_KERNEL_ARM_LANES_NEON_H
#define LN_KERNEL_ARM_LANES_NEON_H

#include <arm_neon.h>

#define HELPER static inline __attribute__((always_inline))

enum { W = 4 };
typedef float32x4_t lanes;

HELPER lanes splat(float x) {
    return vdupq_n_f32(x);
}
HELPER lanes add(lanes a, lanes b) {
    return vaddq_f32(a, b);
}
HELPER lanes subtract(lanes a, lanes b) {
    return vsubq_f32(a, b);
}
HELPER lanes multiply(lanes a, lanes b) {
    return vmulq_f32(a, b);
}
HELPER lanes multiply_add(lanes a, lanes b, lanes c) {
    return vfmaq_f32(c, a, b);
}
HELPER lanes larger(lanes a, lanes b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

#endif
