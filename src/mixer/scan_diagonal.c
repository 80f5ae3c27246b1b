/* Owns: rows with complex diagonal systems that are the same in every step: s4d (one a channel) and h3 (the same
 * between two products, behind a short convolution).
 *
 *     g[n] = (1 + e[n]) g[n] + u,   y = Re sum_n 2 read[n] write[n] f[n] g[n] + skip u,   f = e / A, A = rate + i
 * frequency e = e^(step A) - 1, or step A / (1 - step A / 2)
 *
 * The states are kept without their factor write f: it is in what reads them, so a step costs one complex product and
 * one complex sum less. Gradients of e and of the factor become those of the parameters in float64, once a task. */
#include <complex.h>
#include <string.h>

#include "mixer/scan.h"
#include "mixer/state_space.h"

/* Inputs of the system, in the order of the row from `first` on. */
enum { STEP, RATE, FREQUENCY, WRITE, READ, SKIP, PARAMETERS };
/* Buffers of the system: those of its parameters, then these. */
enum { CHANGE = PARAMETERS, FACTOR, STEPS, CHANGE_D, FACTOR_D, SKIP_D, HISTORY, VALUE_D, SYSTEM_BUFFERS };

static int64_t floats_of(const ln_scan_task *task) {
    return task->channels * 2 * task->padded;
}

static void lay_out_system(ln_scan_task *task, ln_carver *carver, int first) {
    for (int k = STEP; k <= SKIP; k++) task->buffer[k] = ln_scan_carve(carver, 1, ln_scan_columns(task, first + k));
    for (int k = CHANGE; k <= FACTOR; k++) task->buffer[k] = ln_scan_carve(carver, 1, floats_of(task));
    task->buffer[STEPS] = ln_scan_carve(carver, 1, task->padded);
    if (!task->backward) return;
    for (int k = CHANGE_D; k <= FACTOR_D; k++) task->buffer[k] = ln_scan_carve(carver, 1, floats_of(task));
    task->buffer[SKIP_D] = ln_scan_carve(carver, 1, task->channels);
    task->buffer[HISTORY] = ln_scan_carve(carver, LN_SCAN_STEPS + 1, 2 * task->padded);
    task->buffer[VALUE_D] = ln_scan_carve(carver, LN_SCAN_STEPS, task->channels);
}

/* e of one channel, [2][padded]. */
static void changes_of(ln_scan_task *task, int64_t c, float *e) {
    const int64_t n = task->padded;
    const float *rate = task->constant[RATE] + c * n, *frequency = task->constant[FREQUENCY] + c * n,
                step = task->constant[STEP][c];
    if (task->call->settings->option[0] == 0) {
        for (int64_t i = 0; i < n; i++) task->buffer[STEPS][i] = step;
        task->kernels->change(e, e + n, task->buffer[STEPS], rate, frequency, n);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const float x = step * rate[i], y = step * frequency[i], down = 1 - x / 2, across = -y / 2;
        const float size = down * down + across * across;
        e[i] = (x * down + y * across) / size;
        e[n + i] = (y * down - x * across) / size;
    }
}

static void prepare_system(ln_scan_task *task, int first) {
    for (int k = STEP; k <= SKIP; k++) task->constant[k] = ln_scan_input(task, first + k, 0, 1, task->buffer[k]).at;
    const int64_t n = task->padded;
    for (int64_t c = 0; c < task->channels; c++) {
        float *e = task->buffer[CHANGE] + c * 2 * n, *factor = task->buffer[FACTOR] + c * 2 * n;
        const float *rate = task->constant[RATE] + c * n, *frequency = task->constant[FREQUENCY] + c * n,
                    *read = task->constant[READ] + c * 2 * n,
                    *write = task->constant[WRITE] ? task->constant[WRITE] + c * 2 * n : NULL;
        changes_of(task, c, e);
        for (int64_t i = 0; i < n; i++) {
            const float a = rate[i], b = frequency[i], size = a * a + b * b;
            const float fr = size > 0 ? (e[i] * a + e[n + i] * b) / size : task->constant[STEP][c],
                        fi = size > 0 ? (e[n + i] * a - e[i] * b) / size : 0;
            const float wr = write ? write[i] : 1, wi = write ? write[n + i] : 0;
            const float gr = 2 * (wr * fr - wi * fi), gi = 2 * (wr * fi + wi * fr);
            factor[i] = read[i] * gr - read[n + i] * gi;
            factor[n + i] = read[i] * gi + read[n + i] * gr;
        }
    }
    if (!task->backward) return;
    for (int k = CHANGE_D; k <= FACTOR_D; k++) memset(task->buffer[k], 0, (size_t)floats_of(task) * sizeof(float));
    memset(task->buffer[SKIP_D], 0, (size_t)task->channels * sizeof(float));
}

static ln_diagonal scan_of(const ln_scan_task *task, ln_series value, int64_t count, float *state) {
    return (ln_diagonal){.tokens = count,
                         .channels = task->channels,
                         .states = task->padded,
                         .change = task->buffer[CHANGE],
                         .read = task->buffer[FACTOR],
                         .skip = task->constant[SKIP],
                         .value = value,
                         .state = state};
}

/* Buffer VALUE_D becomes the gradient of the values. */
static void system_gradient(ln_scan_task *task, ln_series value, ln_series y_gradient, int64_t count, float *state,
                            float *state_gradient) {
    ln_diagonal s = scan_of(task, value, count, state);
    s.y_gradient = y_gradient;
    s.value_gradient = (ln_series_out){task->buffer[VALUE_D], task->channels};
    s.change_gradient = task->buffer[CHANGE_D];
    s.read_gradient = task->buffer[FACTOR_D];
    s.skip_gradient = task->buffer[SKIP_D];
    s.state_gradient = state_gradient;
    s.history = task->buffer[HISTORY];
    task->kernels->diagonal_backward(&s);
}

static double complex at(const float *x, int64_t i, int64_t n) {
    return (double)x[i] + I * (double)x[n + i];
}

static void put(float *x, int64_t i, int64_t n, double complex value) {
    x[i] = (float)creal(value);
    x[n + i] = (float)cimag(value);
}

/* Over the gradients of e and the factor go those of the parameters, in their places. */
static void finish_system(ln_scan_task *task, int first) {
    const int64_t n = task->padded;
    const bool bilinear = task->call->settings->option[0] != 0;
    for (int64_t c = 0; c < task->channels; c++) {
        const float *rate = task->constant[RATE] + c * n, *frequency = task->constant[FREQUENCY] + c * n,
                    *read = task->constant[READ] + c * 2 * n, *e = task->buffer[CHANGE] + c * 2 * n,
                    *write = task->constant[WRITE] ? task->constant[WRITE] + c * 2 * n : NULL;
        float *change_d = task->buffer[CHANGE_D] + c * 2 * n, *factor_d = task->buffer[FACTOR_D] + c * 2 * n;
        float *write_d = task->buffer[FACTOR] + c * 2 * n;
        double step_sum = 0;
        for (int64_t i = 0; i < n; i++) {
            const double complex a = (double)rate[i] + I * (double)frequency[i], w = write ? at(write, i, n) : 1;
            const double complex f = cabs(a) > 0 ? at(e, i, n) / a : (double)task->constant[STEP][c];
            const double complex r = at(read, i, n), g = at(factor_d, i, n);
            const double complex a_d = ln_discrete_gradient((double)task->constant[STEP][c], a, at(change_d, i, n),
                                                            g * conj(2 * r * w), bilinear, &step_sum);
            put(write_d, i, n, g * conj(2 * r * f));
            put(factor_d, i, n, g * conj(2 * w * f));
            put(change_d, i, n, a_d);
        }
        task->buffer[VALUE_D][c] = (float)step_sum;
    }
    /* [channels][2][padded] holds the pairs of rate and frequency; each parameter has one of them. */
    for (int part = 0; part < 2; part++) {
        float *packed = task->buffer[CHANGE];
        for (int64_t c = 0; c < task->channels; c++)
            memcpy(packed + c * n, task->buffer[CHANGE_D] + (2 * c + part) * n, (size_t)n * sizeof(float));
        ln_scan_add_gradient(task, first + RATE + part, 0, 1, packed);
    }
    ln_scan_add_gradient(task, first + STEP, 0, 1, task->buffer[VALUE_D]);
    if (task->constant[WRITE]) ln_scan_add_gradient(task, first + WRITE, 0, 1, task->buffer[FACTOR]);
    ln_scan_add_gradient(task, first + READ, 0, 1, task->buffer[FACTOR_D]);
    if (task->constant[SKIP]) ln_scan_add_gradient(task, first + SKIP, 0, 1, task->buffer[SKIP_D]);
}

/* ---- s4d ---- */

enum { S4D_VALUE, S4D_SYSTEM };
enum { S4D_V = SYSTEM_BUFFERS };

static void s4d_lay_out(ln_scan_task *task, ln_carver *carver) {
    lay_out_system(task, carver, S4D_SYSTEM);
    task->buffer[S4D_V] = ln_scan_carve(carver, LN_SCAN_STEPS, task->channels);
}

static void s4d_prepare(ln_scan_task *task) {
    prepare_system(task, S4D_SYSTEM);
}

static void s4d_block(ln_scan_task *task, int64_t step, int64_t count) {
    const ln_series value = ln_scan_input(task, S4D_VALUE, step, count, task->buffer[S4D_V]);
    ln_diagonal s = scan_of(task, value, count, task->state);
    s.y = ln_scan_output(task, step);
    task->kernels->diagonal(&s);
}

static void s4d_gradient(ln_scan_task *task, int64_t step, int64_t count) {
    const ln_series value = ln_scan_input(task, S4D_VALUE, step, count, task->buffer[S4D_V]);
    system_gradient(task, value, ln_scan_output_gradient(task, step), count, task->state, task->state_gradient);
    ln_scan_add_gradient(task, S4D_VALUE, step, count, task->buffer[VALUE_D]);
}

static void s4d_finish(ln_scan_task *task) {
    finish_system(task, S4D_SYSTEM);
}

const ln_scan_row ln_scan_s4d = {
    .lay_out = s4d_lay_out, .prepare = s4d_prepare, .block = s4d_block, .gradient = s4d_gradient, .finish = s4d_finish};

/* ---- h3: query (system(value (keys behind a short convolution))) ---- */

enum { H3_QUERY, H3_KEY, H3_VALUE, H3_WEIGHT, H3_SYSTEM };
enum { H3_TAIL, H3_STATE }; /* parts of the states */
enum { H3_Q = SYSTEM_BUFFERS, H3_K, H3_V, H3_TAPS, H3_ROWS, H3_SHIFTED, H3_X, H3_Y, H3_TAPS_D, H3_ROWS_D, H3_END };
_Static_assert((int)H3_END <= (int)LN_SCAN_BUFFERS, "too few buffers");

static void h3_lay_out(ln_scan_task *task, ln_carver *carver) {
    const int64_t taps = task->call->settings->slots, n = task->channels, rows = LN_SCAN_STEPS + taps;
    lay_out_system(task, carver, H3_SYSTEM);
    for (int k = H3_Q; k <= H3_V; k++) task->buffer[k] = ln_scan_carve(carver, LN_SCAN_STEPS, n);
    task->buffer[H3_TAPS] = ln_scan_carve(carver, taps, n);
    task->buffer[H3_ROWS] = ln_carve(carver, (uint64_t)rows, sizeof(float *));
    task->buffer[H3_SHIFTED] = ln_scan_carve(carver, rows, n); /* and the tail on its way */
    task->buffer[H3_X] = ln_scan_carve(carver, LN_SCAN_STEPS, n);
    task->buffer[H3_Y] = ln_scan_carve(carver, LN_SCAN_STEPS, n);
    if (!task->backward) return;
    task->buffer[H3_TAPS_D] = ln_scan_carve(carver, taps + 1, n); /* and that of a bias, not wanted */
    task->buffer[H3_ROWS_D] = ln_scan_carve(carver, rows, ln_max_i64(n, task->padded));
}

static void h3_prepare(ln_scan_task *task) {
    const int64_t taps = task->call->settings->slots;
    prepare_system(task, H3_SYSTEM);
    task->kernels->transpose(task->buffer[H3_TAPS], ln_scan_parameter(task, H3_WEIGHT), task->channels, taps);
    if (task->backward) memset(task->buffer[H3_TAPS_D], 0, (size_t)((taps + 1) * task->channels) * sizeof(float));
}

typedef struct h3 {
    ln_series query, value, shifted, x;
    ln_short_convolution keys;
} h3;

static h3 h3_make(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t n = task->channels;
    const ln_series key = ln_scan_input(task, H3_KEY, step, count, task->buffer[H3_K]);
    h3 h = {.query = ln_scan_input(task, H3_QUERY, step, count, task->buffer[H3_Q]),
            .value = ln_scan_input(task, H3_VALUE, step, count, task->buffer[H3_V]),
            .shifted = {task->buffer[H3_SHIFTED], n},
            .x = {task->buffer[H3_X], n},
            .keys = ln_scan_taps(task, key, count, task->state + task->part[H3_TAIL], task->buffer[H3_TAPS],
                                 task->buffer[H3_ROWS])};
    h.keys.y = (ln_series_out){task->buffer[H3_SHIFTED], n};
    task->kernels->short_convolution(&h.keys);
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < n; c++)
            task->buffer[H3_X][t * n + c] = h.shifted.at[t * n + c] * h.value.at[t * h.value.stride + c];
    return h;
}

static void h3_block(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t n = task->channels;
    const h3 h = h3_make(task, step, count);
    const ln_series_out y = ln_scan_output(task, step);
    ln_diagonal s = scan_of(task, h.x, count, task->state + task->part[H3_STATE]);
    s.y = (ln_series_out){task->buffer[H3_Y], n};
    task->kernels->diagonal(&s);
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < n; c++)
            y.at[t * y.stride + c] = h.query.at[t * h.query.stride + c] * task->buffer[H3_Y][t * n + c];
    ln_scan_keep_tail(&h.keys, task->state + task->part[H3_TAIL], task->buffer[H3_SHIFTED]);
}

static void h3_gradient(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t n = task->channels;
    h3 h = h3_make(task, step, count);
    const ln_series out = ln_scan_output_gradient(task, step);
    float *y = task->buffer[H3_Y], *state = task->state + task->part[H3_STATE];
    /* The output of the system is needed for the query, its states before the block for the rest. */
    ln_diagonal s = scan_of(task, h.x, count, state);
    s.y = (ln_series_out){y, n};
    task->kernels->diagonal(&s);
    memcpy(state, ln_scan_checkpoint(task, step) + task->part[H3_STATE], (size_t)floats_of(task) * sizeof(float));
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < n; c++) {
            const float gradient = out.at[t * out.stride + c], system = y[t * n + c];
            y[t * n + c] = gradient * h.query.at[t * h.query.stride + c];
            task->unseen[t * n + c] = gradient * system;
        }
    ln_scan_add_gradient(task, H3_QUERY, step, count, task->unseen);
    system_gradient(task, h.x, (ln_series){y, n}, count, state, task->state_gradient + task->part[H3_STATE]);
    const float *x_d = task->buffer[VALUE_D];
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < n; c++) {
            task->unseen[t * n + c] = x_d[t * n + c] * h.shifted.at[t * n + c];
            y[t * n + c] = x_d[t * n + c] * h.value.at[t * h.value.stride + c];
        }
    ln_scan_add_gradient(task, H3_VALUE, step, count, task->unseen);
    float *tail_d = task->state_gradient + task->part[H3_TAIL];
    h.keys.y_gradient = (ln_series){y, n};
    h.keys.weight_gradient = task->buffer[H3_TAPS_D];
    h.keys.bias_gradient = task->buffer[H3_TAPS_D] + h.keys.taps * n;
    ln_scan_taps_gradient(&h.keys, tail_d, task->buffer[H3_ROWS_D]);
    task->kernels->short_convolution_backward(&h.keys);
    memcpy(tail_d, h.keys.rows_gradient, (size_t)((h.keys.taps - 1) * n) * sizeof(float));
    ln_scan_add_gradient(task, H3_KEY, step, count, h.keys.rows_gradient + (h.keys.taps - 1) * n);
}

static void h3_finish(ln_scan_task *task) {
    ln_scan_add_taps_gradient(task, H3_WEIGHT, task->buffer[H3_TAPS_D], task->buffer[FACTOR]);
    finish_system(task, H3_SYSTEM);
}

const ln_scan_row ln_scan_h3 = {
    .lay_out = h3_lay_out, .prepare = h3_prepare, .block = h3_block, .gradient = h3_gradient, .finish = h3_finish};
