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

enum { LN_TILE_BLOCK = 16 };

typedef void (*ln_tile_product)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b,
                                int64_t b_stride, int64_t m, int64_t n, int64_t k, bool add);

struct ln_tile_step;

typedef struct ln_tile_kernels {
    const char *name; /* "tile__avx512" */

    /* c[m, n] = a[m, k] b[k, n]; add: c +=. Any m, n, k >= 0. */
    ln_tile_product product;
    /* c[m, n] = a[k, m]^T b[k, n] */
    ln_tile_product product_ta;
    /* c[m, n] = a[m, k] b[n, k]^T */
    ln_tile_product product_tb;

    /* The same with a lower triangle: what lies above the diagonal is worth nothing, and only some of it, in blocks on
     * the diagonal, is computed.
     * c[m, n] = a[m, m] b[m, n], a zero above the diagonal; a[m, m]^T; c[m, m] = a[m, k] b[m, k]^T */
    void (*lower)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                  int64_t m, int64_t n, bool add);
    void (*lower_ta)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                     int64_t m, int64_t n, bool add);
    void (*lower_tb)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                     int64_t m, int64_t k);

    /* a[i, j] *= factor e^(rows[i] - columns[j]) where j <= i (strict: j < i), and is 0 above, in m rows and columns.
     * rows, columns finite and not ascending; both NULL: e^0. */
    void (*decay_lower)(float *a, int64_t stride, const double *rows, const double *columns, float factor, bool strict,
                        int64_t m);
    /* c[i, j] = factors[i] a[i, j]; c may be a */
    void (*scale_rows)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *factors, int64_t m,
                       int64_t n);
    /* c[i, j] = factors[j] a[i, j] */
    void (*scale_columns)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *factors, int64_t m,
                          int64_t n);
    /* c[i, j] = b[i, j] a[i, j] */
    void (*multiply)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                     int64_t m, int64_t n);

    /* Pairs of a block of m <= 16 tokens with a decay of each column, w[i, j, c] = factors[j + 1, c] .. factors[i, c],
     * where j <= i (before: to factors[i - 1, c], where j < i):
     * scores: a[i, j] = sum_c x[i, c] w[i, j, c] y[j, c], 0 elsewhere
     * read:   z[i, c] += sum_j a[i, j] w[i, j, c] y[j, c]
     * write:  z[j, c] += sum_i a[i, j] w[i, j, c] x[i, c] */
    void (*block_scores)(float *a, int64_t a_stride, const float *x, const float *y, const float *factors,
                         int64_t stride, int64_t m, int64_t n, bool before);
    void (*block_read)(float *z, int64_t z_stride, const float *a, int64_t a_stride, const float *y,
                       const float *factors, int64_t stride, int64_t m, int64_t n, bool before);
    void (*block_write)(float *z, int64_t z_stride, const float *a, int64_t a_stride, const float *x,
                        const float *factors, int64_t stride, int64_t m, int64_t n, bool before);
    /* Of gates g[m, n], m <= 16 (stride of all): factors = e^g; prefix[i] = e^(g[0] + .. + g[i]) (before: to g[i - 1]);
     * suffix[i] = e^(g[i + 1] + .. + g[m - 1]); whole [n] = e^(g[0] + .. + g[m - 1]). */
    void (*block_decays)(float *factors, float *prefix, float *suffix, float *whole, const float *g, int64_t stride,
                         int64_t m, int64_t n, bool before);

    /* One token: out = diag(rows) in diag(columns) + key value^T; sums = scale out^T query. rows, columns NULL: 1.
     * before: sums = scale (in + diag(bonus) key value^T)^T query. out may be in; in NULL: zeros. */
    void (*step_outer)(const struct ln_tile_step *step);
} ln_tile_kernels;

typedef struct ln_tile_step {
    float *out;
    const float *in;
    int64_t stride, features, columns; /* stride of both */
    const float *rows, *columns_decay;
    const float *query, *key, *value, *bonus; /* bonus: before */
    float scale;
    float *sums;
} ln_tile_step;

void ln_tile_choose(unsigned cpu, ln_tile_kernels *kernels);

/* The fillers, one an instruction set. */
void ln_tile_fill_portable(ln_tile_kernels *kernels);
void ln_tile_fill_avx2(ln_tile_kernels *kernels);
void ln_tile_fill_avx512(ln_tile_kernels *kernels);
void ln_tile_fill_neon(ln_tile_kernels *kernels);

#endif
