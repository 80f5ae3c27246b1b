/* Owns: the peak loop of AVX-512 VNNI: dot products of four int8, 24 chains deep. */
#include <immintrin.h>

#include "kernel/peak.h"

enum { CHAINS = 24, STEPS = 4 };

double ln_peak_int8_avx512vnni(int64_t rounds) {
    __m512i sums[CHAINS], factor = _mm512_set1_epi8(1);
    for (int c = 0; c < CHAINS; c++) sums[c] = _mm512_setzero_si512();
    for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 4
        for (int s = 0; s < STEPS; s++)
#pragma GCC unroll 24
            for (int c = 0; c < CHAINS; c++) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(sums[c]) : "v"(factor));
    return 2.0 * 64 * CHAINS * STEPS * (double)rounds;
}
