/* Owns: the peak loops of AVX2: multiply-adds, 14 chains deep; reading. */
#include <immintrin.h>

#include "kernel/peak.h"

enum { CHAINS = 14, STEPS = 8 };

double ln_peak_f32_avx2(int64_t rounds) {
    __m256 sums[CHAINS], factor = _mm256_set1_ps(0.5f);
    for (int c = 0; c < CHAINS; c++) sums[c] = _mm256_set1_ps((float)c);
    for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 8
        for (int s = 0; s < STEPS; s++)
#pragma GCC unroll 14
            for (int c = 0; c < CHAINS; c++) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(sums[c]) : "x"(factor));
    return 2.0 * 8 * CHAINS * STEPS * (double)rounds;
}

uint64_t ln_peak_read_avx2(const void *data, uint64_t bytes) {
    const __m256i *p = data;
    __m256i a = _mm256_setzero_si256(), b = a;
    for (uint64_t i = 0; i < bytes / 32; i += 4) {
        a = _mm256_xor_si256(a, _mm256_xor_si256(_mm256_load_si256(p + i), _mm256_load_si256(p + i + 1)));
        b = _mm256_xor_si256(b, _mm256_xor_si256(_mm256_load_si256(p + i + 2), _mm256_load_si256(p + i + 3)));
    }
    return (uint64_t)_mm256_extract_epi64(_mm256_xor_si256(a, b), 0);
}
