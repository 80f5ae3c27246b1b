/* Gates of linear recurrences that are made of what a model gives, and back: the decay of Mamba-2, step size times
 * rate; the slope of lightning attention, with its sign turned; the input gate of mLSTM with sigmoid gates. Gates and
 * their gradients that are made lie [tokens][heads]. Sums have a fixed order. */
#ifndef LN_KERNEL_CUDA_GATES_H
#define LN_KERNEL_CUDA_GATES_H

#include "kernel/cuda/linear_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* product = factor * rate[head] * each; each without data: 1. rate at head * rate_stride. */
ln_cuda_code ln_cuda_gate_product(int64_t tokens, int64_t heads, ln_cuda_gate each, const float *rate,
                                  int64_t rate_stride, float factor, float *product, void *stream);
/* made = 1 / (1 + e^-each) */
ln_cuda_code ln_cuda_gate_sigmoid(int64_t tokens, int64_t heads, ln_cuda_gate each, float *made, void *stream);

/* to, at its strides, = one + rate[head] other. one NULL: 0; rate NULL: 1. */
ln_cuda_code ln_cuda_gate_add(int64_t tokens, int64_t heads, const float *one, const float *rate, int64_t rate_stride,
                              const float *other, ln_cuda_tensor to, void *stream);
/* to, at its strides, = gradient made (1 - made) */
ln_cuda_code ln_cuda_gate_sigmoid_back(int64_t tokens, int64_t heads, const float *made, const float *gradient,
                                       ln_cuda_tensor to, void *stream);
/* to[head * stride] = factor * sum over tokens of each * gradient; each without data: 1. */
ln_cuda_code ln_cuda_gate_sum(int64_t tokens, int64_t heads, ln_cuda_gate each, const float *gradient, float factor,
                              float *to, int64_t stride, void *stream);

#ifdef __cplusplus
}
#endif
#endif
