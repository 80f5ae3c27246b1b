/* Owns: the order of a transform larger than a cache.
 *
 * Column c is the points c, c + N, c + 2N, ... (N columns). The levels of the columns take x^M - i to x^N - r for as
 * many r as a column has points; row r is then the N points of that node, and lies together. The rows' levels are even
 * (kernel/fft.h), so the first step of radix 2, where there is one, is in the columns. */
#include "mixer/wave.h"

#include <string.h>

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
    if (row_levels)
        wave->columns = ln_carve(carver, ((uint64_t)threads << wave->column_levels) * LN_FFT_POINT, sizeof(float));
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

static float *column_of(const columns *c, int worker) {
    const ln_wave *w = c->wave;
    return w->column_levels == w->levels ? c->x : w->columns + ((int64_t)worker << w->column_levels) * LN_FFT_POINT;
}

static void down_column(void *argument, int64_t task, int worker) {
    const columns *c = argument;
    const ln_wave *w = c->wave;
    const int64_t count = (int64_t)1 << w->column_levels, stride = w->points >> w->column_levels;
    float *column = column_of(c, worker);
    c->source(c->argument, task, stride, count, column);
    if (c->high)
        c->source(c->argument, task + w->points, stride, count, column + LN_FFT_LANES);
    else
        for (int64_t j = 0; j < count; j++) memset(column + j * LN_FFT_POINT + LN_FFT_LANES, 0, 64);
    w->kernels->down(&w->fft, column, 0, 0, w->column_levels);
    for (int64_t j = 0; column != c->x && j < count; j++)
        memcpy(c->x + (j * stride + task) * LN_FFT_POINT, column + j * LN_FFT_POINT, LN_FFT_POINT * sizeof(float));
}

static void up_column(void *argument, int64_t task, int worker) {
    const columns *c = argument;
    const ln_wave *w = c->wave;
    const int64_t count = (int64_t)1 << w->column_levels, stride = w->points >> w->column_levels;
    float *column = column_of(c, worker);
    for (int64_t j = 0; column != c->x && j < count; j++)
        memcpy(column + j * LN_FFT_POINT, c->x + (j * stride + task) * LN_FFT_POINT, LN_FFT_POINT * sizeof(float));
    w->kernels->up(&w->fft, column, 0, 0, w->column_levels);
    c->sink(c->argument, task, stride, count, column);
    c->sink(c->argument, task + w->points, stride, count, column + LN_FFT_LANES);
}

void ln_wave_down_columns(const ln_wave *wave, float *x, ln_wave_source source, const void *argument, bool high) {
    columns c = {.wave = wave, .x = x, .source = source, .argument = argument, .high = high};
    each(wave, wave->points >> wave->column_levels, down_column, &c);
}

void ln_wave_up_columns(const ln_wave *wave, float *x, ln_wave_sink sink, const void *argument) {
    columns c = {.wave = wave, .x = x, .sink = sink, .argument = argument};
    each(wave, wave->points >> wave->column_levels, up_column, &c);
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
    if (wave->column_levels == wave->levels) /* rows of one point each */
        work(wave, argument, 0, wave->points, wave->levels, 0);
    else
        each(wave, (int64_t)1 << wave->column_levels, run_row, &r);
}
