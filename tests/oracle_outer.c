/* Naive recurrences of the rows of src/mixer/rows_outer.c. */
#include <math.h>
#include <string.h>

#include "mixer_check.h"

/* S = diag(decay) S + k v^T, o = scale S^T q of one token; S lies at *state. */
static void outer_step(const oracle_call *c, double *state, int64_t t, int64_t head, const double *q, const double *k,
                       const double *v, const double *decay, int64_t decays) {
    const int64_t keys = c->settings->key_size, values = c->settings->value_size;
    double *o = oracle_output(c, t, head);
    for (int64_t j = 0; j < values; j++) {
        double sum = 0;
        for (int64_t i = 0; i < keys; i++) {
            double *s = &state[i * values + j];
            *s = (decays ? exp(decay[decays == 1 ? 0 : i]) : 1) * *s + k[i] * v[j];
            sum += *s * q[i];
        }
        o[j] = (double)c->settings->scale * sum;
    }
}

typedef double (*head_decay)(const oracle_call *c, int64_t t, int64_t head);

static void by_head(const oracle_call *c, head_decay decay) {
    for (int64_t h = 0; h < c->settings->heads; h++)
        for (int64_t t = 0; t < c->tokens; t++) {
            const double g = decay(c, t, h);
            outer_step(c, c->state_out + h * c->head_floats, t, h, oracle_input(c, 0, t, h), oracle_input(c, 1, t, h),
                       oracle_input(c, 2, t, h), &g, 1);
        }
}

static double no_decay(const oracle_call *c, int64_t t, int64_t h) {
    (void)c;
    (void)t;
    (void)h;
    return 0;
}
static void linear_attention(const oracle_call *c) {
    const int64_t keys = c->settings->key_size, values = c->settings->value_size;
    by_head(c, no_decay);
    for (int64_t h = 0; c->settings->normalise && h < c->settings->heads; h++) {
        double *z = c->state_out + h * c->head_floats + keys * values;
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *q = oracle_input(c, 0, t, h), *k = oracle_input(c, 1, t, h);
            double sum = 0;
            for (int64_t i = 0; i < keys; i++) {
                z[i] += k[i];
                sum += q[i] * z[i];
            }
            for (int64_t j = 0; j < values; j++) oracle_output(c, t, h)[j] /= (double)c->settings->scale * sum + 1e-10;
        }
    }
}

static double retention_decay(const oracle_call *c, int64_t t, int64_t h) {
    (void)c;
    (void)t;
    return log1p(-pow(2, -5 - (double)h));
}
static void retention(const oracle_call *c) {
    by_head(c, retention_decay);
}

static double slope(const oracle_call *c, int64_t t, int64_t h) {
    (void)t;
    return -oracle_input(c, 3, 0, h)[0];
}
static void lightning(const oracle_call *c) {
    by_head(c, slope);
}

static double given_decay(const oracle_call *c, int64_t t, int64_t h) {
    return oracle_input(c, 3, t, h)[0];
}
static void simple_gla(const oracle_call *c) {
    by_head(c, given_decay);
}

static void ssd(const oracle_call *c) {
    const int64_t values = c->settings->value_size;
    for (int64_t h = 0; h < c->settings->heads; h++)
        for (int64_t t = 0; t < c->tokens; t++) {
            const double size = oracle_input(c, 3, t, h)[0], decay = size * oracle_input(c, 4, 0, h)[0];
            const double *x = oracle_input(c, 2, t, h);
            double v[128];
            for (int64_t j = 0; j < values; j++) v[j] = size * x[j];
            outer_step(c, c->state_out + h * c->head_floats, t, h, oracle_input(c, 0, t, h), oracle_input(c, 1, t, h),
                       v, &decay, 1);
            for (int64_t j = 0; c->input[5] && j < values; j++)
                oracle_output(c, t, h)[j] += oracle_input(c, 5, 0, h)[0] * x[j];
        }
}

static void gla(const oracle_call *c) {
    for (int64_t h = 0; h < c->settings->heads; h++)
        for (int64_t t = 0; t < c->tokens; t++)
            outer_step(c, c->state_out + h * c->head_floats, t, h, oracle_input(c, 0, t, h), oracle_input(c, 1, t, h),
                       oracle_input(c, 2, t, h), oracle_input(c, 3, t, h), c->settings->key_size + 1);
}

static void hgrn2(const oracle_call *c) {
    for (int64_t h = 0; h < c->settings->heads; h++)
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *g = oracle_input(c, 2, t, h);
            double k[128];
            for (int64_t i = 0; i < c->settings->key_size; i++) k[i] = 1 - exp(g[i]);
            outer_step(c, c->state_out + h * c->head_floats, t, h, oracle_input(c, 0, t, h), k,
                       oracle_input(c, 1, t, h), g, c->settings->key_size + 1);
        }
}

/* Weights whose sum may be near zero have no meaning. */
static void vary_normalise(linnet_mixer_settings *s, int variant) {
    s->normalise = variant == 1;
}
static bool positive(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    if (!s->normalise || strcmp(input, "value") == 0) return false;
    for (int64_t i = 0; i < count; i++) values[i] = fabs(values[i]);
    return true;
}

const mixer_oracle oracle_outer[] = {
    {.name = "linear_attention", .run = linear_attention, .variants = 1, .vary = vary_normalise, .fill = positive},
    {.name = "retention", .run = retention},
    {.name = "lightning_attention", .run = lightning},
    {.name = "simple_gla", .run = simple_gla},
    {.name = "ssd", .run = ssd},
    {.name = "gla", .run = gla},
    {.name = "hgrn2", .run = hgrn2},
    {0},
};
