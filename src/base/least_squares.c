/* Owns: Gram matrices and Cholesky's factorisation, left-looking by blocks of columns: L_ij = (A_ij - sum_k L_ik L_jk)
 * / L_jj, the rows below a block in parallel. */
#include "base/least_squares.h"

#include <math.h>

#include "base/checked.h"

enum { ROWS = 8, BLOCK = 32, COLUMNS = 256 };

typedef struct gram_work {
    ln_samples a, b;
    int64_t rows;
    const double *weight;
    double *gram;
} gram_work;

/* ROWS rows and at most COLUMNS columns of the result. */
static void gram_block(void *argument, int64_t task, int worker) {
    (void)worker;
    const gram_work *w = argument;
    const int64_t wide = ln_ceil_div(w->b.columns, COLUMNS), first = task / wide * ROWS, from = task % wide * COLUMNS;
    const int64_t rows = ln_min_i64(ROWS, w->a.columns - first), columns = ln_min_i64(COLUMNS, w->b.columns - from);
    double sums[ROWS][COLUMNS] = {{0}}, row[COLUMNS];
    for (int64_t t = 0; t < w->rows; t++) {
        const float *a = w->a.x + t * w->a.stride + first, *b = w->b.x + t * w->b.stride + from;
        const double weight = w->weight ? w->weight[t] : 1;
        if (weight == 0) continue;
        for (int64_t j = 0; j < columns; j++) row[j] = weight * (double)b[j];
        for (int64_t i = 0; i < rows; i++) {
            const double factor = (double)a[i];
            for (int64_t j = 0; j < columns; j++) sums[i][j] += factor * row[j];
        }
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) w->gram[(first + i) * w->b.columns + from + j] = sums[i][j];
}

void ln_gram(ln_team *team, ln_samples a, ln_samples b, int64_t rows, const double *weight, double *gram) {
    gram_work w = {a, b, rows, weight, gram};
    ln_parallel(team, ln_ceil_div(a.columns, ROWS) * ln_ceil_div(b.columns, COLUMNS), gram_block, &w);
}

typedef struct factor_work {
    double *a;
    int64_t n, first, end; /* columns of the block */
} factor_work;

static double remainder_at(const factor_work *w, int64_t i, int64_t j) {
    return w->a[i * w->n + j] - ln_dot_f64(w->a + i * w->n, w->a + j * w->n, j);
}

static void factor_row(void *argument, int64_t task, int worker) {
    (void)worker;
    const factor_work *w = argument;
    const int64_t i = w->end + task;
    for (int64_t j = w->first; j < w->end; j++) w->a[i * w->n + j] = remainder_at(w, i, j) / w->a[j * w->n + j];
}

bool ln_cholesky(ln_team *team, double *a, int64_t n) {
    for (int64_t first = 0; first < n; first += BLOCK) {
        factor_work w = {a, n, first, ln_min_i64(first + BLOCK, n)};
        for (int64_t i = first; i < w.end; i++) {
            for (int64_t j = first; j < i; j++) a[i * n + j] = remainder_at(&w, i, j) / a[j * n + j];
            const double left = remainder_at(&w, i, i);
            if (!(left > 0) || !isfinite(left)) return false;
            a[i * n + i] = sqrt(left);
        }
        ln_parallel(team, n - w.end, factor_row, &w);
    }
    return true;
}

typedef struct solve_work {
    const double *factor;
    double *x;
    int64_t n, columns;
} solve_work;

static void solve_columns(void *argument, int64_t task, int worker) {
    (void)worker;
    const solve_work *w = argument;
    const int64_t n = w->n, from = task * BLOCK, count = ln_min_i64(BLOCK, w->columns - from);
    for (int64_t i = 0; i < n; i++) { /* L y = b */
        double *row = w->x + i * w->columns + from;
        for (int64_t k = 0; k < i; k++)
            for (int64_t j = 0; j < count; j++) row[j] -= w->factor[i * n + k] * w->x[k * w->columns + from + j];
        for (int64_t j = 0; j < count; j++) row[j] /= w->factor[i * n + i];
    }
    for (int64_t i = n - 1; i >= 0; i--) { /* L' x = y */
        double *row = w->x + i * w->columns + from;
        for (int64_t j = 0; j < count; j++) row[j] /= w->factor[i * n + i];
        for (int64_t k = 0; k < i; k++)
            for (int64_t j = 0; j < count; j++) w->x[k * w->columns + from + j] -= w->factor[i * n + k] * row[j];
    }
}

void ln_cholesky_solve(ln_team *team, const double *factor, int64_t n, double *x, int64_t columns) {
    solve_work w = {factor, x, n, columns};
    ln_parallel(team, ln_ceil_div(columns, BLOCK), solve_columns, &w);
}
