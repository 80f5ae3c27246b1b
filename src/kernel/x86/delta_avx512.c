/* Owns: the delta kernels of AVX-512. */
#include "kernel/x86/lanes_avx512.h"

typedef __mmask16 lanes_mask;
HELPER lanes_mask lanes_below(int64_t n) {
    return (__mmask16)(n >= W ? 0xffff : n > 0 ? (1u << n) - 1 : 0);
}
HELPER lanes multiply_where(lanes_mask mask, lanes a, lanes b) {
    return _mm512_mask_mul_ps(a, mask, a, b);
}

#define LN_DELTA_NAME "avx512"
#define LN_DELTA_SET void ln_delta_fill_avx512(ln_delta_kernels *kernels)
#include "kernel/delta_body.h"
