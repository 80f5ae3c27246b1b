/* The compiled kernels of each file, best first, and the scan between the passes. */
#ifndef LN_KERNEL_CUDA_LINEAR_TABLE_H
#define LN_KERNEL_CUDA_LINEAR_TABLE_H

#include "kernel/cuda/linear_cuda.h"

extern const ln_cuda_linear_kernel ln_cuda_linear_hopper_kernels[], ln_cuda_linear_portable_kernels[];
extern const int ln_cuda_linear_hopper_count, ln_cuda_linear_portable_count;

/* The slots of one head, one after the other. */
typedef struct ln_cuda_linear_chain {
    int32_t first, count;
} ln_cuda_linear_chain;

namespace ln {
struct linear_run;
}
/* What each segment added becomes the state at the beginning of the next, in every chain. Of this many floats of a
 * head's state at most: a grid has 65,535 rows of blocks. */
enum { LN_CUDA_LINEAR_JOIN_THREADS = 256, LN_CUDA_LINEAR_JOINED = 65535 * 4 * LN_CUDA_LINEAR_JOIN_THREADS };
ln_cuda_code ln_cuda_linear_scan(const ln::linear_run *run, ln_cuda_linear_decay decay,
                                 const ln_cuda_linear_chain *chains, int count, void *stream);
/* n of the states given to run->sums_in, so that blocks may write states while others begin. */
ln_cuda_code ln_cuda_linear_sums_begin(const ln::linear_run *run, int sequences, void *stream);

#endif
