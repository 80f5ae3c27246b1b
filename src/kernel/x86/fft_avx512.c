/* Owns: the transforms of kernel/fft.h in AVX-512. */
#include "kernel/x86/lanes_avx512.h"

#define LN_FFT_NAME "avx512"
#define LN_FFT_SET void ln_fft_fill_avx512(ln_fft_kernels *kernels)

HELPER lanes load(const float *x) {
    return _mm512_loadu_ps(x);
}
HELPER void store(float *y, lanes v) {
    _mm512_storeu_ps(y, v);
}
HELPER lanes negative_multiply_add(lanes a, lanes b, lanes c) {
    return _mm512_fnmadd_ps(a, b, c);
}

#include "kernel/fft_body.h"
