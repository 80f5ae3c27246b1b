/* The transforms: leaves against the polynomial in float64, there and back, products, and the direct sum; timed at the
 * size of a cache. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

enum { LEVELS_MOST = 11, LANES = LN_FFT_LANES, POINT = LN_FFT_POINT, POINTS = 1 << LEVELS_MOST };

static const double TURN = 6.283185307179586476925;

typedef struct transform {
    ln_fft fft;
    float *roots, *x, *y;
    const ln_fft_kernels *kernels;
    int levels;
} transform;

static void fill(float *x, int64_t count, uint64_t seed) {
    ln_random random;
    ln_random_seed(&random, seed);
    for (int64_t i = 0; i < count; i++) x[i] = (float)ln_random_normal(&random);
}

static double worse(double a, double b) {
    return b <= a ? a : b;
}

/* The angle of a leaf in turns: its parent's halved, and half a turn for a second child. */
static double angle_of(int levels, int64_t leaf) {
    double angle = 0.25;
    for (int l = levels - 1; l >= 0; l--) angle = angle / 2 + (double)(leaf >> l & 1) / 2;
    return angle;
}

/* In units of 1e-6 of the coefficients' size: a level adds about a unit in the last place. */
static double down_error(transform *t) {
    const int64_t points = (int64_t)1 << t->levels;
    double worst = 0;
    fill(t->x, points * POINT, 5);
    memcpy(t->y, t->x, (size_t)(points * POINT) * sizeof *t->x);
    t->kernels->down(&t->fft, t->x, 0, 0, t->levels);
    const int64_t step = points > 64 ? points / 61 : 1;
    for (int64_t leaf = 0; leaf < points; leaf += step) {
        const int lane = (int)(leaf % LANES);
        double re = 0, im = 0;
        for (int64_t j = 0; j < points; j++) {
            const double angle = TURN * fmod(angle_of(t->levels, leaf) * (double)j, 1);
            const double x = (double)t->y[j * POINT + lane], y = (double)t->y[j * POINT + LANES + lane];
            re += x * cos(angle) - y * sin(angle);
            im += x * sin(angle) + y * cos(angle);
        }
        const float *got = t->x + leaf * POINT + lane;
        worst = worse(worst, hypot((double)got[0] - re, (double)got[LANES] - im) / (1e-6 * sqrt((double)points)));
    }
    return worst;
}

static double back_error(transform *t) {
    const int64_t points = (int64_t)1 << t->levels;
    double worst = 0;
    fill(t->x, points * POINT, 6);
    memcpy(t->y, t->x, (size_t)(points * POINT) * sizeof *t->x);
    t->kernels->down(&t->fft, t->x, 0, 0, t->levels);
    t->kernels->up(&t->fft, t->x, 0, 0, t->levels);
    for (int64_t i = 0; i < points * POINT; i++)
        worst = worse(worst, fabs((double)t->x[i] / (double)points - (double)t->y[i]) / 2e-6);
    return worst;
}

static double products_error(transform *t) {
    enum { N = 5 };
    float x[N * POINT], y[N * POINT], sum[N * POINT], first[N * POINT], second[N * POINT], third[N * POINT];
    double worst = 0;
    fill(x, N * POINT, 1);
    fill(y, N * POINT, 2);
    fill(sum, N * POINT, 3);
    memcpy(first, x, sizeof x);
    memcpy(second, x, sizeof x);
    memcpy(third, sum, sizeof x);
    t->kernels->multiply(first, y, N);
    t->kernels->multiply_conjugate(second, y, N);
    t->kernels->correlate(third, x, y, N);
    for (int i = 0; i < N * LANES; i++) {
        const int at = i / LANES * POINT + i % LANES, im = at + LANES;
        const double a = (double)x[at], b = (double)x[im], c = (double)y[at], d = (double)y[im];
        worst = worse(worst, fabs((double)first[at] - (a * c - b * d)) / 2e-6);
        worst = worse(worst, fabs((double)first[im] - (a * d + b * c)) / 2e-6);
        worst = worse(worst, fabs((double)second[at] - (a * c + b * d)) / 2e-6);
        worst = worse(worst, fabs((double)second[im] - (b * c - a * d)) / 2e-6);
        worst = worse(worst, fabs((double)third[at] - ((double)sum[at] + a * c + b * d)) / 2e-6);
        worst = worse(worst, fabs((double)third[im] - ((double)sum[im] + b * c - a * d)) / 2e-6);
    }
    return worst;
}

static double slide_error(transform *t) {
    double worst = 0;
    for (int64_t taps = 1; taps < 12; taps += 3)
        for (int64_t tokens = 0; tokens < 11; tokens++) {
            const int64_t rows = taps - 1 + tokens, x_stride = LANES + 3, filter_stride = LANES + 5;
            guarded x = guarded_open((size_t)(rows ? (rows - 1) * x_stride + LANES : 0) * 4),
                    f = guarded_open((size_t)((taps - 1) * filter_stride + LANES) * 4),
                    y = guarded_open((size_t)(tokens * LANES) * 4);
            float *xs = (float *)(void *)x.data, *fs = (float *)(void *)f.data, *ys = (float *)(void *)y.data;
            fill(xs, rows ? (rows - 1) * x_stride + LANES : 0, 7);
            fill(fs, (taps - 1) * filter_stride + LANES, 8);
            memset(ys, 0, (size_t)(tokens * LANES) * 4);
            t->kernels->slide(ys, xs + (taps - 1) * x_stride, x_stride, fs, filter_stride, tokens, taps);
            for (int64_t i = 0; i < tokens * LANES; i++) {
                double sum = 0;
                for (int64_t j = 0; j < taps; j++)
                    sum += (double)fs[j * filter_stride + i % LANES] *
                           (double)xs[(taps - 1 + i / LANES - j) * x_stride + i % LANES];
                worst = worse(worst, fabs((double)ys[i] - sum) / 1e-5);
            }
            guarded_close(&x);
            guarded_close(&f);
            guarded_close(&y);
        }
    return worst;
}

static void run_down_up(void *argument) {
    transform *t = argument;
    t->kernels->down(&t->fft, t->x, 0, 0, t->levels);
    t->kernels->up(&t->fft, t->x, 0, 0, t->levels);
    for (int64_t i = 0; i < (int64_t)POINT << t->levels; i += POINT) t->x[i] = 0.25f; /* numbers stay small */
}

static void run_slide(void *argument) {
    transform *t = argument;
    t->kernels->slide(t->y, t->x + 64 * LANES, LANES, t->x, LANES, 512, 64);
}

static const struct {
    const char *name;
    double (*error)(transform *t);
} entries[] = {{"fft_down", down_error},
               {"fft_down_up", back_error},
               {"fft_products", products_error},
               {"fft_slide", slide_error}};

void check_fft(check *c) {
    transform t = {.kernels = &c->kernels.fft};
    t.roots = malloc((size_t)ln_fft_floats(LEVELS_MOST) * 2 * sizeof(float));
    t.x = aligned_alloc(64, POINTS * POINT * sizeof(float));
    t.y = aligned_alloc(64, POINTS * POINT * sizeof(float));
    if (!t.roots || !t.x || !t.y) exit(2);
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        if (!check_begin(c, entries[i].name, t.kernels->name)) continue;
        double error = 0;
        for (t.levels = 0; t.levels <= LEVELS_MOST; t.levels++) {
            ln_fft_open(&t.fft, t.levels, t.roots, 1);
            error = worse(error, entries[i].error(&t));
            if (i > 1) break;
        }
        check_error(c, entries[i].name, t.kernels->name, error);
        if (c->bench && i == 1) {
            t.levels = 10;
            ln_fft_open(&t.fft, t.levels, t.roots, 1);
            fill(t.x, POINTS * POINT, 1);
            check_speed(c, "there and back, 1024 points", LN_PEAK_F32, 2 * 5 * 1024 * 10 * 16,
                        check_time(run_down_up, &t));
        }
        if (c->bench && i == 3) {
            fill(t.x, POINTS * POINT, 1);
            memset(t.y, 0, POINTS * POINT * sizeof(float));
            check_speed(c, "64 taps", LN_PEAK_F32, 2.0 * 512 * 64 * 16, check_time(run_slide, &t));
        }
        check_end(c);
    }
    free(t.roots);
    free(t.x);
    free(t.y);
}
