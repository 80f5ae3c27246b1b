/* Dense products of small float32 tiles that lie in cache: what the chunked forms of recurrences are made of
 * (mixer/outer.h, mixer/delta.h), and the pieces between these products.
 *
 * Rows have strides in floats. Every element is a sum over k in ascending order in one accumulator (fused where the
 * instruction set fuses), so it does not depend on m, n or on what it is computed beside: a tile may be cut anywhere in
 * m and n without a bit changing. */
#ifndef LN_KERNEL_TILE_H
#define LN_KERNEL_TILE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ln_tile_kernels {
    const char *name; /* "portable", "avx2", "avx512" */

    /* c[m, n] = a[m, k] b[k, n]; add: c +=. Any m, n, k >= 0. */
    void (*product)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                    int64_t m, int64_t n, int64_t k, bool add);
    /* c[m, n] = a[k, m]^T b[k, n] */
    void (*product_ta)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                       int64_t m, int64_t n, int64_t k, bool add);
    void (*product_tb)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                       int64_t m, int64_t n, int64_t k, bool add);
} ln_tile_kernels;

void ln_tile_choose(unsigned cpu, ln_tile_kernels *kernels);
void ln_tile_fill_portable(ln_tile_kernels *kernels);

#endif
