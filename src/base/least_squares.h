/* Small dense least squares in double: normal equations and their solution. Sums run over fixed lanes, and an output is
 * computed by one task: the same bits for any number of threads. */
#ifndef LN_BASE_LEAST_SQUARES_H
#define LN_BASE_LEAST_SQUARES_H

#include "base/threads.h"

static inline double ln_dot_f64(const double *a, const double *b, int64_t n) {
    double lanes[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++) lanes[k] += a[i + k] * b[i + k];
    for (; i < n; i++) sum += a[i] * b[i];
    for (int k = 0; k < 16; k++) sum += lanes[k];
    return sum;
}

/* Rows of samples: row i begins at x + i * stride, `columns` of it count. weight [rows], NULL: all 1. */
typedef struct ln_samples {
    const float *x;
    int64_t columns, stride;
} ln_samples;

/* gram [a.columns, b.columns] = sum over rows of weight a' b. */
void ln_gram(ln_team *team, ln_samples a, ln_samples b, int64_t rows, const double *weight, double *gram);
/* The lower triangle of a symmetric a [n, n] becomes its Cholesky factor; false where it is not positive. */
bool ln_cholesky(ln_team *team, double *a, int64_t n);
/* x [n, columns] := a^-1 x for the factor of a. */
void ln_cholesky_solve(ln_team *team, const double *factor, int64_t n, double *x, int64_t columns);

#endif
