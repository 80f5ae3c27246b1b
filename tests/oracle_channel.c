/* Naive recurrences of the rows of src/mixer/rows_channel.c. A trap of peers: the decay is a logarithm here, at most 0;
 * elsewhere it is -e^x of what a model stores, or that x. */
#include <math.h>
#include <string.h>

#include "mixer_check.h"

/* ---- RWKV-4: state (weighted sum, weight, exponent), a weight of 0 being a beginning ---- */

static void rwkv4(const oracle_call *c) {
    const int64_t V = c->settings->value_size;
    for (int64_t h = 0; h < c->settings->heads; h++)
        for (int64_t j = 0; j < V; j++) {
            double *state = c->state_out + h * c->head_floats + j, a = state[0], b = state[V], e = state[2 * V];
            const double w = oracle_input(c, 2, 0, h)[j], u = oracle_input(c, 3, 0, h)[j];
            for (int64_t t = 0; t < c->tokens; t++) {
                const double k = oracle_input(c, 0, t, h)[j], v = oracle_input(c, 1, t, h)[j];
                if (b == 0) e = -INFINITY;
                const double most = fmax(u + k, e), old = exp(e - most), new = exp(u + k - most);
                oracle_output(c, t, h)[j] = (old * a + new *v) / (old * b + new);
                const double next = fmax(w + e, k), keep = exp(w + e - next), write = exp(k - next);
                a = keep * a + write * v;
                b = keep * b + write;
                e = next;
            }
            state[0] = a;
            state[V] = b;
            state[2 * V] = e;
        }
}

static bool fill_rwkv4(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    if (strcmp(input, "state") != 0) return false;
    for (int64_t i = 0; i < count; i++)
        if (i / s->value_size % 3 == 1) values[i] = 1 + fabs(values[i]);
    return true;
}

/* Each token rounds the sums once more, and the maximum, which is in their exponent. */
const mixer_oracle oracle_channel[] = {
    {.name = "rwkv4", .run = rwkv4, .forward = 1e-5, .gradient = 5e-5, .fill = fill_rwkv4}, {0}};
