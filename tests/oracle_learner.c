/* Naive recurrences of the rows of src/mixer/rows_learner.c, token by token with whole matrices. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mixer_check.h"

enum { QUERY, KEY, VALUE, STEP_SIZE, WEIGHT, BIAS, DECAY, MOMENTUM };

static double factor(const oracle_call *c, int64_t at) {
    return c->input[WEIGHT] ? c->input[WEIGHT][at] : 1;
}
static double shift(const oracle_call *c, int64_t at) {
    return c->input[BIAS] ? c->input[BIAS][at] : 0;
}

static void layer_norm(const double *x, double *hat, double *rate, int64_t n) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < n; i++) mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean) / (double)n;
    *rate = 1 / sqrt(variance + 1e-6);
    for (int64_t i = 0; i < n; i++) hat[i] = (x[i] - mean) * *rate;
}

/* y = x M, M [rows][columns] */
static void through(const double *x, const double *matrix, double *y, int64_t rows, int64_t columns) {
    for (int64_t c = 0; c < columns; c++) {
        y[c] = 0;
        for (int64_t r = 0; r < rows; r++) y[c] += x[r] * matrix[r * columns + c];
    }
}

/* The gradient in z of |LN(z) w + b - (v - k)|^2 / 2 (of |z - v|^2 / 2 if plain): the Jacobian of LN column by column.
 */
static void loss_gradient(const oracle_call *c, int64_t head, const double *z, const double *key, const double *value,
                          double *u) {
    const int64_t n = c->output_columns;
    double *hat = malloc((size_t)n * sizeof *hat), rate;
    layer_norm(z, hat, &rate, n);
    for (int64_t i = 0; i < n; i++) {
        u[i] = 0;
        for (int64_t o = 0; o < n; o++) {
            const double w = factor(c, head * n + o), b = shift(c, head * n + o);
            const double slope = rate * ((i == o) - 1 / (double)n - hat[o] * hat[i] / (double)n);
            u[i] += (hat[o] * w + b - (value[o] - key[o])) * w * slope;
        }
        if (c->settings->option[0] == 1) u[i] = z[i] - value[i];
    }
    free(hat);
}

static void write_output(const oracle_call *c, int64_t t, int64_t head, const double *o) {
    const int64_t n = c->output_columns;
    double *hat = oracle_output(c, t, head), rate;
    layer_norm(o, hat, &rate, n);
    for (int64_t i = 0; i < n; i++)
        hat[i] = c->settings->option[0] == 1 ? o[i] : o[i] + hat[i] * factor(c, head * n + i) + shift(c, head * n + i);
}

static void run_learner(const oracle_call *c, bool constant, bool titans) {
    const int64_t n = c->output_columns, size = c->settings->key_size, keys = size + constant, matrix = keys * n;
    double *q = malloc((size_t)(2 * keys + 3 * n + 2 * matrix) * sizeof *q), *k = q + keys, *z = k + keys, *u = z + n,
           *o = u + n, *start = o + n, *read = start + matrix;
    memcpy(c->state_out, c->state_in, (size_t)(c->settings->heads * c->head_floats) * sizeof *c->state_out);
    for (int64_t head = 0; head < c->settings->heads; head++) {
        double *state = c->state_out + head * c->head_floats, *m = state, *s = state + matrix,
               *position = state + c->head_floats - 1;
        if (titans) memcpy(start, state + 2 * matrix, (size_t)matrix * sizeof *start);
        if (!titans) memcpy(start, m, (size_t)matrix * sizeof *start);
        for (int64_t t = 0; t < c->tokens; t++) {
            const double step = *oracle_input(c, STEP_SIZE, t, head);
            memcpy(q, oracle_input(c, QUERY, t, head), (size_t)size * sizeof *q);
            memcpy(k, oracle_input(c, KEY, t, head), (size_t)size * sizeof *k);
            for (int64_t i = 0; i < size; i++) q[i] *= (double)c->settings->scale;
            if (constant) q[size] = k[size] = 1;
            if (lround(*position) == 0) {
                memcpy(start, m, (size_t)matrix * sizeof *start);
                for (int64_t i = 0; !titans && i < matrix; i++) s[i] = 0;
            }
            through(k, start, z, keys, n);
            loss_gradient(c, head, z, k, oracle_input(c, VALUE, t, head), u);
            for (int64_t r = 0; r < keys; r++)
                for (int64_t i = 0; i < n; i++) {
                    const int64_t at = r * n + i;
                    if (titans) {
                        s[at] = exp(*oracle_input(c, MOMENTUM, t, head)) * s[at] - 2 * step * k[r] * u[i];
                        m[at] = exp(*oracle_input(c, DECAY, t, head)) * m[at] + s[at];
                        read[at] = m[at];
                    } else {
                        s[at] += k[r] * u[i];
                        read[at] = m[at] - step * s[at];
                    }
                }
            through(q, read, o, keys, n);
            write_output(c, t, head, o);
            *position = (double)((lround(*position) + 1) % c->settings->slots);
            if (*position == 0 && !titans) {
                memcpy(m, read, (size_t)matrix * sizeof *m);
                memset(s, 0, (size_t)matrix * sizeof *s);
            }
        }
        if (titans) memcpy(state + 2 * matrix, start, (size_t)matrix * sizeof *start);
    }
    free(q);
}

static void ttt_linear(const oracle_call *c) {
    run_learner(c, true, false);
}
static void titans(const oracle_call *c) {
    run_learner(c, false, true);
}

static void vary(linnet_mixer_settings *settings, int variant) {
    settings->option[0] = variant == 2;
    settings->slots = variant == 1 ? 5 : 0;
}

/* Keys short enough and steps small enough to learn by; positions are whole numbers. Where everything is soon forgotten
 * the layer norm is that of nearly nothing, and steps are as long as it is short: only the loss without one can be
 * compared to digits then. */
static bool fill(const linnet_mixer_settings *settings, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    const bool keys = strcmp(input, "key") == 0;
    for (int64_t i = 0; (keys || strcmp(input, "step_size") == 0) && i < count; i++)
        values[i] *= keys ? 1 / sqrt((double)settings->key_size) : 0.3;
    const bool gate = strcmp(input, "decay") == 0 || strcmp(input, "momentum") == 0;
    for (int64_t i = 0; settings->option[0] == 0 && gate && i < count; i++) values[i] = fmax(values[i] * 0.1, -0.1);
    if (strcmp(input, "state") != 0) return true;
    const int64_t floats = linnet_mixer_state_floats(settings) / settings->heads, chunk = settings->slots;
    for (int64_t i = 1; i <= count / floats; i++) values[i * floats - 1] = (double)(3 * i % chunk);
    return true;
}

/* ---- windows and orthogonal steps ---- */

enum { GAIN = 3, ATLAS_STEP_SIZE, ATLAS_DECAY, ATLAS_MOMENTUM };

static void newton_schulz(const double *s, double *x, int64_t rows, int64_t columns, int iterations) {
    double length = 0, *a = malloc((size_t)(rows * rows + rows * columns) * sizeof *a), *y = a + rows * rows;
    for (int64_t i = 0; i < rows * columns; i++) length += s[i] * s[i];
    for (int64_t i = 0; i < rows * columns; i++) x[i] = iterations ? s[i] / (sqrt(length) + 1e-7) : s[i];
    for (int n = 0; n < iterations; n++) {
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < rows; j++) {
                a[i * rows + j] = 0;
                for (int64_t c = 0; c < columns; c++) a[i * rows + j] += x[i * columns + c] * x[j * columns + c];
            }
        /* y = A X, then X = 3.4445 X - 4.775 y + 2.0315 A y */
        for (int64_t i = 0; i < rows; i++)
            for (int64_t c = 0; c < columns; c++) {
                y[i * columns + c] = 0;
                for (int64_t j = 0; j < rows; j++) y[i * columns + c] += a[i * rows + j] * x[j * columns + c];
            }
        for (int64_t i = 0; i < rows; i++)
            for (int64_t c = 0; c < columns; c++) {
                double again = 0;
                for (int64_t j = 0; j < rows; j++) again += a[i * rows + j] * y[j * columns + c];
                x[i * columns + c] = 3.4445 * x[i * columns + c] - 4.775 * y[i * columns + c] + 2.0315 * again;
            }
    }
    free(a);
}

static void atlas(const oracle_call *c) {
    const linnet_mixer_settings *s = c->settings;
    const int64_t k = s->key_size, v = s->value_size, w = s->slots, matrix = k * v, chunk = (int64_t)s->option[0];
    double *next = malloc((size_t)(matrix + k) * sizeof *next), *q = next + matrix;
    memcpy(c->state_out, c->state_in, (size_t)(s->heads * c->head_floats) * sizeof *c->state_out);
    for (int64_t head = 0; head < s->heads; head++) {
        double *m = c->state_out + head * c->head_floats, *momentum = m + matrix, *start = momentum + matrix,
               *keys = start + matrix, *values = keys + w * k, *gains = values + w * v, *position = gains + w;
        for (int64_t t = 0; t < c->tokens; t++) {
            for (int64_t i = 0; i + 1 < w; i++) {
                memcpy(keys + i * k, keys + (i + 1) * k, (size_t)k * sizeof *keys);
                memcpy(values + i * v, values + (i + 1) * v, (size_t)v * sizeof *values);
                gains[i] = gains[i + 1];
            }
            memcpy(keys + (w - 1) * k, oracle_input(c, KEY, t, head), (size_t)k * sizeof *keys);
            memcpy(values + (w - 1) * v, oracle_input(c, VALUE, t, head), (size_t)v * sizeof *values);
            gains[w - 1] = *oracle_input(c, GAIN, t, head);
            if (lround(*position) == 0) memcpy(start, m, (size_t)matrix * sizeof *start);
            *position = (double)((lround(*position) + 1) % chunk);
            for (int64_t i = 0; i < matrix; i++) momentum[i] *= exp(*oracle_input(c, ATLAS_MOMENTUM, t, head));
            for (int64_t i = 0; i < w; i++)
                for (int64_t o = 0; o < v; o++) {
                    double error = -values[i * v + o];
                    for (int64_t r = 0; r < k; r++) error += keys[i * k + r] * start[r * v + o];
                    for (int64_t r = 0; r < k; r++) momentum[r * v + o] += 2 * gains[i] * keys[i * k + r] * error;
                }
            newton_schulz(momentum, next, k, v, (int)s->option[1]);
            for (int64_t i = 0; i < matrix; i++)
                m[i] = exp(*oracle_input(c, ATLAS_DECAY, t, head)) * m[i] -
                       *oracle_input(c, ATLAS_STEP_SIZE, t, head) * next[i];
            for (int64_t i = 0; i < k; i++) q[i] = (double)s->scale * oracle_input(c, QUERY, t, head)[i];
            through(q, m, oracle_output(c, t, head), k, v);
        }
    }
    free(next);
}

static void atlas_vary(linnet_mixer_settings *settings, int variant) {
    settings->option[0] = variant == 1 ? 7 : 1;
    settings->option[1] = variant == 0 ? 5 : variant == 1 ? 2 : 0;
    settings->key_size = settings->key_size > 12 ? 12 : settings->key_size; /* the oracle takes its time */
    settings->value_size = settings->value_size > 17 ? 17 : settings->value_size;
    settings->slots = variant == 1 ? 3 : variant == 2 ? 1 : 0;
}

static bool atlas_fill(const linnet_mixer_settings *settings, const char *input, double *values, int64_t count,
                       int extreme) {
    (void)extreme;
    const bool keys = strcmp(input, "key") == 0;
    for (int64_t i = 0; (keys || strcmp(input, "step_size") == 0) && i < count; i++)
        values[i] *= keys ? 1 / sqrt((double)settings->key_size) : 0.1;
    if (strcmp(input, "state") != 0) return true;
    const int64_t floats = linnet_mixer_state_floats(settings) / settings->heads, chunk = (int64_t)settings->option[0];
    for (int64_t i = 1; i <= count / floats; i++) values[i * floats - 1] = (double)(3 * i % chunk);
    return true;
}

/* ---- ridge regression at every token ---- */

enum { BETA = 3, MESA_DECAY, RIDGE };

/* x of b = A x, by elimination; A is overwritten, x holds b. */
static void eliminate(double *a, double *x, int64_t n) {
    for (int64_t c = 0; c < n; c++) {
        int64_t best = c;
        for (int64_t r = c; r < n; r++)
            if (fabs(a[r * n + c]) > fabs(a[best * n + c])) best = r;
        for (int64_t i = 0; i < n; i++) {
            const double swap = a[c * n + i];
            a[c * n + i] = a[best * n + i];
            a[best * n + i] = swap;
        }
        const double swap = x[c];
        x[c] = x[best];
        x[best] = swap;
        for (int64_t r = c + 1; r < n; r++) {
            const double factor = a[r * n + c] / a[c * n + c];
            for (int64_t i = c; i < n; i++) a[r * n + i] -= factor * a[c * n + i];
            x[r] -= factor * x[c];
        }
    }
    for (int64_t r = n - 1; r >= 0; r--) {
        for (int64_t i = r + 1; i < n; i++) x[r] -= a[r * n + i] * x[i];
        x[r] /= a[r * n + r];
    }
}

static void mesa_net(const oracle_call *c) {
    const linnet_mixer_settings *s = c->settings;
    const int64_t k = s->key_size, v = s->value_size;
    double *a = malloc((size_t)(k * k + k) * sizeof *a), *x = a + k * k;
    memcpy(c->state_out, c->state_in, (size_t)(s->heads * c->head_floats) * sizeof *c->state_out);
    for (int64_t head = 0; head < s->heads; head++) {
        double *h = c->state_out + head * c->head_floats, *g = h + k * k;
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *key = oracle_input(c, KEY, t, head), *value = oracle_input(c, VALUE, t, head);
            const double decay = exp(*oracle_input(c, MESA_DECAY, t, head)), beta = *oracle_input(c, BETA, t, head);
            for (int64_t r = 0; r < k; r++) {
                for (int64_t i = 0; i < k; i++) h[r * k + i] = decay * h[r * k + i] + beta * key[r] * key[i];
                for (int64_t i = 0; i < v; i++) g[r * v + i] = decay * g[r * v + i] + beta * key[r] * value[i];
                x[r] = (double)s->scale * oracle_input(c, QUERY, t, head)[r];
            }
            memcpy(a, h, (size_t)(k * k) * sizeof *a);
            for (int64_t r = 0; r < k; r++) a[r * k + r] += c->input[RIDGE][head * k + r];
            eliminate(a, x, k);
            through(x, g, oracle_output(c, t, head), k, v);
        }
    }
    free(a);
}

static void mesa_vary(linnet_mixer_settings *settings, int variant) {
    (void)variant;
    settings->key_size = settings->key_size > 20 ? 20 : settings->key_size; /* the oracle takes its time */
}

/* Covariances are those of something. */
static bool mesa_fill(const linnet_mixer_settings *settings, const char *input, double *values, int64_t count,
                      int extreme) {
    (void)extreme;
    if (strcmp(input, "state") != 0) return false;
    const int64_t k = settings->key_size, floats = linnet_mixer_state_floats(settings) / settings->heads;
    double *root = malloc((size_t)(k * k) * sizeof *root);
    for (int64_t at = 0; at < count; at += floats) {
        memcpy(root, values + at, (size_t)(k * k) * sizeof *root);
        for (int64_t r = 0; r < k; r++)
            for (int64_t i = 0; i < k; i++) {
                double sum = 0;
                for (int64_t j = 0; j < k; j++) sum += root[r * k + j] * root[i * k + j];
                values[at + r * k + i] = (double)(float)sum;
            }
    }
    free(root);
    return true;
}

const mixer_oracle oracle_learner[] = {
    {.name = "ttt_linear", .run = ttt_linear, .omits = true, .variants = 2, .vary = vary, .fill = fill},
    {.name = "titans", .run = titans, .omits = true, .forward = 4e-5, .variants = 2, .vary = vary, .fill = fill},
    {.name = "atlas",
     .run = atlas,
     .forward = 1e-5,
     .gradient = 1e-4,
     .variants = 2,
     .vary = atlas_vary,
     .fill = atlas_fill},
    {.name = "mesa_net", .run = mesa_net, .forward = 1e-5, .gradient = 2e-4, .vary = mesa_vary, .fill = mesa_fill},
    {0},
};
