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

static ln_short_convolution inputs_of(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t taps = task->call->settings->slots, n = task->channels;
    const ln_series value = ln_scan_input(task, VALUE, step, count, task->buffer[B_VALUE]);
    const float **rows = (const float **)(void *)task->buffer[B_ROWS];
    for (int64_t i = 0; i < taps - 1; i++) rows[i] = task->state + i * n;
    for (int64_t t = 0; t < count; t++) rows[taps - 1 + t] = value.at + t * value.stride;
    return (ln_short_convolution){.tokens = count,
                                  .channels = n,
                                  .taps = taps,
                                  .silu = task->call->settings->option[0] != 0,
                                  .rows = rows,
                                  .weight = task->buffer[B_TAPS],
                                  .bias = task->constant[BIAS]};
}

static void block(ln_scan_task *task, int64_t step, int64_t count) {
    ln_short_convolution s = inputs_of(task, step, count);
    const size_t bytes = (size_t)task->channels * sizeof(float);
    s.y = ln_scan_output(task, step);
    task->kernels->short_convolution(&s);
    for (int64_t i = 0; i < s.taps - 1; i++) memcpy(task->buffer[B_TAIL] + i * s.channels, s.rows[count + i], bytes);
    memcpy(task->state, task->buffer[B_TAIL], (size_t)(s.taps - 1) * bytes);
}

/* The gradient of the states after the block is that of the last taps - 1 rows, from wherever they come. */
static void gradient(ln_scan_task *task, int64_t step, int64_t count) {
    ln_short_convolution s = inputs_of(task, step, count);
    const size_t tail = (size_t)((s.taps - 1) * s.channels) * sizeof(float);
    s.y_gradient = ln_scan_output_gradient(task, step);
    s.rows_gradient = task->buffer[B_ROWS_D];
    s.weight_gradient = task->buffer[B_TAPS_D];
    s.bias_gradient = task->buffer[B_BIAS_D];
    memset(s.rows_gradient, 0, (size_t)((s.taps - 1 + count) * s.channels) * sizeof(float));
    memcpy(s.rows_gradient + count * s.channels, task->state_gradient, tail);
    task->kernels->short_convolution_backward(&s);
    memcpy(task->state_gradient, s.rows_gradient, tail);
    ln_scan_add_gradient(task, VALUE, step, count, s.rows_gradient + (s.taps - 1) * s.channels);
}

static void finish(ln_scan_task *task) {
    const int64_t taps = task->call->settings->slots, n = task->channels;
    for (int64_t c = 0; c < n; c++)
        for (int64_t i = 0; i < task->padded; i++)
            task->buffer[B_WEIGHT][c * task->padded + i] = i < taps ? task->buffer[B_TAPS_D][i * n + c] : 0;
    ln_scan_add_gradient(task, WEIGHT, 0, 1, task->buffer[B_WEIGHT]);
    if (task->constant[BIAS]) ln_scan_add_gradient(task, BIAS, 0, 1, task->buffer[B_BIAS_D]);
}

const ln_scan_row ln_scan_convolution = {
    .lay_out = lay_out, .prepare = prepare, .block = block, .gradient = gradient, .finish = finish};
