/* Owns: the peak loop of NEON: multiply-adds, 24 chains deep. */
#include <arm_neon.h>

#include "kernel/peak.h"

enum { CHAINS = 24, STEPS = 4 };

double ln_peak_f32_neon(int64_t rounds) {
    float32x4_t sums[CHAINS], factor = vdupq_n_f32(0.5f);
    for (int c = 0; c < CHAINS; c++) sums[c] = vdupq_n_f32((float)c);
    for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 4
        for (int s = 0; s < STEPS; s++)
#pragma GCC unroll 24
            for (int c = 0; c < CHAINS; c++) __asm__ volatile("fmla %0.4s, %1.4s, %1.4s" : "+w"(sums[c]) : "w"(factor));
    return 2.0 * 4 * CHAINS * STEPS * (double)rounds;
}
