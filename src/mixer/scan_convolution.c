/* Owns: the short causal convolution as a row of the elementwise scan: the states are the last taps - 1 inputs.
 *
 * Invariant: row i of `rows` is the input taps - 1 - i steps before the block; the rows before a block come from the
 * states, and the last ones of a block become them. */
#include <string.h>

#include "mixer/scan.h"

enum { VALUE, WEIGHT, BIAS };
enum { B_VALUE, B_WEIGHT, B_BIAS, B_TAPS, B_TAIL, B_ROWS, B_ROWS_D, B_TAPS_D, B_BIAS_D };

static void lay_out(ln_scan_task *task, ln_carver *carver) {
    const int64_t taps = task->call->settings->slots, n = task->channels;
    task->buffer[B_VALUE] = ln_scan_carve(carver, LN_SCAN_STEPS, n);
    task->buffer[B_WEIGHT] = ln_scan_carve(carver, 1, ln_scan_columns(task, WEIGHT));
    task->buffer[B_BIAS] = ln_scan_carve(carver, 1, n);
    task->buffer[B_TAPS] = ln_scan_carve(carver, taps, n);
    task->buffer[B_TAIL] = ln_scan_carve(carver, taps - 1, n);
    task->buffer[B_ROWS] = ln_carve(carver, (uint64_t)(LN_SCAN_STEPS + taps - 1), sizeof(float *));
    if (!task->backward) return;
    task->buffer[B_ROWS_D] = ln_scan_carve(carver, LN_SCAN_STEPS + taps - 1, n);
    task->buffer[B_TAPS_D] = ln_scan_carve(carver, taps, n);
    task->buffer[B_BIAS_D] = ln_scan_carve(carver, 1, n);
}

/* The parameter is [channel][tap], as model files have it; the kernel reads [tap][channel]. */
static void prepare(ln_scan_task *task) {
    const int64_t taps = task->call->settings->slots, n = task->channels;
    task->kernels->transpose(task->buffer[B_TAPS], ln_scan_parameter(task, WEIGHT), n, taps);
    task->constant[BIAS] = ln_scan_input(task, BIAS, 0, 1, task->buffer[B_BIAS]).at;
    if (!task->backward) return;
    memset(task->buffer[B_TAPS_D], 0, (size_t)(taps * n) * sizeof(float));
    memset(task->buffer[B_BIAS_D], 0, (size_t)n * sizeof(float));
}

ln_short_convolution ln_scan_taps(const ln_scan_task *task, ln_series value, int64_t count, const float *tail,
                                  const float *weight, float *rows) {
    const int64_t taps = task->call->settings->slots, n = task->channels;
    const float **at = (const float **)(void *)rows;
    for (int64_t i = 0; i < taps - 1; i++) at[i] = tail + i * n;
    for (int64_t t = 0; t < count; t++) at[taps - 1 + t] = value.at + t * value.stride;
    return (ln_short_convolution){.tokens = count, .channels = n, .taps = taps, .rows = at, .weight = weight};
}

void ln_scan_keep_tail(const ln_short_convolution *s, float *tail, float *scratch) {
    const size_t row = (size_t)s->channels * sizeof(float), all = (size_t)(s->taps - 1) * row;
    for (int64_t i = 0; i < s->taps - 1; i++) memcpy(scratch + i * s->channels, s->rows[s->tokens + i], row);
    memcpy(tail, scratch, all);
}

void ln_scan_taps_gradient(ln_short_convolution *s, float *tail_gradient, float *rows_gradient) {
    const int64_t before = (s->taps - 1) * s->channels;
    s->rows_gradient = rows_gradient;
    memset(rows_gradient, 0, (size_t)(before + s->tokens * s->channels) * sizeof(float));
    memcpy(rows_gradient + s->tokens * s->channels, tail_gradient, (size_t)before * sizeof(float));
}

static ln_short_convolution convolution_of(ln_scan_task *task, int64_t step, int64_t count) {
    const ln_series value = ln_scan_input(task, VALUE, step, count, task->buffer[B_VALUE]);
    ln_short_convolution s = ln_scan_taps(task, value, count, task->state, task->buffer[B_TAPS], task->buffer[B_ROWS]);
    s.silu = task->call->settings->option[0] != 0;
    s.bias = task->constant[BIAS];
    return s;
}

static void block(ln_scan_task *task, int64_t step, int64_t count) {
    ln_short_convolution s = convolution_of(task, step, count);
    s.y = ln_scan_output(task, step);
    task->kernels->short_convolution(&s);
    ln_scan_keep_tail(&s, task->state, task->buffer[B_TAIL]);
}

static void gradient(ln_scan_task *task, int64_t step, int64_t count) {
    ln_short_convolution s = convolution_of(task, step, count);
    s.y_gradient = ln_scan_output_gradient(task, step);
    s.weight_gradient = task->buffer[B_TAPS_D];
    s.bias_gradient = task->buffer[B_BIAS_D];
    ln_scan_taps_gradient(&s, task->state_gradient, task->buffer[B_ROWS_D]);
    task->kernels->short_convolution_backward(&s);
    memcpy(task->state_gradient, s.rows_gradient, (size_t)((s.taps - 1) * s.channels) * sizeof(float));
    ln_scan_add_gradient(task, VALUE, step, count, s.rows_gradient + (s.taps - 1) * s.channels);
}

void ln_scan_add_taps_gradient(const ln_scan_task *task, int input, const float *taps_gradient, float *scratch) {
    const int64_t taps = task->call->settings->slots, n = task->channels;
    for (int64_t c = 0; c < n; c++)
        for (int64_t i = 0; i < task->padded; i++)
            scratch[c * task->padded + i] = i < taps ? taps_gradient[i * n + c] : 0;
    ln_scan_add_gradient(task, input, 0, 1, scratch);
}

static void finish(ln_scan_task *task) {
    ln_scan_add_taps_gradient(task, WEIGHT, task->buffer[B_TAPS_D], task->buffer[B_WEIGHT]);
    if (task->constant[BIAS]) ln_scan_add_gradient(task, BIAS, 0, 1, task->buffer[B_BIAS_D]);
}

const ln_scan_row ln_scan_convolution = {
    .wide = true, .lay_out = lay_out, .prepare = prepare, .block = block, .gradient = gradient, .finish = finish};
