/* Naive recurrences of the rows of src/mixer/rows_routed.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mixer_check.h"

static double *scratch(int64_t count) {
    double *values = calloc((size_t)count + 1, sizeof *values);
    if (!values) abort();
    return values;
}

/* ---- GSA and ABC: slots ---- */

/* Reads and writes both memories of one token: keep [M], write [M]. */
static void slots_step(const oracle_call *c, int64_t t, int64_t h, double *hk, double *hv, const double *keep,
                       const double *write) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, M = c->settings->slots;
    const double *q = oracle_input(c, 0, t, h), *k = oracle_input(c, 1, t, h), *v = oracle_input(c, 2, t, h);
    double *o = oracle_output(c, t, h), *p = scratch(M), most = -INFINITY, sum = 0;
    for (int64_t m = 0; m < M; m++) {
        for (int64_t i = 0; i < K; i++) {
            hk[i * M + m] = keep[m] * hk[i * M + m] + write[m] * k[i];
            p[m] += (double)c->settings->scale * q[i] * hk[i * M + m];
        }
        most = fmax(most, p[m]);
    }
    for (int64_t m = 0; m < M; m++) sum += p[m] = exp(p[m] - most);
    for (int64_t j = 0; j < V; j++) {
        o[j] = 0;
        for (int64_t m = 0; m < M; m++) {
            hv[m * V + j] = keep[m] * hv[m * V + j] + write[m] * v[j];
            o[j] += p[m] / sum * hv[m * V + j];
        }
    }
    free(p);
}

static void gsa(const oracle_call *c) {
    const int64_t K = c->settings->key_size, M = c->settings->slots;
    double *keep = scratch(M);
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *hk = c->state_out + h * c->head_floats, *hv = hk + M * K;
        for (int64_t t = 0; t < c->tokens; t++) {
            for (int64_t m = 0; m < M; m++) keep[m] = exp(oracle_input(c, 4, t, h)[m]);
            slots_step(c, t, h, hk, hv, keep, oracle_input(c, 3, t, h));
        }
    }
    free(keep);
}

/* Memories are averages with weights e^slot over all tokens so far; state: them, the logarithm of the sum of weights,
 * whether there is a sum. */
static void abc(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, M = c->settings->slots;
    double *keep = scratch(M), *write = scratch(M);
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *hk = c->state_out + h * c->head_floats, *hv = hk + M * K, *z = hv + M * V;
        for (int64_t t = 0; t < c->tokens; t++) {
            for (int64_t m = 0; m < M; m++) {
                const double s = oracle_input(c, 3, t, h)[m],
                             next = z[M] > 0 ? fmax(s, z[m]) + log1p(exp(-fabs(s - z[m]))) : s;
                keep[m] = z[M] > 0 ? exp(z[m] - next) : 0;
                write[m] = exp(s - next);
                z[m] = next;
            }
            z[M] = 1;
            slots_step(c, t, h, hk, hv, keep, write);
        }
    }
    free(keep);
    free(write);
}

static bool fill_abc(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    if (strcmp(input, "state") != 0) return false;
    const int64_t M = s->slots, head = M * (s->key_size + s->value_size) + M + 1;
    for (int64_t i = head - 1; i < count; i += head) values[i] = 1;
    return true;
}

static void vary_slots(linnet_mixer_settings *s, int variant) {
    s->slots = variant == 1 ? 12 : 16;
}

const mixer_oracle oracle_routed[] = {
    /* a channel's gate has what is left of sums over its time, which cancel where gates are -88 */
    {.name = "gsa", .run = gsa, .gradient = 1e-4, .variants = 1, .vary = vary_slots},
    {.name = "abc", .run = abc, .variants = 1, .vary = vary_slots, .fill = fill_abc},
    {0},
};
