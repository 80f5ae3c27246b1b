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

/* ---- prefix linear attention: as sums over pairs; the state is what the features are summed in ---- */

static double prefix_weight(const oracle_call *c, const double *q, const double *k) {
    double a = 0, elu = 0;
    for (int64_t i = 0; i < c->settings->key_size; i++) {
        a += (double)c->settings->scale * q[i] * k[i];
        elu += (double)c->settings->scale * (q[i] > 0 ? q[i] + 1 : exp(q[i])) * (k[i] > 0 ? k[i] + 1 : exp(k[i]));
    }
    return c->settings->option[1] != 0 ? 1 + a + a * a / 2 : elu;
}

static void prefix(const oracle_call *c) {
    const int64_t V = c->settings->value_size;
    const int64_t most = c->settings->option[0] < (double)c->tokens ? (int64_t)c->settings->option[0] : c->tokens;
    for (int64_t h = 0; h < c->settings->heads; h++)
        for (int64_t t = 0; t < c->tokens; t++) {
            double *o = oracle_output(c, t, h), sum = 1e-6;
            for (int64_t j = 0; j < V; j++) o[j] = 0;
            for (int64_t past = 0; past < t + 1 + most; past++) {
                const bool own = past <= t;
                const int64_t at = own ? past : past - t - 1;
                const double weight = prefix_weight(c, oracle_input(c, 0, t, h), oracle_input(c, own ? 1 : 3, at, h));
                sum += weight;
                for (int64_t j = 0; j < V; j++) o[j] += weight * oracle_input(c, own ? 2 : 4, at, h)[j];
            }
            for (int64_t j = 0; c->settings->normalise && j < V; j++) o[j] /= sum;
        }
}

/* Only a text that is given at once can have a prefix: variant 1, which is split, has none. */
static void vary_prefix(linnet_mixer_settings *s, int variant) {
    if (s->key_size > 32) s->key_size = 16;
    s->option[0] = variant == 1 ? 0 : variant == 2 ? 700 : 40;
    s->option[1] = variant == 2;
    s->scale = variant == 2 ? 0.2F : 1;
    s->normalise = variant != 3;
}

/* ---- log-linear attention ---- */

/* The bucket of i that has j, from the definition; -1: it has none. */
static int64_t bucket(int64_t i, int64_t j, int64_t levels) {
    if (i == j) return 0;
    for (int64_t l = 1; l < levels; l++) {
        const int64_t half = (int64_t)1 << (l - 1), end = i - i % half;
        if (i / half % 2 == 1 && j >= end - half && j < end) return l;
    }
    return -1;
}

/* A level's state, and apart from it what it still has of the state before: both end where its block does. */
static void level_step(const oracle_call *c, int64_t h, int64_t t, int64_t at, int64_t l, double *S, double *old) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, in = at % ((int64_t)1 << l);
    const double keep = in ? exp(*oracle_input(c, 3, t, h)) : 0;
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < V; j++) {
            old[i * V + j] *= keep;
            S[i * V + j] *= keep;
            if (in < (int64_t)1 << (l - 1))
                S[i * V + j] += oracle_input(c, 1, t, h)[i] * oracle_input(c, 2, t, h)[j];
            else
                oracle_output(c, t, h)[j] += (double)c->settings->scale * oracle_input(c, 4, t, h)[l] *
                                             oracle_input(c, 0, t, h)[i] * old[i * V + j];
        }
}

static void log_linear(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, L = c->settings->slots;
    double *old = scratch((L - 1) * K * V);
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *S = c->state_out + h * c->head_floats, *position = S + (L - 1) * K * V;
        const int64_t begin = llrint(*position);
        memcpy(old, S, (size_t)((L - 1) * K * V) * sizeof *old);
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *q = oracle_input(c, 0, t, h), *level = oracle_input(c, 4, t, h);
            double *o = oracle_output(c, t, h), decay = 1;
            for (int64_t j = 0; j < V; j++) o[j] = 0;
            for (int64_t past = t; past >= 0; past--) {
                const int64_t l = bucket(begin + t, begin + past, L);
                double a = 0;
                for (int64_t i = 0; i < K; i++) a += (double)c->settings->scale * q[i] * oracle_input(c, 1, past, h)[i];
                for (int64_t j = 0; j < V && l >= 0; j++) o[j] += level[l] * a * decay * oracle_input(c, 2, past, h)[j];
                decay *= exp(*oracle_input(c, 3, past, h));
            }
            for (int64_t l = 1; l < L; l++)
                level_step(c, h, t, begin + t, l, S + (l - 1) * K * V, old + (l - 1) * K * V);
        }
        *position = (double)((begin + c->tokens) % ((int64_t)1 << (L - 1)));
    }
    free(old);
}

static bool fill_levels(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    if (strcmp(input, "state") != 0) return false;
    const int64_t head = (s->slots - 1) * s->key_size * s->value_size + 1;
    for (int64_t i = head - 1; i < count; i += head) values[i] = 3;
    return true;
}

static void vary_levels(linnet_mixer_settings *s, int variant) {
    s->slots = variant ? 9 : 5;
}

/* ---- memories that a router chooses ---- */

/* Weights of one token; -1: not chosen. */
static void choose(const oracle_call *c, int64_t t, bool all, double *weights) {
    const int64_t M = c->settings->slots, first = (int64_t)c->settings->option[1];
    const double *logits = c->input[4] + t * M;
    double sum = 0;
    for (int64_t m = first; m < M; m++) {
        int64_t above = 0;
        for (int64_t other = first; other < M; other++)
            above += logits[other] > logits[m] || (logits[other] == logits[m] && other < m);
        weights[m] = above < (int64_t)c->settings->option[0] ? exp(logits[m]) : -1;
        sum += all || weights[m] > 0 ? exp(logits[m]) : 0;
    }
    for (int64_t m = first; m < M; m++)
        if (weights[m] > 0) weights[m] /= sum;
    if (first) weights[0] = 1;
}

/* A key as softmax over its largest columns. */
static void sharpen(const oracle_call *c, const double *k, double *to) {
    const int64_t K = c->settings->key_size;
    const double rows = c->settings->option[2];
    double sum = 0;
    for (int64_t i = 0; i < K; i++) {
        int64_t above = 0;
        for (int64_t o = 0; o < K; o++) above += k[o] > k[i];
        to[i] = rows <= 0 || (double)above < rows ? exp(k[i]) : 0;
        sum += to[i];
    }
    for (int64_t i = 0; i < K; i++) to[i] = rows < 0 ? k[i] : to[i] / sum;
}

static void memories(const oracle_call *c, bool expands) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, M = c->settings->slots;
    double *weights = scratch(M), *key = scratch(K);
    for (int64_t h = 0; h < c->settings->heads; h++)
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *q = oracle_input(c, 0, t, h), *g = oracle_input(c, 3, t, h);
            double *o = oracle_output(c, t, h);
            choose(c, t, expands, weights);
            for (int64_t j = 0; j < V; j++) o[j] = 0;
            for (int64_t m = 0; m < M; m++) {
                double *S = c->state_out + h * c->head_floats + m * K * V;
                const double *k = oracle_input(c, 1, t, h) + (expands ? 0 : m * K),
                             *v = oracle_input(c, 2, t, h) + (expands ? 0 : m * V);
                if (weights[m] < 0) continue;
                if (expands) sharpen(c, k, key);
                for (int64_t i = 0; i < K; i++)
                    for (int64_t j = 0; j < V; j++) {
                        S[i * V + j] =
                            exp(g[expands ? i : 0]) * S[i * V + j] + (expands ? weights[m] * key[i] : k[i]) * v[j];
                        o[j] += (double)c->settings->scale * weights[m] * q[i] * S[i * V + j];
                    }
            }
        }
    free(weights);
    free(key);
}
static void mom(const oracle_call *c) {
    memories(c, false);
}
static void sparse_state(const oracle_call *c) {
    memories(c, true);
}
static void vary_memories(linnet_mixer_settings *s, int variant) {
    s->slots = 4 + variant;
    s->option[0] = 1 + variant;
    s->option[1] = variant != 1;
    if (variant == 2) s->option[2] = 5;
}

/* ---- whole sequences: as weights between all pairs ---- */

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static void flowformer(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, n = c->tokens;
    const double e = 1e-6;
    double *in = scratch(n), *out = scratch(n), *into = scratch(n), *from = scratch(n);
    double *a = scratch(K), *b = scratch(K), *d = scratch(K), *f = scratch(K);
    for (int64_t h = 0; h < c->settings->heads; h++) {
        for (int64_t i = 0; i < K; i++) {
            a[i] = b[i] = d[i] = f[i] = e;
            for (int64_t t = 0; t < n; t++) {
                a[i] += sigmoid(oracle_input(c, 1, t, h)[i]);
                b[i] += sigmoid(oracle_input(c, 0, t, h)[i]);
            }
        }
        for (int64_t t = 0; t < n; t++) {
            in[t] = out[t] = into[t] = from[t] = 0;
            for (int64_t i = 0; i < K; i++) {
                in[t] += (sigmoid(oracle_input(c, 0, t, h)[i]) + e) * a[i];
                out[t] += (sigmoid(oracle_input(c, 1, t, h)[i]) + e) * b[i];
            }
            for (int64_t i = 0; i < K; i++) {
                d[i] += sigmoid(oracle_input(c, 1, t, h)[i]) / out[t];
                f[i] += sigmoid(oracle_input(c, 0, t, h)[i]) / in[t];
            }
        }
        double total = 0;
        for (int64_t t = 0; t < n; t++) {
            for (int64_t i = 0; i < K; i++) {
                into[t] += (sigmoid(oracle_input(c, 0, t, h)[i]) + e) * d[i];
                from[t] += (sigmoid(oracle_input(c, 1, t, h)[i]) + e) * f[i];
            }
            total += exp(from[t]);
        }
        for (int64_t t = 0; t < n; t++) {
            double *o = oracle_output(c, t, h);
            for (int64_t j = 0; j < V; j++) o[j] = 0;
            for (int64_t s = 0; s < n; s++) {
                double weight = 0;
                for (int64_t i = 0; i < K; i++)
                    weight += sigmoid(oracle_input(c, 0, t, h)[i]) * sigmoid(oracle_input(c, 1, s, h)[i]);
                weight *= sigmoid(into[t]) / in[t] * (double)n * exp(from[s]) / total;
                for (int64_t j = 0; j < V; j++) o[j] += weight * oracle_input(c, 2, s, h)[j];
            }
        }
    }
    double *const all[] = {in, out, into, from, a, b, d, f};
    for (int i = 0; i < 8; i++) free(all[i]);
}

static double elu(double x) {
    return x > 0 ? x + 1 : exp(x);
}

static void rala(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, n = c->tokens;
    double *mean = scratch(K), *a = scratch(n);
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double total = 0;
        for (int64_t i = 0; i < K; i++) {
            mean[i] = 0;
            for (int64_t t = 0; t < n; t++) mean[i] += elu(oracle_input(c, 0, t, h)[i]) / (double)n;
        }
        for (int64_t t = 0; t < n; t++) {
            a[t] = 0;
            for (int64_t i = 0; i < K; i++)
                a[t] += (double)c->settings->scale * mean[i] * elu(oracle_input(c, 1, t, h)[i]);
            total += exp(a[t]);
        }
        for (int64_t t = 0; t < n; t++) {
            double *o = oracle_output(c, t, h), sum = 1e-6 * (double)n;
            for (int64_t j = 0; j < V; j++) o[j] = 0;
            for (int64_t s = 0; s < n; s++) {
                double weight = 0;
                for (int64_t i = 0; i < K; i++)
                    weight += elu(oracle_input(c, 0, t, h)[i]) * elu(oracle_input(c, 1, s, h)[i]);
                weight *= (double)n * exp(a[s]) / total;
                sum += weight;
                for (int64_t j = 0; j < V; j++) o[j] += weight * oracle_input(c, 2, s, h)[j];
            }
            for (int64_t j = 0; j < V; j++) o[j] *= oracle_input(c, 3, t, h)[j] / sum;
        }
    }
    free(mean);
    free(a);
}

/* out += conv of x by the taps, or of each other. */
static void depthwise(const oracle_call *c, int input, int64_t h, const double *x, double *y) {
    const int64_t V = c->settings->value_size, side = llrint(sqrt((double)c->settings->slots)), n = c->tokens;
    const int64_t width = c->settings->option[1] > 0 ? (int64_t)c->settings->option[1] : (int64_t)ceil(sqrt((double)n));
    for (int64_t t = 0; t < n; t++)
        for (int64_t s = 0; s < n; s++) {
            const int64_t dy = s / width - t / width + side / 2, dx = s % width - t % width + side / 2;
            if (dy < 0 || dy >= side || dx < 0 || dx >= side) continue;
            for (int64_t j = 0; j < V; j++)
                y[t * V + j] += oracle_input(c, input, 0, h)[(dy * side + dx) * V + j] * x[s * V + j];
        }
}

static void l2vit(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, n = c->tokens;
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *y = scratch(n * V), *inner = scratch(n * V), *outer = scratch(n * V);
        for (int64_t t = 0; t < n; t++) {
            double sum = 0;
            for (int64_t s = 0; s < n; s++) {
                double weight = 0;
                for (int64_t i = 0; i < K; i++)
                    weight += fmax(oracle_input(c, 0, t, h)[i], 0) * fmax(oracle_input(c, 1, s, h)[i], 0);
                sum += weight;
                for (int64_t j = 0; j < V; j++)
                    y[t * V + j] += (double)c->settings->scale * weight * oracle_input(c, 2, s, h)[j];
            }
            for (int64_t j = 0; j < V; j++) y[t * V + j] /= fmax(sum, c->settings->option[0]);
        }
        depthwise(c, 3, h, y, inner);
        for (int64_t i = 0; i < n * V; i++) inner[i] *= 0.5 * (1 + erf(inner[i] / sqrt(2.0)));
        depthwise(c, 4, h, inner, outer);
        for (int64_t t = 0; t < n; t++)
            for (int64_t j = 0; j < V; j++) oracle_output(c, t, h)[j] = y[t * V + j] + outer[t * V + j];
        free(y);
        free(inner);
        free(outer);
    }
}
static void vary_l2vit(linnet_mixer_settings *s, int variant) {
    s->slots = variant ? 9 : 49;
    s->option[0] = variant ? 1 : 100;
    s->option[1] = variant ? 7 : 0;
    s->scale = 1;
}

/* ---- softmax over kept tokens: a list of them, made anew for each token ---- */

static void attend_kept(const oracle_call *c, bool scout) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, N = c->settings->slots,
                  segment = (int64_t)c->settings->option[0];
    double *weights = scratch(N + 1);
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *keys = c->state_out + h * c->head_floats, *values = keys + N * K, *position = values + N * V;
        int64_t p = llrint(*position), filled = scout ? p / segment : p;
        if (filled > N) filled = N;
        for (int64_t slot = 0; slot < N; slot++) /* what is not held is nothing */
            if (slot >= filled) {
                for (int64_t i = 0; i < K; i++) keys[slot * K + i] = 0;
                for (int64_t j = 0; j < V; j++) values[slot * V + j] = 0;
            }
        for (int64_t t = 0; t < c->tokens; t++, p++) {
            const double *q = oracle_input(c, 0, t, h), *k = oracle_input(c, 1, t, h), *v = oracle_input(c, 2, t, h);
            double *o = oracle_output(c, t, h), sum = 0;
            for (int64_t n = 0; n <= filled; n++) {
                double a = 0;
                for (int64_t i = 0; i < K; i++)
                    a += (double)c->settings->scale * q[i] * (n < filled ? keys[n * K + i] : k[i]);
                sum += weights[n] = exp(a);
            }
            for (int64_t j = 0; j < V; j++) {
                o[j] = 0;
                for (int64_t n = 0; n <= filled; n++)
                    o[j] += weights[n] / sum * (n < filled ? values[n * V + j] : v[j]);
            }
            if (scout && (p + 1) % segment != 0) continue;
            const int64_t slot = scout ? p / segment % N : p % N;
            memcpy(keys + slot * K, k, (size_t)K * sizeof *k);
            memcpy(values + slot * V, v, (size_t)V * sizeof *v);
            if (filled < N) filled++;
            if (!scout && filled == N) { /* the block is over */
                memset(keys, 0, (size_t)(N * K) * sizeof *keys);
                memset(values, 0, (size_t)(N * V) * sizeof *values);
                filled = 0;
            }
        }
        *position = (double)(scout ? p : p % N);
    }
    free(weights);
}
static void diag_attention(const oracle_call *c) {
    attend_kept(c, false);
}
static void scout(const oracle_call *c) {
    attend_kept(c, true);
}
static void vary_kept(linnet_mixer_settings *s, int variant) {
    s->slots = variant ? 7 : 16;
    s->option[0] = variant ? 1 : 4;
}
static bool fill_kept(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    if (strcmp(input, "state") != 0) return false;
    const int64_t head = s->slots * (s->key_size + s->value_size) + 1;
    for (int64_t i = head - 1; i < count; i += head) values[i] = 5;
    return true;
}

const mixer_oracle oracle_routed[] = {
    /* a channel's gate has what is left of sums over its time, which cancel where gates are -88 */
    {.name = "gsa", .run = gsa, .gradient = 1e-4, .variants = 1, .vary = vary_slots},
    {.name = "abc", .run = abc, .variants = 1, .vary = vary_slots, .fill = fill_abc},
    {.name = "prefix_linear", .run = prefix, .variants = 3, .vary = vary_prefix, .opaque_state = true},
    {.name = "log_linear", .run = log_linear, .variants = 1, .vary = vary_levels, .fill = fill_levels},
    {.name = "mom", .run = mom, .variants = 2, .vary = vary_memories},
    {.name = "sparse_state", .run = sparse_state, .gradient = 1e-4, .variants = 2, .vary = vary_memories},
    {.name = "flowformer", .run = flowformer},
    {.name = "rala", .run = rala},
    {.name = "l2vit", .run = l2vit, .variants = 1, .vary = vary_l2vit},
    {.name = "diag_attention", .run = diag_attention, .variants = 1, .vary = vary_kept, .fill = fill_kept},
    {.name = "scout", .run = scout, .variants = 1, .vary = vary_kept, .fill = fill_kept},
    {0},
};
