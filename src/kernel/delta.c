/* Owns: the portable delta kernels, and the choice among the instruction sets. */
#include "kernel/delta.h"

#include "base/cpu.h"
#include "kernel/lanes_portable.h"

typedef lanes_int lanes_mask;
HELPER lanes_mask lanes_below(int64_t n) {
    const lanes_int index = {0, 1, 2, 3};
    return index < (int32_t)n;
}
HELPER lanes multiply_where(lanes_mask mask, lanes a, lanes b) {
    return choose(mask, a * b, a);
}

HELPER void turn_keys(float *to, const float *key, int64_t n, int64_t columns) {
    for (int64_t j = 0; j < LN_DELTA_BLOCK; j++)
        for (int64_t c = 0; c < columns; c++) to[c * LN_DELTA_BLOCK + j] = j < n ? key[j * columns + c] : 0;
}

#define LN_DELTA_NAME "portable"
#define LN_DELTA_SET void ln_delta_fill_portable(ln_delta_kernels *kernels)
#include "kernel/delta_body.h"

void ln_delta_choose(unsigned cpu, ln_delta_kernels *kernels) {
    (void)cpu;
    ln_delta_fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_delta_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_delta_fill_avx512(kernels);
#endif
}
