/* The softmax kernels: both forms against float64 at a small size; timed on rows of a million floats beyond the last
 * cache, the forms in turn: two passes, three passes that compute the exponentials twice, three that keep them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/clock.h"
#include "kernel_check.h"

enum { SHORT = 1003, ROW = 1 << 20, ROWS = 32, TURNS = 9, FORMS = 3 };

typedef struct softmax_job {
    const ln_softmax_kernels *kernels;
    int form;
    const float *x;
    float *y;
    int64_t n;
    bool stream;
} softmax_job;

static const char *const forms[FORMS] = {"two passes", "three", "three, kept"};

static void two_passes(const softmax_job *job, const float *x, float *y) {
    double m = 0, n = -4.0 * LN_SOFTMAX_REACH;
    for (int64_t i = 0; i < job->n; i += LN_SOFTMAX_PIECE) {
        const ln_pair pair = job->kernels->sum(x + i, ln_min_i64(LN_SOFTMAX_PIECE, job->n - i));
        const double most = fmax(n, (double)pair.n);
        m = ldexp(m, (int)fmax(n - most, -2000)) + ldexp((double)pair.m, (int)fmax((double)pair.n - most, -2000));
        n = most;
    }
    int exponent;
    const double mantissa = frexp(m, &exponent);
    job->kernels->write(y, x, job->n, (float)(1 / mantissa), (float)(n + exponent), job->stream);
}

static void three_passes(const softmax_job *job, const float *x, float *y) {
    const float most = job->kernels->maximum(x, job->n);
    double sum = 0;
    for (int64_t i = 0; i < job->n; i += LN_SOFTMAX_PIECE) {
        const int64_t part = ln_min_i64(LN_SOFTMAX_PIECE, job->n - i);
        sum += (double)(job->form == 1 ? job->kernels->sum_below(x + i, part, most)
                                       : job->kernels->write_and_sum_below(y + i, x + i, part, most));
    }
    if (job->form == 1)
        job->kernels->write_below(y, x, job->n, most, (float)(1 / sum), job->stream);
    else
        job->kernels->scale(y, y, job->n, (float)(1 / sum), false);
}

static void run_row(void *argument, int64_t row, int worker) {
    (void)worker;
    const softmax_job *job = argument;
    if (job->form == 0)
        two_passes(job, job->x + row * job->n, job->y + row * job->n);
    else
        three_passes(job, job->x + row * job->n, job->y + row * job->n);
}

/* In units of 2e-6 of each result: the three-pass form rounds x - maximum, here up to 35. */
static double error_of(const ln_softmax_kernels *kernels, int form) {
    float x[SHORT], y[SHORT];
    ln_random random;
    ln_random_seed(&random, 3);
    double sum = 0, worst = 0;
    for (int i = 0; i < SHORT; i++) x[i] = (float)(5 * ln_random_normal(&random));
    for (int i = 0; i < SHORT; i++) sum += exp((double)x[i]);
    softmax_job job = {kernels, form, x, y, SHORT, false};
    run_row(&job, 0, 0);
    for (int i = 0; i < SHORT; i++) {
        const double error = fabs((double)y[i] * sum / exp((double)x[i]) - 1) / 2e-6;
        if (!(error <= worst)) worst = error;
    }
    return worst;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void time_forms(check *c) {
    float *x = ln_allocate(c->context, ROWS, ROW * sizeof *x, "rows"),
          *y = ln_allocate_zero(c->context, ROWS, ROW * sizeof *y, "rows");
    double seconds[FORMS][TURNS];
    for (int64_t i = 0; x && i < (int64_t)ROWS * ROW; i++) x[i] = (float)(i * 2654435761 % 1000) * 0.02f;
    for (int turn = 0; x && y && turn < TURNS; turn++) {
        for (int form = 0; form < FORMS; form++) {
            softmax_job job = {&c->kernels.softmax, form, x, y, ROW, true};
            const double start = ln_seconds();
            ln_parallel(c->context->team, ROWS, run_row, &job);
            seconds[form][turn] = ln_seconds() - start;
        }
    }
    for (int form = 0; x && y && form < FORMS; form++) {
        qsort(seconds[form], TURNS, sizeof(double), ascending);
        const double median = seconds[form][TURNS / 2];
        printf("   %s %.2f G/s", forms[form], (double)ROWS * ROW / median / 1e9);
        if (form > 0) printf(" (1 : %.2f)", median / seconds[0][TURNS / 2]);
    }
    ln_release(c->context, x);
    ln_release(c->context, y);
}

void check_softmax(check *c) {
    const char *kernel = c->kernels.softmax.name;
    if (!check_begin(c, kernel, "rows")) return;
    double worst = 0;
    for (int form = 0; form < FORMS; form++) worst = fmax(worst, error_of(&c->kernels.softmax, form));
    check_error(c, kernel, "rows", worst);
    if (c->bench) time_forms(c);
    check_end(c);
}
