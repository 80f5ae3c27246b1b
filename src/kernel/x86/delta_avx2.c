/* Owns: the delta kernels of AVX2. */
#include "kernel/delta.h"
#include "kernel/x86/lanes_avx2.h"

typedef __m256 lanes_mask;
HELPER lanes_mask lanes_below(int64_t n) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), index));
}
HELPER lanes multiply_where(lanes_mask mask, lanes a, lanes b) {
    return _mm256_blendv_ps(a, _mm256_mul_ps(a, b), mask);
}

HELPER void turn_keys(float *to, const float *key, int64_t n, int64_t columns) {
    for (int64_t j = 0; j < LN_DELTA_BLOCK; j++)
        for (int64_t c = 0; c < columns; c++) to[c * LN_DELTA_BLOCK + j] = j < n ? key[j * columns + c] : 0;
}

#define LN_DELTA_NAME "avx2"
#define LN_DELTA_SET void ln_delta_fill_avx2(ln_delta_kernels *kernels)
#include "kernel/delta_body.h"
