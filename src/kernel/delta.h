/* What recurrences with a decay need beside the tile products (kernel/tile.h): the step of one token, small triangular
 * solves, and decays applied to products of queries and keys.
 *
 * Decays come as factors e^g in 0 .. 1, and only products of them are formed: nothing overflows, and a factor of 0
 * (g = -inf) forgets exactly. Unless said otherwise rows are `columns` floats apart, a multiple of 16. A column of a
 * result depends on no other column, and on its place in the row not at all. */
#ifndef LN_KERNEL_DELTA_H
#define LN_KERNEL_DELTA_H

#include <stdbool.h>
#include <stdint.h>

enum { LN_DELTA_BLOCK = 16 };

/* y = add + read^T before
 * after = decay before + key y + write_key write_value
 * output = query^T after */
typedef struct ln_delta_step {
    int64_t rows, columns; /* columns a multiple of 16 */
    const float *before;
    float *after; /* may be `before`; NULL: not wanted */
    int64_t before_stride, after_stride;
    const float *decay, *read, *key;      /* [rows] */
    const float *add;                     /* [columns]; NULL: zeros */
    const float *write_key, *write_value; /* [rows], [columns]; NULL: none */
    const float *query;                   /* [rows] */
    float *output;                        /* [columns] */
} ln_delta_step;

/* Up to 16 tokens under decays of their own for each column, [tokens, columns] each. */
typedef struct ln_delta_gates {
    int64_t tokens, columns;
    const float *decay, *read, *query;
    float *key, *write_key;      /* in place: times the decays after their token; write_key NULL: none */
    float *read_in, *query_in;   /* times the decays of this block: before, and up to and with their token */
    float *read_all, *query_all; /* times `prefix` too */
    float *prefix, *block;       /* [columns]: product of all decays so far, made so; of those of this block */
} ln_delta_gates;

typedef struct ln_delta_pairs {
    int64_t n, columns, stride;
    const float *read_a, *query_a; /* gradients, [n, stride] */
    const float *read, *query, *key, *decay;
    float *read_gradient, *query_gradient, *key_gradient;
} ln_delta_pairs;

typedef struct ln_delta_kernels {
    const char *name; /* "portable", "avx2", "avx512" */

    void (*step)(const ln_delta_step *step);
    /* y[i] += sum_{j<i} a[i, j] y[j], i ascending; n <= 16 rows */
    void (*solve)(float *y, int64_t y_stride, const float *a, int64_t a_stride, int64_t n, int64_t columns);
    /* y[j] += sum_{i>j} a[i, j] y[i], j descending */
    void (*solve_transposed)(float *y, int64_t y_stride, const float *a, int64_t a_stride, int64_t n, int64_t columns);
    /* y[i] = factor[i] x[i] z[i]. z_stride 0: one row z. z, factor NULL: ones. y may be x. */
    void (*multiply)(float *y, const float *x, const float *z, int64_t z_stride, const float *factor, int64_t rows,
                     int64_t columns);
    /* One decay a row: read[i, j] *= decays between rows j and i, 0 where j >= i; query[m, j] *= those after row j up
     * to and with row i = m micro + micro - 1, 0 where j > i. [.., stride] for j < columns, a multiple of 16 >= n.
     * after[j]: product of the decays after row j; before[i], upto[i]: of those before, up to and with row i. */
    void (*mask)(float *read, float *query, int64_t stride, const float *decay, int64_t n, int64_t micro,
                 int64_t columns, float *after, float *before, float *upto);
    void (*gates)(const ln_delta_gates *gates);
    /* Decays a column. read_a[i, j] = sum_c read[i, c] key[j, c] decays between j and i for j < i, query_a likewise
     * with those up to i for j <= i; 0 elsewhere; [n, stride], 16 columns. scratch [columns * 16]. */
    void (*pairs)(float *read_a, float *query_a, int64_t stride, const float *read, const float *query,
                  const float *key, const float *decay, int64_t n, int64_t columns, float *scratch);
    /* Adds the gradients of read, query and key [n, columns] that those of read_a and query_a mean. */
    void (*pairs_gradient)(const ln_delta_pairs *pairs);
} ln_delta_kernels;

void ln_delta_choose(unsigned cpu, ln_delta_kernels *kernels);

/* The fillers, one an instruction set. */
void ln_delta_fill_portable(ln_delta_kernels *kernels);
void ln_delta_fill_avx2(ln_delta_kernels *kernels);
void ln_delta_fill_avx512(ln_delta_kernels *kernels);

#endif
