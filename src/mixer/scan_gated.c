/* Owns: rows with one state a channel, h[t] = a[t] h[t - 1] + x[t], where a and x are made of the inputs channel by
 * channel. */
#include <string.h>

#include "mixer/scan.h"

enum { A, X, H, A_D, X_D, BEFORE, FIRST, SECOND };

static void lay_out(ln_scan_task *task, ln_carver *carver) {
    for (int k = A; k <= SECOND; k++) task->buffer[k] = ln_scan_carve(carver, LN_SCAN_STEPS, task->channels);
}

static void nothing(ln_scan_task *task) {
    (void)task;
}

/* ---- hgrn ---- */

static ln_series hgrn_decays(ln_scan_task *task, int64_t step, int64_t count) {
    const ln_series decay = ln_scan_input(task, 1, step, count, task->buffer[FIRST]);
    for (int64_t t = 0; t < count; t++)
        task->kernels->exponential(task->buffer[A] + t * task->channels, decay.at + t * decay.stride, task->channels);
    return (ln_series){task->buffer[A], task->channels};
}

static void hgrn_block(ln_scan_task *task, int64_t step, int64_t count) {
    const ln_series value = ln_scan_input(task, 0, step, count, task->buffer[X]);
    task->kernels->scan(count, task->channels, hgrn_decays(task, step, count), value, task->state,
                        ln_scan_output(task, step));
}

static void hgrn_gradient(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t n = task->channels;
    const ln_series value = ln_scan_input(task, 0, step, count, task->buffer[X]), a = hgrn_decays(task, step, count);
    float *before = task->buffer[BEFORE], *a_gradient = task->buffer[A_D];
    memcpy(before, task->state, (size_t)n * sizeof(float));
    task->kernels->scan(count - 1, n, a, value, task->state, (ln_series_out){before + n, n});
    task->kernels->scan_backward(count, n, a, (ln_series){before, n}, ln_scan_output_gradient(task, step),
                                 task->state_gradient, (ln_series_out){a_gradient, n},
                                 (ln_series_out){task->buffer[X_D], n});
    for (int64_t i = 0; i < count * n; i++) a_gradient[i] *= a.at[i];
    ln_scan_add_gradient(task, 0, step, count, task->buffer[X_D]);
    ln_scan_add_gradient(task, 1, step, count, a_gradient);
}

const ln_scan_row ln_scan_hgrn = {
    .lay_out = lay_out, .prepare = nothing, .block = hgrn_block, .gradient = hgrn_gradient};
