/* Owns: the portable cell kernels, and the choice among the instruction sets. */
#define LN_CELL_NAME "portable"
#define LN_CELL_SET void ln_cell_fill_portable(ln_cell_kernels *kernels)
#include "kernel/cell_body.h"

#include "base/cpu.h"

void ln_cell_choose(unsigned cpu, ln_cell_kernels *kernels) {
    (void)cpu;
    ln_cell_fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_cell_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_cell_fill_avx512(kernels);
#endif
}
