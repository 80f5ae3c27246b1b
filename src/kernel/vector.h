/* Elementwise and row operators between the matrix products. Rows are contiguous float32; reductions run over 16 fixed
 * lanes in ascending order, then a fixed tree, so every instruction set gives the same bits. */
#ifndef LN_KERNEL_VECTOR_H
#define LN_KERNEL_VECTOR_H

#include <stdint.h>

typedef struct ln_vector_kernels {
    const char *name; /* "portable", "avx2", "avx512" */

    /* y = x / sqrt(mean(x^2) + epsilon) * weight. y may be x. weight NULL: 1. */
    void (*rms_norm)(float *y, const float *x, const float *weight, int64_t n, float epsilon);
    /* y += x */
    void (*add)(float *y, const float *x, int64_t n);
    /* y[i] += factor * sum_r factors[r] * x[r * stride + i], r < rows, rows > 0, summed in ascending order */
    void (*add_products)(float *y, float factor, const float *factors, int64_t rows, const float *x, int64_t stride,
                         int64_t n);
    /* y[i] += factor * |first + i|, the distance exact before it is rounded */
    void (*add_distance)(float *y, float factor, int64_t first, int64_t n);
    /* y *= factor */
    void (*scale)(float *y, float factor, int64_t n);
    /* y = gate / (1 + exp(-gate)) * up. y may be gate or up. */
    void (*silu_multiply)(float *y, const float *gate, const float *up, int64_t n);
    /* y = gate / 2 * (1 + tanh(sqrt(2 / pi) (gate + 0.044715 gate^3))) * up */
    void (*gelu_tanh_multiply)(float *y, const float *gate, const float *up, int64_t n);
    /* y = cap tanh(y / cap) */
    void (*soft_cap)(float *y, float cap, int64_t n);
    /* Rotates pairs: half: (x[i], x[i + n / 2]), else (x[2i], x[2i + 1]). cosine, sine [n / 2]. */
    void (*rotate)(float *x, const float *cosine, const float *sine, int64_t n, int half);
    /* Orthonormal Walsh-Hadamard transform of each block of x, n's largest power of two; its own inverse. */
    void (*hadamard)(float *x, int64_t n);
    /* y = x, in bf16 */
    void (*widen)(float *y, const uint16_t *x, int64_t n);
    /* -inf for n = 0; NaN where one is. */
    float (*maximum)(const float *x, int64_t n);
    /* y = exp(x - shift); returns the sum. y may be x. */
    float (*exponential)(float *y, const float *x, float shift, int64_t n);
} ln_vector_kernels;

void ln_vector_choose(unsigned cpu, ln_vector_kernels *kernels);

/* The fillers, one an instruction set. */
void ln_vector_fill_portable(ln_vector_kernels *kernels);
void ln_vector_fill_avx2(ln_vector_kernels *kernels);
void ln_vector_fill_avx512(ln_vector_kernels *kernels);

#endif
