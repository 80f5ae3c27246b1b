/* Naive forms of the rows of src/mixer/rows_flow.c: weights between all pairs, sums by loops over the past. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mixer_check.h"

static double *scratch(int64_t count) {
    double *values = calloc((size_t)count + 1, sizeof *values);
    if (!values) abort();
    return values;
}

static double elu(double x) {
    return x > 0 ? x + 1 : exp(x);
}

static void mala(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size;
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *S = c->state_out + h * c->head_floats, *z = S + K * V, *values = z + K, *tokens = values + V;
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *q = oracle_input(c, 0, t, h), *k = oracle_input(c, 1, t, h), *v = oracle_input(c, 2, t, h);
            double *o = oracle_output(c, t, h), s = 0;
            *tokens += 1;
            for (int64_t i = 0; i < K; i++) {
                z[i] += elu(k[i]);
                s += (double)c->settings->scale * elu(q[i]) * z[i];
            }
            for (int64_t j = 0; j < V; j++) {
                double sum = 0;
                values[j] += v[j];
                for (int64_t i = 0; i < K; i++) {
                    S[i * V + j] += elu(k[i]) * v[j];
                    sum += (double)c->settings->scale * elu(q[i]) * S[i * V + j];
                }
                o[j] = (1 + 1 / (s + 1e-6)) * sum - s / *tokens * values[j];
            }
        }
    }
}

static bool fill_mala(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    if (strcmp(input, "state") != 0) return false;
    const int64_t K = s->key_size, V = s->value_size, head = K * V + K + V + 1;
    for (int64_t i = 0; i < count; i++)
        if (i % head >= K * V && i % head < K * V + K)
            values[i] = 3 + fabs(values[i]);
        else if (i % head == head - 1)
            values[i] = 5;
    return true;
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static void flow(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size;
    const double e = 1e-6;
    double *q = scratch(K), *k = scratch(K);
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *S = c->state_out + h * c->head_floats, *A = S + K * V, *B = A + K, *C = B + K, *D = C + K,
               *total = D + K, *tokens = total + 1;
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *v = oracle_input(c, 2, t, h);
            double *o = oracle_output(c, t, h), in = 0, out = 0, sink = 0, source = 0;
            *tokens += 1;
            for (int64_t i = 0; i < K; i++) {
                q[i] = sigmoid(oracle_input(c, 0, t, h)[i]);
                k[i] = sigmoid(oracle_input(c, 1, t, h)[i]);
                A[i] += k[i];
                B[i] += q[i];
                in += (q[i] + e) * (A[i] + e);
                out += (k[i] + e) * (B[i] + e);
            }
            for (int64_t i = 0; i < K; i++) {
                C[i] += k[i] * *tokens / out;
                D[i] += q[i] * *tokens / in;
                sink += (q[i] + e) * (C[i] + e) / *tokens;
                source += (k[i] + e) * (D[i] + e) / *tokens;
            }
            const double weight = exp(fmin(fmax(source, -10), 10));
            *total += weight;
            for (int64_t j = 0; j < V; j++) {
                double sum = 0;
                for (int64_t i = 0; i < K; i++) {
                    S[i * V + j] += k[i] * v[j] * weight / *total * *tokens;
                    sum += q[i] / in * S[i * V + j];
                }
                o[j] = sigmoid(sink) * sum;
            }
        }
    }
    free(q);
    free(k);
}

static bool fill_flow(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    if (strcmp(input, "state") != 0) return false;
    const int64_t K = s->key_size, state = K * s->value_size, head = state + 4 * K + 2;
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = i % head;
        if (at == head - 1) values[i] = 6;  /* tokens */
        if (at == head - 2) values[i] = 12; /* sum of e^c */
        if (at >= state && at < head - 2) values[i] = 3 + values[i] / ((at - state) / K < 2 ? 1 : 10);
        if (at >= state + 2 * K && at < head - 2) values[i] *= 2.0 / (double)K; /* sums of flows, which are about 1 */
    }
    return true;
}

const mixer_oracle oracle_flow[] = {
    /* weights of both signs: what is left of sums that cancel */
    {.name = "mala", .run = mala, .forward = 1e-5, .gradient = 1e-4, .fill = fill_mala},
    {.name = "flowformer_causal", .run = flow, .fill = fill_flow},
    {0},
};
