/* Naive recurrences of the rows of src/mixer/rows_scan.c. */
#include <complex.h>
#include <math.h>

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

const mixer_oracle oracle_scan[] = {
    {.name = "hgrn", .run = hgrn},
    {.name = "selective_scan", .run = selective_scan, .variants = 2, .vary = vary_selective},
    {.name = "rg_lru", .run = rg_lru, .variants = 1, .vary = vary_first},
    {.name = "min_gru", .run = min_gru, .variants = 1, .vary = vary_first},
    {.name = "selective_scan_complex", .run = selective_scan_complex, .variants = 2, .vary = vary_selective},
    {.name = "short_convolution", .run = short_convolution, .variants = 2, .vary = vary_convolution},
    {0}};
