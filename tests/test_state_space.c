/* HiPPO matrices hold the past in the basis they promise, discretisations follow the exact solution, and the rows s4d
 * and lssl are the systems that their parameters say. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "linnet/linnet.h"
#include "mixer/state_space.h"

static const double PI = 3.14159265358979323846;

static linnet_context *context;

static int open_context(void **state) {
    (void)state;
    const linnet_context_settings settings = linnet_context_settings_default();
    return linnet_context_open(&settings, &context);
}
static int close_context(void **state) {
    (void)state;
    linnet_context_close(context);
    return 0;
}

/* (2n+1)^1/2 P_n(2s - 1) */
static double legendre(int64_t n, double s) {
    const double x = 2 * s - 1;
    double before = 1, now = x;
    if (n == 0) return 1;
    for (int64_t k = 1; k < n; k++) {
        const double next = ((double)(2 * k + 1) * x * now - (double)k * before) / (double)(k + 1);
        before = now;
        now = next;
    }
    return sqrt(2 * (double)n + 1) * now;
}

static double wave(int64_t n, double s) {
    const double turn = 2 * PI * (double)((n + 1) / 2) * s;
    return n == 0 ? 1 : sqrt(2.0) * (n % 2 ? cos(turn) : sin(turn));
}

enum { N = 16 };

static double polynomial(double t) {
    return 0.3 - 1.1 * t + 0.8 * t * t - 0.2 * t * t * t;
}
static double periodic(double t) {
    return 0.4 + sin(2 * PI * t) - 0.6 * cos(4 * PI * t + 1);
}

/* Coefficients of f over the window that ends at t, begins at `from`: Gauss would be finer, the midpoint is enough. */
static void project(double (*basis)(int64_t, double), double (*f)(double), double from, double t, double *x) {
    enum { POINTS = 20000 };
    memset(x, 0, N * sizeof *x);
    for (int i = 0; i < POINTS; i++) {
        const double s = (i + 0.5) / POINTS, value = f(from + s * (t - from)) / POINTS;
        for (int64_t n = 0; n < N; n++) x[n] += value * basis(n, s);
    }
}

/* The derivative of the coefficients by central differences is A x + B f: exact for what the basis holds. */
static void derivative_is(linnet_hippo_measure measure, double (*basis)(int64_t, double), double (*f)(double)) {
    double a[N * N], b[N], x[N], less[N], more[N];
    const double t = 1.7, h = 1e-4;
    const bool window = measure != LINNET_HIPPO_LEGS;
    assert_int_equal(linnet_hippo(context, measure, N, a, b), LINNET_OK);
    project(basis, f, window ? t - 1 : 0, t, x);
    project(basis, f, window ? t - h - 1 : 0, t - h, less);
    project(basis, f, window ? t + h - 1 : 0, t + h, more);
    for (int64_t n = 0; n < N; n++) {
        double wanted = b[n] * f(t);
        for (int64_t k = 0; k < N; k++) wanted += a[n * N + k] * x[k];
        if (measure == LINNET_HIPPO_LEGS) wanted /= t;
        assert_true(fabs((more[n] - less[n]) / (2 * h) - wanted) < 2e-4);
    }
}

static void hippo_holds_the_past(void **state) {
    (void)state;
    derivative_is(LINNET_HIPPO_LEGS, legendre, polynomial);
    derivative_is(LINNET_HIPPO_LEGT, legendre, polynomial);
    derivative_is(LINNET_HIPPO_FOURIER, wave, periodic);
    double one;
    assert_int_equal(linnet_hippo(context, LINNET_HIPPO_LEGS, 0, &one, &one), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_hippo(context, LINNET_HIPPO_LEGS, 5000, &one, &one), LINNET_ERROR_ARGUMENT);
}

/* A signal is found again from the states of LegS, by x[k+1] = (1 - A / k)^-1 (x[k] + B f / k), better with more of
 * them; and stretched in time it leaves the same states. */
static double reconstruction(int64_t states, int64_t steps, double *x) {
    double *a = malloc((size_t)(states * states) * 2 * sizeof *a), *b = malloc((size_t)states * 3 * sizeof *b);
    double *step_a = a + states * states, *step_b = b + states, *next = step_b + states;
    assert_int_equal(linnet_hippo(context, LINNET_HIPPO_LEGS, states, a, b), LINNET_OK);
    memset(x, 0, (size_t)states * sizeof *x);
    for (int64_t k = 1; k <= steps; k++) {
        const double s = ((double)k - 0.5) / (double)steps, f = sin(9 * s) * exp(-s);
        assert_int_equal(
            linnet_discretise(context, LINNET_DISCRETISE_BILINEAR, 1, states, 1 / (double)k, a, b, step_a, step_b),
            LINNET_OK);
        for (int64_t i = 0; i < states; i++) {
            next[i] = step_b[i] * f;
            for (int64_t j = 0; j < states; j++) next[i] += step_a[i * states + j] * x[j];
        }
        memcpy(x, next, (size_t)states * sizeof *x);
    }
    double worst = 0;
    for (double s = 0.1; s < 0.95; s += 0.05) {
        double found = 0;
        for (int64_t n = 0; n < states; n++) found += x[n] * legendre(n, s);
        worst = fmax(worst, fabs(found - sin(9 * s) * exp(-s)));
    }
    free(a);
    free(b);
    return worst;
}

static void legs_reconstructs(void **state) {
    (void)state;
    double x[12], stretched[12];
    const double few = reconstruction(4, 400, x), more = reconstruction(12, 400, x);
    assert_true(more < 0.02);
    assert_true(more < few / 10);
    reconstruction(12, 800, stretched);
    for (int n = 0; n < 12; n++) assert_true(fabs(x[n] - stretched[n]) < 0.02);
}

/* x' = A x + B u with u constant over a step: many small steps of Heun against one. */
static void zero_order_hold_is_exact(void **state) {
    (void)state;
    double a[N * N], b[N], step_a[N * N], step_b[N], x[N], y[N], slope[N], half[N];
    assert_int_equal(linnet_hippo(context, LINNET_HIPPO_LEGT, N, a, b), LINNET_OK);
    const double step = 0.05, u = 0.7;
    for (int i = 0; i < N; i++) x[i] = y[i] = cos(i);
    assert_int_equal(linnet_discretise(context, LINNET_DISCRETISE_ZOH, 0, N, step, a, b, step_a, step_b), LINNET_OK);
    enum { SMALL = 20000 };
    for (int s = 0; s < SMALL; s++) {
        for (int order = 0; order < 2; order++) {
            const double *from = order ? half : x;
            for (int i = 0; i < N; i++) {
                slope[i] = b[i] * u;
                for (int j = 0; j < N; j++) slope[i] += a[i * N + j] * from[j];
            }
            if (order == 0)
                for (int i = 0; i < N; i++) half[i] = x[i] + slope[i] * step / SMALL / 2;
        }
        for (int i = 0; i < N; i++) x[i] += slope[i] * step / SMALL;
    }
    for (int i = 0; i < N; i++) {
        double got = step_b[i] * u;
        for (int j = 0; j < N; j++) got += step_a[i * N + j] * y[j];
        assert_true(fabs(got - x[i]) < 1e-6);
    }
    double one = 1, zero = 0, out[2];
    assert_int_equal(linnet_discretise(context, LINNET_DISCRETISE_BILINEAR, 0.5, 1, 2, &one, &one, out, out + 1),
                     LINNET_ERROR_ARGUMENT); /* 1 - 1/2 2 1 = 0 */
    assert_int_equal(linnet_discretise(context, LINNET_DISCRETISE_ZOH, 0, 1, (double)NAN, &one, &one, out, out + 1),
                     LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_discretise(context, LINNET_DISCRETISE_ZOH, 0, 1, 1, &zero, &one, out, out + 1), LINNET_OK);
    assert_true(out[0] == 1 && out[1] == 1); /* an integrator */
}

static void *workspace_of(const linnet_mixer_settings *s) {
    void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, s, LINNET_MIXER_FORWARD));
    assert_non_null(workspace);
    return workspace;
}

/* An impulse through the row is the kernel. Rounding of the multiplier adds up over a memory of 200 steps. */
static void s4d_is_its_kernel(void **state) {
    (void)state;
    enum { LENGTH = 1000, STATES = 32 };
    float rate[STATES], frequency[STATES], write[2 * STATES], read[2 * STATES], step = 0.01f, kernel[LENGTH],
                                                                                value[LENGTH] = {1}, y[LENGTH];
    for (int bilinear = 0; bilinear < 2; bilinear++)
        for (int spectrum = 0; spectrum < 2; spectrum++) {
            linnet_s4d_initial((linnet_s4d_spectrum)spectrum, STATES, rate, frequency);
            for (int n = 0; n < STATES; n++) {
                write[n] = read[n] = 1;
                write[STATES + n] = 0.25f;
                read[STATES + n] = (float)sin(n);
            }
            ln_s4d_kernel(LENGTH, kernel, STATES, step, rate, frequency, write, read, bilinear);
            linnet_mixer_settings s = linnet_mixer_settings_default("s4d");
            s.key_size = 1;
            s.slots = STATES;
            s.tokens = LENGTH;
            s.option[0] = bilinear;
            linnet_mixer_tensors t = {.size = sizeof t, .output.data = y};
            t.input[0].data = value;
            t.input[1].data = &step;
            t.input[2].data = rate;
            t.input[3].data = frequency;
            t.input[4].data = write;
            t.input[5].data = read;
            void *workspace = workspace_of(&s);
            assert_int_equal(linnet_mixer_forward(context, &s, &t, workspace), LINNET_OK);
            free(workspace);
            double error = 0, size = 0;
            for (int l = 0; l < LENGTH; l++) {
                error += ((double)y[l] - (double)kernel[l]) * ((double)y[l] - (double)kernel[l]);
                size += (double)kernel[l] * (double)kernel[l];
            }
            assert_true(sqrt(error / size) < 2e-5);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(hippo_holds_the_past), cmocka_unit_test(legs_reconstructs),
                                       cmocka_unit_test(zero_order_hold_is_exact), cmocka_unit_test(s4d_is_its_kernel)};
    return cmocka_run_group_tests(tests, open_context, close_context);
}
