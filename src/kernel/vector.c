/* Owns: the portable vector kernels, and the choice among the instruction sets. */
#define LN_VECTOR_NAME "portable"
#define LN_VECTOR_SET void ln_vector_fill_portable(ln_vector_kernels *kernels)
#include "kernel/vector_body.h"

#include "base/cpu.h"

void ln_vector_choose(unsigned cpu, ln_vector_kernels *kernels) {
    (void)cpu;
    ln_vector_fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_vector_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_vector_fill_avx512(kernels);
#endif
}
