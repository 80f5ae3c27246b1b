/* Owns: the peak loops of AVX-512: multiply-adds, 24 chains deep; reading. */
#include <immintrin.h>

#include "kernel/peak.h"

enum { CHAINS = 24, STEPS = 4 };

double ln_peak_f32_avx512(int64_t rounds) {
    __m512 sums[CHAINS], factor = _mm512_set1_ps(0.5f);
    for (int c = 0; c < CHAINS; c++) sums[c] = _mm512_set1_ps((float)c);
    for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 4
        for (int s = 0; s < STEPS; s++)
#pragma GCC unroll 24
            for (int c = 0; c < CHAINS; c++) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(sums[c]) : "v"(factor));
    return 2.0 * 16 * CHAINS * STEPS * (double)rounds;
}

uint64_t ln_peak_read_avx512(const void *data, uint64_t bytes) {
    const __m512i *p = data;
    __m512i a = _mm512_setzero_si512(), b = a;
    for (uint64_t i = 0; i < bytes / 64; i += 4) {
        a = _mm512_xor_si512(a, _mm512_xor_si512(_mm512_load_si512(p + i), _mm512_load_si512(p + i + 1)));
        b = _mm512_xor_si512(b, _mm512_xor_si512(_mm512_load_si512(p + i + 2), _mm512_load_si512(p + i + 3)));
    }
    return (uint64_t)_mm512_reduce_add_epi64(_mm512_xor_si512(a, b));
}
