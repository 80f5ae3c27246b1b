/* The loops of the softmax over rows in memory: those of the two-pass form, whose exponentials are pairs, and those of
 * the three-pass form (maximum; exponentials and their sum; scaling) for rows that pairs do not reach and for
 * comparison. */
#ifndef LN_KERNEL_SOFTMAX_H
#define LN_KERNEL_SOFTMAX_H

#include <stdbool.h>
#include <stdint.h>

/* m 2^n, n an integer. */
typedef struct ln_pair {
    float m, n;
} ln_pair;

enum {
    LN_SOFTMAX_PIECE = 4096,   /* most terms of one sum of pairs: bounds its rounding */
    LN_SOFTMAX_REACH = 1 << 20 /* |n| of the pairs */
};

typedef struct ln_softmax_kernels {
    const char *name; /* "softmax__avx2" */

    /* sum of e^x over n entries, 1 to LN_SOFTMAX_PIECE. m is NaN where an entry is NaN or above the reach; n is -reach
     * where all are below it. */
    ln_pair (*sum)(const float *x, int64_t n);
    /* y = e^x factor 2^-exponent <= 1 for a factor of 1 to 2; 0 where it is below 2^-124. stream: past the caches. y
     * may be x. */
    void (*write)(float *y, const float *x, int64_t n, float factor, float exponent, bool stream);
    /* y = (x - high) - low */
    void (*shift)(float *y, const float *x, int64_t n, float high, float low, bool stream);

    /* -inf for n = 0; ignores NaN. */
    float (*maximum)(const float *x, int64_t n);
    /* sum of e^(x - base), x <= base; y = e^(x - base) factor; y = e^(x - base), and the sum; y = x factor */
    float (*sum_below)(const float *x, int64_t n, float base);
    void (*write_below)(float *y, const float *x, int64_t n, float base, float factor, bool stream);
    float (*write_and_sum_below)(float *y, const float *x, int64_t n, float base);
    void (*scale)(float *y, const float *x, int64_t n, float factor, bool stream);
} ln_softmax_kernels;

void ln_softmax_choose(unsigned cpu, ln_softmax_kernels *kernels);

/* The fillers, one an instruction set. */
void ln_softmax_fill_avx2(ln_softmax_kernels *kernels);
void ln_softmax_fill_avx512(ln_softmax_kernels *kernels);
void ln_softmax_fill_neon(ln_softmax_kernels *kernels);

#endif
