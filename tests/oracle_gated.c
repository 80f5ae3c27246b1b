/* Naive recurrences of the rows of src/mixer/rows_gated*.c: gates, routes and levels over an outer product.
 *
 * Traps of peers that these formulas leave out: RWKV-6 reads the state before the token (an exclusive sum of decays,
 * where others went to NaN); RWKV-4 takes the logarithm of the decay, not what its exponential is; mLSTM begins with
 * m = 0, which matters through its epsilon alone; ABC's sum of slots runs over time, not heads. */
#include <math.h>

#include "mixer_check.h"

/* ---- RWKV-6 ---- */

static void rwkv6(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size;
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *S = c->state_out + h * c->head_floats;
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *q = oracle_input(c, 0, t, h), *k = oracle_input(c, 1, t, h), *v = oracle_input(c, 2, t, h),
                         *w = oracle_input(c, 3, t, h), *u = oracle_input(c, 4, 0, h);
            double *o = oracle_output(c, t, h);
            for (int64_t j = 0; j < V; j++) {
                double sum = 0;
                for (int64_t i = 0; i < K; i++) sum += q[i] * (S[i * V + j] + u[i] * k[i] * v[j]);
                o[j] = (double)c->settings->scale * sum;
                for (int64_t i = 0; i < K; i++) S[i * V + j] = exp(w[i]) * S[i * V + j] + k[i] * v[j];
            }
        }
    }
}

/* ---- gates of columns ---- */

static void gla_value(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size;
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *S = c->state_out + h * c->head_floats;
        for (int64_t t = 0; t < c->tokens; t++)
            for (int64_t j = 0; j < V; j++) {
                double sum = 0;
                for (int64_t i = 0; i < K; i++) {
                    S[i * V + j] = exp(oracle_input(c, 3, t, h)[j]) * S[i * V + j] +
                                   oracle_input(c, 1, t, h)[i] * oracle_input(c, 2, t, h)[j];
                    sum += oracle_input(c, 0, t, h)[i] * S[i * V + j];
                }
                oracle_output(c, t, h)[j] = (double)c->settings->scale * sum;
            }
    }
}

/* ---- mLSTM ---- */

static void mlstm(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size;
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *C = c->state_out + h * c->head_floats, *n = C + K * V, *m = n + K;
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *q = oracle_input(c, 0, t, h), *k = oracle_input(c, 1, t, h), *v = oracle_input(c, 2, t, h),
                         i = *oracle_input(c, 3, t, h), f = *oracle_input(c, 4, t, h);
            const double next = fmax(f + *m, i), keep = exp(f + *m - next), write = exp(i - next);
            double *o = oracle_output(c, t, h), dot = 0;
            for (int64_t a = 0; a < K; a++) {
                n[a] = keep * n[a] + write * k[a];
                dot += (double)c->settings->scale * q[a] * n[a];
            }
            for (int64_t j = 0; j < V; j++) {
                double sum = 0;
                for (int64_t a = 0; a < K; a++) {
                    C[a * V + j] = keep * C[a * V + j] + write * k[a] * v[j];
                    sum += (double)c->settings->scale * q[a] * C[a * V + j];
                }
                o[j] = sum / (fmax(fabs(dot), exp(-next)) + 1e-6);
            }
            *m = next;
        }
    }
}

static void mlstm_sigmoid(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size;
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *C = c->state_out + h * c->head_floats, *n = C + K * V;
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *q = oracle_input(c, 0, t, h), *k = oracle_input(c, 1, t, h), *v = oracle_input(c, 2, t, h);
            const double write = 1 / (1 + exp(-*oracle_input(c, 3, t, h))), keep = exp(*oracle_input(c, 4, t, h));
            double *o = oracle_output(c, t, h), dot = 0;
            for (int64_t a = 0; a < K && c->settings->normalise; a++) {
                n[a] = keep * n[a] + write * k[a];
                dot += (double)c->settings->scale * q[a] * n[a];
            }
            for (int64_t j = 0; j < V; j++) {
                double sum = 0;
                for (int64_t a = 0; a < K; a++) {
                    C[a * V + j] = keep * C[a * V + j] + write * k[a] * v[j];
                    sum += (double)c->settings->scale * q[a] * C[a * V + j];
                }
                o[j] = c->settings->normalise ? sum / fmax(fabs(dot), 1) : sum;
            }
        }
    }
}

static void vary_normalise(linnet_mixer_settings *s, int variant) {
    s->normalise = variant == 1;
}

const mixer_oracle oracle_gated[] = {
    {.name = "rwkv6", .run = rwkv6},
    /* gates of -88: a channel's gradient is what is left of sums that cancel */
    {.name = "gla_value", .run = gla_value, .gradient = 1e-4},
    /* the divisor is a sum of both signs: where it cancels, digits are lost */
    {.name = "mlstm", .run = mlstm, .forward = 1e-5, .gradient = 1e-4, .bf16 = 2e-2},
    {.name = "mlstm_sigmoid", .run = mlstm_sigmoid, .variants = 1, .vary = vary_normalise},
    {0},
};
