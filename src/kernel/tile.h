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
/* e^x below this is made 0: subnormal numbers, which products would soon reach, are slow, and add nothing. */
static const float LN_TILE_LEAST = -70;

typedef void (*ln_tile_product)(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b,
                                int64_t b_stride, int64_t m, int64_t n, int64_t k, bool add);

/* What of a product is wanted: all; with a[m, m] zero above the diagonal; c[m, m] on and below the diagonal alone. */
typedef enum ln_tile_shape { LN_TILE_WHOLE, LN_TILE_LOWER, LN_TILE_BELOW } ln_tile_shape;

/* Products of bf16 with float32 sums, on matrix units where there are any. An operand is rounded into the layout that
 * these read, with zeros up to whole blocks (ln_tile_whole):
 * a [m][k] in bf16, rows begin where the caller says; b [k / 2][n] in dwords, of rows 2 i (low half) and 2 i + 1.
 * Of x, only what is there is read. A sum over k goes by pairs, ascending, wherever the tile is cut. */
typedef struct ln_tile_bf16 {
    const char *name; /* NULL: not on this processor, nor are the functions */
    /* a = x[m, k]; a = diag(factors) x, turned, of x[k, m] (factors NULL: ones) */
    void (*rows)(uint16_t *a, int64_t a_stride, const float *x, int64_t x_stride, int64_t m, int64_t k);
    void (*rows_turned)(uint16_t *a, int64_t a_stride, const float *x, int64_t x_stride, const float *factors,
                        int64_t m, int64_t k);
    /* b = x[k, n]; b = x[n, k], turned */
    void (*pairs)(uint32_t *b, int64_t b_stride, const float *x, int64_t x_stride, int64_t k, int64_t n);
    void (*pairs_turned)(uint32_t *b, int64_t b_stride, const float *x, int64_t x_stride, int64_t k, int64_t n);
    /* c (+)= a b in whole blocks: c too has room for them, and what lies behind its end is worth nothing. */
    void (*product)(float *c, int64_t c_stride, const uint16_t *a, int64_t a_stride, const uint32_t *b,
                    int64_t b_stride, int64_t m, int64_t n, int64_t k, bool add, ln_tile_shape shape);
    /* NULL: nothing to do. Between hold(true) and hold(false) the units of this thread stay set up from one product to
     * the next; without it each product does so itself. */
    void (*hold)(bool on);
} ln_tile_bf16;
/* Whole blocks: of m and n 16, of k 32. */
static inline int64_t ln_tile_whole(int64_t count, int64_t block) {
    return (count + block - 1) / block * block;
}

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

    ln_tile_bf16 bf16;
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
void ln_tile_fill_avx512bf16(ln_tile_kernels *kernels); /* these two: bf16 alone */
void ln_tile_fill_amx(ln_tile_kernels *kernels);
void ln_tile_fill_neon(ln_tile_kernels *kernels);

#endif
