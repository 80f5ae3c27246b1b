/* Owns: the rows with one state a channel, h[t] = a[t] h[t - 1] + x[t], where a and x are made of the inputs channel by
 * channel. A row says how, and what the gradients of a and x mean for the inputs. */
#include <string.h>

#include "mixer/scan.h"

enum { A, X, A_D, X_D, BEFORE, OWN }; /* buffers: [steps][channels]; from OWN on the row's */

static void lay_out(ln_scan_task *task, ln_carver *carver, int own) {
    for (int k = 0; k < OWN + own; k++) task->buffer[k] = ln_scan_carve(carver, LN_SCAN_STEPS, task->channels);
}

static void prepare_nothing(ln_scan_task *task) {
    (void)task;
}

/* Each row of y is f of the row of x. */
static ln_series map(const ln_scan_task *task, void (*f)(float *, const float *, int64_t), ln_series x, int64_t count,
                     float *y) {
    for (int64_t t = 0; t < count; t++) f(y + t * task->channels, x.at + t * x.stride, task->channels);
    return (ln_series){y, task->channels};
}

static ln_series packed(const ln_scan_task *task, int buffer) {
    return (ln_series){task->buffer[buffer], task->channels};
}

static void run_block(ln_scan_task *task, int64_t step, int64_t count, ln_series a, ln_series x) {
    task->kernels->scan(count, task->channels, a, x, task->state, ln_scan_output(task, step));
}

/* Fills buffers A_D and X_D. */
static void run_backward(ln_scan_task *task, int64_t step, int64_t count, ln_series a, ln_series x) {
    const int64_t n = task->channels;
    float *before = task->buffer[BEFORE];
    memcpy(before, task->state, (size_t)n * sizeof(float));
    task->kernels->scan(count - 1, n, a, x, task->state, (ln_series_out){before + n, n});
    task->kernels->scan_backward(count, n, a, (ln_series){before, n}, ln_scan_output_gradient(task, step),
                                 task->state_gradient, (ln_series_out){task->buffer[A_D], n},
                                 (ln_series_out){task->buffer[X_D], n});
}

/* ---- hgrn: a = e^decay, x = value ---- */

enum { HGRN_VALUE, HGRN_DECAY };

static void hgrn_lay_out(ln_scan_task *task, ln_carver *carver) {
    lay_out(task, carver, 0);
}

static void hgrn_make(ln_scan_task *task, int64_t step, int64_t count, ln_series *a, ln_series *x) {
    *x = ln_scan_input(task, HGRN_VALUE, step, count, task->buffer[X]);
    *a = map(task, task->kernels->exponential, ln_scan_input(task, HGRN_DECAY, step, count, task->buffer[A]), count,
             task->buffer[A]);
}

static void hgrn_block(ln_scan_task *task, int64_t step, int64_t count) {
    ln_series a, x;
    hgrn_make(task, step, count, &a, &x);
    run_block(task, step, count, a, x);
}

static void hgrn_gradient(ln_scan_task *task, int64_t step, int64_t count) {
    ln_series a, x;
    hgrn_make(task, step, count, &a, &x);
    run_backward(task, step, count, a, x);
    float *decay = task->buffer[A_D];
    for (int64_t i = 0; i < count * task->channels; i++) decay[i] *= a.at[i];
    ln_scan_add_gradient(task, HGRN_VALUE, step, count, task->buffer[X_D]);
    ln_scan_add_gradient(task, HGRN_DECAY, step, count, decay);
}

const ln_scan_row ln_scan_hgrn = {
    .wide = true, .lay_out = hgrn_lay_out, .prepare = prepare_nothing, .block = hgrn_block, .gradient = hgrn_gradient};

/* ---- rg_lru: a = e^z, x = (1 - e^2z)^1/2 input_gate value, z = -c softplus(strength) recurrence_gate ---- */

enum { LRU_VALUE, LRU_INPUT, LRU_RECURRENCE, LRU_STRENGTH };
enum { LRU_Z = OWN, LRU_ROOT, LRU_RATE, LRU_RATE_D, LRU_V, LRU_I, LRU_R, LRU_END };

static void lru_lay_out(ln_scan_task *task, ln_carver *carver) {
    lay_out(task, carver, LRU_END - OWN);
}

static void lru_prepare(ln_scan_task *task) {
    float *rate = task->buffer[LRU_RATE];
    task->kernels->softplus(rate, ln_scan_parameter(task, LRU_STRENGTH), task->channels);
    for (int64_t c = 0; c < task->channels; c++) rate[c] *= -(float)task->call->settings->option[0];
    if (task->backward) memset(task->buffer[LRU_RATE_D], 0, (size_t)task->channels * sizeof(float));
}

typedef struct lru {
    ln_series value, input, recurrence, a, x;
} lru;

static lru lru_make(ln_scan_task *task, int64_t step, int64_t count) {
    lru l = {.value = ln_scan_input(task, LRU_VALUE, step, count, task->buffer[LRU_V]),
             .input = ln_scan_input(task, LRU_INPUT, step, count, task->buffer[LRU_I]),
             .recurrence = ln_scan_input(task, LRU_RECURRENCE, step, count, task->buffer[LRU_R])};
    const int64_t n = task->channels;
    float *z = task->buffer[LRU_Z], *root = task->buffer[LRU_ROOT], *x = task->buffer[X];
    const float *rate = task->buffer[LRU_RATE];
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < n; c++) z[t * n + c] = rate[c] * l.recurrence.at[t * l.recurrence.stride + c];
    l.a = map(task, task->kernels->exponential, packed(task, LRU_Z), count, task->buffer[A]);
    map(task, task->kernels->complement, packed(task, LRU_Z), count, root);
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < n; c++)
            x[t * n + c] = root[t * n + c] * l.input.at[t * l.input.stride + c] * l.value.at[t * l.value.stride + c];
    l.x = packed(task, X);
    return l;
}

static void lru_block(ln_scan_task *task, int64_t step, int64_t count) {
    const lru l = lru_make(task, step, count);
    run_block(task, step, count, l.a, l.x);
}

/* d root / dz = -a^2 / root, endless where nothing decays: taken as 0 there. */
static void lru_gradient(ln_scan_task *task, int64_t step, int64_t count) {
    const lru l = lru_make(task, step, count);
    const int64_t n = task->channels;
    const float *root = task->buffer[LRU_ROOT], *rate = task->buffer[LRU_RATE];
    float *a_d = task->buffer[A_D], *x_d = task->buffer[X_D], *rate_d = task->buffer[LRU_RATE_D],
          *input_d = task->buffer[BEFORE];
    run_backward(task, step, count, l.a, l.x);
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < n; c++) {
            const int64_t i = t * n + c;
            const float value = l.value.at[t * l.value.stride + c], input = l.input.at[t * l.input.stride + c],
                        a = l.a.at[i], steep = root[i] > 0 ? a * a / root[i] : 0;
            const float z_d = a_d[i] * a - x_d[i] * input * value * steep;
            rate_d[c] += z_d * l.recurrence.at[t * l.recurrence.stride + c];
            a_d[i] = z_d * rate[c];
            input_d[i] = x_d[i] * root[i] * value;
            x_d[i] *= root[i] * input;
        }
    ln_scan_add_gradient(task, LRU_VALUE, step, count, x_d);
    ln_scan_add_gradient(task, LRU_INPUT, step, count, input_d);
    ln_scan_add_gradient(task, LRU_RECURRENCE, step, count, a_d);
}

static void lru_finish(ln_scan_task *task) {
    float *slope = task->buffer[LRU_Z], *rate_d = task->buffer[LRU_RATE_D];
    task->kernels->sigmoid(slope, ln_scan_parameter(task, LRU_STRENGTH), task->channels);
    for (int64_t c = 0; c < task->channels; c++) rate_d[c] *= -(float)task->call->settings->option[0] * slope[c];
    ln_scan_add_gradient(task, LRU_STRENGTH, 0, 1, rate_d);
}

const ln_scan_row ln_scan_rg_lru = {
    .lay_out = lru_lay_out, .prepare = lru_prepare, .block = lru_block, .gradient = lru_gradient, .finish = lru_finish};

/* ---- min_gru: a = 1 - z, x = z g(value), z = sigmoid(gate); option 0: g(v) = v + 1/2 for v >= 0, else sigmoid(v) ----
 */

enum { GRU_VALUE, GRU_GATE };
enum { GRU_V = OWN, GRU_G, GRU_Z, GRU_SLOPE, GRU_END };

static void gru_lay_out(ln_scan_task *task, ln_carver *carver) {
    lay_out(task, carver, GRU_END - OWN);
}

/* 1 - z is the sigmoid of -gate: small ones keep their digits. Buffer GRU_G has g(value), GRU_SLOPE dg / dvalue. */
static void gru_make(ln_scan_task *task, int64_t step, int64_t count) {
    const ln_series value = ln_scan_input(task, GRU_VALUE, step, count, task->buffer[GRU_V]),
                    gate = ln_scan_input(task, GRU_GATE, step, count, task->buffer[A]);
    const int64_t n = task->channels;
    const bool positive = task->call->settings->option[0] != 0;
    float *z = task->buffer[GRU_Z], *a = task->buffer[A], *g = task->buffer[GRU_G], *slope = task->buffer[GRU_SLOPE],
          *x = task->buffer[X];
    map(task, task->kernels->sigmoid, gate, count, z);
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < n; c++) a[t * n + c] = -gate.at[t * gate.stride + c];
    map(task, task->kernels->sigmoid, packed(task, A), count, a);
    if (positive) map(task, task->kernels->sigmoid, value, count, g);
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < n; c++) {
            const int64_t i = t * n + c;
            const float v = value.at[t * value.stride + c];
            const bool bent = positive && v < 0;
            slope[i] = bent ? g[i] * (1 - g[i]) : 1;
            g[i] = bent ? g[i] : positive ? v + 0.5f : v;
            x[i] = z[i] * g[i];
        }
}

static void gru_block(ln_scan_task *task, int64_t step, int64_t count) {
    gru_make(task, step, count);
    run_block(task, step, count, packed(task, A), packed(task, X));
}

static void gru_gradient(ln_scan_task *task, int64_t step, int64_t count) {
    gru_make(task, step, count);
    run_backward(task, step, count, packed(task, A), packed(task, X));
    const float *a = task->buffer[A], *z = task->buffer[GRU_Z], *g = task->buffer[GRU_G],
                *slope = task->buffer[GRU_SLOPE];
    float *a_d = task->buffer[A_D], *x_d = task->buffer[X_D];
    for (int64_t i = 0; i < count * task->channels; i++) {
        a_d[i] = (x_d[i] * g[i] - a_d[i]) * z[i] * a[i];
        x_d[i] *= z[i] * slope[i];
    }
    ln_scan_add_gradient(task, GRU_VALUE, step, count, x_d);
    ln_scan_add_gradient(task, GRU_GATE, step, count, a_d);
}

const ln_scan_row ln_scan_min_gru = {
    .lay_out = gru_lay_out, .prepare = prepare_nothing, .block = gru_block, .gradient = gru_gradient};

_Static_assert((int)LRU_END <= (int)LN_SCAN_BUFFERS && (int)GRU_END <= (int)LN_SCAN_BUFFERS, "too few buffers");
