/* All kernel families together: the one structure that the floors above hold. Filled once from the processor's flags.
 */
#ifndef LN_KERNEL_KERNEL_H
#define LN_KERNEL_KERNEL_H

#include "kernel/attend.h"
#include "kernel/cell.h"
#include "kernel/delta.h"
#include "kernel/fft.h"
#include "kernel/matmul_kernels.h"
#include "kernel/scan.h"
#include "kernel/softmax.h"
#include "kernel/tile.h"
#include "kernel/vector.h"

struct ln_kernels {
    unsigned cpu;
    int64_t cache_bytes; /* of the cache that belongs to one core: tiles are cut for it */
    ln_vector_kernels vector;
    ln_matmul_kernels matmul;
    ln_attend_kernels attend;
    ln_softmax_kernels softmax;
    ln_scan_kernels scan;
    ln_tile_kernels tile;
    ln_cell_kernels cell;
    ln_delta_kernels delta;
    ln_fft_kernels fft;
};

void ln_kernels_choose(unsigned cpu, ln_kernels *kernels);

#endif
