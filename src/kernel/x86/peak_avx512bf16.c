/* Owns: the peak loop of AVX-512 BF16: dot products of two bf16, 24 chains deep. */
#include <immintrin.h>

#include "kernel/peak.h"

enum { CHAINS = 24, STEPS = 4 };

double ln_peak_bf16_avx512bf16(int64_t rounds) {
    __m512 sums[CHAINS];
    __m512i factor = _mm512_set1_epi16(0x3f80);
    for (int c = 0; c < CHAINS; c++) sums[c] = _mm512_set1_ps((float)c);
    for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 4
        for (int s = 0; s < STEPS; s++)
#pragma GCC unroll 24
            for (int c = 0; c < CHAINS; c++) __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(sums[c]) : "v"(factor));
    return 2.0 * 32 * CHAINS * STEPS * (double)rounds;
}
