/* Naive recurrences of the rows of src/mixer/rows_scan.c. */
#include <complex.h>
#include <math.h>
#include <string.h>

#include "mixer_check.h"

static void hgrn(const oracle_call *c) {
    const int64_t n = c->output_columns;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < n; i++) {
            double h = c->state_in[head * n + i];
            for (int64_t t = 0; t < c->tokens; t++)
                oracle_output(c, t, head)[i] = h =
                    exp(oracle_input(c, 1, t, head)[i]) * h + oracle_input(c, 0, t, head)[i];
            c->state_out[head * n + i] = h;
        }
}

static double softplus(double x) {
    return x > 20 ? x : log1p(exp(x));
}

static void selective_scan(const oracle_call *c) {
    const int64_t channels = c->output_columns, states = c->settings->slots;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < channels; i++) {
            double *h = c->state_out + head * c->head_floats + i * states;
            const double *rate = oracle_input(c, 2, 0, head) + i * states;
            for (int64_t t = 0; t < c->tokens; t++) {
                const double value = oracle_input(c, 0, t, head)[i];
                double step = oracle_input(c, 1, t, head)[i];
                if (c->settings->option[0] != 0) step = softplus(step);
                double y = c->input[5] ? oracle_input(c, 5, 0, head)[i] * value : 0;
                for (int64_t n = 0; n < states; n++) {
                    h[n] = exp(step * rate[n]) * h[n] + step * value * oracle_input(c, 3, t, head)[n];
                    y += oracle_input(c, 4, t, head)[n] * h[n];
                }
                oracle_output(c, t, head)[i] = y;
            }
        }
}
static void vary_selective(linnet_mixer_settings *s, int variant) {
    if (variant == 1) s->slots = 5;
    if (variant == 2) s->slots = 20;
    if (variant == 2) s->value_size = 150;
    s->option[0] = variant == 1;
}

static void selective_scan_complex(const oracle_call *c) {
    const int64_t channels = c->output_columns, states = c->settings->slots;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < channels; i++) {
            double *h = c->state_out + head * c->head_floats + i * 2 * states;
            const double *rate = oracle_input(c, 2, 0, head) + i * states,
                         *frequency = oracle_input(c, 6, 0, head) + i * states;
            for (int64_t t = 0; t < c->tokens; t++) {
                const double value = oracle_input(c, 0, t, head)[i];
                double step = oracle_input(c, 1, t, head)[i];
                if (c->settings->option[0] != 0) step = softplus(step);
                const double *key = oracle_input(c, 3, t, head), *query = oracle_input(c, 4, t, head);
                double y = c->input[5] ? oracle_input(c, 5, 0, head)[i] * value : 0;
                for (int64_t n = 0; n < states; n++) {
                    const double complex next = cexp(step * (rate[n] + I * frequency[n])) * (h[n] + I * h[states + n]) +
                                                step * value * (key[n] + I * key[states + n]);
                    h[n] = creal(next);
                    h[states + n] = cimag(next);
                    y += 2 * creal(next * (query[n] + I * query[states + n]));
                }
                oracle_output(c, t, head)[i] = y;
            }
        }
}

/* ---- one state a channel ---- */

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static void rg_lru(const oracle_call *c) {
    const int64_t n = c->output_columns;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < n; i++) {
            double *h = c->state_out + head * n + i;
            for (int64_t t = 0; t < c->tokens; t++) {
                const double z =
                    -c->settings->option[0] * softplus(oracle_input(c, 3, 0, head)[i]) * oracle_input(c, 2, t, head)[i];
                *h =
                    exp(z) * *h + sqrt(-expm1(2 * z)) * oracle_input(c, 1, t, head)[i] * oracle_input(c, 0, t, head)[i];
                oracle_output(c, t, head)[i] = *h;
            }
        }
}

static void min_gru(const oracle_call *c) {
    const int64_t n = c->output_columns;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < n; i++) {
            double *h = c->state_out + head * n + i;
            for (int64_t t = 0; t < c->tokens; t++) {
                const double z = sigmoid(oracle_input(c, 1, t, head)[i]);
                double value = oracle_input(c, 0, t, head)[i];
                if (c->settings->option[0] != 0) value = value >= 0 ? value + 0.5 : sigmoid(value);
                *h = (1 - z) * *h + z * value;
                oracle_output(c, t, head)[i] = *h;
            }
        }
}
static void vary_first(linnet_mixer_settings *s, int variant) {
    if (variant == 1) s->option[0] = 1;
}

/* ---- convolutions ---- */

static double silu(double x) {
    return x / (1 + exp(-x));
}

/* The states are the last taps - 1 inputs, the oldest first. */
static void short_convolution(const oracle_call *c) {
    const int64_t channels = c->output_columns, taps = c->settings->slots;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < channels; i++) {
            double *tail = c->state_out + head * c->head_floats + i;
            const double *weight = oracle_input(c, 1, 0, head) + i * taps;
            for (int64_t t = 0; t < c->tokens; t++) {
                const double value = oracle_input(c, 0, t, head)[i];
                double y = (c->input[2] ? oracle_input(c, 2, 0, head)[i] : 0) + weight[taps - 1] * value;
                for (int64_t k = 0; k < taps - 1; k++) y += weight[k] * tail[k * channels];
                for (int64_t k = 0; k < taps - 2; k++) tail[k * channels] = tail[(k + 1) * channels];
                tail[(taps - 2) * channels] = value;
                oracle_output(c, t, head)[i] = c->settings->option[0] != 0 ? silu(y) : y;
            }
        }
}
static void vary_convolution(linnet_mixer_settings *s, int variant) {
    if (variant == 1) s->slots = 2;
    if (variant == 2) s->slots = 8, s->value_size = 140;
    s->option[0] = variant == 1;
}

/* ---- linear state spaces ---- */

static double complex pair(const double *x, int64_t i, int64_t n) {
    return x[i] + I * x[n + i];
}

static double complex multiplier(const oracle_call *c, double step, double complex a) {
    return c->settings->option[0] != 0 ? (1 + step * a / 2) / (1 - step * a / 2) : cexp(step * a);
}

/* One channel at one token; `first` is the input `step`. */
static double s4d_step(const oracle_call *c, int first, int64_t head, int64_t channel, double value, double *g) {
    const int64_t states = c->settings->slots;
    const double step = oracle_input(c, first, 0, head)[channel];
    const double *rate = oracle_input(c, first + 1, 0, head) + channel * states,
                 *frequency = oracle_input(c, first + 2, 0, head) + channel * states,
                 *write = c->input[first + 3] ? oracle_input(c, first + 3, 0, head) + channel * 2 * states : NULL,
                 *read = oracle_input(c, first + 4, 0, head) + channel * 2 * states;
    double y = c->input[first + 5] ? oracle_input(c, first + 5, 0, head)[channel] * value : 0;
    for (int64_t n = 0; n < states; n++) {
        const double complex a = rate[n] + I * frequency[n], by = multiplier(c, step, a);
        const double complex next = by * pair(g, n, states) + value, in = write ? pair(write, n, states) : 1;
        g[n] = creal(next);
        g[states + n] = cimag(next);
        y += 2 * creal(pair(read, n, states) * in * (by - 1) / a * next);
    }
    return y;
}

static void s4d(const oracle_call *c) {
    const int64_t channels = c->output_columns;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < channels; i++)
            for (int64_t t = 0; t < c->tokens; t++)
                oracle_output(c, t, head)[i] =
                    s4d_step(c, 1, head, i, oracle_input(c, 0, t, head)[i],
                             c->state_out + head * c->head_floats + i * 2 * c->settings->slots);
}

static void h3(const oracle_call *c) {
    const int64_t channels = c->output_columns, taps = c->settings->slots;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < channels; i++) {
            double *tail = c->state_out + head * c->head_floats + i,
                   *g = c->state_out + head * c->head_floats + (taps - 1) * channels + i * 2 * taps;
            const double *weight = oracle_input(c, 3, 0, head) + i * taps;
            for (int64_t t = 0; t < c->tokens; t++) {
                const double key = oracle_input(c, 1, t, head)[i];
                double shifted = weight[taps - 1] * key;
                for (int64_t k = 0; k < taps - 1; k++) shifted += weight[k] * tail[k * channels];
                for (int64_t k = 0; k < taps - 2; k++) tail[k * channels] = tail[(k + 1) * channels];
                tail[(taps - 2) * channels] = key;
                oracle_output(c, t, head)[i] = oracle_input(c, 0, t, head)[i] *
                                               s4d_step(c, 4, head, i, shifted * oracle_input(c, 2, t, head)[i], g);
            }
        }
}
static void vary_states(linnet_mixer_settings *s, int variant) {
    s->slots = variant == 1 ? 5 : variant == 2 ? 18 : 8;
    if (variant == 2) s->value_size = 140;
    s->option[0] = variant == 1;
}

static void s5(const oracle_call *c) {
    const int64_t columns = c->output_columns, states = c->settings->slots, half = states * columns;
    for (int64_t head = 0; head < c->settings->heads; head++) {
        double *h = c->state_out + head * c->head_floats;
        const double *write = oracle_input(c, 4, 0, head), *read = oracle_input(c, 5, 0, head);
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *value = oracle_input(c, 0, t, head);
            double *y = oracle_output(c, t, head);
            for (int64_t v = 0; v < columns; v++) y[v] = c->input[6] ? oracle_input(c, 6, 0, head)[v] * value[v] : 0;
            for (int64_t n = 0; n < states; n++) {
                const double complex a = oracle_input(c, 2, 0, head)[n] + I * oracle_input(c, 3, 0, head)[n];
                const double complex by = cexp(oracle_input(c, 1, 0, head)[n] * a);
                double complex drive = 0;
                for (int64_t v = 0; v < columns; v++) drive += pair(write, v * states + n, half) * value[v];
                const double complex next = by * pair(h, n, states) + (by - 1) / a * drive;
                h[n] = creal(next);
                h[states + n] = cimag(next);
                for (int64_t v = 0; v < columns; v++) y[v] += 2 * creal(pair(read, n * columns + v, half) * next);
            }
        }
    }
}
static void vary_s5(linnet_mixer_settings *s, int variant) {
    s->slots = variant == 1 ? 5 : 18;
}

/* x [n] of (1 - weight step A) x = right; Gauss without exchanges: the matrices of these tests are nearly diagonal. */
static void implicit(int64_t n, double weight_step, const double *a, double *x) {
    double m[32 * 32];
    for (int64_t i = 0; i < n * n; i++) m[i] = (i % (n + 1) == 0) - weight_step * a[i];
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = k + 1; i < n; i++) {
            const double factor = m[i * n + k] / m[k * n + k];
            for (int64_t j = k; j < n; j++) m[i * n + j] -= factor * m[k * n + j];
            x[i] -= factor * x[k];
        }
    for (int64_t i = n - 1; i >= 0; i--) {
        for (int64_t j = i + 1; j < n; j++) x[i] -= m[i * n + j] * x[j];
        x[i] /= m[i * n + i];
    }
}

static void lssl(const oracle_call *c) {
    const int64_t columns = c->output_columns, n = c->settings->slots;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t v = 0; v < columns; v++) {
            double *h = c->state_out + head * c->head_floats + v * n, next[32];
            const double step = oracle_input(c, 1, 0, head)[0], w = c->settings->option[0],
                         *a = oracle_input(c, 2, 0, head), *write = oracle_input(c, 3, 0, head),
                         *read = oracle_input(c, 4, 0, head) + v * n;
            for (int64_t t = 0; t < c->tokens; t++) {
                const double value = oracle_input(c, 0, t, head)[v];
                double y = c->input[5] ? oracle_input(c, 5, 0, head)[v] * value : 0;
                for (int64_t i = 0; i < n; i++) {
                    next[i] = h[i] + step * write[i] * value;
                    for (int64_t j = 0; j < n; j++) next[i] += (1 - w) * step * a[i * n + j] * h[j];
                }
                implicit(n, w * step, a, next);
                for (int64_t i = 0; i < n; i++) y += read[i] * (h[i] = next[i]);
                oracle_output(c, t, head)[v] = y;
            }
        }
}
static void vary_lssl(linnet_mixer_settings *s, int variant) {
    s->slots = variant == 1 ? 5 : variant == 2 ? 20 : 16;
    if (variant == 1) s->option[0] = 0;
    if (variant == 2) s->option[0] = 1;
}
static bool fill_lssl(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    if (strcmp(input, "matrix") != 0) return false;
    for (int64_t i = 0; i < count; i++)
        if (i % (s->slots * s->slots) % (s->slots + 1) == 0) values[i] -= 1;
    return true;
}

const mixer_oracle oracle_scan[] = {
    {.name = "hgrn", .run = hgrn},
    {.name = "selective_scan", .run = selective_scan, .variants = 2, .vary = vary_selective},
    {.name = "rg_lru", .run = rg_lru, .variants = 1, .vary = vary_first},
    {.name = "min_gru", .run = min_gru, .variants = 1, .vary = vary_first},
    {.name = "selective_scan_complex", .run = selective_scan_complex, .variants = 2, .vary = vary_selective},
    {.name = "short_convolution", .run = short_convolution, .variants = 2, .vary = vary_convolution},
    {.name = "s4d", .run = s4d, .variants = 2, .vary = vary_states},
    {.name = "h3", .run = h3, .variants = 2, .vary = vary_states},
    {.name = "s5", .run = s5, .variants = 1, .vary = vary_s5},
    {.name = "lssl", .run = lssl, .variants = 2, .vary = vary_lssl, .fill = fill_lssl},
    {0}};
