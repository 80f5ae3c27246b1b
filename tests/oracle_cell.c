/* Naive recurrences of the rows of src/mixer/rows_cell.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mixer_check.h"

static double logistic(double x) {
    return 1 / (1 + exp(-x));
}

static double log_logistic(double x) {
    return x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x));
}

/* h[t-1] R[gate] + bias[gate] of one unit. */
static double back(const oracle_call *c, int64_t head, const double *h, int64_t gates, int64_t gate, int64_t unit) {
    const int64_t n = c->output_columns, to = gate * n + unit;
    double sum = c->input[2] ? c->input[2][head * gates * n + to] : 0;
    for (int64_t from = 0; c->input[1] && from < n; from++)
        sum += h[from] * c->input[1][(head * n + from) * gates * n + to];
    return sum;
}

/* One unit: x, y by gate, s the state by part; s[0] becomes its output. */
typedef void (*unit_step)(const double *x, const double *y, double *s, const double *option);

static void run_cells(const oracle_call *c, int64_t gates, int64_t parts, unit_step step) {
    const int64_t n = c->output_columns;
    double *last = malloc((size_t)n * sizeof *last);
    memcpy(c->state_out, c->state_in, (size_t)(c->settings->heads * c->head_floats) * sizeof *c->state_out);
    for (int64_t head = 0; head < c->settings->heads; head++) {
        double *state = c->state_out + head * c->head_floats;
        for (int64_t t = 0; t < c->tokens; t++) {
            memcpy(last, state, (size_t)n * sizeof *last);
            for (int64_t u = 0; u < n; u++) {
                double x[4], y[4], s[4];
                for (int64_t g = 0; g < gates; g++) {
                    x[g] = oracle_input(c, 0, t, head)[g * n + u];
                    y[g] = back(c, head, last, gates, g, u);
                }
                for (int64_t p = 0; p < parts; p++) s[p] = state[p * n + u];
                step(x, y, s, c->settings->option);
                for (int64_t p = 0; p < parts; p++) state[p * n + u] = s[p];
                oracle_output(c, t, head)[u] = s[0];
            }
        }
    }
    free(last);
}

static void lstm_unit(const double *x, const double *y, double *s, const double *option) {
    (void)option;
    s[1] = logistic(x[1] + y[1]) * s[1] + logistic(x[0] + y[0]) * tanh(x[2] + y[2]);
    s[0] = logistic(x[3] + y[3]) * tanh(s[1]);
}
static void gru_unit(const double *x, const double *y, double *s, const double *option) {
    (void)option;
    const double u = logistic(x[1] + y[1]);
    s[0] = (1 - u) * tanh(x[2] + logistic(x[0] + y[0]) * y[2]) + u * s[0];
}
static void slstm_unit(const double *x, const double *y, double *s, const double *option) {
    const double in = x[0] + y[0], decay = log_logistic(x[1] + y[1]) + s[3], m = s[2] == 0 ? in : fmax(in, decay);
    const double a = fmin(exp(in - m), 1), b = fmin(exp(decay - m), 1);
    s[1] = b * s[1] + a * tanh(x[2] + y[2]);
    s[2] = b * s[2] + a;
    if (option[0] == 1) s[2] = fmax(s[2], 1);
    s[3] = m;
    s[0] = logistic(x[3] + y[3]) * s[1] / s[2];
}
static void elman_unit(const double *x, const double *y, double *s, const double *option) {
    (void)option;
    s[0] = tanh(x[0] + y[0]);
}

static void spike_unit(const double *x, const double *y, double *s, const double *option) {
    const double p = s[1] + (x[0] + y[0] - s[1]) / option[0], over = p - option[1], pi = acos(-1);
    s[0] = option[3] == 1 ? 0.5 + atan(pi / 2 * option[2] * over) / pi : over >= 0;
    s[1] = p - option[1] * s[0];
}

static void lstm(const oracle_call *c) {
    run_cells(c, 4, 2, lstm_unit);
}
static void gru(const oracle_call *c) {
    run_cells(c, 3, 1, gru_unit);
}
static void slstm(const oracle_call *c) {
    run_cells(c, 4, 4, slstm_unit);
}
static void elman(const oracle_call *c) {
    run_cells(c, 1, 1, elman_unit);
}

static void spike(const oracle_call *c) {
    run_cells(c, 1, 2, spike_unit);
}

static void spike_vary(linnet_mixer_settings *settings, int variant) {
    settings->option[3] = variant == 0;
    if (variant == 2) settings->option[0] = 3, settings->option[1] = 0.5;
}

static void slstm_vary(linnet_mixer_settings *settings, int variant) {
    settings->option[0] = variant;
}

/* States that can be: normalisers at least 1/2, but for some sequences' beginnings, where they are 0. */
static bool slstm_fill(const linnet_mixer_settings *settings, const char *input, double *values, int64_t count,
                       int extreme) {
    (void)extreme;
    if (strcmp(input, "state") != 0) return false;
    const int64_t n = settings->value_size;
    for (int64_t i = 0; i < count; i++) {
        if (i / n % 4 == 2) values[i] = (double)(float)(0.5 + 2 * fabs(values[i]));
    }
    return true;
}

/* ---- the leaky memory neuron ---- */

static void leaky_memory(const oracle_call *c) {
    const linnet_mixer_settings *s = c->settings;
    const int64_t n = s->value_size, hidden = 2 * n, all = s->key_size * s->slots;
    double *r = malloc((size_t)(hidden + n) * sizeof *r), *last = r + hidden;
    memcpy(c->state_out, c->state_in, (size_t)(s->heads * c->head_floats) * sizeof *c->state_out);
    for (int64_t head = 0; head < s->heads; head++) {
        const double *p[9];
        for (int k = 1; k < 9; k++) p[k] = c->input[k] ? c->input[k] + head * c->columns[k] : NULL;
        double *synapses = c->state_out + head * c->head_floats, *memory = synapses + all;
        for (int64_t t = 0; t < c->tokens; t++) {
            memcpy(last, memory, (size_t)n * sizeof *last);
            for (int64_t i = 0; i < all; i++)
                synapses[i] = exp(p[2][i]) * synapses[i] + p[1][i] * oracle_input(c, 0, t, head)[i];
            for (int64_t h = 0; h < hidden; h++) {
                r[h] = p[5] ? p[5][h] : 0;
                for (int64_t i = 0; i < all; i++) r[h] += synapses[i] * p[3][i / s->slots * hidden + h];
                for (int64_t i = 0; i < n; i++) r[h] += exp(p[8][i]) * last[i] * p[4][i * hidden + h];
                r[h] = fmax(r[h], 0);
            }
            for (int64_t i = 0; i < n; i++) {
                double d = p[7] ? p[7][i] : 0;
                for (int64_t h = 0; h < hidden; h++) d += r[h] * p[6][h * n + i];
                memory[i] = exp(p[8][i]) * last[i] + s->option[0] * (1 - exp(p[8][i])) * tanh(d);
                oracle_output(c, t, head)[i] = memory[i];
            }
        }
    }
    free(r);
}

static void leaky_vary(linnet_mixer_settings *settings, int variant) {
    settings->slots = variant == 1 ? 3 : 1;
}

/* Hidden units that stay on their side of the kink, where there is no derivative to compare with. */
static bool leaky_fill(const linnet_mixer_settings *settings, const char *input, double *values, int64_t count,
                       int extreme) {
    (void)settings;
    (void)extreme;
    for (int64_t i = 0; i < count; i++) {
        if (strcmp(input, "hidden_bias") == 0) values[i] += values[i] < 0 ? -3 : 3;
        if (strcmp(input, "synapse") == 0 || strcmp(input, "recurrent") == 0) values[i] *= 0.3;
    }
    return true;
}

const mixer_oracle oracle_cell[] = {
    {.name = "lstm", .run = lstm, .omits = true},
    {.name = "gru", .run = gru, .omits = true},
    {.name = "slstm", .run = slstm, .omits = true, .variants = 1, .vary = slstm_vary, .fill = slstm_fill},
    {.name = "elman", .run = elman, .omits = true},
    {.name = "spike", .run = spike, .omits = true, .variants = 2, .vary = spike_vary, .surrogate = 1},
    {.name = "leaky_memory", .run = leaky_memory, .variants = 1, .vary = leaky_vary, .fill = leaky_fill},
    {0},
};
