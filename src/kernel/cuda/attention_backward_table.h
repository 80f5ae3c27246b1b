/* The compiled kernels of each file, best first. */
#ifndef LN_KERNEL_CUDA_ATTENTION_BACKWARD_TABLE_H
#define LN_KERNEL_CUDA_ATTENTION_BACKWARD_TABLE_H

#include "kernel/cuda/attention_backward_cuda.h"

extern const ln_cuda_backward_kernel ln_cuda_backward_hopper_kernels[], ln_cuda_backward_hopper_half_kernels[],
    ln_cuda_backward_portable_kernels[];
extern const int ln_cuda_backward_hopper_count, ln_cuda_backward_hopper_half_count, ln_cuda_backward_portable_count;

namespace ln {
struct backward_run;
}
/* What comes before and after the kernel of the table: rows of the forward pass; sums of query gradients, which the
 * kernels of compute capability 9.0 leave; gradients of sinks. */
ln_cuda_code ln_cuda_backward_open(const ln::backward_run *run, void *stream);
ln_cuda_code ln_cuda_backward_close(const ln::backward_run *run, void *stream);
ln_cuda_code ln_cuda_backward_sinks(const ln::backward_run *run, void *stream);

#endif
