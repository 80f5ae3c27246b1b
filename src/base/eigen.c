/* Owns: the symmetric eigenproblem, the two classical steps (Golub and Van Loan, Matrix Computations, 8.3).
 *
 * 1. Householder reflections H_k = I - b v v' make T = H .. H_0 A H_0 .. H tridiagonal; v of step k stays in row k.
 * 2. QL steps with implicit shifts turn T into a diagonal; their rotations are applied to rows of G, which starts as
 *    the product of the reflections, so that its rows end as eigenvectors. Rows, because these lie together in memory.
 *
 * Invariant: after each step G' T G is the matrix that was given, and G is orthogonal to rounding. */
#include "base/eigen.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* A := H A H on the rows and columns from `first` on, for the v in row first - 1; p [n] is scratch. Returns what
 * remains of the column: the element beside the diagonal; *scale is b, 0 where nothing is to reflect. */
static double reflect(double *a, int64_t n, int64_t first, double *p, double *scale) {
    double *v = a + (first - 1) * n, norm = 0;
    for (int64_t i = first; i < n; i++) norm += v[i] * v[i];
    norm = sqrt(norm);
    *scale = 0;
    if (norm == 0) return 0;
    const double beside = v[first] > 0 ? -norm : norm;
    *scale = 1 / (norm * (norm + fabs(v[first])));
    v[first] -= beside;
    double along = 0;
    for (int64_t i = first; i < n; i++) {
        double sum = 0;
        for (int64_t j = first; j < n; j++) sum += a[i * n + j] * v[j];
        p[i] = *scale * sum;
        along += p[i] * v[i];
    }
    for (int64_t i = first; i < n; i++) p[i] -= *scale / 2 * along * v[i];
    for (int64_t i = first; i < n; i++)
        for (int64_t j = first; j < n; j++) a[i * n + j] -= p[i] * v[j] + v[i] * p[j];
    return beside;
}

/* G := G H_k for the last reflections first; scales in place of the diagonal's neighbours. */
static void gather(double *a, int64_t n, const double *scale) {
    for (int64_t k = n - 1; k >= 0; k--) {
        double *v = a + k * n;
        for (int64_t r = k + 1; r < n && k < n - 2 && scale[k] != 0; r++) {
            double *row = a + r * n, sum = 0;
            for (int64_t j = k + 1; j < n; j++) sum += row[j] * v[j];
            sum *= scale[k];
            for (int64_t j = k + 1; j < n; j++) row[j] -= sum * v[j];
        }
        memset(v, 0, (size_t)n * sizeof *v);
        for (int64_t r = k; r < n; r++) a[r * n + k] = 0;
        v[k] = 1;
    }
}

static void turn_rows(double *g, int64_t n, int64_t i, double cosine, double sine) {
    double *low = g + i * n, *high = low + n;
    for (int64_t j = 0; j < n; j++) {
        const double x = low[j], y = high[j];
        low[j] = cosine * x - sine * y;
        high[j] = sine * x + cosine * y;
    }
}

/* One QL step on the rows from..to of T. */
static void step(double *d, double *e, int64_t from, int64_t to, double *g, int64_t n) {
    const double half = (d[from + 1] - d[from]) / (2 * e[from]), root = hypot(half, 1);
    double shift = d[to] - d[from] + e[from] / (half + copysign(root, half)), s = 1, c = 1, carried = 0;
    for (int64_t i = to - 1; i >= from; i--) {
        const double f = s * e[i], b = c * e[i], length = hypot(f, shift);
        e[i + 1] = length;
        if (length == 0) { /* T falls apart here */
            d[i + 1] -= carried;
            e[to] = 0;
            return;
        }
        s = f / length;
        c = shift / length;
        const double next = d[i + 1] - carried, r = (d[i] - next) * s + 2 * c * b;
        carried = s * r;
        d[i + 1] = next + carried;
        shift = c * r - b;
        if (g) turn_rows(g, n, i, c, s);
    }
    d[from] -= carried;
    e[from] = shift;
    e[to] = 0;
}

/* Neighbours below rounding of the whole matrix are nothing: values near 0 are exact to that only. */
static bool diagonalise(double *d, double *e, double *g, int64_t n) {
    double size = 0;
    for (int64_t i = 0; i < n; i++) size = fmax(size, fabs(d[i]) + fabs(e[i]));
    for (int64_t from = 0; from < n; from++)
        for (int tries = 0;; tries++) {
            int64_t to = from;
            while (to < n - 1 && fabs(e[to]) > DBL_EPSILON * size) to++;
            if (to == from) break;
            if (tries == 100) return false;
            step(d, e, from, to, g, n);
        }
    return true;
}

static void sort(double *values, double *g, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        int64_t least = i;
        for (int64_t j = i + 1; j < n; j++)
            if (values[j] < values[least]) least = j;
        if (least == i) continue;
        const double value = values[i];
        values[i] = values[least];
        values[least] = value;
        for (int64_t k = 0; g && k < n; k++) {
            const double x = g[i * n + k];
            g[i * n + k] = g[least * n + k];
            g[least * n + k] = x;
        }
    }
}

bool ln_eigen(double *a, int64_t n, bool vectors, double *values, double *work) {
    double *beside = work, *scale = work + n;
    for (int64_t i = 0; i < n * n; i++)
        if (!isfinite(a[i])) return false;
    for (int64_t k = 0; k < n; k++) {
        beside[k] = k + 2 == n ? a[k * n + k + 1] : 0;
        if (k + 2 < n) beside[k] = reflect(a, n, k + 1, values, &scale[k]);
    }
    for (int64_t k = 0; k < n; k++) values[k] = a[k * n + k];
    if (vectors) gather(a, n, scale);
    if (!diagonalise(values, beside, vectors ? a : NULL, n)) return false;
    sort(values, vectors ? a : NULL, n);
    return true;
}
