/* Owns: the order of a transform larger than a cache.
 *
 * Column c is the points c, c + N, c + 2N, ... (N columns). The levels of the columns take x^M - i to x^N - r for as
 * many r as a column has points; row r is then the N points of that node, and lies together. The rows' levels are even
 * (kernel/fft.h), so the first step of radix 2, where there is one, is in the columns. */
#include "mixer/wave.h"

#include <math.h>
#include <string.h>

/* As measured on one processor; only ratios matter. */
static double block_cycles(int levels) {
    return ldexp(2.8 * levels + (levels > LN_WAVE_ALONE ? 120 : 40), levels);
}

int ln_wave_levels(int64_t tokens, int64_t taps, double *cycles) {
    int best = LN_FFT_MOST;
    *cycles = INFINITY;
    for (int levels = 0; levels <= LN_FFT_MOST; levels++) {
        const int64_t fresh = ((int64_t)2 << levels) - (taps - 1);
        if (fresh < 1) continue;
        const double sum = (ceil((double)tokens / (double)fresh) + 0.5) * block_cycles(levels);
        if (sum < *cycles) {
            *cycles = sum;
            best = levels;
        }
        if (fresh >= tokens) break;
    }
    return best;
}

enum { COLUMN_BYTES = 1 << 19 };

void ln_wave_open(ln_wave *wave, ln_carver *carver, const ln_kernels *kernels, ln_team *team, int threads, int levels,
                  bool fill) {
    int row_levels = levels <= LN_WAVE_ALONE ? 0 : levels / 2;
    row_levels += row_levels & 1;
    *wave = (ln_wave){.kernels = kernels ? &kernels->fft : NULL,
                      .team = team,
                      .levels = levels,
                      .column_levels = levels - row_levels,
                      .points = (int64_t)1 << levels};
    float *roots = ln_carve(carver, (uint64_t)ln_fft_floats(levels), sizeof *roots);
    wave->together = 1;
    if (row_levels) {
        while (wave->together < 8 && (wave->together * 2 * LN_FFT_POINT * 4 << wave->column_levels) <= COLUMN_BYTES)
            wave->together *= 2;
        wave->columns =
            ln_carve(carver, (uint64_t)(threads * wave->together) << wave->column_levels, LN_FFT_POINT * sizeof(float));
    }
    if (carver->base) ln_fft_open(&wave->fft, levels, roots, fill);
}

typedef struct columns {
    const ln_wave *wave;
    float *x;
    ln_wave_source source;
    ln_wave_sink sink;
    const void *argument;
    bool high;
} columns;

static void each(const ln_wave *wave, int64_t tasks, ln_task run, void *argument) {
    if (wave->team)
        ln_parallel(wave->team, tasks, run, argument);
    else
        for (int64_t task = 0; task < tasks; task++) run(argument, task, 0);
}

/* Points of one column, between columns, and tasks. */
static int64_t length_of(const ln_wave *w) {
    return (int64_t)1 << w->column_levels;
}
static int64_t tasks_of(const ln_wave *w) {
    return (w->points >> w->column_levels) / w->together;
}
static float *columns_of(const ln_wave *w, int worker) {
    return w->columns + (worker * w->together << w->column_levels) * LN_FFT_POINT;
}

static void clear_high(float *points, int64_t count) {
    for (int64_t j = 0; j < count; j++) memset(points + j * LN_FFT_POINT + LN_FFT_LANES, 0, 64);
}

static void down_columns(void *argument, int64_t task, int worker) {
    const columns *c = argument;
    const ln_wave *w = c->wave;
    const int64_t length = length_of(w), stride = w->points >> w->column_levels, gap = length * LN_FFT_POINT;
    float *local = columns_of(w, worker);
    for (int64_t j = 0; j < length; j++) {
        const int64_t first = j * stride + task * w->together;
        c->source(c->argument, first, w->together, local + j * LN_FFT_POINT, gap);
        if (c->high)
            c->source(c->argument, first + w->points, w->together, local + j * LN_FFT_POINT + LN_FFT_LANES, gap);
    }
    if (!c->high) clear_high(local, w->together * length);
    for (int64_t i = 0; i < w->together; i++) w->kernels->down(&w->fft, local + i * gap, 0, 0, w->column_levels);
    for (int64_t j = 0; j < length; j++)
        for (int64_t i = 0; i < w->together; i++)
            memcpy(c->x + (j * stride + task * w->together + i) * LN_FFT_POINT, local + i * gap + j * LN_FFT_POINT,
                   LN_FFT_POINT * sizeof(float));
}

static void up_columns(void *argument, int64_t task, int worker) {
    const columns *c = argument;
    const ln_wave *w = c->wave;
    const int64_t length = length_of(w), stride = w->points >> w->column_levels, gap = length * LN_FFT_POINT;
    float *local = columns_of(w, worker);
    for (int64_t j = 0; j < length; j++)
        for (int64_t i = 0; i < w->together; i++)
            memcpy(local + i * gap + j * LN_FFT_POINT, c->x + (j * stride + task * w->together + i) * LN_FFT_POINT,
                   LN_FFT_POINT * sizeof(float));
    for (int64_t i = 0; i < w->together; i++) w->kernels->up(&w->fft, local + i * gap, 0, 0, w->column_levels);
    for (int64_t j = 0; j < length; j++) {
        const int64_t first = j * stride + task * w->together;
        c->sink(c->argument, first, w->together, local + j * LN_FFT_POINT, gap);
        c->sink(c->argument, first + w->points, w->together, local + j * LN_FFT_POINT + LN_FFT_LANES, gap);
    }
}

void ln_wave_down_columns(const ln_wave *wave, float *x, ln_wave_source source, const void *argument, bool high) {
    columns c = {.wave = wave, .x = x, .source = source, .argument = argument, .high = high};
    if (wave->columns) {
        each(wave, tasks_of(wave), down_columns, &c);
        return;
    }
    source(argument, 0, wave->points, x, LN_FFT_POINT);
    if (high)
        source(argument, wave->points, wave->points, x + LN_FFT_LANES, LN_FFT_POINT);
    else
        clear_high(x, wave->points);
    wave->kernels->down(&wave->fft, x, 0, 0, wave->levels);
}

void ln_wave_up_columns(const ln_wave *wave, float *x, ln_wave_sink sink, const void *argument) {
    columns c = {.wave = wave, .x = x, .sink = sink, .argument = argument};
    if (wave->columns) {
        each(wave, tasks_of(wave), up_columns, &c);
        return;
    }
    wave->kernels->up(&wave->fft, x, 0, 0, wave->levels);
    sink(argument, 0, wave->points, x, LN_FFT_POINT);
    sink(argument, wave->points, wave->points, x + LN_FFT_LANES, LN_FFT_POINT);
}

typedef struct rows {
    const ln_wave *wave;
    ln_wave_rows work;
    void *argument;
} rows;

static void run_row(void *argument, int64_t task, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t points = r->wave->points >> r->wave->column_levels;
    r->work(r->wave, r->argument, task * points, points, r->wave->column_levels, task);
}

void ln_wave_each_row(const ln_wave *wave, ln_wave_rows work, void *argument) {
    rows r = {wave, work, argument};
    if (!wave->columns) /* rows of one point each */
        work(wave, argument, 0, wave->points, wave->levels, 0);
    else
        each(wave, (int64_t)1 << wave->column_levels, run_row, &r);
}
