/* Owns: filling the table of all kernel families. */
#include "kernel/kernel.h"

#include <string.h>

#include "base/cpu.h"

void ln_kernels_choose(unsigned cpu, ln_kernels *kernels) {
    memset(kernels, 0, sizeof *kernels);
    kernels->cpu = cpu;
    kernels->cache_bytes = (int64_t)ln_cpu_cache_bytes();
    ln_vector_choose(cpu, &kernels->vector);
    ln_matmul_choose(cpu, &kernels->matmul);
    ln_attend_choose(cpu, &kernels->attend);
    ln_softmax_choose(cpu, &kernels->softmax);
    ln_scan_choose(cpu, &kernels->scan);
    ln_tile_choose(cpu, &kernels->tile);
    ln_cell_choose(cpu, &kernels->cell);
    ln_delta_choose(cpu, &kernels->delta);
    ln_fft_choose(cpu, &kernels->fft);
}
