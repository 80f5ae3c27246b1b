/* Fast Fourier transforms of 16 channels at once, for convolution: channels lie in lanes, so no instruction ever moves
 * data across lanes, and a root of unity is one number for all of them.
 *
 * A transform evaluates a polynomial at all roots of x^M = i. It goes down the tree of
 *     x^4q - R  =  (x^q - r) (x^q + r) (x^q - i r) (x^q + i r),   r^4 = R,
 * whose root node is x^M - i: a step of radix 4 takes the polynomial modulo a node to those modulo its four children,
 *     a0 +- a1 r + a2 r^2 +- a3 r^3   and   a0 +- i a1 r - a2 r^2 -+ i a3 r^3,
 * one r for all q coefficients. Leaves come in the tree's order, and the inverse goes back up from it: nothing is ever
 * brought into another order. As x^M = i, the 2M reals a[0] .. a[2M - 1] are the M complex numbers a[j] + i a[j + M],
 * and multiplying leaves is multiplying real polynomials modulo x^2M + 1. So real input costs half of a complex
 * transform without any step of its own.
 *
 * A step does the same to every coefficient offset, so the first levels may run on columns (j, j + N, j + 2N, ...)
 * copied together, and the others on rows: the matrix form for what exceeds a cache.
 *
 * A point is 16 real parts, then 16 imaginary parts. */
#ifndef LN_KERNEL_FFT_H
#define LN_KERNEL_FFT_H

#include <stdint.h>

enum { LN_FFT_LANES = 16, LN_FFT_POINT = 2 * LN_FFT_LANES, LN_FFT_MOST = 26 };

/* The tree of 2^levels leaves. With an odd number of levels the first step is of radix 2. */
typedef struct ln_fft {
    int levels;
    const float *roots[LN_FFT_MOST]; /* of the nodes where a step begins at this level: r, r^2, r^3; radix 2: r */
} ln_fft;

/* Floats that ln_fft_open writes to `roots`. levels <= LN_FFT_MOST */
int64_t ln_fft_floats(int levels);
/* fill false: `roots` were written before, for as many levels. */
void ln_fft_open(ln_fft *fft, int levels, float *roots, int fill);

typedef struct ln_fft_kernels {
    const char *name; /* "portable", "avx2", "avx512", "neon" */

    /* The 2^levels points x from a node (number `node` of its level) down by `levels` levels, in place; levels is even,
     * or level is 0. */
    void (*down)(const ln_fft *fft, float *x, int level, int64_t node, int levels);
    /* Back, times 2^levels. */
    void (*up)(const ln_fft *fft, float *x, int level, int64_t node, int levels);
    /* x[n] *= y[n] */
    void (*multiply)(float *x, const float *y, int64_t n);
    /* x[n] *= conj(y[n]) */
    void (*multiply_conjugate)(float *x, const float *y, int64_t n);
    /* sum[n] += x[n] conj(y[n]) */
    void (*correlate)(float *sum, const float *x, const float *y, int64_t n);
    /* y[t] += sum_j filter[j] x[t - j] for t < tokens, j < taps. Rows of 16 reals, those of y together, the others a
     * stride apart; x has taps - 1 rows before it. */
    void (*slide)(float *y, const float *x, int64_t x_stride, const float *filter, int64_t filter_stride,
                  int64_t tokens, int64_t taps);
} ln_fft_kernels;

void ln_fft_choose(unsigned cpu, ln_fft_kernels *kernels);

/* The fillers, one an instruction set. */
void ln_fft_fill_portable(ln_fft_kernels *kernels);
void ln_fft_fill_avx2(ln_fft_kernels *kernels);
void ln_fft_fill_avx512(ln_fft_kernels *kernels);
void ln_fft_fill_neon(ln_fft_kernels *kernels);

#endif
