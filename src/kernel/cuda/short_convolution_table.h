/* What the host's side of the short convolution and its kernels share. */
#ifndef LN_KERNEL_CUDA_SHORT_CONVOLUTION_TABLE_H
#define LN_KERNEL_CUDA_SHORT_CONVOLUTION_TABLE_H

#include "kernel/cuda/short_convolution_cuda.h"

/* Tokens position .. position + count - 1 of a sequence of `length`, the first of which is row `token`. */
typedef struct ln_cuda_convolution_span {
    int32_t token, position, count, length, sequence;
} ln_cuda_convolution_span;

typedef struct ln_cuda_convolution_run {
    ln_cuda_short_convolution_tensors tensors;
    ln_cuda_short_convolution_gradients gradients;
    const ln_cuda_convolution_span *spans;
    float *partial; /* [spans][taps + 1][channels]: gradients of weights, then of the bias */
    /* Of many taps alone: [taps][channels], the weights; [tokens][channels], gradients of the sums. */
    float *turned, *slopes;
    int64_t span_count;
    int heads, value_size, taps;
    bool silu, output_float32;
} ln_cuda_convolution_run;

typedef struct ln_cuda_convolution_kernels {
    ln_cuda_code (*forward)(const ln_cuda_convolution_run *run, void *stream);
    ln_cuda_code (*backward)(const ln_cuda_convolution_run *run, void *stream); /* and the sum of `partial` */
} ln_cuda_convolution_kernels;

enum { LN_CUDA_CONVOLUTION_FEW = 8, LN_CUDA_CONVOLUTION_MOST = 64 };      /* taps */
extern const ln_cuda_convolution_kernels ln_cuda_portable_convolutions[]; /* of 2 taps, 3, ... FEW */
extern const ln_cuda_convolution_kernels ln_cuda_long_convolution;        /* of more */
/* The sums of `partial` over spans, to the gradients of weights and bias. */
ln_cuda_code ln_cuda_convolution_add_spans(const ln_cuda_convolution_run *run, void *stream);

#endif
