/* Owns: rows whose channels mix within a head: s5 (all values drive all complex diagonal states) and lssl (a dense
 * matrix moves each channel's states). Parameters are discretised once a task.
 *
 *     s5     h[n] = (1 + e[n]) h[n] + f[n] sum_v write[v][n] value[v],  y[v] = 2 Re sum_n read[n][v] h[n] + skip[v]
 * value[v] lssl   h[v] = A' h[v] + B' value[v],                              y[v] = read[v] . h[v] + skip[v] value[v]
 */
#include <complex.h>
#include <math.h>
#include <string.h>

#include "mixer/scan.h"
#include "mixer/state_space.h"

static ln_series rows_of(ln_scan_task *task, int input, int64_t step, int64_t count) {
    return ln_scan_input(task, input, step, count, task->buffer[input]);
}

static void lay_out_inputs(ln_scan_task *task, ln_carver *carver) {
    const ln_mixer_input *inputs = task->call->mixer->inputs;
    for (int k = 0; inputs[k].name; k++)
        task->buffer[k] =
            ln_scan_carve(carver, inputs[k].flags & LN_PARAMETER ? 1 : LN_SCAN_STEPS, ln_scan_columns(task, k));
}

static void clear(float *x, int64_t count) {
    memset(x, 0, (size_t)count * sizeof *x);
}

static void copy(float *y, const float *x, int64_t count) {
    memcpy(y, x, (size_t)count * sizeof *x);
}

/* y += factor * sum_r factors[r] x[r] */
static void add_rows(const ln_scan_task *task, float *y, float factor, const float *factors, int64_t rows,
                     const float *x, int64_t columns) {
    task->call->kernels->vector.add_products(y, factor, factors, rows, x, columns, columns);
}

/* ---- s5 ---- */

enum { S5_VALUE, S5_STEP, S5_RATE, S5_FREQUENCY, S5_WRITE, S5_READ, S5_SKIP, S5_INPUTS };
enum {
    S5_E = S5_INPUTS,
    S5_F,
    S5_DRIVE,
    S5_HISTORY,
    S5_DRIVES,
    S5_E_D,
    S5_F_D,
    S5_WRITE_D,
    S5_READ_D,
    S5_SKIP_D,
    S5_V_D
};

/* Write is [2][value][slot], read [2][slot][value]: rows that are added up. */
static void s5_lay_out(ln_scan_task *task, ln_carver *carver) {
    const int64_t states = task->padded, matrices = 2 * task->call->settings->slots * task->channels;
    lay_out_inputs(task, carver);
    for (int k = S5_E; k <= S5_DRIVE; k++) task->buffer[k] = ln_scan_carve(carver, 2, states);
    if (!task->backward) return;
    task->buffer[S5_HISTORY] = ln_scan_carve(carver, LN_SCAN_STEPS + 1, 2 * states);
    task->buffer[S5_DRIVES] = ln_scan_carve(carver, LN_SCAN_STEPS, 2 * states);
    for (int k = S5_E_D; k <= S5_F_D; k++) task->buffer[k] = ln_scan_carve(carver, 2, states);
    for (int k = S5_WRITE_D; k <= S5_READ_D; k++) task->buffer[k] = ln_scan_carve(carver, 1, matrices);
    task->buffer[S5_SKIP_D] = ln_scan_carve(carver, 1, task->channels);
    task->buffer[S5_V_D] = ln_scan_carve(carver, LN_SCAN_STEPS, task->channels);
}

static void s5_prepare(ln_scan_task *task) {
    const int64_t n = task->call->settings->slots, states = task->padded;
    float *e = task->buffer[S5_E], *f = task->buffer[S5_F];
    for (int k = S5_STEP; k <= S5_SKIP; k++)
        task->constant[k] = task->call->tensors->input[k].data ? ln_scan_parameter(task, k) : NULL;
    const float *step = task->constant[S5_STEP], *rate = task->constant[S5_RATE],
                *frequency = task->constant[S5_FREQUENCY];
    clear(e, 2 * states);
    clear(f, 2 * states);
    task->kernels->change(e, e + states, step, rate, frequency, n);
    for (int64_t i = 0; i < n; i++) {
        const float a = rate[i], b = frequency[i], size = a * a + b * b;
        f[i] = size > 0 ? (e[i] * a + e[states + i] * b) / size : step[i];
        f[states + i] = size > 0 ? (e[states + i] * a - e[i] * b) / size : 0;
    }
    if (!task->backward) return;
    for (int k = S5_E_D; k <= S5_F_D; k++) clear(task->buffer[k], 2 * states);
    for (int k = S5_WRITE_D; k <= S5_READ_D; k++) clear(task->buffer[k], 2 * n * task->channels);
    clear(task->buffer[S5_SKIP_D], task->channels);
}

/* One step of the states; drive [2][padded] becomes what the values are times write. */
static void s5_step(const ln_scan_task *task, const float *value, float *drive, float *h) {
    const int64_t n = task->call->settings->slots, states = task->padded, columns = task->channels;
    const float *e = task->buffer[S5_E], *f = task->buffer[S5_F], *write = task->constant[S5_WRITE];
    clear(drive, 2 * states);
    add_rows(task, drive, 1, value, columns, write, n);
    add_rows(task, drive + states, 1, value, columns, write + columns * n, n);
    for (int64_t i = 0, j = states; i < states; i++, j++) {
        const float real = h[i], imaginary = h[j];
        h[i] = real + ((e[i] * real - e[j] * imaginary) + (f[i] * drive[i] - f[j] * drive[j]));
        h[j] = imaginary + ((e[i] * imaginary + e[j] * real) + (f[i] * drive[j] + f[j] * drive[i]));
    }
}

static void s5_block(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t n = task->call->settings->slots, columns = task->channels;
    const ln_series value = rows_of(task, S5_VALUE, step, count);
    const ln_series_out out = ln_scan_output(task, step);
    const float *read = task->constant[S5_READ], *skip = task->constant[S5_SKIP];
    for (int64_t t = 0; t < count; t++) {
        const float *u = value.at + t * value.stride;
        float *y = out.at + t * out.stride;
        s5_step(task, u, task->buffer[S5_DRIVE], task->state);
        for (int64_t v = 0; v < columns; v++) y[v] = skip ? skip[v] * u[v] : 0;
        add_rows(task, y, 2, task->state, n, read, columns);
        add_rows(task, y, -2, task->state + task->padded, n, read + n * columns, columns);
    }
}

/* The gradient of one step; d [2][padded] goes from after it to before it. */
static void s5_step_back(ln_scan_task *task, const float *value, const float *y, const float *h, const float *drive,
                         float *d, float *value_d) {
    const int64_t n = task->call->settings->slots, states = task->padded, columns = task->channels;
    const float *e = task->buffer[S5_E], *f = task->buffer[S5_F], *read = task->constant[S5_READ],
                *write = task->constant[S5_WRITE], *skip = task->constant[S5_SKIP], *before = h,
                *after = h + 2 * states;
    float *e_d = task->buffer[S5_E_D], *f_d = task->buffer[S5_F_D], *write_d = task->buffer[S5_WRITE_D],
          *read_d = task->buffer[S5_READ_D], *skip_d = task->buffer[S5_SKIP_D], *driven = task->buffer[S5_DRIVE];
    const int64_t half = n * columns;
    for (int64_t i = 0, j = states; i < n; i++, j++) {
        float real = 0, imaginary = 0;
        for (int64_t v = 0; v < columns; v++) {
            real += read[i * columns + v] * y[v];
            imaginary += read[half + i * columns + v] * y[v];
            read_d[i * columns + v] += 2 * after[i] * y[v];
            read_d[half + i * columns + v] -= 2 * after[j] * y[v];
        }
        const float dr = d[i] + 2 * real, di = d[j] - 2 * imaginary;
        e_d[i] += dr * before[i] + di * before[j];
        e_d[j] += di * before[i] - dr * before[j];
        f_d[i] += dr * drive[i] + di * drive[j];
        f_d[j] += di * drive[i] - dr * drive[j];
        driven[i] = f[i] * dr + f[j] * di;
        driven[j] = f[i] * di - f[j] * dr;
        d[i] = dr + (e[i] * dr + e[j] * di);
        d[j] = di + (e[i] * di - e[j] * dr);
    }
    for (int64_t v = 0; v < columns; v++) {
        float sum = skip ? skip[v] * y[v] : 0;
        for (int64_t i = 0, j = states; i < n; i++, j++) {
            sum += write[v * n + i] * driven[i] + write[half + v * n + i] * driven[j];
            write_d[v * n + i] += value[v] * driven[i];
            write_d[half + v * n + i] += value[v] * driven[j];
        }
        value_d[v] = sum;
        skip_d[v] += y[v] * value[v];
    }
}

static void s5_gradient(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t row = 2 * task->padded;
    const ln_series value = rows_of(task, S5_VALUE, step, count), out = ln_scan_output_gradient(task, step);
    float *history = task->buffer[S5_HISTORY], *drives = task->buffer[S5_DRIVES], *value_d = task->buffer[S5_V_D];
    copy(history, task->state, row);
    for (int64_t t = 0; t < count; t++) {
        copy(history + (t + 1) * row, history + t * row, row);
        s5_step(task, value.at + t * value.stride, drives + t * row, history + (t + 1) * row);
    }
    for (int64_t t = count - 1; t >= 0; t--)
        s5_step_back(task, value.at + t * value.stride, out.at + t * out.stride, history + t * row, drives + t * row,
                     task->state_gradient, value_d + t * task->channels);
    ln_scan_add_gradient(task, S5_VALUE, step, count, value_d);
}

static void s5_finish(ln_scan_task *task) {
    const int64_t n = task->call->settings->slots, states = task->padded;
    const float *step = task->constant[S5_STEP], *rate = task->constant[S5_RATE],
                *frequency = task->constant[S5_FREQUENCY], *e_d = task->buffer[S5_E_D], *f_d = task->buffer[S5_F_D];
    float *rates = task->buffer[S5_E], *frequencies = task->buffer[S5_F], *steps = task->buffer[S5_DRIVE];
    clear(rates, 2 * states);
    clear(frequencies, 2 * states);
    clear(steps, 2 * states);
    for (int64_t i = 0, j = states; i < n; i++, j++) {
        double step_d = 0;
        const double complex a = ln_discrete_gradient((double)step[i], (double)rate[i] + I * (double)frequency[i],
                                                      (double)e_d[i] + I * (double)e_d[j],
                                                      (double)f_d[i] + I * (double)f_d[j], false, &step_d);
        rates[i] = (float)creal(a);
        frequencies[i] = (float)cimag(a);
        steps[i] = (float)step_d;
    }
    ln_scan_add_gradient(task, S5_STEP, 0, 1, steps);
    ln_scan_add_gradient(task, S5_RATE, 0, 1, rates);
    ln_scan_add_gradient(task, S5_FREQUENCY, 0, 1, frequencies);
    ln_scan_add_packed_gradient(task, S5_WRITE, task->buffer[S5_WRITE_D]);
    ln_scan_add_packed_gradient(task, S5_READ, task->buffer[S5_READ_D]);
    if (task->constant[S5_SKIP]) ln_scan_add_gradient(task, S5_SKIP, 0, 1, task->buffer[S5_SKIP_D]);
}

const ln_scan_row ln_scan_s5 = {.whole = true,
                                .lay_out = s5_lay_out,
                                .prepare = s5_prepare,
                                .block = s5_block,
                                .gradient = s5_gradient,
                                .finish = s5_finish};

/* ---- lssl ---- */

enum { LSSL_VALUE, LSSL_STEP, LSSL_MATRIX, LSSL_WRITE, LSSL_READ, LSSL_SKIP, LSSL_INPUTS };
enum {
    LSSL_A = LSSL_INPUTS, /* A' and its transpose, [slots][slots] */
    LSSL_TURNED,
    LSSL_B,
    LSSL_NEXT,
    LSSL_HISTORY,
    LSSL_A_D,
    LSSL_B_D,
    LSSL_READ_D,
    LSSL_SKIP_D,
    LSSL_V_D,
    LSSL_DOUBLES
};

static void lssl_lay_out(ln_scan_task *task, ln_carver *carver) {
    const int64_t n = task->call->settings->slots, columns = task->channels;
    lay_out_inputs(task, carver);
    for (int k = LSSL_A; k <= LSSL_TURNED; k++) task->buffer[k] = ln_scan_carve(carver, n, n);
    for (int k = LSSL_B; k <= LSSL_NEXT; k++) task->buffer[k] = ln_scan_carve(carver, 1, n);
    task->buffer[LSSL_DOUBLES] = ln_carve(carver, (uint64_t)(6 * n * (n + 1)), sizeof(double));
    if (!task->backward) return;
    task->buffer[LSSL_HISTORY] = ln_scan_carve(carver, LN_SCAN_STEPS + 1, task->padded);
    task->buffer[LSSL_A_D] = ln_scan_carve(carver, n, n);
    task->buffer[LSSL_B_D] = ln_scan_carve(carver, 1, n);
    task->buffer[LSSL_READ_D] = ln_scan_carve(carver, columns, task->padded);
    task->buffer[LSSL_SKIP_D] = ln_scan_carve(carver, 1, columns);
    task->buffer[LSSL_V_D] = ln_scan_carve(carver, LN_SCAN_STEPS, columns);
}

/* The parameters and what becomes of them, in float64: [n][n] and [n] arrays in LSSL_DOUBLES. */
typedef struct exact {
    double *a, *b, *stepped_a, *stepped_b, *inverse, *work;
} exact;

static exact lssl_exact(const ln_scan_task *task) {
    const int64_t n = task->call->settings->slots, size = n * n;
    double *room = (double *)(void *)task->buffer[LSSL_DOUBLES];
    const exact x = {
        room, room + size, room + size + n, room + 2 * size + n, room + 2 * size + 2 * n, room + 3 * size + 2 * n};
    for (int64_t i = 0; i < size; i++) x.a[i] = (double)task->constant[LSSL_MATRIX][i];
    for (int64_t i = 0; i < n; i++) x.b[i] = (double)task->constant[LSSL_WRITE][i];
    const bool fine = ln_bilinear(n, (double)task->constant[LSSL_STEP][0], task->call->settings->option[0], x.a, x.b,
                                  x.stepped_a, x.stepped_b, x.inverse, x.work);
    for (int64_t i = 0; !fine && i < size; i++) x.inverse[i] = x.stepped_a[i] = x.stepped_b[i % n] = (double)NAN;
    return x;
}

/* Where the matrix has no discrete form, all outputs are NaN. */
static void lssl_prepare(ln_scan_task *task) {
    const int64_t n = task->call->settings->slots;
    for (int k = LSSL_STEP; k <= LSSL_WRITE; k++) task->constant[k] = ln_scan_parameter(task, k);
    for (int k = LSSL_READ; k <= LSSL_SKIP; k++) task->constant[k] = rows_of(task, k, 0, 1).at;
    const exact x = lssl_exact(task);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < n; k++)
            task->buffer[LSSL_A][i * n + k] = task->buffer[LSSL_TURNED][k * n + i] = (float)x.stepped_a[i * n + k];
        task->buffer[LSSL_B][i] = (float)x.stepped_b[i];
    }
    if (!task->backward) return;
    clear(task->buffer[LSSL_A_D], n * n);
    clear(task->buffer[LSSL_B_D], n);
    clear(task->buffer[LSSL_READ_D], task->channels * task->padded);
    clear(task->buffer[LSSL_SKIP_D], task->channels);
}

static void lssl_step(const ln_scan_task *task, float value, float *h) {
    const int64_t n = task->call->settings->slots;
    float *next = task->buffer[LSSL_NEXT];
    for (int64_t i = 0; i < n; i++) next[i] = value * task->buffer[LSSL_B][i];
    add_rows(task, next, 1, h, n, task->buffer[LSSL_TURNED], n);
    copy(h, next, n);
}

static void lssl_block(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t n = task->call->settings->slots;
    const ln_series value = rows_of(task, LSSL_VALUE, step, count);
    const ln_series_out out = ln_scan_output(task, step);
    const float *skip = task->constant[LSSL_SKIP];
    for (int64_t v = 0; v < task->channels; v++) {
        const float *read = task->constant[LSSL_READ] + v * task->padded;
        float *h = task->state + v * task->padded;
        for (int64_t t = 0; t < count; t++) {
            const float u = value.at[t * value.stride + v];
            lssl_step(task, u, h);
            float y = 0;
            for (int64_t i = 0; i < n; i++) y += read[i] * h[i];
            out.at[t * out.stride + v] = y + (skip ? skip[v] * u : 0);
        }
    }
}

/* d goes from the gradient of the states after a step to that of those before it. */
static float lssl_step_back(ln_scan_task *task, float value, float y, const float *read, const float *before,
                            const float *after, float *d, float *read_d) {
    const int64_t n = task->call->settings->slots;
    float *a_d = task->buffer[LSSL_A_D], *b_d = task->buffer[LSSL_B_D], *next = task->buffer[LSSL_NEXT], sum = 0;
    for (int64_t i = 0; i < n; i++) {
        read_d[i] += y * after[i];
        d[i] += y * read[i];
        sum += task->buffer[LSSL_B][i] * d[i];
        b_d[i] += value * d[i];
        for (int64_t k = 0; k < n; k++) a_d[i * n + k] += d[i] * before[k];
    }
    clear(next, n);
    add_rows(task, next, 1, d, n, task->buffer[LSSL_A], n);
    copy(d, next, n);
    return sum;
}

static void lssl_gradient(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t states = task->padded, columns = task->channels;
    const ln_series value = rows_of(task, LSSL_VALUE, step, count), out = ln_scan_output_gradient(task, step);
    const float *skip = task->constant[LSSL_SKIP];
    float *history = task->buffer[LSSL_HISTORY], *value_d = task->buffer[LSSL_V_D];
    for (int64_t v = 0; v < columns; v++) {
        copy(history, task->state + v * states, states);
        for (int64_t t = 0; t < count; t++) {
            copy(history + (t + 1) * states, history + t * states, states);
            lssl_step(task, value.at[t * value.stride + v], history + (t + 1) * states);
        }
        for (int64_t t = count - 1; t >= 0; t--) {
            const float u = value.at[t * value.stride + v], y = out.at[t * out.stride + v];
            value_d[t * columns + v] =
                lssl_step_back(task, u, y, task->constant[LSSL_READ] + v * states, history + t * states,
                               history + (t + 1) * states, task->state_gradient + v * states,
                               task->buffer[LSSL_READ_D] + v * states) +
                (skip ? skip[v] * y : 0);
            task->buffer[LSSL_SKIP_D][v] += y * u;
        }
    }
    ln_scan_add_gradient(task, LSSL_VALUE, step, count, value_d);
}

/* With M = (1 - w s A)^-1, A' = M (1 + (1 - w) s A), B' = M s B:
 * dA' = s M dA (w A' + 1 - w) + ds M A (w A' + 1 - w),   dB' = w s M dA B' + s M dB + ds (M B + w M A B'). */
static void lssl_finish(ln_scan_task *task) {
    const int64_t n = task->call->settings->slots;
    const double w = task->call->settings->option[0], s = (double)task->constant[LSSL_STEP][0];
    const exact x = lssl_exact(task);
    float *a_d = task->buffer[LSSL_A_D], *b_d = task->buffer[LSSL_B_D];
    double step_d = 0, *right = x.work, *at_a = right + n * n; /* M^T (dA' (w A' + 1 - w)^T + w dB' B'^T), M^T dB' */
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++) {
            double sum = (1 - w) * (double)a_d[i * n + k] + w * (double)b_d[i] * x.stepped_b[k];
            for (int64_t j = 0; j < n; j++) sum += w * (double)a_d[i * n + j] * x.stepped_a[k * n + j];
            right[i * n + k] = sum;
        }
    for (int64_t k = 0; k < n; k++) {
        for (int64_t i = 0; i < n; i++) {
            at_a[i] = 0;
            for (int64_t j = 0; j < n; j++) at_a[i] += x.inverse[j * n + i] * right[j * n + k];
        }
        for (int64_t i = 0; i < n; i++) {
            a_d[i * n + k] = (float)(s * at_a[i]);
            step_d += at_a[i] * x.a[i * n + k];
        }
    }
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t j = 0; j < n; j++) sum += x.inverse[j * n + i] * (double)b_d[j];
        at_a[i] = sum;
        step_d += sum * x.b[i];
    }
    for (int64_t i = 0; i < n; i++) b_d[i] = (float)(s * at_a[i]);
    const float step_gradient = (float)step_d;
    ln_scan_add_packed_gradient(task, LSSL_STEP, &step_gradient);
    ln_scan_add_packed_gradient(task, LSSL_MATRIX, a_d);
    ln_scan_add_packed_gradient(task, LSSL_WRITE, b_d);
    ln_scan_add_gradient(task, LSSL_READ, 0, 1, task->buffer[LSSL_READ_D]);
    if (task->constant[LSSL_SKIP]) ln_scan_add_gradient(task, LSSL_SKIP, 0, 1, task->buffer[LSSL_SKIP_D]);
}

const ln_scan_row ln_scan_lssl = {.whole = true,
                                  .lay_out = lssl_lay_out,
                                  .prepare = lssl_prepare,
                                  .block = lssl_block,
                                  .gradient = lssl_gradient,
                                  .finish = lssl_finish};
