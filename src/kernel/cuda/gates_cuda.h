/* Gates of linear recurrences that are products of what a model gives: the decay of Mamba-2, step size times rate; the
 * slope of lightning attention, with its sign turned. */
#ifndef LN_KERNEL_CUDA_GATES_H
#define LN_KERNEL_CUDA_GATES_H

#include "kernel/cuda/linear_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* product [tokens][heads] = factor * rate[head] * each[token][head]; each without data: 1. rate at head * rate_stride.
 */
ln_cuda_code ln_cuda_gate_product(int64_t tokens, int64_t heads, ln_cuda_gate each, const float *rate,
                                  int64_t rate_stride, float factor, float *product, void *stream);

#ifdef __cplusplus
}
#endif
#endif
