/* Owns: the transforms of kernel/fft.h in NEON. */
#include "kernel/arm/lanes_neon.h"

#define LN_FFT_NAME "neon"
#define LN_FFT_SET void ln_fft_fill_neon(ln_fft_kernels *kernels)

HELPER lanes load(const float *x) {
    return vld1q_f32(x);
}
HELPER void store(float *y, lanes v) {
    vst1q_f32(y, v);
}
HELPER lanes negative_multiply_add(lanes a, lanes b, lanes c) {
    return vfmsq_f32(c, a, b);
}

#include "kernel/fft_body.h"
