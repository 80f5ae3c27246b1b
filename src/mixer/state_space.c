/* Owns: state-space matrices in float64: HiPPO, discretisation, and the convolution kernel of a diagonal system. */
#include "mixer/state_space.h"

#include <complex.h>
#include <math.h>
#include <string.h>

#include "base/context.h"

enum { STATES_MOST = 4096 };
static const double PI = 3.14159265358979323846;

/* ---- HiPPO ---- */

/* Row n, column k of A over (2n+1)^1/2 (2k+1)^1/2; LEGS has its own diagonal. */
static double legendre(linnet_hippo_measure measure, int64_t n, int64_t k) {
    if (measure == LINNET_HIPPO_LEGT) return n >= k || (k - n) % 2 == 0 ? -1 : 1;
    return n > k ? -1 : n == k ? -(double)(n + 1) / (double)(2 * n + 1) : 0;
}

/* The past end of the window is read from the coefficients: a Fourier series gives there the mean of both ends, which
 * doubles what comes in and what falls out. */
static double fourier(int64_t n, int64_t k, const double *b) {
    const double turn = 2 * PI * (double)((n + 1) / 2);
    const double rotation = n > 0 && n % 2 == 1 && k == n + 1 ? turn : k > 0 && k % 2 == 1 && n == k + 1 ? -turn : 0;
    return rotation - b[n] * b[k] / 2;
}

linnet_status linnet_hippo(linnet_context *context, linnet_hippo_measure measure, int64_t n, double *a, double *b) {
    if (n < 1 || n > STATES_MOST || measure < LINNET_HIPPO_LEGS || measure > LINNET_HIPPO_FOURIER)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "linnet_hippo takes a known measure and 1 to 4096 states");
    const bool waves = measure == LINNET_HIPPO_FOURIER;
    for (int64_t i = 0; i < n; i++) b[i] = waves ? (i == 0 ? 2 : i % 2 ? 2 * sqrt(2.0) : 0) : sqrt(2 * (double)i + 1);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++) a[i * n + k] = waves ? fourier(i, k, b) : legendre(measure, i, k) * b[i] * b[k];
    return LINNET_OK;
}

/* ---- steps ---- */

/* Gauss and Jordan with rows exchanged: a is destroyed, inverse is found beside it. */
static bool invert(int64_t n, double *a, double *inverse) {
    memset(inverse, 0, (size_t)(n * n) * sizeof *inverse);
    for (int64_t i = 0; i < n; i++) inverse[i * n + i] = 1;
    for (int64_t c = 0; c < n; c++) {
        int64_t best = c;
        for (int64_t r = c + 1; r < n; r++)
            if (fabs(a[r * n + c]) > fabs(a[best * n + c])) best = r;
        const double pivot = a[best * n + c];
        if (!(fabs(pivot) > 1e-300)) return false;
        for (int64_t k = 0; k < n; k++) {
            const double x = a[best * n + k], y = inverse[best * n + k];
            a[best * n + k] = a[c * n + k];
            inverse[best * n + k] = inverse[c * n + k];
            a[c * n + k] = x / pivot;
            inverse[c * n + k] = y / pivot;
        }
        for (int64_t r = 0; r < n; r++) {
            const double factor = a[r * n + c];
            for (int64_t k = 0; r != c && factor != 0 && k < n; k++) {
                a[r * n + k] -= factor * a[c * n + k];
                inverse[r * n + k] -= factor * inverse[c * n + k];
            }
        }
    }
    return true;
}

/* out [n, columns] = x [n, n] y [n, columns] */
static void multiply(int64_t n, int64_t columns, const double *x, const double *y, double *out) {
    memset(out, 0, (size_t)(n * columns) * sizeof *out);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++)
            for (int64_t j = 0; x[i * n + k] != 0 && j < columns; j++)
                out[i * columns + j] += x[i * n + k] * y[k * columns + j];
}

bool ln_bilinear(int64_t n, double step, double weight, const double *a, const double *b, double *out_a, double *out_b,
                 double *inverse, double *work) {
    for (int64_t i = 0; i < n * n; i++) work[i] = (i % (n + 1) == 0) - weight * step * a[i];
    if (!invert(n, work, inverse)) return false;
    for (int64_t i = 0; i < n * n; i++) work[i] = (i % (n + 1) == 0) + (1 - weight) * step * a[i];
    multiply(n, n, inverse, work, out_a);
    multiply(n, 1, inverse, b, out_b);
    for (int64_t i = 0; i < n; i++) out_b[i] *= step;
    return true;
}

/* The exponential of [A B; 0 0] has A' and B' in its upper rows: Taylor's series of its 2^-s th part, squared s times.
 * x, term, next: [n + 1, n + 1]. */
static bool hold(int64_t n, double step, const double *a, const double *b, double *out_a, double *out_b, double *x,
                 double *term, double *next) {
    const int64_t m = n + 1, size = m * m;
    double largest = 0;
    memset(x, 0, (size_t)size * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t k = 0; k < n; k++) sum += fabs(x[i * m + k] = step * a[i * n + k]);
        largest = fmax(largest, sum + fabs(x[i * m + n] = step * b[i]));
    }
    if (!isfinite(largest)) return false;
    const int halvings = largest > 0.5 ? (int)ceil(log2(largest)) + 1 : 0;
    for (int64_t i = 0; i < size; i++) x[i] = ldexp(x[i], -halvings);
    /* Horner: 1 + x (1 + x/2 (1 + x/3 (...))), whose 19th term is below 0.5^19 / 19!. */
    memset(term, 0, (size_t)size * sizeof *term);
    for (int64_t i = 0; i < m; i++) term[i * m + i] = 1;
    for (int order = 18; order > 0; order--) {
        multiply(m, m, x, term, next);
        for (int64_t i = 0; i < size; i++) term[i] = next[i] / order + (i % (m + 1) == 0);
    }
    for (int s = 0; s < halvings; s++) {
        multiply(m, m, term, term, next);
        memcpy(term, next, (size_t)size * sizeof *term);
    }
    for (int64_t i = 0; i < n; i++) {
        memcpy(out_a + i * n, term + i * m, (size_t)n * sizeof *out_a);
        out_b[i] = term[i * m + n];
    }
    return true;
}

linnet_status linnet_discretise(linnet_context *context, linnet_discretisation how, double weight, int64_t n,
                                double step, const double *a, const double *b, double *out_a, double *out_b) {
    if (n < 1 || n > STATES_MOST || !isfinite(step) || !isfinite(weight))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "linnet_discretise takes 1 to 4096 states and a finite step");
    for (int64_t i = 0; i < n * n; i++)
        if (!isfinite(a[i]) || !isfinite(b[i % n]))
            return ln_fail(context, LINNET_ERROR_ARGUMENT, "linnet_discretise: A and B must be finite");
    const size_t each = (size_t)((n + 1) * (n + 1));
    double *work = ln_allocate(context, 3 * each, sizeof *work, "discretisation of a state-space layer");
    if (!work) return LINNET_ERROR_MEMORY;
    bool fine = true;
    if (how == LINNET_DISCRETISE_ZOH)
        fine = hold(n, step, a, b, out_a, out_b, work, work + each, work + 2 * each);
    else
        fine = ln_bilinear(n, step, weight, a, b, out_a, out_b, work, work + each);
    ln_release(context, work);
    if (!fine)
        return ln_fail(
            context, LINNET_ERROR_ARGUMENT,
            "linnet_discretise: this step is too large, or 1 - weight step A has no inverse; take another step");
    return LINNET_OK;
}

/* ---- diagonal systems ---- */

void linnet_s4d_initial(linnet_s4d_spectrum spectrum, int64_t states, float *rate, float *frequency) {
    const double all = 2 * (double)states;
    for (int64_t n = 0; n < states; n++) {
        rate[n] = -0.5f;
        frequency[n] =
            (float)(spectrum == LINNET_S4D_LINEAR ? PI * (double)n : all / PI * (all / (2 * (double)n + 1) - 1));
    }
}

void ln_s4d_kernel(int64_t length, float *kernel, int64_t states, float step, const float *rate, const float *frequency,
                   const float *write, const float *read, bool bilinear) {
    for (int64_t l = 0; l < length; l++) {
        double sum = 0;
        for (int64_t n = 0; n < states; n++) {
            const double complex a = (double)rate[n] + I * (double)frequency[n], z = (double)step * a;
            const double complex change = bilinear ? z / (1 - z / 2) : cexp(z) - 1;
            const double complex power = bilinear ? cpow(1 + change, (double)l) : cexp((double)l * z);
            const double complex in = write ? (double)write[n] + I * (double)write[states + n] : 1;
            const double complex strength = cabs(a) > 0 ? change / a : (double)step;
            sum += 2 * creal(((double)read[n] + I * (double)read[states + n]) * in * strength * power);
        }
        kernel[l] = (float)sum;
    }
}

double complex ln_discrete_gradient(double step, double complex a, double complex e_gradient, double complex f_gradient,
                                    bool bilinear, double *step_gradient) {
    const double complex z = step * a, e = bilinear ? z / (1 - z / 2) : cexp(z) - 1;
    const double complex slope = bilinear ? 1 / ((1 - z / 2) * (1 - z / 2)) : 1 + e;
    if (cabs(a) == 0) { /* f = step + step^2 a / 2 + ... */
        *step_gradient += creal(f_gradient);
        return e_gradient * step + f_gradient * (step * step / 2);
    }
    const double complex z_d = (e_gradient + f_gradient * conj(1 / a)) * conj(slope);
    *step_gradient += creal(z_d * conj(a));
    return z_d * step - f_gradient * conj(e / (a * a));
}
